"""What a person reads when a pipeline is done: the table of results, the curves, and one self-contained page."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment
from matplotlib.figure import Figure

from stages.artifacts import read_json
from stages.training.metrics import read_metrics

TEMPLATE = Path(__file__).with_name("report.html.jinja")
Listed = tuple[str, Path, dict[str, Any], bool]  # name, folder, manifest, cached
GROUPS = {
    "losses": ("train/loss", "train/loss_vtc", "train/loss_vtm", "train/loss_mlm", "train/loss_pem", "train/loss_qa"),
    "accuracies": ("train/in_batch_recall", "train/vtm_accuracy", "train/pseudo_labels_kept", "train/qa_accuracy"),
    "optimisation": ("train/lr", "train/grad_norm", "train/temperature"),
    "validation": ("validation/",),
}


def metric_curves(lines: list[dict[str, Any]], title: str) -> Figure | None:
    """Curves of a metrics file, a panel for each kind of metric; None where it has none."""
    panels = {name: keys for name, prefixes in GROUPS.items() if (keys := _keys(lines, prefixes, name == "validation"))}
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


def _keys(lines: list[dict[str, Any]], prefixes: tuple[str, ...], many: bool) -> list[str]:
    seen = dict.fromkeys(key for line in lines for key in line)
    if many:
        wanted = [k for k in seen if k.startswith(prefixes)]
        return [k for k in wanted if "MdR" not in k and "MnR" not in k and "/v2t/" not in k]
    return [k for k in prefixes if k in seen]


def results(made: list[Listed]) -> list[dict[str, Any]]:
    """The rows of evaluate's results.json; none where nothing was evaluated."""
    for _, folder, manifest, _ in made:
        if manifest["stage"] == "evaluate":
            return read_json(folder / "results.json")
    return []


@dataclass(frozen=True)
class Table:
    """A table to be shown: a title, the heads of its columns (the first two are texts, the others numbers), lines."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """The results as people compare them: retrieval by recall, answers with their controls side by side, the rest."""
    ranked = [row for row in rows if row["metric"][:3] in ("t2v", "v2t")]
    answers = [row for row in rows if row["name"].startswith("qa")]
    decoded = [row for row in rows if row["name"].startswith("decoded/")]
    others = [row for row in rows if row not in ranked and row not in answers and row not in decoded]
    found = []
    if ranked:
        found.append(retrieval_table(ranked))
    if answers:
        found.append(answers_table(answers))
    if others:
        lines = [[r["what"], r["metric"], shown(r["value"]), shown(r["chance"]), str(r["items"])] for r in others]
        found.append(Table("Entities", ["", "", "score", "best constant", "items"], lines))
    if decoded:  # only where some were not
        lines = [[r["what"], r["metric"], shown(r["value"])] for r in decoded]
        found.append(Table("Items that could be decoded", ["", "", "share"], lines))
    return found


def retrieval_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each ranker and direction, and one for what chance reaches."""
    columns = ["R@1", "R@5", "R@10", "MdR"]
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        way, column = row["metric"].split()
        lines.setdefault((row["what"], way), {})[column] = row
    out = []
    for (what, way), cells in lines.items():
        items = next(iter(cells.values()))["items"]
        out.append([what, way, *(shown(cells[c]["value"], c) if c in cells else "" for c in columns), str(items)])
    first = next(iter(lines.values()))
    out.append(["chance", "", *(shown(first[c]["chance"], c) for c in columns), ""])
    return Table("Retrieval", ["", "", *columns, "items"], out)


def answers_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each type of question: the score, those of the controls, what the most frequent answer reaches."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        cells = {row["what"]: row for row in rows if row["metric"] == metric}
        first = next(iter(cells.values()))
        scores = [shown(cells[what]["value"]) if what in cells else "" for what in whats]
        lines.append([metric, "", *scores, shown(first["chance"]), str(first["items"])])
    heads = [what.removeprefix("control: ") for what in whats]
    return Table("Question answering", ["", "", *heads, "most frequent answer", "items"], lines)


def shown(value: float | None, metric: str = "") -> str:
    """A score as people write it: ranks plain, shares in per cent."""
    if value is None:
        return "-"
    return f"{value:.1f}" if "MdR" in metric else f"{value:.1f} %"


def results_markdown(made: list[Listed]) -> str:
    """The results as Markdown tables; empty where nothing was evaluated."""
    parts = []
    for table in tables(results(made)):
        rule = ["---", "---", *["---:"] * (len(table.heads) - 2)]
        cells = [table.heads, rule, *table.lines]
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(parts)


def write_report(path: Path, name: str, made: list[Listed]) -> Path:
    """One page with everything in it: results, stages, curves, pictures, what was rejected and why."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    stages = [
        {
            "name": stage,
            "fingerprint": manifest["fingerprint"][:8],
            "time": "cached" if cached else f"{manifest['made']['seconds']:.1f} s",
            "counts": {} if manifest["stage"] == "evaluate" else manifest["counts"],
            "pictures": [base64.b64encode(picture).decode() for picture in pictures(stage, folder)],
            "reasons": reasons(folder),
            "prompts": least_agreed(folder),
        }
        for stage, folder, manifest, cached in made
    ]
    worked = sum(manifest["made"]["seconds"] for _, _, manifest, cached in made if not cached)
    cached = sum(one[3] for one in made)
    page = template.render(name=name, tables=tables(results(made)), stages=stages, worked=worked, cached=cached)
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
