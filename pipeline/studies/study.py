"""Runs a study: every variant of a configuration with every seed, and a table of their scores.

The runs are those of `alpro run`, one after another, in one process with one temporary server of Prefect. What they
share is built once, because an artifact is found by its fingerprint; so a study that was stopped continues when it is
run again. The seeds are the outer loop: after the first, all variants can be compared.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import atomic_write, digest, write_json
from alpro.log import log
from alpro.pipeline.flows import flow
from alpro.pipeline.flows.run import open_tracker
from alpro.pipeline.plan import dag as planning
from alpro.pipeline.plan.steps import check_files, required
from alpro.pipeline.reports.figures import study_figure
from alpro.pipeline.reports.results import results
from alpro.pipeline.reports.terminal import console, print_result_table
from alpro.pipeline.studies.study_config import Study
from alpro.pipeline.studies.table import score_rows, study_table
from alpro.pipeline.tracking.stage_runs import end_dead_runs, git_commit, run_tags, status_after
from alpro.pipeline.tracking.tracker import Run, Tracker
from alpro.stages.execution.interface import StageFailed


@dataclass(frozen=True, eq=False)
class Member:
    """One run of a study: a variant with a seed, and its plan."""

    variant: str
    seed: int
    changes: list[str]
    plan: planning.Planned

    @property
    def title(self) -> str:
        return f"{self.variant} · seed {self.seed}"


@dataclass(frozen=True)
class Source:
    """What the members of a study share: the study, its configuration, and where they run."""

    study: Study
    config: str
    data: str
    changes: list[str]
    root: Path
    tracking_uri: str = ""


Outcomes = dict[Member, list[dict[str, Any]] | Exception]  # rows of results.json, or why the run failed


def members_of(source: Source) -> list[Member]:
    """The plans of all runs, seeds first. Raises InputError, which names the variant, if one of them is invalid."""
    members, study = [], source.study
    for seed in study.seeds:
        for variant in study.variants:
            changes = [*study.changes, *source.changes, *variant.changes, f'name="{study.name}"']
            try:
                changes += study.seed_changes(planning.loaded(source.config, source.data, changes, source.root), seed)
                plan = planning.planned(study.until, source.config, source.data, changes, source.root, warn=False)
            except InputError as error:
                raise InputError(f"variant {variant.name!r}: {error}") from error
            members.append(Member(variant.name, seed, changes, plan))
    lines = (line for member in members for line in planning.repeated_frames(member.plan[1]))
    for line in dict.fromkeys(lines):
        log.warning(line)
    return members


def run_study(source: Source, members: list[Member], as_json: bool = False) -> None:
    """Runs all members; prints, writes and logs the table of their scores. One that fails does not stop the others.

    Raises InputError before the first one if files are missing, and StageFailed at the end if any failed.
    """
    for member in members:
        check_files(*member.plan[1:])
    outcomes: Outcomes = {}
    tracker = open_tracker(source.tracking_uri, source.root, source.study.name)
    try:
        with variant_runs(tracker, members, outcomes) as runs:
            for member in members:
                log.info(f"{member.title} ({len(outcomes) + 1} of {len(members)})")
                outcomes[member] = outcome(source, member, runs[member.variant])
            report(source, outcomes, folder_of(source, members), tracker, runs, as_json)
    finally:
        tracker.close()
    failed = [member.title for member, rows in outcomes.items() if isinstance(rows, Exception)]
    if failed:
        raise StageFailed(f"{len(failed)} of {len(members)} runs failed: {', '.join(failed)}")


def outcome(source: Source, member: Member, parent: Run) -> list[dict[str, Any]] | Exception:
    """Runs one member as `alpro run` would. Returns its rows of results.json, or the error that it failed with."""
    tags = {"study": source.study.name, "variant": member.variant, "seed": str(member.seed)}
    arguments = {"config": source.config, "data": source.data, "changes": member.changes, "stage": source.study.until}
    appearance = {"title": member.title, "tags": tags, "parent": parent}
    try:
        folders = flow.start(member.plan, arguments, source.root, source.tracking_uri, **appearance)
    except Exception as error:
        if status_after(error) == "KILLED":
            raise
        log.warning(f"{member.title}: failed: {error}")
        return error
    listed = [(name, Path(folder), read_record(Path(folder)) or {}, False) for name, folder in folders.items()]
    return results(listed)


@contextmanager
def variant_runs(tracker: Tracker, members: list[Member], outcomes: Outcomes) -> Iterator[dict[str, Run]]:
    """A run in MLflow for each variant, with the configuration of its first seed, for the time of the body."""
    end_dead_runs(tracker, {})
    tags, runs = run_tags(git_commit()), {}
    for member in members:
        if member.variant not in runs:
            settings = member.plan[0].model_dump(mode="json")
            about = {"study": settings["name"], "variant": member.variant}
            runs[member.variant] = tracker.start(member.variant, settings, tags | about)
    status = "FINISHED"
    try:
        yield runs
    except BaseException as error:
        status = status_after(error)
        raise
    finally:
        failed = {member.variant for member, rows in outcomes.items() if isinstance(rows, Exception)}
        for variant, run in runs.items():
            tracker.end(run, "FAILED" if status == "FINISHED" and variant in failed else status)


def folder_of(source: Source, members: list[Member]) -> Path:
    """The folder of the report: the same for a study that continues, another one if anything of it has changed."""
    mark = digest([member.plan[1][-1].fingerprint for member in members])[:6]
    return source.root / "reports" / f"{source.study.name}-{mark}"


def report(
    source: Source, outcomes: Outcomes, folder: Path, tracker: Tracker, runs: dict[str, Run], as_json: bool = False
) -> None:
    """Prints the selected scores as a table, or all as JSON; writes study.json (all) and study.png (the selected ones),
    and logs these files to MLflow."""
    study = source.study
    scores: dict[str, dict[int, list[dict[str, Any]]]] = {variant.name: {} for variant in study.variants}
    for member, rows in outcomes.items():
        if not isinstance(rows, Exception):
            scores[member.variant][member.seed] = rows
    failed = {member.title: str(rows) for member, rows in outcomes.items() if isinstance(rows, Exception)}
    rows = score_rows(scores, study.bases())
    if not rows:
        log.warning("no scores: no run finished an evaluation")
        return
    selected = [row for row in rows if study.selects(row["score"])] or rows
    if not as_json:
        print_result_table(study_table(study.name, selected, study.variants[0].name))
    about: dict[str, Any] = {"study": study.model_dump(mode="json", by_alias=True), "config": source.config}
    about |= {"data": source.data, "set": source.changes, "commit": git_commit(), "failed": failed, "scores": rows}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", about)
    with atomic_write(folder / "study.png") as temporary:
        study_figure(selected).savefig(temporary, format="png", dpi=150)
    for variant, run in runs.items():
        tracker.metrics(run, numbers([row for row in rows if row["variant"] == variant]))
        for file in sorted(folder.iterdir()):
            tracker.file(run, file, "study")
    if as_json:
        print((folder / "study.json").read_text("utf-8"))
    else:
        console.print(f"report: {folder}", markup=False)


def numbers(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of a variant for MLflow, such as `mean/retrieval/t2v/R1`."""
    kinds = ("mean", "interval", "difference", "difference_interval")
    return {f"{kind}/{row['score']}": row[kind] for row in rows for kind in kinds if row[kind] is not None}


def work_left(members: list[Member]) -> dict[str, dict[str, int]]:
    """The stage runs of a study by the names of the steps, each fingerprint once: how many are left `to_run`, and how
    many are `cached`."""
    store = members[0].plan[2]
    work: dict[str, dict[str, int]] = {}
    for step in {step.fingerprint: step for member in members for step in required(*member.plan[1:])}.values():
        of_name = work.setdefault(step.name, {"to_run": 0, "cached": 0})
        of_name["cached" if store.find(step) else "to_run"] += 1
    return work


def print_study_plan(members: list[Member], as_json: bool = False) -> None:
    """Prints how many stages have to run, and how many are cached."""
    work = work_left(members)
    if as_json:
        print(json.dumps(work, indent=1))
        return
    for name, counts in work.items():
        print(f"{name:24} {counts['to_run']:4} to run {counts['cached']:4} cached")
    to_run, cached = (sum(counts[key] for counts in work.values()) for key in ("to_run", "cached"))
    print(f"{len(members)} runs: {to_run} stage runs to do, {cached} cached")
