"""The drawn figures of the documentation, model.png, results.png and silent.png: `python
docs/figures.py`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from scipy.stats import t

OUT = Path(__file__).parent / "pictures"
INK, VIDEO, TEXT, FUSED, FROZEN, LOSS = (
    "#222222",
    "#cfe2f3",
    "#d9ead3",
    "#fff2cc",
    "#e3e3e3",
    "#f4cccc",
)
# Label, mean, half of the interval for one run, baseline, its name: the tables of docs/results.md.
SCORES = [
    ("right clip first, pre-trained,\nby matching", 67.6, 15.2, 0.5, "chance"),
    ("right clip first, pre-trained,\nby similarity", 84.0, 7.1, 0.5, "chance"),
    ("right clip first, fine-tuned,\nby matching", 81.6, 13.7, 0.5, "chance"),
    (
        "right clip first, fine-tuned,\nby similarity",
        87.6,
        9.8,
        68.4,
        "best single frame",
    ),
    ("answers to questions", 91.0, 8.6, 25.0, "text only"),
    ("'left' or 'right'", 98.9, 4.9, 50.0, "chance"),
    ("object named by the prompter", 83.3, 12.5, 18.0, "best constant"),
]
# Arms of the silent study by the labels that they learn from.
ROWS = Path(__file__).parents[1] / "experiments" / "silent" / "results"
SILENT = {
    "permuted\nlabels": "permuted",
    "plain\nprompter": "prompter",
    "prompter\nwith crops": "crops",
}
SILENT |= {"with crops,\nno threshold": "crops-all-kept", "true\nlabels": "true"}


def box(
    axes: Axes, x: float, y: float, width: float, height: float, label: str, color: str
) -> None:
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec=INK, lw=1.2)
    )
    axes.text(
        x + width / 2,
        y + height / 2,
        label,
        ha="center",
        va="center",
        fontsize=12.5,
        color=INK,
    )


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-"
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=16,
            lw=1.4,
            color=INK,
            linestyle=style,
        )
    )


def model() -> None:
    """Draw the encoders, the losses, and the prompter."""
    figure, axes = plt.subplots(figsize=(12, 6))
    axes.set(xlim=(0, 10), ylim=(0, 5.9))
    axes.axis("off")
    box(axes, 0.2, 0.2, 2.0, 0.6, "frames", "white")
    box(axes, 2.8, 0.2, 2.0, 0.6, "caption", "white")
    box(axes, 0.2, 1.3, 2.0, 0.9, "video encoder\n(TimeSformer)", VIDEO)
    box(axes, 2.8, 1.3, 2.0, 0.9, "text encoder\n(BERT, lower half)", TEXT)
    box(axes, 0.2, 3.2, 4.6, 0.8, "multimodal encoder (BERT, upper half)", FUSED)
    box(axes, 1.65, 2.42, 1.7, 0.5, "contrast (VTC)", LOSS)
    box(axes, 0.2, 4.7, 1.35, 0.7, "entities of\ncrop (PEM)", LOSS)
    box(axes, 1.8, 4.7, 1.35, 0.7, "matching\n(VTM)", LOSS)
    box(axes, 3.45, 4.7, 1.35, 0.7, "masked\nwords (MLM)", LOSS)
    for x in (1.2, 3.8):
        arrow(axes, (x, 0.85), (x, 1.26))
    arrow(axes, (0.7, 2.25), (0.7, 3.15))
    arrow(axes, (4.3, 2.25), (4.3, 3.15))
    arrow(axes, (1.7, 2.25), (1.95, 2.4))
    arrow(axes, (3.3, 2.25), (3.05, 2.4))
    for x in (0.87, 2.47, 4.12):
        arrow(axes, (x, 4.05), (x, 4.65))
    axes.add_patch(
        FancyBboxPatch(
            (5.6, 1.05),
            4.2,
            3.0,
            boxstyle="round,pad=0.02",
            fc="#f7f7f7",
            ec=INK,
            ls="--",
        )
    )
    axes.text(
        7.7,
        3.86,
        "prompter: trained with VTC, then frozen",
        ha="center",
        va="center",
        fontsize=12.5,
        color=INK,
    )
    box(axes, 5.75, 0.2, 1.8, 0.6, "random crop", "white")
    box(axes, 7.85, 0.2, 1.9, 0.6, '"A video of a dog."', "white")
    box(axes, 5.75, 1.3, 1.8, 0.9, "video\nencoder", FROZEN)
    box(axes, 7.85, 1.3, 1.9, 0.9, "text\nencoder", FROZEN)
    box(
        axes,
        5.9,
        2.75,
        3.6,
        0.75,
        "similarity to each entity,\nsoftmax: pseudo-label",
        FROZEN,
    )
    for x in (6.65, 8.8):
        arrow(axes, (x, 0.85), (x, 1.26))
        arrow(axes, (x, 2.25), (x, 2.7))
    axes.plot([7.7, 7.7, 0.87], [4.07, 5.75, 5.75], color=INK, lw=1.4, ls="--")
    arrow(axes, (0.87, 5.75), (0.87, 5.42))
    axes.text(7.85, 4.75, "target of PEM", fontsize=12.5, va="center", color=INK)
    save(figure, "model")


def results() -> None:
    """Scores as bars with the interval for one run, and their baselines."""
    figure, axes = plt.subplots(figsize=(10, 5.2))
    labels, means, halves, baselines, names = zip(*reversed(SCORES), strict=True)
    rows = range(len(labels))
    upper = [min(half, 100 - mean) for mean, half in zip(means, halves, strict=True)]
    axes.barh(
        [row + 0.19 for row in rows],
        means,
        0.36,
        xerr=[halves, upper],
        color="#6fa8dc",
        capsize=4,
        label="score",
    )
    axes.barh(
        [row - 0.19 for row in rows], baselines, 0.36, color="#bbbbbb", label="baseline"
    )
    for row, baseline, name in zip(rows, baselines, names, strict=True):
        axes.text(baseline + 1, row - 0.19, name, va="center", fontsize=11, color=INK)
    axes.set_yticks(list(rows), labels, fontsize=12)
    axes.set_xlim(0, 104)
    axes.set_xlabel(
        "percent on the sample's test split; lines: 95 % of single runs", fontsize=12
    )
    axes.tick_params(axis="x", labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, "results")


def silent() -> None:
    """Gains of the silent study to training without PEM: each draw, and their mean with its 95 %
    interval."""
    figure, axes = plt.subplots(figsize=(8, 4))
    for place, arm in enumerate(SILENT.values()):
        gains = named(arm) - named("none")
        half = t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
        axes.plot(
            np.linspace(place - 0.08, place + 0.08, len(gains)),
            gains,
            "o",
            color="#6fa8dc",
            ms=7,
        )
        axes.errorbar(place + 0.25, np.mean(gains), half, fmt="D", color=INK, capsize=4)
    axes.axhline(0, color="#bbbbbb", lw=1, zorder=0)
    axes.set_xticks(range(len(SILENT)), SILENT, fontsize=12)
    axes.set_ylabel("gain in things named, points", fontsize=12)
    axes.tick_params(axis="y", labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, "silent")


def named(arm: str) -> np.ndarray:
    files = [ROWS / f"draw-{draw}-named-1-{arm}-0.json" for draw in range(6)]
    return np.array(
        [json.loads(file.read_text())["scores"]["naming"][0] for file in files]
    )


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(OUT / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    model()
    results()
    silent()
