"""The figures of a pipeline and of a study: curves of training, scores with their intervals."""

import io
from fnmatch import fnmatchcase
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alpro.stages.evaluation.metrics import is_rank

# The panels of the curves, by patterns of metrics: a new loss or accuracy needs no change here.
GROUPS = {
    "losses": ("train/loss", "train/loss_*"),
    "accuracies": ("train/*_recall", "train/*_accuracy", "train/*_kept", "train/*_named"),
    "optimization": ("train/lr", "train/grad_norm", "train/temperature"),
    "validation": ("validation/*",),
}
Lines = list[dict[str, Any]]  # of metrics.jsonl


def panels_of(lines: Lines) -> dict[str, list[str]]:
    """The metrics of each panel; empty if the lines have none."""
    return {name: keys for name, patterns in GROUPS.items() if (keys := _keys(lines, patterns))}


def metric_curves(lines: Lines, title: str) -> Figure | None:
    """Curves of a metrics file, a panel for each kind of metric; None where it has none."""
    panels = panels_of(lines)
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (name, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw_panel(axes, name, keys, lines)
        axes.set_title(f"{title}: {name}", fontsize=9)
    return figure


def panel_pictures(lines: Lines) -> dict[str, str]:
    """Each panel of a metrics file as an SVG file."""
    pictures = {}
    for name, keys in panels_of(lines).items():
        figure = Figure(figsize=(4.2, 3.2))
        # A fixed place: measuring texts for the layout would take as long as all the rest.
        draw_panel(figure.add_axes((0.11, 0.13, 0.87, 0.85)), name, keys, lines)
        buffer = io.StringIO()
        with rc_context({"svg.fonttype": "none"}):
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pictures[name] = buffer.getvalue()
    return pictures


def draw_panel(axes: Axes, name: str, keys: list[str], lines: Lines) -> None:
    """Draws the curves of metrics over the steps."""
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if key in line]
        scaled = 1.0
        if name == "optimization" and max(abs(v) for _, v in points) > 0:
            scaled = max(abs(v) for _, v in points)
        axes.plot(
            [s for s, _ in points],
            [v / scaled for _, v in points],
            label=key.split("/", 1)[1] + (f" (of {scaled:.2g})" if name == "optimization" else ""),
            marker="." if len(points) < 12 else "",
            linewidth=1.3,
        )
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6.5, frameon=False)
    axes.grid(alpha=0.25)


def _keys(lines: Lines, patterns: tuple[str, ...]) -> list[str]:
    """The metrics that match, in the order of the patterns, then of the lines."""
    keys = dict.fromkeys(key for line in lines for key in line)
    # Ranks and the other direction would hide the rest.
    seen = [key for key in keys if not is_rank(key) and "v2t" not in key.split("/")]
    return list(dict.fromkeys(key for pattern in patterns for key in seen if fnmatchcase(key, pattern)))


def study_figure(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each score of a study: the mean of each variant with its interval, a dot for each seed, and chance
    as a dotted line. rows: of `score_rows`."""
    scores = dict.fromkeys(row["score"] for row in rows)
    names = list(dict.fromkeys(row["variant"] for row in rows))
    columns = min(3, len(scores))
    lines = -(-len(scores) // columns)
    figure = Figure(figsize=(4.2 * columns, lines * (0.7 + 0.32 * len(names))), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, score in zip(panels, scores, strict=False):
        of_score = [row for row in rows if row["score"] == score]
        for row in of_score:
            place = -names.index(row["variant"])  # the first variant on top
            axes.plot(row["values"], [place] * len(row["values"]), ".", color="C0", alpha=0.45)
            axes.errorbar(row["mean"], place, xerr=row["interval"] or 0, fmt="|", color="black", capsize=3)
        if of_score[0]["chance"] is not None:
            axes.axvline(of_score[0]["chance"], color="gray", linestyle=":", linewidth=1)
        axes.set_title(score, fontsize=9)
        axes.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        axes.set_ylim(0.6 - len(names), 0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.25, axis="x")
    for axes in panels[len(scores) :]:
        axes.set_visible(False)
    return figure
