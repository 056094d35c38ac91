"""Tests, tables and figure of the study of a teacher that knows more, from the rows that exist.

    python experiments/knowing/outcome.py
    python experiments/knowing/outcome.py --figure docs/pictures/knowing.png

A draw counts in a comparison once it has all rows of both arms. Rows of a draw that was begun again,
from a start and teachers trained anew, are in the folder `again` beside the others: the primary
tests do not use them, and what needs other rows of that draw uses them alone.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

# Lets the program import experiments.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from alpro.errors import InputError
from alpro.files import read_json
from experiments.knowing.schedule import ARMS, DOSES, SEEDS, Row, Sizes
from experiments.paired import Difference, holm

RESULTS = Path(__file__).parent / "results"
SIZES = Sizes()
Seeds = Sequence[int]
WITH_ALL_SEEDS = ("none", "permuted", "teacher")  # the other arms have the first
# Name, score, arm, base: fixed before the rows (experiments/README.md).
PRIMARY = (
    ("content", "naming", "teacher", "permuted"),
    ("pays", "naming", "teacher", "none"),
    ("boxes", "probe_200", "teacher", "permuted"),
)
ALL_STEPS = sorted((SIZES.steps, *SIZES.other_steps))
SCORES = (
    "naming",
    "naming_vtc",
    "R1",
    "pointing",
    "probe_50",
    "probe_200",
    "head",
    "teacher",
)
BLACK, BLUE, GREEN = "#222222", "#6fa8dc", "#6aa84f"
ORANGE, RED, GREY = "#e69138", "#cc4125", "#bbbbbb"
MIXTURES = tuple(f"true {share}" for share in sorted(DOSES))
# Arms of the same draws whose difference does not depend on the one run of `none`.
CONTRASTS = (
    ("true 80", "true 20"),
    ("teacher", "true 65"),
    ("plain", "true 35"),
    ("teacher", "plain"),
)
AIM = 4.0  # points of naming over `none`
MIN_DRAWS = 2  # An interval needs two.


def common_seeds(arms: Sequence[str], steps: int) -> Seeds:
    """Return the seeds that all of some arms have with a number of steps."""
    have_all = steps == SIZES.steps and all(arm in WITH_ALL_SEEDS for arm in arms)
    return SEEDS if have_all else SEEDS[:1]


@dataclass(frozen=True)
class Rows:
    """The rows of a study by the names of their files."""

    by_name: dict[str, dict[str, Any]]
    draws: list[int]

    @classmethod
    def read(cls, folder: Path) -> "Rows":
        """Read the rows in a folder.

        Raises:
            InputError: If rows of one draw and start began with different weights.
        """
        by_name = {
            path.stem: read_json(path) for path in sorted(folder.glob("draw-*.json"))
        }
        starts: dict[tuple[int, int], str] = {}
        for name, row in by_name.items():
            start = starts.setdefault((row["draw"], row["start_steps"]), row["start"])
            if row["start"] != start:
                raise InputError(
                    f"{folder / name}.json: began with other weights than another row of draw "
                    f"{row['draw']}; compute all rows of a draw from one --out"
                )
        return cls(by_name, sorted({row["draw"] for row in by_name.values()}))

    def begun_again(self, again: "Rows") -> "Rows":
        """Replace the draws that `again` has by its rows."""
        rows = {
            name: row
            for name, row in self.by_name.items()
            if row["draw"] not in again.draws
        }
        return Rows(rows | again.by_name, sorted({*self.draws, *again.draws}))

    def score(
        self,
        draw: int,
        arm: str,
        score: str,
        steps: int = SIZES.steps,
        seeds: Seeds = (),
    ) -> float | None:
        """Return a score (%), the mean over some seeds (by default, all seeds of the arm); None if a
        row or a score is missing."""
        values = []
        for seed in seeds or common_seeds([arm], steps):
            row = Row(
                draw, arm, seed, steps=steps, start_steps=SIZES.start_steps, sizes=SIZES
            )
            scores = self.by_name.get(row.name, {}).get("scores", {})
            if score not in scores:
                return None
            values.append(scores[score][0])
        return statistics.mean(values)

    def by_draw(
        self, arm: str, score: str, steps: int = SIZES.steps, seeds: Seeds = ()
    ) -> dict[int, float]:
        """Return a score of an arm in each draw that has it."""
        scores = {
            draw: self.score(draw, arm, score, steps, seeds) for draw in self.draws
        }
        return {draw: value for draw, value in scores.items() if value is not None}

    def gains(
        self,
        arm: str,
        base: str,
        score: str,
        steps: int = SIZES.steps,
        seeds: Seeds = (),
    ) -> dict[int, float]:
        """Return the difference of two arms in each draw that has both, over some seeds.

        By default, these are the seeds that both have: one seed scores higher than another in all
        arms.
        """
        seeds = seeds or common_seeds([arm, base], steps)
        arm_scores = self.by_draw(arm, score, steps, seeds)
        base_scores = self.by_draw(base, score, steps, seeds)
        shared = [draw for draw in arm_scores if draw in base_scores]
        return {draw: arm_scores[draw] - base_scores[draw] for draw in shared}

    def difference(
        self, arm: str, base: str, score: str, steps: int = SIZES.steps
    ) -> Difference | None:
        """Pair two arms by draw; None with fewer than MIN_DRAWS."""
        gains = self.gains(arm, base, score, steps)
        return Difference(tuple(gains.values())) if len(gains) >= MIN_DRAWS else None

    def labels_right(self, arm: str) -> dict[int, float]:
        """How many labels (%) of an arm are right, in each draw."""
        rows = (
            row for row in self.by_name.values() if row["arm"] == arm and row["labels"]
        )
        return {row["draw"]: row["labels"]["right"] for row in rows}

    def cpu_seconds(self, draw: int, arm: str, steps: int) -> float | None:
        """Return the median processor time of the runs of an arm and draw that were not interrupted,
        from the usual start. Draws ran on different machines."""
        seconds = []
        for row in self.by_name.values():
            is_of_arm = (row["draw"], row["arm"], row["steps"]) == (draw, arm, steps)
            is_usual = row["start_steps"] == SIZES.start_steps
            if is_of_arm and is_usual and row["time"]["whole"]:
                seconds.append(row["time"]["cpu_seconds"])
        return statistics.median(seconds) if seconds else None

    def at_seconds(
        self, draw: int, arm: str, score: str, seconds: float
    ) -> float | None:
        """Interpolate a score of an arm over the logarithm of processor time; None outside of the
        times that were measured."""
        times = []
        scores = []
        for steps in ALL_STEPS:
            time = self.cpu_seconds(draw, arm, steps)
            value = self.score(draw, arm, score, steps, SEEDS[:1])
            if time is None or value is None:
                return None
            times.append(math.log(time))
            scores.append(value)
        if not times[0] <= math.log(seconds) <= times[-1]:
            return None
        return float(np.interp(math.log(seconds), times, scores))


def primary_lines(rows: Rows) -> list[str]:
    """Describe the three primary tests, corrected by Holm once all of them have a value."""
    gains = [rows.difference(arm, base, score) for _, score, arm, base in PRIMARY]
    p_values = [gain.p for gain in gains if gain is not None]
    complete = len(p_values) == len(PRIMARY)
    corrected = holm(p_values) if complete else []

    lines = []
    for number, ((name, score, arm, base), gain) in enumerate(
        zip(PRIMARY, gains, strict=True)
    ):
        line = f"{name:8} {score} of {arm} - {base}: "
        if gain is None:
            line += f"fewer than {MIN_DRAWS} draws"
        else:
            line += f"{gain}, power for +{AIM:.0f}: {gain.power(AIM):.2f}"
            line += f", corrected p {corrected[number]:.2g}" if complete else ""
        lines.append(line)
    return lines


def arm_lines(rows: Rows) -> list[str]:
    """List the means over draws of each arm's scores, and how many of its labels are right."""
    lines = [
        " ".join(
            [f"{'arm':22}", f"{'right':>6}", *(f"{score:>10}" for score in SCORES)]
        )
    ]
    for arm in ARMS:
        cells = [mean_text(list(rows.labels_right(arm).values()), 6)]
        cells += [
            mean_text(list(rows.by_draw(arm, score).values()), 10) for score in SCORES
        ]
        lines.append(" ".join([f"{arm:22}", *cells]))
    return lines


