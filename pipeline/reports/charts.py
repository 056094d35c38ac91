"""The charts of a page as numbers in percent of their width and height, which the template draws:
scores with their intervals, differences of two runs, learning curves, and calibration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from alpro.artifact import Record
from alpro.pipeline.reports.results import (
    Rows,
    change_text,
    label_of,
    metric_text,
    score_text,
)
from alpro.stages import TRAININGS
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.score_names import PRINTED, VALIDATION_CURVES
from alpro.stages.evaluation.statistics import PairedDifference
from alpro.stages.training.metrics import read_metrics

CONTROL = "control: "
MAX_POINTS = 300  # of a curve
BINS = 10  # of the probabilities of a calibration
SIGNIFICANT = 0.05
# By file of an evaluation: what its probabilities are of.
PROBABILITIES = {"qa.parquet": "answers", "entity_crops.parquet": "entities of crops"}


@dataclass(frozen=True)
class Bar:
    """A line of a chart of scores or differences: places on the axis in percent of its width."""

    label: str
    text: str
    at: float
    low: float | None
    high: float | None
    reference: float | None  # the chance level, or no difference
    kind: str  # score, control, better, worse, same


@dataclass(frozen=True)
class Bars:
    """A chart of bars with the numbers at the ends of its axis."""

    title: str
    note: str
    ends: tuple[str, str]
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """A curve of a training: points in percent from the top left, and the numbers at its ends."""

    title: str
    points: list[tuple[float, float]]
    highest: str
    lowest: str
    steps: tuple[int, int]
    last: str


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are shares of right predictions: for each bin the mean probability, the
    share that is right, both in percent, and the radius of its dot."""

    title: str
    bins: list[tuple[float, float, float, int]]
    note: str


def score_bars(rows: Rows) -> Bars | None:
    """The scores of a run that people look at first, beside their controls and chance. None without
    a score."""
    chosen = [row for row in rows if row["name"] in PRINTED]

    # Of the other controls, those of the first score of each table: R@1 of the text, and the
    # accuracy.
    # Reversed: the first row of a table overwrites its later ones.
    leading = {row["table"]: (row["direction"], row["metric"]) for row in reversed(chosen)}
    controls = [
        row
        for row in rows
        if row["what"].startswith(CONTROL)
        and row not in chosen
        and (row["direction"], row["metric"]) == leading.get(row["table"])
    ]

    # Tables in order, and in each the models before the controls.
    order = list(leading)
    found = sorted(
        chosen + controls,
        key=lambda row: (order[::-1].index(row["table"]), row["what"].startswith(CONTROL)),
    )

    # The axis is in percent: ranks have no place on it.
    shown = [row for row in found if row["unit"] == "%" and row["value"] is not None]
    if not shown:
        return None

    bars = [
        Bar(
            label=f"{label_of(row)}, {metric_text(row)}",
            text=score_text(row),
            at=row["value"],
            low=row["low"],
            high=row["high"],
            reference=row["chance"],
            kind="control" if row["what"].startswith(CONTROL) else "score",
        )
        for row in shown
    ]

    note = "Test split. A dot is a score, its line the 95 % interval, the mark | the chance level."
    return Bars("Scores", note, ("0 %", "100 %"), bars)


def difference_bars(first: str, second: str, compared: Comparison) -> Bars | None:
    """The paired differences of two runs: of R@1 and of the accuracies, or of all scores in percent
    if there are neither. None without any."""
    scores = [(row, difference) for row, difference in compared.scores if row["unit"] == "%"]
    short = [
        (row, difference)
        for row, difference in scores
        if row["name"].rpartition("/")[2] in ("R1", "acc")
    ]
    shown = short or scores
    if not shown:
        return None

    # Fields 2 to 4 are the difference and its interval, which may be None. The axis has at least a
    # point to each side, so that equal scores have one, and 5 % of margin.
    ends = [value for _, difference in shown for value in difference[2:5] if value is not None]
    widest = max(1.0, *map(abs, ends)) * 1.05

    def place(value: float) -> float:
        # Zero is in the middle.
        return 50 + 50 * value / widest

    bars = [
        Bar(
            label=f"{label_of(row)}, {metric_text(row)}",
            text=f"{change_text(*difference[2:5])}, p\u00a0=\u00a0{difference.p:.3f}",
            at=place(difference.difference),
            low=None if difference.low is None else place(difference.low),
            high=None if difference.high is None else place(difference.high),
            reference=50.0,
            kind=kind_of(row, difference),
        )
        for row, difference in shown
    ]

    note = "Over the same test queries, with the 95 % interval. Green or red: p below 0.05."
    return Bars(f"{second} - {first}", note, (f"-{widest:.0f}", f"+{widest:.0f} points"), bars)


