"""The report of a run: one self-contained page with its state, results, stages, data, curves and pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.pipeline.reports.data_card import data_tables
from alpro.pipeline.reports.figures import panel_pictures
from alpro.pipeline.reports.pages import Picture, write_page
from alpro.pipeline.reports.results import Listed, headline_scores, results, tables
from alpro.pipeline.reports.summary import RunSummary, StepSummary
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.controls import CONTROLS
from alpro.stages.training.metrics import read_metrics

# What the pictures of the stages show, by the name of the file.
CAPTIONS = {
    "samples": "Evenly spaced samples of the corpus with their texts.",
    "augmentation": "A stored clip of each corpus, the same clip after each operation, and augmented examples.",
    "pseudo_labels": "The prompter's pseudo-labels on crops of training examples (Figure 3 of the paper); if the "
    "manifest lists what a clip shows, they are green if the clip shows the entity and red if not.",
    "retrieval": "Queries with the best and with the worst ranks, and the videos that are first; the right one has a "
    "green border.",
}


def write_report(path: Path, run: RunSummary, artifacts: list[Listed]) -> Path:
    """Writes the page of a run, and its summary beside it.

    artifacts: of the steps that ran or were cached, in order; all steps unless the run failed.
    """
    rows, built = results(artifacts), {name for name, *_ in artifacts}
    shown = {row["what"] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    run.save(path.with_suffix(".json"))
    return write_page(
        path,
        "report",
        run=run,
        facts=facts(run, artifacts),
        headlines=headline_scores(rows),
        scores=tables(rows),
        without_baseline=any(row["table"] == "retrieval" for row in rows),
        notes=[control for control in CONTROLS.values() if f"control: {control.label}" in shown],
        warnings=[f"{name}: {line}" for name, _, record, _ in artifacts for line in record.get("warnings", [])],
        data=data_tables(artifacts),
        stages=[
            *(stage_of(*artifact) for artifact in artifacts),
            *(unbuilt(step) for step in run.steps if step.name not in built),
        ],
        built=len(artifacts),
        cached=sum(is_cached for *_, is_cached in artifacts),
        worked=sum(record["run"]["seconds"] for _, _, record, cached in artifacts if not cached),
    )


def facts(run: RunSummary, artifacts: list[Listed]) -> list[tuple[str, str]]:
    """What identifies a run, as pairs of a label and a text; those that are not known are left out."""
    pairs = [
        ("started", run.started[:19].replace("T", " ") + " UTC" if run.started else ""),
        ("took", duration(run.seconds) if run.seconds else ""),
        ("commit", run.commit),
        ("configuration", run.arguments.get("config", "")),
        ("data", run.arguments.get("data", "")),
        ("changed values", "\n".join(run.arguments.get("changes", [])) or "none"),
    ]
    return [(label, text) for label, text in pairs if text]


def stage_of(name: str, folder: Path, record: dict[str, Any], cached: bool) -> dict[str, Any]:
    """A stage as the template shows it."""
    return {
        "name": name,
        "fingerprint": record["fingerprint"][:8],
        "time": "cached" if cached else duration(record["run"]["seconds"]),
        "inputs": ", ".join(record.get("inputs", {})),
        "counts": {} if record["stage"] in EVALUATIONS else record["counts"],
        "curves": list(curves(name, folder)),
        "pictures": list(pictures(folder)),
        "reasons": reasons(folder),
    }


def unbuilt(step: StepSummary) -> dict[str, Any]:
    """A stage without an artifact as the template shows it."""
    return {
        "name": step.name,
        "fingerprint": step.fingerprint[:8],
        "time": step.state,
        "inputs": ", ".join(step.inputs),
        "counts": {},
    }


def duration(seconds: float) -> str:
    """A time as people write it.

    >>> [duration(s) for s in (20.24, 119.9, 120, 125, 7200)]
    ['20.2 s', '119.9 s', '2 min 0 s', '2 min 5 s', '2 h 0 min']
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def curves(name: str, folder: Path) -> Iterator[Picture]:
    """The panels of a stage's curves."""
    for panel, svg in panel_pictures(read_metrics(folder / "metrics.jsonl")).items():
        yield Picture.of(svg.encode(), f"{name}: {panel} over steps.")


def pictures(folder: Path) -> Iterator[Picture]:
    """The pictures that a stage has left, with captions."""
    for picture in sorted((folder / "pictures").glob("*.png")):
        kind, _, step = picture.stem.partition("-step-")
        caption = CAPTIONS.get(kind) or f"{re.sub('[-_]+', ' ', kind).capitalize()}."
        yield Picture.of(picture.read_bytes(), f"Step {int(step)}: {caption}" if step.isdigit() else caption)


def reasons(folder: Path) -> dict[str, int]:
    """Why items of a corpus were rejected, most frequent first."""
    path = folder / "statistics.json"
    return read_json(path).get("reasons", {}) if path.is_file() else {}