def gain_lines(rows: Rows) -> list[str]:
    """List what the arms of all draws gain over `none` and `permuted`, without a test."""
    lines = ["not tested: differences at equal seeds"]
    for arm, base in product(("permuted", "teacher", "true"), ("none", "permuted")):
        for score in ("naming", "naming_vtc", "R1", "probe_200"):
            gain = rows.difference(arm, base, score) if arm != base else None
            if gain:
                lines.append(f"{arm:22} - {base:9} {score:10} {gain}")
    for score in ("naming", "probe_200"):
        of_one_seed = list(
            rows.gains("teacher", "none", score, seeds=SEEDS[:1]).values()
        )
        if len(of_one_seed) >= MIN_DRAWS:
            lines.append(
                f"teacher - none at seed 0 {score:10} {Difference(tuple(of_one_seed))}"
            )
    return lines


def dose_draws(rows: Rows) -> list[int]:
    """Return the draws with mixtures of true labels; without any, the draws of `none`."""
    mixture_draws = [set(rows.gains(arm, "none", "naming")) for arm in MIXTURES]
    return sorted(set.intersection(*mixture_draws)) or list(
        rows.by_draw("none", "naming")
    )


def dose_gains(rows: Rows, arm: str, score: str) -> tuple[float, list[float]] | None:
    """How many labels (%) of an arm are right, and what it gains over `none` in each of
    `dose_draws`, all of one seed; None if a row is missing."""
    draws = dose_draws(rows)
    right = rows.labels_right(arm)
    gains = rows.gains(arm, "none", score, seeds=SEEDS[:1])
    if not draws or not all(draw in gains and draw in right for draw in draws):
        return None
    mean_right = statistics.mean(right[draw] for draw in draws)
    return mean_right, [gains[draw] for draw in draws]


