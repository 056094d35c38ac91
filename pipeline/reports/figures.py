"""The pictures of a run's document, by matplotlib: scores with their intervals and chance levels,
and the calibration of probabilities."""

from collections.abc import Iterable

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from alpro.artifact import Artifact
from alpro.pipeline.reports.results import Rows, metric_text, row_label, score_text
from alpro.stages.evaluation.statistics import calibration

WIDTH = 6  # inches: legible on a phone


def draw_scores(rows: Rows) -> dict[str, Figure]:
    """Draw scores with their intervals and chance levels.

    Returns:
        The figure `scores.png`; empty without a score in percent: ranks have no place on its axis.
    """
    scores = [row for row in rows if row["unit"] == "%"]
    if not scores:
        return {}

    bottom = len(scores) - 0.5
    figure = Figure(figsize=(WIDTH, 0.5 * bottom + 1), layout="constrained")
    axes = figure.subplots()
    for line, row in enumerate(scores):
        axes.text(
            0,
            line - 0.25,
            f"{row_label(row)}, {metric_text(row)}: {score_text(row)}",
        )
        axes.plot(row["value"], line, "C0o")
        # matplotlib skips a point that is None.
        axes.plot([row["low"], row["high"]], [line, line], "C0", lw=4, alpha=0.4)
        axes.plot([row["chance"]], [line], "k|")

    axes.set(
        xlim=(-1, 101),
        ylim=(bottom, -0.9),
        yticks=[],
        xlabel="%: ● score, ━ 95 % interval, | chance",
    )
    return {"scores.png": figure}


def draw_calibration(artifacts: Iterable[Artifact]) -> dict[str, Figure]:
    """Draw the accuracy of predictions over their probability.

    Returns:
        The figure `calibration.png`; empty if no evaluation wrote probabilities.
    """
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots()
    for folder, _ in artifacts:
        # The evaluations that have probabilities.
        for file in (folder / "qa.parquet", folder / "entity_crops.parquet"):
            if not file.is_file():
                continue
            table = pq.read_table(file, columns=["probability", "right"])
            _, x, y = zip(*calibration(*map(np.asarray, table.columns)), strict=True)
            axes.plot(x, y, "o-", label=file.stem)

    if not axes.lines:
        return {}
    axes.axline((0, 0), slope=1, ls="--", c="gray", label="calibrated")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability", ylabel="accuracy")
    axes.legend()
    return {"calibration.png": figure}
