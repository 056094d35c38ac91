"""The page of a run, or of runs side by side: one HTML file that needs no other."""

import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.files import atomic_write, read_json, write_json
from alpro.pipeline.plan.changes import built_before
from alpro.pipeline.plan.plan import Plan, required
from alpro.pipeline.reports.charts import (
    calibrations,
    learning_curves,
    score_bars,
)
from alpro.pipeline.reports.results import Rows, Table, data_table, main_table, rows, tables
from alpro.pipeline.reports.verdict import fine_tuned_verdict
from alpro.pipeline.store.artifacts import Step
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.controls import CONTROLS

MAX_EARLIER_RUNS = 8  # that a page links
MAX_OPEN_WARNINGS = 4  # a screen has room for them
Link = tuple[str, str]  # its text and its address
FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"
# What the pictures of the stages show, by the name of the file.
CAPTIONS = {
    "samples": "Evenly spaced samples of the corpus with their texts.",
    "pseudo_labels": "The prompter's pseudo-labels on crops of training examples (Figure 3 of the paper); if the "
    "manifest lists what a clip shows, they are green if the clip shows the entity and red if not.",
    "search": "Texts of the validation split, and the four videos that are first; the right one has a green border.",
    "retrieval": "Queries with the best and with the worst ranks by similarity, and the first videos; the right one "
    "has a green border.",
}


def report_file(root: Path, plan: Plan) -> Path:
    """The report of a run of a plan in a workspace. Its summary is the .json beside it."""
    return root / "reports" / f"{plan.settings.name}-{plan.steps[-1].fingerprint[:6]}.html"


def write_report(
    path: Path,
    run: Mapping[str, Any],
    artifacts: Sequence[tuple[Path, Record]],
    links: Sequence[Link] = (),
) -> Path:
    """Writes the page of a run, and its summary beside it.

    Args:
        artifacts: of the steps that ran or were cached, in order; all steps unless the run failed.
        links: to the pages of this run elsewhere.
    """
    results = rows(artifacts)
    chart = score_bars(results)
    sentence = fine_tuned_verdict(artifacts)
    warnings = warnings_table(artifacts)

    # What explains a run that did not finish is not folded.
    opened = [] if run["state"] == FINISHED else ["Stages"]
    if len(warnings.lines) <= MAX_OPEN_WARNINGS:
        opened.append(warnings.title)

    write_page(
        path,
        run["title"],
        state=run["state"],
        reason=run["reason"],
        verdicts=[sentence] if sentence else [],
        bars=[chart] if chart else [],
        tables=[
            main_table(results),
            *tables({"score": results}),
            warnings,
            controls_table(results),
        ],
        curves=learning_curves(artifacts),
        calibrations=calibrations(artifacts),
        pictures=pictures_by_step(artifacts),
        last=[
            data_table(artifacts),
            rejects_table(artifacts),
            stages_table(run, artifacts),
            facts_table(run, artifacts),
        ],
        links=[*links, *earlier_runs(path, run)],
        opened=opened,
    )

    # Read by later runs: `earlier_runs` and `finished_steps`.
    write_json(path.with_suffix(".json"), run)
    return path


def warnings_table(artifacts: Sequence[tuple[Path, Record]]) -> Table:
    """The warnings of the stages."""
    lines = []
    for _, record in artifacts:
        lines += [[record.name, warning] for warning in record.warnings]
    return Table("Warnings", ["stage", "warning"], lines, texts=True)


def controls_table(results: Rows) -> Table:
    """What the controls among the results show."""
    # As one text, because rows go on after the label: "control: best frame by similarity".
    shown = " ".join(row["what"] for row in results)
    lines = [
        [control.label, control.meaning]
        for control in CONTROLS.values()
        if f"control: {control.label}" in shown
    ]
    return Table("What the controls show", ["control", "it shows"], lines, texts=True)


def rejects_table(artifacts: Sequence[tuple[Path, Record]]) -> Table:
    """The rejected items of each corpus by reason, the most frequent first, as its statistics have
    them."""
    lines = []
    for folder, record in artifacts:
        file = folder / "statistics.json"
        if file.is_file():
            reasons = read_json(file).get("reasons", {})
            lines += [[record.name, reason, str(count)] for reason, count in reasons.items()]
    return Table("Rejected", ["", "reason", "items"], lines)


def stages_table(run: Mapping[str, Any], artifacts: Sequence[tuple[Path, Record]]) -> Table:
    """The steps of a run: how long each took, what it read, and what it counted."""
    records = {record.name: record for _, record in artifacts}
    lines = []
    for step in run["steps"]:
        record = records.get(step["name"])
        time = step["state"]
        if record and time == "built":
            time = duration(record.run["seconds"])

        # The tables of results have what an evaluation counts.
        counts = record.counts if record and record.stage not in EVALUATIONS else {}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counts.items())
        inputs = ", ".join(step["inputs"])
        lines.append([step["name"], step["fingerprint"][:8], time, inputs, text])

    heads = ["stage", "fingerprint", "time", "inputs", "counts"]
    return Table("Stages", heads, lines, texts=True)