def dose_lines(rows: Rows) -> list[str]:
    """List what each arm gains over `none`, and how many of its labels are right."""
    lines = [
        f"not tested: labels right, gain over none of draws {dose_draws(rows)}, seed 0"
    ]
    for arm in ARMS:
        for score in ("naming", "probe_200"):
            dose = dose_gains(rows, arm, score)
            if dose:
                right, gains = dose
                each = " ".join(f"{gain:+.1f}" for gain in gains)
                shown = Difference(tuple(gains)) if len(gains) >= MIN_DRAWS else each
                lines.append(f"{arm:22} {right:5.1f}  {score:10} {shown}")

    for (arm, base), score in product(CONTRASTS, ("naming", "probe_200")):
        gains_of_draws = rows.gains(arm, base, score, seeds=SEEDS[:1])
        gains = [
            gains_of_draws[draw] for draw in dose_draws(rows) if draw in gains_of_draws
        ]
        if len(gains) >= MIN_DRAWS:
            lines.append(
                f"{f'{arm} - {base}':22} {score:17} {Difference(tuple(gains))}"
            )
    return lines


def step_lines(rows: Rows) -> list[str]:
    """Scores and processor time after each number of steps, in the draws that have all of them."""
    step_scores = [
        rows.by_draw("none", "naming", steps, SEEDS[:1]) for steps in ALL_STEPS
    ]
    draws = sorted(set.intersection(*map(set, step_scores)))
    lines = [f"not tested: steps, of draws {draws}, seed 0; processor time in s"]
    for arm, steps in product(WITH_ALL_SEEDS, ALL_STEPS):
        cells = []
        for score in ("naming", "probe_200"):
            values = rows.by_draw(arm, score, steps, SEEDS[:1])
            each = " ".join(f"{values[draw]:.1f}" for draw in draws if draw in values)
            cells.append(f"{score} {each}")
        times = [rows.cpu_seconds(draw, arm, steps) for draw in draws]
        shown = " ".join(f"{time:.0f}" for time in times if time is not None)
        lines.append(f"{arm:10} {steps:>6}  {'  '.join(cells)}  time {shown}")

    for score, steps in product(("naming", "probe_200"), ALL_STEPS):
        gains_of_draws = rows.gains("teacher", "none", score, steps, SEEDS[:1])
        gains = [gains_of_draws[draw] for draw in draws if draw in gains_of_draws]
        if len(gains) >= MIN_DRAWS:
            lines.append(
                f"teacher - none {steps:>6}  {score:10} {Difference(tuple(gains))}"
            )
    return lines


def time_ratio_line(rows: Rows) -> str:
    """Compare the processor time of `teacher` and `none` in each draw."""
    ratios = []
    for draw in rows.draws:
        with_pem = rows.cpu_seconds(draw, "teacher", SIZES.steps)
        without = rows.cpu_seconds(draw, "none", SIZES.steps)
        if with_pem and without:
            ratios.append(with_pem / without)
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    median = statistics.median(ratios or [math.nan])
    return f"processor time of teacher over none: {each}, median {median:.2f}"


