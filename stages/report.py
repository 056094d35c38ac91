"""What a person reads when a pipeline is done: the table of results, the curves, and one self-contained page."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stages.artifacts import read_json
from stages.training.metrics import read_metrics

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
    """The rows of the results table: what, metric, value, items, chance. Empty where nothing was evaluated."""
    for _, folder, manifest, _ in made:
        if manifest["stage"] == "evaluate":
            return read_json(folder / "results.json")
    return []


def shown(value: float | None, metric: str) -> str:
    """A score as people write it: ranks plain, shares in per cent."""
    if value is None:
        return "-"
    return f"{value:.1f}" if "MdR" in metric else f"{value:.1f} %"


def results_markdown(made: list[Listed]) -> str:
    rows = results(made)
    if not rows:
        return ""
    head = "| what | metric | score | chance | items |\n| --- | --- | ---: | ---: | ---: |\n"
    body = (
        f"| {r['what']} | {r['metric']} | {shown(r['value'], r['metric'])} | {shown(r['chance'], r['metric'])} | {r['items']} |"
        for r in rows
    )
    return head + "\n".join(body) + "\n"


def write_report(path: Path, name: str, made: list[Listed]) -> Path:
    """One page with everything in it: results, stages, curves, pictures, what was rejected and why."""
    parts = [f"<h1>{html.escape(name)}</h1>", _summary(made)]
    if rows := results(made):
        parts.append("<h2>Results</h2>" + _results_table(rows))
    parts.append("<h2>Stages</h2>" + _stages_table(made))
    for stage, folder, manifest, _ in made:
        body = _stage(stage, folder, manifest)
        if body:
            parts.append(f"<h2>{html.escape(stage)}</h2>{body}")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    path.write_text(page, "utf-8")
    return path


def _summary(made: list[Listed]) -> str:
    cached = sum(one[3] for one in made)
    seconds = sum(m["made"]["seconds"] for _, _, m, c in made if not c)
    return f"<p>{len(made)} stages, {cached} of them cached; {seconds:.0f} s of work in the others.</p>"


def _results_table(rows: list[dict[str, Any]]) -> str:
    lines, last = [], None
    for row in rows:
        what = html.escape(row["what"]) if row["what"] != last else ""
        last = row["what"]
        cells = [shown(row["value"], row["metric"]), shown(row["chance"], row["metric"]), str(row["items"])]
        numbers = "".join(f"<td class=n>{cell}</td>" for cell in cells)
        lines.append(
            f"<tr{' class=first' if what else ''}><td>{what}</td><td>{html.escape(row['metric'])}</td>{numbers}</tr>"
        )
    return f"<table><tr><th>what<th>metric<th>score<th>chance<th>items</tr>{''.join(lines)}</table>"


def _stages_table(made: list[Listed]) -> str:
    lines = []
    for name, _, manifest, cached in made:
        counts = (
            ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in manifest["counts"].items())
            if manifest["stage"] != "evaluate"
            else ""
        )
        state = "cached" if cached else f"{manifest['made']['seconds']:.1f} s"
        lines.append(
            f"<tr><td>{html.escape(name)}</td><td><code>{manifest['fingerprint'][:8]}</code></td><td class=n>{state}</td><td>{html.escape(counts)}</td></tr>"
        )
    return f"<table><tr><th>stage<th>fingerprint<th>time<th>counts</tr>{''.join(lines)}</table>"


def _stage(name: str, folder: Path, manifest: dict[str, Any]) -> str:
    parts = []
    if (curves := metric_curves(read_metrics(folder / "metrics.jsonl"), name)) is not None:
        buffer = io.BytesIO()
        curves.savefig(buffer, format="png", dpi=110)
        parts.append(_image(buffer.getvalue()))
    parts += [_image(picture.read_bytes()) for picture in sorted((folder / "pictures").glob("*.png"))]
    reasons = read_json(folder / "statistics.json").get("reasons", {}) if (folder / "statistics.json").is_file() else {}
    if reasons:
        parts.append(
            "<p>Rejected:</p><ul>"
            + "".join(f"<li>{count} x {html.escape(reason)}</li>" for reason, count in reasons.items())
            + "</ul>"
        )
    return "".join(parts)


def _image(data: bytes) -> str:
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1f; max-width: 1180px; margin: 2em auto; padding: 0 1.2em }
h1 { font-size: 1.7em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; padding-bottom: .2em }
table { border-collapse: collapse } th { text-align: left; color: #666; font-weight: 500 }
td, th { padding: .18em .9em .18em 0; vertical-align: top } .n { text-align: right; font-variant-numeric: tabular-nums }
tr.first td { border-top: 1px solid #e5e5ea } img { max-width: 100%; border: 1px solid #eee }
code { color: #555 }
"""
