"""The page of a run, or of runs side by side: one HTML file that needs no other."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib import rc_context
from matplotlib.figure import Figure

from alpro.artifact import Record
from alpro.files import atomic_write, read_json, write_json
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.plan.step import Step, required
from alpro.pipeline.reports.results import HEADLINES, Table, data_table, main_table, rows, tables
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.controls import CONTROLS
from alpro.stages.evaluation.metrics import is_rank
from alpro.stages.training.metrics import read_metrics

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
KINDS = {b"\x89PNG": "image/png", b"<?xm": "image/svg+xml"}
# What the pictures of the stages show, by the name of the file.
CAPTIONS = {
    "samples": "Evenly spaced samples of the corpus with their texts.",
    "augmentation": "A stored clip of each corpus, the same clip after each operation, and augmented examples.",
    "pseudo_labels": "The prompter's pseudo-labels on crops of training examples (Figure 3 of the paper); if the "
    "manifest lists what a clip shows, they are green if the clip shows the entity and red if not.",
    "retrieval": "Queries with the best and with the worst ranks, and the videos that are first; the right one has a "
    "green border.",
}

# The panels of the curves, by patterns of metrics: a new loss or accuracy needs no change here.
GROUPS = {
    "losses": ("train/loss", "train/loss_*"),
    "accuracies": ("train/*_recall", "train/*_accuracy", "train/*_kept", "train/*_named"),
    "optimization": ("train/lr", "train/grad_norm", "train/temperature"),
    "validation": ("validation/*",),
}


def report_file(root: Path, plan: Planned) -> Path:
    """The report of a run of a plan in a workspace. Its summary is the .json beside it."""
    return root / "reports" / f"{plan.settings.name}-{plan.steps[-1].fingerprint[:6]}.html"


def write_report(path: Path, run: Mapping[str, Any], artifacts: Sequence[tuple[Path, Record]]) -> Path:
    """Writes the page of a run, and its summary (`flows.run`) beside it.

    artifacts: of the steps that ran or were cached, in order; all steps unless the run failed.
    """
    found, records = rows(artifacts), {record["name"]: (folder, record) for folder, record in artifacts}
    shown = {row["what"] for row in found}
    counted, stages = [], []
    for step in run["steps"]:
        folder, record = records.get(step["name"], (None, None))
        time = duration(record["run"]["seconds"]) if record and step["state"] == "built" else step["state"]
        counts = record["counts"] if record and record["stage"] not in EVALUATIONS else {}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counts.items())
        counted.append([step["name"], step["fingerprint"][:8], time, ", ".join(step["inputs"]), text])
        if folder:
            stages.append(stage_pictures(step["name"], folder))
    arguments = run["arguments"]
    facts = {
        "started": run["started"][:19].replace("T", " ") + " UTC",
        "took": duration(run["seconds"]),
        "commit": run["commit"],
        "configuration": arguments["config"],
        "data": arguments["data"],
        "changed values": "\n".join(arguments["changes"]) or "none",
    }
    heads = ["stage", "fingerprint", "time", "inputs", "counts"]
    last = [data_table(artifacts), Table("Stages", heads, counted, texts=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), run)
    return write_page(
        path,
        run["title"],
        state=run["state"],
        reason=run["reason"],
        headlines=main_table(found, HEADLINES.values()),
        tables=tables({"score": found}) if found else [],
        without_baseline=any(row["table"] == "retrieval" for row in found),
        notes=[control for control in CONTROLS.values() if f"control: {control.label}" in shown],
        warnings=[f"{record['name']}: {line}" for _, record in artifacts for line in record.get("warnings", [])],
        stages=[stage for stage in stages if any(stage.values())],
        last=[table for table in last if table],
        facts={label: text for label, text in facts.items() if text},
    )


def write_page(path: Path, title: str, **values: Any) -> Path:
    """Renders the template into one file that needs no other."""
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("page.html.jinja").render(title=title, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def stage_pictures(name: str, folder: Path) -> dict[str, Any]:
    """The curves of a stage, its pictures, and why items of a corpus were rejected, most frequent first."""
    panels = panel_pictures(read_metrics(folder / "metrics.jsonl"))
    curves = [picture(svg.encode(), f"{name}: {panel} over steps.") for panel, svg in panels.items()]
    pictures = []
    for path in sorted((folder / "pictures").glob("*.png")):
        kind, _, step = path.stem.partition("-step-")
        caption = CAPTIONS.get(kind) or f"{re.sub('[-_]+', ' ', kind).capitalize()}."
        pictures.append(picture(path.read_bytes(), f"Step {int(step)}: {caption}" if step.isdigit() else caption))
    statistics = folder / "statistics.json"
    reasons = read_json(statistics).get("reasons", {}) if statistics.is_file() else {}
    return {
        "curves": curves,
        "pictures": pictures,
        "reasons": reasons,
        "name": name if curves or pictures or reasons else "",
    }


def panel_pictures(lines: list[dict[str, Any]]) -> dict[str, str]:
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


def picture(content: bytes, caption: str) -> dict[str, str]:
    """A PNG or SVG file as a part of the page."""
    return {"caption": caption, "uri": f"data:{KINDS[content[:4]]};base64,{base64.b64encode(content).decode()}"}


def duration(seconds: float) -> str:
    """A time as people write it.

    >>> [duration(s) for s in (20.24, 119.9, 120, 125, 7200)]
    ['20.2 s', '119.9 s', '2 min 0 s', '2 min 5 s', '2 h 0 min']
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def finished_steps(plan: Planned, report: Path) -> list[Step]:
    """The steps of a run that has nothing to do: every artifact is in the workspace, which has an MLflow store, and the
    last run of these steps did not fail or stop. Empty if anything is left to do. report: the file of `report_file`."""
    _, steps, store = plan
    wanted = required(steps, store)
    if not (report.parents[1] / "mlflow.db").is_file():
        return []
    try:
        if read_json(report.with_suffix(".json"))["state"] != FINISHED:
            return []
    except (OSError, ValueError, TypeError, KeyError):  # no summary
        pass
    return wanted if all(map(store.find, wanted)) else []