def equal_time_lines(rows: Rows) -> list[str]:
    """`teacher` minus `none` and `permuted` after equal processor time, empty outside of the times
    of the other arm."""
    draws = list(rows.by_draw("teacher", "naming", SIZES.other_steps[0]))
    heading = "".join(f"{f'draw {draw}':>9}" for draw in draws)
    lines = [f"{'naming at equal processor time, seed 0':50}{heading}"]
    for base, steps in product(("none", "permuted"), ALL_STEPS):
        teacher_scores = rows.by_draw("teacher", "naming", steps, SEEDS[:1])
        cells = []
        for draw in draws:
            seconds = rows.cpu_seconds(draw, "teacher", steps)
            at_base = (
                None
                if seconds is None
                else rows.at_seconds(draw, base, "naming", seconds)
            )
            has_both = at_base is not None and draw in teacher_scores
            cells.append(
                f"{teacher_scores[draw] - at_base:+9.1f}" if has_both else " " * 9
            )
        lines.append(
            f"{f'teacher of {steps} steps - {base} of the same time':50}{''.join(cells)}"
        )
    return lines


def mean_text(values: Sequence[float], width: int) -> str:
    return (f"{statistics.mean(values):.1f}" if values else "").rjust(width)


def draw_figure(rows: Rows, dose_rows: Rows, file: Path) -> None:
    """Three panels: gain over the share of right labels; naming of the arms; the probe of boxes.

    Args:
        dose_rows: Rows of the first panel.

    Raises:
        InputError: If no draw has the rows of `none` and of an arm.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (dose, naming, probe) = plt.subplots(1, 3, figsize=(14, 4.4))
    if not draw_dose(dose, dose_rows):
        raise InputError(
            f"{file}: no draw has rows of `none` and of another arm; compute them first"
        )
    draw_arms(naming, rows, "naming", "things named, %")
    draw_arms(probe, rows, "probe_200", "boxes named by a linear probe, %")
    for axes in (dose, naming, probe):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_dose(axes: Any, rows: Rows) -> int:
    """Draw the gain in naming of each arm over the share of its labels that are right. Return the
    number of points. All are means over the same draws: those with mixtures, if there are any."""
    series = {
        "true labels": (BLACK, ["true"]),
        "true labels of a share of the crops": (BLUE, list(MIXTURES)),
        "true labels with the teacher's errors": (GREEN, ["errors of the teacher"]),
        "labels of a teacher": (ORANGE, ["plain", "teacher"]),
        "the teacher's labels of other stills": (RED, ["permuted"]),
    }

    points = 0
    for label, (color, arms) in series.items():
        shares = []
        gains = []
        for arm in arms:
            dose = dose_gains(rows, arm, "naming")
            if dose:
                right, each = dose
                shares.append(right)
                gains.append(statistics.mean(each))
                axes.plot([right] * len(each), each, "_", color=color, ms=9)
        if gains:
            axes.plot(shares, gains, "o", color=color, ms=8, label=label)
            points += len(gains)
    if not points:
        return 0

    axes.axhline(0, color=GREY, lw=1, zorder=0)
    axes.set_xlabel("labels right, %")
    axes.set_ylabel("gain in things named, points")
    draw_count = len(dose_draws(rows))
    axes.set_title(
        f"{draw_count} draws, seed 0: each (lines), and their mean (points)", fontsize=9
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.5 * (high - low))  # leaves room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return points


def draw_arms(axes: Any, rows: Rows, score: str, title: str) -> None:
    """Draw a score of the arms with three seeds: a line for each draw, and the mean of all."""
    of_arms = [rows.by_draw(arm, score) for arm in WITH_ALL_SEEDS]
    places = range(len(of_arms))
    for draw in rows.draws:
        values = [by_draw.get(draw, math.nan) for by_draw in of_arms]
        axes.plot(places, values, "o-", color=BLUE, ms=5, lw=0.8)
    means = [statistics.mean(by_draw.values() or [math.nan]) for by_draw in of_arms]
    axes.plot(places, means, "D", color=BLACK, ms=8)
    axes.set_xticks(places, WITH_ALL_SEEDS)
    axes.set_ylabel(title)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the rows"
    )
    parser.add_argument("--figure", type=Path, help="file of the figure to draw")
    options = parser.parse_args(arguments)
    try:
        rows = Rows.read(options.results)
        again = Rows.read(options.results / "again")
        described = rows.begun_again(again)
        print(f"{len(rows.by_name)} rows of draws {rows.draws}")
        print(
            f"{len(again.by_name)} rows of draws that were begun again: {again.draws}\n"
        )

        print(
            *primary_lines(rows), "", *arm_lines(rows), "", *gain_lines(rows), sep="\n"
        )
        print("", time_ratio_line(rows), "", *dose_lines(described), sep="\n")
        print("", *step_lines(described), "", *equal_time_lines(described), sep="\n")
        if options.figure:
            draw_figure(rows, described, options.figure)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
