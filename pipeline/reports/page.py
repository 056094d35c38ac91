"""The page of a run, or of runs side by side: one HTML file that needs no other."""

import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader

from alpro.artifact import Record, flatten, read_results
from alpro.errors import InputError
from alpro.files import atomic_write, read_json, write_json
from alpro.pipeline.plan.dag import Planned, required
from alpro.pipeline.reports.charts import (
    Bars,
    calibrations,
    difference_bars,
    learning_curves,
    score_bars,
)
from alpro.pipeline.reports.results import Table, data_table, main_table, rows, tables
from alpro.pipeline.reports.verdict import decisive, fine_tuned_verdict, verdict_of
from alpro.pipeline.store.artifacts import Step, Store
from alpro.stages import CORPUS_STAGES, EVALUATIONS
from alpro.stages.evaluation.comparison import compare
from alpro.stages.evaluation.controls import CONTROLS

MISSING = "-"
RUNS_BEFORE = 8  # that a page links
Link = tuple[str, str]  # its text and its address
KINDS = ("configuration", "data", "code", "version")  # of what decides a result, and may differ
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
# What the pictures of the stages show, by the name of the file.
CAPTIONS = {
    "samples": "Evenly spaced samples of the corpus with their texts.",
    "pseudo_labels": "The prompter's pseudo-labels on crops of training examples (Figure 3 of the paper); if the "
    "manifest lists what a clip shows, they are green if the clip shows the entity and red if not.",
    "search": "Texts of the validation split, and the four videos that are first; the right one has a green border.",
    "retrieval": "Queries with the best and with the worst ranks by similarity, and the first videos; the right one "
    "has a green border.",
}


def report_file(root: Path, plan: Planned) -> Path:
    """The report of a run of a plan in a workspace. Its summary is the .json beside it."""
    return root / "reports" / f"{plan.settings.name}-{plan.steps[-1].fingerprint[:6]}.html"


def write_report(
    path: Path,
    run: Mapping[str, Any],
    artifacts: Sequence[tuple[Path, Record]],
    links: Sequence[Link] = (),
) -> Path:
    """Writes the page of a run, and its summary beside it.

    artifacts: of the steps that ran or were cached, in order; all steps unless the run failed. links: to the pages of
    this run elsewhere.
    """
    found, records = (
        rows(artifacts),
        {record["name"]: (folder, record) for folder, record in artifacts},
    )
    shown = " ".join(row["what"] for row in found)
    counted, rejected = list[list[str]](), list[list[str]]()
    pictures = dict[str, list[tuple[str, str]]]()
    for step in run["steps"]:
        folder, record = records.get(step["name"], (None, None))
        time = step["state"]
        if record and time == "built":
            time = str(timedelta(seconds=round(record["run"]["seconds"])))
        counts = record["counts"] if record and record["stage"] not in EVALUATIONS else {}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counts.items())
        counted.append(
            [step["name"], step["fingerprint"][:8], time, ", ".join(step["inputs"]), text]
        )
        if folder and (folder / "statistics.json").is_file():
            reasons = read_json(folder / "statistics.json").get(
                "reasons", {}
            )  # most frequent first
            rejected += [[step["name"], reason, str(count)] for reason, count in reasons.items()]
        if folder and (of_stage := stage_pictures(folder)):
            pictures[step["name"]] = of_stage
    arguments = run["arguments"]
    facts = {
        "started": run["started"][:19].replace("T", " ") + " UTC",
        "took": str(timedelta(seconds=round(run["seconds"]))),
        "commit": run["commit"],
        "configuration": arguments["config"],
        "data": arguments["data"],
        "changed values": "\n".join(arguments["changes"]) or "none",
    }
    notes = [
        [one.label, one.meaning] for one in CONTROLS.values() if f"control: {one.label}" in shown
    ]
    warnings = [
        [record["name"], line] for _, record in artifacts for line in record.get("warnings", [])
    ]
    first = [
        main_table(found),
        *tables({"score": found}),
        Table("Warnings", ["stage", "warning"], warnings, texts=True),
        Table("What the controls show", ["control", "it shows"], notes, texts=True),
    ]
    last = [
        data_table(artifacts),
        Table("Rejected", ["", "reason", "items"], rejected),
        Table("Stages", ["stage", "fingerprint", "time", "inputs", "counts"], counted, texts=True),
        Table(
            "Run", ["", ""], [[label, text] for label, text in facts.items() if text], texts=True
        ),
    ]
    chart = score_bars(found)
    sentence = fine_tuned_verdict(artifacts)
    write_page(
        path,
        run["title"],
        state=run["state"],
        reason=run["reason"],
        verdicts=[sentence] if sentence else [],
        bars=[chart] if chart else [],
        tables=first,
        curves=learning_curves(artifacts),
        calibrations=calibrations(artifacts),
        pictures=pictures,
        last=last,
        links=[*links, *runs_before(path, run)],
        # What explains a run that did not finish is not folded; of warnings, what a screen has room for.
        opened=["Stages"] * (run["state"] != FINISHED) + ["Warnings"] * (len(warnings) <= 4),
    )
    write_json(path.with_suffix(".json"), run)
    return path


