"""What a person opens when a pipeline is done: curves, and one self-contained page with everything in it."""

import base64
import io
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment
from matplotlib.figure import Figure

from alpro.files import read_json
from alpro.pipeline.reporting.control_notes import control_notes
from alpro.pipeline.reporting.result_tables import Listed, results, tables
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.metrics import is_rank
from alpro.stages.training.metrics import read_metrics

TEMPLATE = Path(__file__).with_name("report.html.jinja")
# The panels of the curves, by patterns of metrics: a new loss or accuracy needs no change here.
GROUPS = {
    "losses": ("train/loss", "train/loss_*"),
    "accuracies": ("train/*_recall", "train/*_accuracy", "train/*_kept"),
    "optimisation": ("train/lr", "train/grad_norm", "train/temperature"),
    "validation": ("validation/*",),
}


def metric_curves(lines: list[dict[str, Any]], title: str) -> Figure | None:
    """Curves of a metrics file, a panel for each kind of metric; None where it has none."""
    panels = {name: keys for name, patterns in GROUPS.items() if (keys := _keys(lines, patterns))}
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (name, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if key in line]
            scaled = 1.0
            if name == "optimisation" and max(abs(v) for _, v in points) > 0:
                scaled = max(abs(v) for _, v in points)
            label = key.split("/", 1)[1] + (f" (of {scaled:.2g})" if name == "optimisation" else "")
            axes.plot(
                [s for s, _ in points],
                [v / scaled for _, v in points],
                label=label,
                marker="." if len(points) < 12 else "",
                linewidth=1.3,
            )
        axes.set_title(f"{title}: {name}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6.5, frameon=False)
        axes.grid(alpha=0.25)
    return figure


def _keys(lines: list[dict[str, Any]], patterns: tuple[str, ...]) -> list[str]:
    """The metrics that match, in the order of the patterns, then of the lines."""
    keys = dict.fromkeys(key for line in lines for key in line)
    # Ranks and the other direction would hide the rest.
    seen = [key for key in keys if not is_rank(key) and "v2t" not in key.split("/")]
    return list(dict.fromkeys(key for pattern in patterns for key in seen if fnmatchcase(key, pattern)))


def write_report(path: Path, name: str, artifacts: list[Listed]) -> Path:
    """One page with everything in it: results, stages, curves, pictures, what was rejected and why."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    stages = [
        {
            "name": stage,
            "fingerprint": record["fingerprint"][:8],
            "time": "cached" if cached else f"{record['run']['seconds']:.1f} s",
            "counts": {} if record["stage"] in EVALUATIONS else record["counts"],
            "pictures": [base64.b64encode(picture).decode() for picture in pictures(stage, folder)],
            "reasons": reasons(folder),
            "prompts": least_agreed(folder),
        }
        for stage, folder, record, cached in artifacts
    ]
    worked = sum(record["run"]["seconds"] for _, _, record, cached in artifacts if not cached)
    cached = sum(is_cached for *_, is_cached in artifacts)
    rows = results(artifacts)
    shown = {"tables": tables(rows), "notes": control_notes(rows), "stages": stages}
    page = template.render(name=name, worked=worked, cached=cached, **shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")
    return path


def pictures(stage: str, folder: Path) -> Iterator[bytes]:
    """PNG files of a stage: its curves, then the pictures that it left."""
    if (curves := metric_curves(read_metrics(folder / "metrics.jsonl"), stage)) is not None:
        buffer = io.BytesIO()
        curves.savefig(buffer, format="png", dpi=110)
        yield buffer.getvalue()
    for picture in sorted((folder / "pictures").glob("*.png")):
        yield picture.read_bytes()


def least_agreed(folder: Path, most: int = 10) -> dict[str, float]:
    """The entities whose prompts disagree most, with how much at most; empty for a stage without prompts."""
    path = folder / "prompts.parquet"
    if not path.is_file():
        return {}
    rows = pq.read_table(path).slice(0, most).to_pylist()
    return {row["entity"]: max(row["disagreement_video"], row["disagreement_image"]) for row in rows}


def reasons(folder: Path) -> dict[str, int]:
    """Why items of a corpus were rejected, most frequent first."""
    path = folder / "statistics.json"
    return read_json(path).get("reasons", {}) if path.is_file() else {}


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


def difference_figure(rows: list[dict[str, Any]], scores: list[str], against: str) -> Figure | None:
    """A panel for each of `scores`: the differences of the variants to their bases, against the bases' score `against`,
    such as what PEM gains against the accuracy of its teacher. A dot for each seed, a cross with its interval for each
    mean. None if there is no such pair. rows: of `score_rows`."""
    by_seed = {(r["variant"], r["score"]): dict(zip(r["seeds"], r["values"], strict=True)) for r in rows}
    panels: dict[str, list[tuple[dict[str, Any], list[tuple[float, float]]]]] = {}
    for row in rows:
        at, base = by_seed.get((row["base"], against), {}), by_seed.get((row["base"], row["score"]), {})
        values = by_seed[row["variant"], row["score"]]
        pairs = [(at[seed], value - base[seed]) for seed, value in values.items() if seed in at and seed in base]
        if pairs and row["score"] in scores and row["score"] != against:
            panels.setdefault(row["score"], []).append((row, pairs))
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (score, variants) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for row, pairs in variants:
            xs, ys = zip(*pairs, strict=True)
            (dots,) = axes.plot(xs, ys, ".", alpha=0.5, label=row["variant"])
            center, half = sum(xs) / len(xs), row["difference_interval"] or 0
            axes.errorbar(center, row["difference"], half, fmt="x", color=dots.get_color(), capsize=3)
        axes.axhline(0, color="gray", linestyle=":", linewidth=1)
        axes.set_title(f"{score}: difference to the base", fontsize=9)
        axes.set_xlabel(f"{against} of the base", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure
