"""Runs of MLflow for a stage that ran or was cached."""

import getpass
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpro.pipeline.plan.step import Step
from alpro.pipeline.reports.figures import metric_curves
from alpro.pipeline.reports.results import HEADLINES
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.tracking.tracker import Logged, Run, Tracker, system_metrics
from alpro.stages import CORPUS_STAGES, EVALUATIONS, STAGES
from alpro.stages.execution.interface import Interrupted
from alpro.stages.execution.lifecycle import alive
from alpro.stages.training.metrics import read_metrics

# By evaluation and input: the first part of the names of its metrics.
EVALUATED: dict[str, dict[str, tuple[str, ...]]] = {
    "zero_shot": {"pretrained": ("zero_shot",), "prompter": ("entities", "entity_crops")},
    "evaluate": {"qa": ("qa",), "retrieval": ("retrieval",)},
}


@dataclass
class StageResult:
    """A step with its artifact: where it lies, its record, and whether it was there already."""

    step: Step
    folder: Path
    record: dict[str, Any]
    cached: bool
    mlflow_run: Run = field(default_factory=Run)  # that of the machine that built it, if this MLflow store has it


@contextmanager
def stage_run(tracker: Tracker, step: Step, folder: Path, parent: Run | None, tags: dict[str, str]) -> Iterator[Run]:
    """An MLflow run for the time a stage runs: follows its metrics. Ends it if the stage fails or is stopped;
    `log_result` ends it after a success.

    An earlier run of this process is stale: this process holds the lock of the artifact. Other processes may run the
    same stage at the same time in another workspace, or on another machine.
    """
    end_dead_runs(tracker, {"fingerprint": step.fingerprint}, own=True)
    resumed = tracker.started_before(step.fingerprint)
    run = tracker.start(step_title(step), params(step), tags, parent)
    system = system_metrics(tracker, run) if STAGES[step.stage].kind == "training" else nullcontext()
    try:
        with system, tracker.follow(run, folder / "metrics.jsonl", resumed):
            yield run
    except BaseException as error:
        tracker.end(run, status_after(error))
        raise


def status_after(error: BaseException) -> str:
    """The status of a run that an exception ended: KILLED if somebody stopped it, else FAILED."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit | Interrupted)
    stopped = stopped or type(error).__name__ in ("TerminationSignal", "Abort", "CancelledError")
    return "KILLED" if stopped else "FAILED"


def log_result(tracker: Tracker, result: StageResult, run: Run, parent: Run | None) -> None:
    """Logs an artifact's final metrics, pictures, tables and curves to its run, its metrics to the pipeline's."""
    result.mlflow_run = run
    lines = read_metrics(result.folder / "metrics.jsonl")
    log_artifact(tracker, result, run, last_step(lines))
    if (curves := metric_curves(lines, result.step.name)) is not None:
        tracker.figure(run, curves, "pictures/curves.png")
    if parent:
        log_to_parent(tracker, parent, result)
    tracker.end(run)


def log_remote_result(
    tracker: Tracker, result: StageResult, parent: Run | None, tags: dict[str, str], store: Store
) -> None:
    """Logs everything of an artifact that was built without this MLflow store."""
    run = tracker.start(step_title(result.step), params(result.step), tags, parent)
    log_corpora(tracker, run, store, result.step)
    tracker.lines(run, read_metrics(result.folder / "metrics.jsonl"))
    tracker.pictures_of_steps(run, result.folder)
    log_result(tracker, result, run, parent)


def log_artifact(tracker: Tracker, result: StageResult, run: Run, step: int) -> None:
    """Logs the record of an artifact, its pictures, tables and metrics, and its model, or the models that it evaluates.

    Metrics of a model are logged with it and with the corpus that they are of: MLflow's table of models sorts by them.
    """
    tracker.artifact_folder(run, result.folder)
    values = numbers(result)
    if (result.folder / "model").is_dir() and STAGES[result.step.stage].kind == "training":
        folder, fingerprint, about = result.folder / "model", result.step.fingerprint, params(result.step)
        name = f"{tracker.name} · {result.step.stage} · {fingerprint[:8]}"
        model = tracker.model(run, name, folder, fingerprint, about, step)
        corpora = [source for source in result.step.inputs.values() if source.stage in CORPUS_STAGES]
        tracker.metrics(run, values, step, logged(model, *corpora[:1]))
        return
    evaluations = EVALUATED.get(result.step.stage, {})
    models = {
        name: tracker.logged_model(source.fingerprint)
        for name, source in result.step.inputs.items()
        if name in evaluations
    }
    tracker.evaluated(run, filter(None, models.values()))
    for name, model in models.items():
        if not model:
            continue
        own = {key: value for key, value in values.items() if key.partition("/")[2].startswith(evaluations[name])}
        corpus = result.step.inputs.get(getattr(result.step.config, "qa" if name == "qa" else "retrieval", ""))
        if own:
            tracker.metrics(run, own | headlines(own), step, logged(model, *filter(None, [corpus])))
        values = {key: value for key, value in values.items() if key not in own}
    tracker.metrics(run, headlines(values) | values if result.step.stage in EVALUATIONS else values, step)


def logged(model: str, *corpora: Step) -> Logged:
    """What metrics belong to: a model and the first of its corpora."""
    for corpus in corpora:
        return Logged(model, corpus.name.partition(" ")[2] or corpus.name, corpus.fingerprint[:16])
    return Logged(model)


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """The headline scores of an evaluation under their short names."""
    by_name = {name.partition("/")[2]: value for name, value in metrics.items()}
    return {short: by_name[name] for short, name in HEADLINES.items() if name in by_name}


def log_cached(tracker: Tracker, result: StageResult, parent: Run | None, tags: dict[str, str], store: Store) -> None:
    """Logs the metrics of a cached stage to the pipeline's run. The stage has a run already, that of the pipeline that
    built it; one is added only if this MLflow store has none with all entries: the artifact is of another machine, or
    MLflow did not answer."""
    built = tracker.find(result.step.fingerprint, result.record["run"].get("mlflow_run", ""))
    if built == "":
        log_remote_result(tracker, result, parent, tags, store)
        return
    if built:
        result.mlflow_run = Run(built)
    if parent:
        log_to_parent(tracker, parent, result)


def log_stages(tracker: Tracker, parent: Run, results: list[StageResult]) -> None:
    """Logs a table of the stages to the pipeline's run: which were cached, and the run of each. The fingerprints of
    the cached ones are in a tag."""
    cached = [result for result in results if result.cached]
    tracker.tags(
        parent,
        {
            "cached": ", ".join(result.step.name for result in cached),
            "cached_fingerprints": " ".join(result.step.fingerprint for result in cached),
        },
    )
    rows = [
        {
            "stage": result.step.name,
            "state": "cached" if result.cached else "built",
            "fingerprint": result.step.fingerprint[:16],
            "built at": result.record["run"].get("at", ""),
            "seconds": result.record["run"]["seconds"],
            "run": tracker.address(result.mlflow_run) or result.mlflow_run.id,
        }
        for result in results
    ]
    tracker.table(parent, rows, "tables/stages.json")


def log_to_parent(tracker: Tracker, parent: Run, result: StageResult) -> None:
    """Logs a stage's metrics to the pipeline's run, and a corpus as one of its data sets."""
    tracker.metrics(parent, parent_numbers(result))
    if result.step.stage in CORPUS_STAGES:
        name, record = result.step.name.partition(" ")[2], result.record
        tracker.dataset(parent, name, result.folder, record["fingerprint"], record["counts"], "pipeline")


def log_corpora(tracker: Tracker, run: Run, store: Store, step: Step) -> None:
    """Logs the corpora that a stage reads as data sets of its run."""
    uses = {"training": "training", "evaluation": "evaluation"}
    for name, source in step.inputs.items():
        record = store.find(source) if source.stage in CORPUS_STAGES else None
        if record:
            use = uses.get(STAGES[step.stage].kind, "vocabulary")
            tracker.dataset(run, name, store.folder(source), source.fingerprint, record["counts"], use)


def step_title(step: Step) -> str:
    """The name of a step's run: its name, and its fingerprint."""
    return f"{step.name} · {step.fingerprint[:8]}"


