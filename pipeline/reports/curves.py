"""Curves of training as drawings."""

import io
from fnmatch import fnmatchcase
from typing import Any

from matplotlib import rc_context
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


def panel_pictures(lines: Lines) -> dict[str, str]:
    """The curves of a metrics file as SVG files, a panel for each kind of metric that it has."""
    found = dict.fromkeys(key for line in lines for key in line)
    # Ranks and the other direction would hide the rest.
    seen = [key for key in found if not is_rank(key) and "v2t" not in key.split("/")]
    pictures = {}
    for panel, patterns in GROUPS.items():
        keys = dict.fromkeys(key for pattern in patterns for key in seen if fnmatchcase(key, pattern))
        if not keys:
            continue
        figure = Figure(figsize=(4.2, 3.2))
        # A fixed place: measuring texts for the layout would take as long as all the rest.
        axes = figure.add_axes((0.11, 0.13, 0.87, 0.85))
        for key in keys:
            steps, values = zip(*((line["step"], line[key]) for line in lines if key in line), strict=True)
            label, scale = key.split("/", 1)[1], 1.0
            if panel == "optimization":  # values of any size share the panel
                scale = max(map(abs, values)) or 1.0
                label += f" (of {scale:.2g})"
            marker = "." if len(steps) < 12 else ""
            axes.plot(steps, [value / scale for value in values], label=label, marker=marker, linewidth=1.3)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6.5, frameon=False)
        axes.grid(alpha=0.25)
        buffer = io.StringIO()
        with rc_context({"svg.fonttype": "none"}):  # texts, not outlines
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pictures[panel] = buffer.getvalue()
    return pictures