def kind_of(row: Mapping[str, Any], difference: PairedDifference) -> str:
    """Whether the second run is better, worse or the same by a score."""
    if difference.p >= SIGNIFICANT or not difference.difference:
        return "same"
    return "better" if (difference.difference > 0) == row["higher_is_better"] else "worse"


def learning_curves(artifacts: Iterable[tuple[Path, Record]]) -> dict[str, list[Curve]]:
    """The curves of the trainings among artifacts, by the names of their steps."""
    found: dict[str, list[Curve]] = {}
    for folder, record in artifacts:
        if record.stage in TRAININGS:
            # A training that logged one step has no curve.
            curves = list(curves_of(read_metrics(folder / "metrics.jsonl")))
            found |= {record.name: curves} if curves else {}
    return found


def curves_of(lines: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    """A curve for each loss, the sum first, and for each validation score, over the steps. A single
    point is none."""
    losses = dict.fromkeys(key for line in lines for key in line if key.startswith("train/loss"))
    # `train/loss`, the sum, has the shortest name.
    for key in [*sorted(losses, key=len), *VALIDATION_CURVES]:
        # Lines of training and of validation have different keys.
        points = [
            (line["step"], float(line[key]))
            for line in lines
            if isinstance(line.get(key), int | float)
        ]
        if len(points) > 1:
            title = VALIDATION_CURVES.get(key, key.removeprefix("train/").replace("_", " "))
            yield curve(title, points)


def curve(title: str, points: Sequence[tuple[int, float]]) -> Curve:
    """One curve, with at most MAX_POINTS of its points, the last among them."""
    every = -(-len(points) // MAX_POINTS)
    # From the end, so that the last point is always kept.
    kept = [*points[::-every]][::-1]

    steps = [step for step, _ in kept]
    # A loss that diverged is NaN or infinite, and has no place on the axis.
    values = [value for _, value in kept if np.isfinite(value)] or [0.0]
    low = min(values)
    high = max(values)
    # A constant curve has a height of zero, which would divide by zero.
    width = max(steps) - min(steps) or 1
    height = high - low or 1.0

    return Curve(
        title=title,
        points=[
            (round(100 * (step - steps[0]) / width, 2), round(100 * (high - value) / height, 2))
            for step, value in kept
            if np.isfinite(value)
        ],
        highest=f"{high:.3g}",
        lowest=f"{low:.3g}",
        steps=(steps[0], steps[-1]),
        last=f"{kept[-1][1]:.3g}",
    )


def calibrations(artifacts: Iterable[tuple[Path, Record]]) -> list[Calibration]:
    """The calibration of each kind of probability that the evaluations among artifacts wrote."""
    found = []
    for folder, _ in artifacts:
        for name, what in PROBABILITIES.items():
            file = folder / name
            if file.is_file() and {"probability", "right"} <= set(pq.read_schema(file).names):
                table = pq.read_table(file, columns=["probability", "right"])
                chart = calibration(
                    what, table["probability"].to_numpy(), table["right"].to_numpy()
                )
                found += [chart] if chart else []
    return found


def calibration(what: str, probability: np.ndarray, right: np.ndarray) -> Calibration | None:
    """probability (N,) of predictions, and whether they are right (N,). None without
    predictions."""
    if not len(probability):
        return None

    bins = []
    gap = 0.0
    # A probability of 1 belongs to the last bin.
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    for one in np.unique(number):
        inside = number == one
        mean = probability[inside].mean()
        share = right[inside].mean()
        # The expected calibration error: gaps weighted by their shares of the predictions.
        gap += inside.mean() * abs(mean - share)
        # The root, because the eye compares areas; a bin of few predictions stays visible.
        radius = 1.5 + 5 * np.sqrt(inside.mean())
        bins.append((100 * mean, 100 * share, radius, int(inside.sum())))

    note = (
        f"{len(probability)} predictions: mean probability {probability.mean():.0%}, right "
        f"{right.mean():.0%}; "
        f"expected calibration error {gap:.1%}."
    )
    return Calibration(what, bins, note)