def write_page(path: Path, title: str, **values: Any) -> Path:
    """Renders the template into one file that needs no other. Raises InputError if it cannot be written."""
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["anchor"] = anchor
    values = {"tables": (), "last": (), "opened": ()} | values
    page = environment.get_template("page.html.jinja").render(
        title=title, contents=contents_of(values), **values
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(page, "utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return path


def contents_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The sections of a page in order, each with its anchor."""
    tables = [table.title for table in values["tables"] if table and table.lines]
    names = [*tables]
    names += ["Learning curves"] if values.get("curves") else []
    names += ["Calibration"] if values.get("calibrations") else []
    names += values.get("pictures") or ()
    names += [table.title for table in values["last"] if table and table.lines]
    names += ["Links"] if values.get("links") else []
    return {name: anchor(name) for name in names}


def anchor(title: str) -> str:
    """The name of a section in an address.

    >>> anchor("What the controls show")
    'what-the-controls-show'
    """
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def runs_before(path: Path, run: Mapping[str, Any]) -> list[Link]:
    """Links to the pages of the last runs of the same configuration in the folder of a page, the newest first."""
    found = []
    for file in path.parent.glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # no summary of a run
            other = read_json(file)
            same = other["name"] == run["name"] and other["started"] < run["started"]
            if same and file.stem != path.stem and file.with_suffix(".html").is_file():
                text = f"{other['started'][:16].replace('T', ' ')}: {other['title']} ({other['state']})"
                found.append((other["started"], (text, f"{quote(file.stem)}.html")))
    return [link for _, link in sorted(found, reverse=True)[:RUNS_BEFORE]]


def stage_pictures(folder: Path) -> list[tuple[str, str]]:
    """The pictures of a stage: captions and addresses."""
    pictures = []
    for path in sorted((folder / "pictures").glob("*.png")):
        kind, _, step = path.stem.partition("-step-")
        caption = CAPTIONS.get(kind) or f"{re.sub('[-_]+', ' ', kind).capitalize()}."
        caption = f"Step {int(step)}: {caption}" if step.isdigit() else caption
        data = base64.b64encode(path.read_bytes()).decode()
        pictures.append((caption, f"data:image/png;base64,{data}"))
    return pictures


def finished_steps(plan: Planned, report: Path) -> list[Step]:
    """The steps of a run that has nothing to do: every artifact is in the workspace, which has an MLflow store, and the
    last run of these steps did not fail or stop. Empty if anything is left to do. report: the file of `report_file`."""
    wanted = required(plan.steps, plan.store)
    if not (report.parents[1] / "mlflow.db").is_file():
        return []
    with suppress(OSError, ValueError, TypeError, KeyError):  # no summary
        if read_json(report.with_suffix(".json"))["state"] != FINISHED:
            return []
    return wanted if all(map(plan.store.find, wanted)) else []


class Compared(NamedTuple):
    """Runs side by side: the tables, a sentence on each of the others, and the charts of their differences."""

    title: str
    tables: list[Table]
    verdicts: list[str]
    bars: list[Bars]


def compared_runs(store: Store, artifacts: Sequence[tuple[Path, Record]]) -> Compared:
    """Compares artifacts of evaluations, the first with each of the others. Raises InputError as `compare` does."""
    names = [folder.name[:8] for folder, _ in artifacts]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{repeated[0]}: named twice; name two runs")
    (first, _), *others = artifacts
    compared = [compare(first, folder) for folder, _ in others]
    lines = differences(
        [[found for _, found in store.lineage(dict(record))] for _, record in artifacts]
    )
    shown = [Table("What differs", ["", "", *names], lines, texts=True)] if lines else []
    results = dict(zip(names, [read_results(folder) for folder, _ in artifacts], strict=True))

    pairs = list(zip(names[1:], compared, strict=True))
    verdicts = [verdict_of(names[0], name, one) for name, one in pairs]
    charts = [difference_bars(names[0], name, one) for name, one in pairs]
    marked = decisive(row["name"] for one in compared for row, _ in one.scores)
    return Compared(
        title=" and ".join(names),
        tables=shown + tables(results, compared, marked),
        verdicts=[sentence for sentence in verdicts if sentence],
        bars=[chart for chart in charts if chart],
    )


def comparison_page(path: Path, compared: Compared) -> Path:
    """Writes the page of runs side by side."""
    return write_page(
        path,
        compared.title,
        verdicts=compared.verdicts,
        bars=compared.bars,
        tables=compared.tables,
        opened=["What differs"],
    )


def differences(runs: Sequence[Sequence[Record]]) -> list[list[str]]:
    """What is not the same in all runs, each with all the records that it was built from: the kind of KINDS, a name,
    and its value in each run."""
    described = [origins(records) for records in runs]
    names = dict.fromkeys(name for of_run in described for name in of_run)
    return [
        [kind, name, *values]
        for kind, name in sorted(names, key=lambda both: KINDS.index(both[0]))
        if len(set(values := [of_run.get((kind, name), MISSING) for of_run in described])) > 1
    ]


def origins(records: Sequence[Record]) -> Mapping[tuple[str, str], str]:
    """What decides the result of a run, by kind and name: configurations, corpora with their counts, digests of files,
    commits, versions of stages, precisions and packages."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        name, stage = record["name"], record["stage"]
        found = {
            ("configuration", key): str(v) for key, v in flatten({name: record["config"]}).items()
        }
        if stage in CORPUS_STAGES:
            counts = ", ".join(
                f"{count} {what}" for what, count in record["counts"].items() if count
            )
            found["data", name.partition(" ")[2] or name] = f"{record['fingerprint'][:8]}: {counts}"
        found |= {
            ("data", f"{name} {file}"): digest[:8] for file, digest in record["files"].items()
        }
        found["code", "commit"] = record["run"].get("commit") or MISSING
        found["code", f"{stage}, version"] = str(record["stage_version"])
        found |= {("code", f"{name} in"): record["precision"]} if record.get("precision") else {}
        found |= {("version", package): version for package, version in record["versions"].items()}
        for key, value in found.items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(each) for key, each in values.items()}