def params(step: Step) -> dict[str, Any]:
    """The values of a step's configuration that are not the defaults; artifact.json has all of them."""
    return {step.stage: step.config.model_dump(mode="json", exclude_defaults=True)}


def last_step(lines: list[dict[str, Any]]) -> int:
    return lines[-1]["step"] if lines else 0


def numbers(result: StageResult) -> dict[str, float]:
    """The numbers of an artifact record: metrics, counts, seconds."""
    counts = {f"counts/{name}": float(value) for name, value in result.record["counts"].items()}
    counts = {} if result.step.stage in EVALUATIONS else counts
    return {**result.record["metrics"], **counts, "seconds": result.record["run"]["seconds"]}


def parent_numbers(result: StageResult) -> dict[str, float]:
    """A stage's metrics in the pipeline's run: those of an evaluation as they are, with the headline scores, others
    under the stage's name. MLflow sorts charts by name, so the names of the latter sort after test/."""
    metrics = result.record["metrics"]
    if result.step.stage in EVALUATIONS:
        return headlines(metrics) | metrics
    return {f"training/{result.step.stage}/{name}": value for name, value in metrics.items()}


def run_tags(commit: str, step: Step | None = None) -> dict[str, str]:
    """Where a run comes from: commit, machine, process and user; for a stage its fingerprint."""
    tags = {"commit": commit, "host": socket.gethostname(), "pid": str(os.getpid())}
    # MLflow's own columns
    tags |= {"mlflow.user": user(), "mlflow.source.type": "LOCAL", "mlflow.source.name": "alpro"}
    tags |= {"mlflow.source.git.commit": commit.removesuffix("+")} if commit != "unknown" else {}
    return tags | ({"stage": step.stage, "fingerprint": step.fingerprint} if step else {})


def user() -> str:
    """The name of the user, "unknown" for a process whose user has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def end_dead_runs(tracker: Tracker, tags: dict[str, str], own: bool = False) -> None:
    """Marks as killed the runs with these tags that are listed as running although their process on this machine is
    gone; with `own`, also those of this process. Whether a process of another machine lives is not known here."""

    def is_dead(run_tags: dict[str, str]) -> bool:
        pid = int(run_tags.get("pid", 0))
        return own if pid == os.getpid() else pid > 0 and not alive(pid)

    tracker.kill_stale({**tags, "host": socket.gethostname()}, is_dead)


def git_commit() -> str:
    """The commit of this code, with + where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__)))  # installed elsewhere: a repository of the user's
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