def facts_table(run: Mapping[str, Any], artifacts: Sequence[tuple[Path, Record]]) -> Table:
    """When a run started and what it was called with."""
    arguments = run["arguments"]
    facts = {
        "started": run["started"][:19].replace("T", " ") + " UTC",
        "took": duration(run["seconds"]),
        "commit": run["commit"] + built_before(run["commit"], [record for _, record in artifacts]),
        "configuration": arguments["config"],
        "data": arguments["data"],
        # Of a summary without the values before: as they were typed.
        "changed values": "\n".join(run.get("changed") or arguments["changes"]) or "none",
        "changed code": run.get("changed_code", ""),
    }

    lines = [[label, text] for label, text in facts.items() if text]
    return Table("Run", ["", ""], lines, texts=True)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def pictures_by_step(artifacts: Sequence[tuple[Path, Record]]) -> dict[str, list[tuple[str, str]]]:
    """The captions and addresses of the pictures of each step that has some."""
    pictures = {record.name: stage_pictures(folder) for folder, record in artifacts}
    return {name: shown for name, shown in pictures.items() if shown}


def write_page(path: Path, title: str, **values: Any) -> Path:
    """Renders the template into one file that needs no other. Raises InputError if it cannot be
    written."""
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # The contents and the sections of the template get their anchors from one function.
    environment.globals["anchor"] = anchor

    # The template loops over these, and a comparison has no `last`.
    values = {"tables": (), "last": (), "opened": (), **values}
    template = environment.get_template("page.html.jinja")
    page = template.render(title=title, contents=contents_of(values), **values)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(page, "utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return path


def contents_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The sections of a page in order, each with its anchor."""
    # The order is that of page.html.jinja.
    names = [table.title for table in values["tables"] if table and table.lines]
    if values.get("curves"):
        names.append("Learning curves")
    if values.get("calibrations"):
        names.append("Calibration")
    names += values.get("pictures") or ()
    names += [table.title for table in values["last"] if table and table.lines]
    if values.get("links"):
        names.append("Links")
    return {name: anchor(name) for name in names}


def anchor(title: str) -> str:
    """The name of a section in an address.

    >>> anchor("What the controls show")
    'what-the-controls-show'
    """
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def earlier_runs(path: Path, run: Mapping[str, Any]) -> list[Link]:
    """Links to the pages of the last runs of the same configuration in the folder of a page, the
    newest first."""
    links = []
    for page, other in earlier_summaries(path.parent, run.get("name", ""), run["started"]):
        # A page of the same name is of an earlier run of the same steps: this page replaces it.
        if page.stem != path.stem:
            time = other["started"][:16].replace("T", " ")
            links.append((f"{time}: {other['title']} ({other['state']})", quote(page.name)))
    return links[:MAX_EARLIER_RUNS]


def earlier_summaries(folder: Path, name: str, before: str) -> list[tuple[Path, dict[str, Any]]]:
    """The pages in a folder of the runs of a configuration that started before a time, with their
    summaries, the newest first."""
    found = []
    for file in folder.glob("*.json"):
        page = file.with_suffix(".html")
        with suppress(OSError, ValueError, TypeError, KeyError):  # no summary of a run
            run = read_json(file)
            if run["name"] == name and run["started"] < before and page.is_file():
                found.append((page, run))

    # Times in ISO 8601 sort as text.
    found.sort(key=lambda page_and_run: page_and_run[1]["started"], reverse=True)
    return found


def latest_summary(folder: Path, name: str, before: str) -> dict[str, Any] | None:
    """The summary of the last run of a configuration whose page is in a folder and that started
    before a time; None without one."""
    found = earlier_summaries(folder, name, before)
    return found[0][1] if found else None


def stage_pictures(folder: Path) -> list[tuple[str, str]]:
    """The pictures of a stage: captions and addresses."""
    pictures = []
    for path in sorted((folder / "pictures").glob("*.png")):
        kind, _, step = path.stem.partition("-step-")
        caption = CAPTIONS.get(kind) or f"{re.sub('[-_]+', ' ', kind).capitalize()}."
        if step.isdigit():
            caption = f"Step {int(step)}: {caption}"

        # Inline: people send a page to others as one file.
        data = base64.b64encode(path.read_bytes()).decode()
        pictures.append((caption, f"data:image/png;base64,{data}"))
    return pictures


def finished_steps(plan: Plan, report: Path) -> list[Step]:
    """The steps of a run that has nothing to do: every artifact is in the workspace, which has an
    MLflow store, and the last run of these steps did not fail or stop. Empty if anything is left to
    do. report: the file of `report_file`."""
    wanted = required(plan.steps, plan.store)
    if not (report.parents[1] / "mlflow.db").is_file():
        return []

    with suppress(OSError, ValueError, TypeError, KeyError):  # no summary
        if read_json(report.with_suffix(".json"))["state"] != FINISHED:
            return []
    return wanted if all(map(plan.store.find, wanted)) else []
