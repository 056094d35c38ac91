"""The pictures of a run's document, by matplotlib: scores with their intervals and chance levels,
and the calibration of probabilities."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from matplotlib import rc_context
from matplotlib.figure import Figure

from alpro.pipeline.reports.results import Rows, metric_text, row_label, score_text
from alpro.stages.evaluation.statistics import calibration

# Files of an evaluation with probabilities, and what these are of.
PROBABILITIES = {"qa.parquet": "answers", "entity_crops.parquet": "entities of crops"}
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "figure.constrained_layout.use": True,
}  # legible on a phone
WIDTH = 5  # inches


@rc_context(STYLE)
def draw_scores(rows: Rows) -> Figure | None:
    """Draw scores with their intervals and chance levels.

    Returns:
        The figure; None without a score in percent: ranks have no place on its axis.
    """
    scores = [row for row in rows if row["unit"] == "%"]
    if not scores:
        return None

    figure = Figure(figsize=(WIDTH, 0.4 * len(scores) + 0.6))
    axes = figure.subplots()
    for line, row in enumerate(scores):
        axes.text(0, line - 0.25, f"{row_label(row)}, {metric_text(row)}: {score_text(row)}")
        axes.plot(row["value"], line, "C0o")
        # matplotlib draws nothing at None.
        axes.plot([row["low"], row["high"]], [line, line], "C0", lw=4, alpha=0.4)
        axes.plot([row["chance"]], [line], "k|", ms=9)

    axes.set(xlim=(-1, 101), ylim=(len(scores) - 0.5, -0.9), yticks=[])
    axes.set_xlabel("%: ● score, ━ 95 % interval, | chance")
    return figure


@rc_context(STYLE)
def draw_calibration(folders: Iterable[Path]) -> Figure | None:
    """Draw the accuracy of predictions over their probability.

    Args:
        folders: Artifacts of a run.

    Returns:
        The figure; None if no evaluation wrote probabilities.
    """
    figure = Figure(figsize=(WIDTH, 4))
    axes = figure.subplots()
    for folder in folders:
        for name, what in PROBABILITIES.items():
            if (folder / name).is_file():
                table = pq.read_table(folder / name, columns=["probability", "right"])
                bins = calibration(table["probability"].to_numpy(), table["right"].to_numpy())
                _, probabilities, accuracies = zip(*bins, strict=True)
                label = f"{what}, {table.num_rows} predictions"
                axes.plot(probabilities, accuracies, "o-", label=label)

    if not axes.lines:
        return None
    axes.axline((0, 0), slope=1, ls="--", c="gray", label="calibrated")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability", ylabel="accuracy")
    axes.legend()
    return figure
