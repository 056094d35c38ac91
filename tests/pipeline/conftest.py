"""What tests of flows share: Prefect's server for tests, and one small pipeline that ran from end
to end."""

import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from alpro.files import digest
from alpro.pipeline.store.runs import RunEntry, read_runs
from tests.conftest import ROOT
from tests.plans import plan_of

if TYPE_CHECKING:
    from alpro.artifact import Record

TINY = str(ROOT / "tests" / "tiny.toml")
RETRIEVAL, QA, PROMPTER = (
    digest(stage)[:8]
    for stage in ("finetune_retrieval", "finetune_qa", "train_prompter")
)


@pytest.fixture(scope="session")
def prefect(request, tmp_path_factory) -> Iterator[None]:
    from prefect import __version__
    from prefect.flow_engine import BaseFlowRunEngine
    from prefect.testing.utilities import prefect_test_harness

    # Its hundred migrations of an empty database take four seconds of computing: the result is kept
    # beside the other things that pytest keeps between its runs.
    kept = request.config.cache.mkdir(f"prefect-{__version__}") / "prefect-test.db"
    folder = tmp_path_factory.mktemp("prefect")
    if kept.exists():
        shutil.copy(kept, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(folder))
        # No test reads the events of Prefect's pages, which take a seventh of the server's time.
        for service in ("EVENT_PERSISTER", "TRIGGERS"):
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=600):
            patch.undo()  # for other servers
            if not kept.exists():
                keep_database(folder / kept.name, kept)
            # At the end of each flow Prefect waits a second for the thread that reports that the
            # flow is alive.
            patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
            yield


def keep_database(database: Path, kept: Path) -> None:
    """Copies a database that is in use. The copy gets its name when it is complete."""
    unfinished = kept.with_suffix(".unfinished")
    with (
        closing(sqlite3.connect(database)) as source,
        closing(sqlite3.connect(unfinished)) as target,
    ):
        source.backup(target)
    unfinished.replace(kept)


@contextmanager
def group_may_write() -> Iterator[None]:
    """New files are writable for the group of their user."""
    before = os.umask(0o002)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="session")
def mlflow_store(build_once) -> Callable[[Path], None]:
    """mlflow_store(workspace): gives a workspace an empty MLflow store. It takes seconds to create
    one."""

    def create(out: Path) -> None:
        from alpro.pipeline.tracking.store import create_store

        with group_may_write():
            create_store(out / "mlflow.db", out / "mlflow")

    def copy(workspace: Path) -> None:
        database = shutil.copy(build_once("mlflow", create) / "mlflow.db", workspace)
        files = (workspace.resolve() / "mlflow" / "0").as_uri()
        with closing(sqlite3.connect(database)) as store, store:
            store.execute("UPDATE experiments SET artifact_location = ?", [files])

    return copy


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, mlflow_store) -> Path:
    mlflow_store(folder := tmp_path_factory.mktemp("workspace"))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, folders) -> Path:
    """A workspace with a random model of each kind, and the prompts of the prompter."""
    root = tmp_path_factory.mktemp("trained")
    made = dict[str, Any]()
    kinds = {
        "train_prompter": "prompter",
        "finetune_retrieval": "retrieval",
        "finetune_qa": "qa",
    }
    for stage, kind in (kinds | {"cache_prompts": "prompts"}).items():
        inputs = {"prompter": made["train_prompter"]} if kind == "prompts" else {}
        folder, made[stage] = write_artifact(root, stage, inputs=inputs)
        shutil.copytree(folders[kind], folder, dirs_exist_ok=True)
    return root


@pytest.fixture
def call(monkeypatch, capsys) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """call(*arguments): runs the command line; its exit status, standard output, and standard
    error without the first line of `alpro run`."""
    from alpro.log import warn_once
    from alpro.pipeline.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        warn_once.cache_clear()  # as in a process of its own
        monkeypatch.setattr(sys, "argv", ["alpro", *map(str, arguments)])
        # A command sets variables for its own process.
        monkeypatch.setattr(os, "environ", os.environ.copy())
        # Flows here do not need it.
        no_server = "alpro.pipeline.flows.servers.start_temporary_server"
        monkeypatch.setattr(no_server, lambda: lambda: None)
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        lines = printed.err.splitlines(keepends=True)
        errors = [line for line in lines if "starting, with the workspace" not in line]
        return left.value.code, printed.out, "".join(errors)

    # A command keeps its handlers until its process ends.
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in stopping}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def wait_for(
    condition: Callable[[], Any],
    seconds: float = 600,
    check: Callable[[], None] = lambda: None,
    pause: float = 0.1,
) -> Any:
    """Waits until the condition returns something true, and returns it. `check` may raise what
    makes it impossible. pause: seconds between two looks."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        check()
        time.sleep(pause)
    raise AssertionError(f"not within {seconds} s")


def write_artifact(
    root: Path,
    stage: str,
    mark: str = "",
    inputs: Mapping[str, Any] | None = None,
    **more: Any,
) -> "tuple[Path, Record]":
    """Writes an artifact into a workspace; its fingerprint is the digest of `mark`, or of the
    stage. inputs: records by name."""
    from alpro.artifact import RECORD_VERSION, Record
    from alpro.files import digest, write_json

    sources = {
        name: {"stage": record.stage, "fingerprint": record.fingerprint}
        for name, record in (inputs or {}).items()
    }
    record: dict[str, Any] = {
        key: {} for key in ("config", "counts", "metrics", "files", "versions")
    }
    record |= {
        "version": RECORD_VERSION,
        "stage": stage,
        "name": stage,
        "fingerprint": digest(mark or stage),
        "stage_version": 1,
        "inputs": sources,
        "run": {"at": "2026-01-01T00:00:00", "seconds": 1.0, "commit": "abc"},
    }
    record |= more
    folder = root / "artifacts" / stage / record["fingerprint"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "artifact.json", record)
    return folder, Record.from_json(record)


class InProcess:
    """Stands for `Processes`: the stage runs in the thread that waits for it."""

    last_lines = ()

    def __init__(self, command: list[str], *_: object):
        self.work_file = Path(command[-1])

    def wait(self, *_: object) -> int:
        from alpro.pipeline.execution import run_stage

        return run_stage.main(self.work_file)


@contextmanager
def in_process() -> Iterator[None]:
    """Stages run in this process, not in a group of processes: that takes a tenth of the time."""
    from alpro.pipeline.execution import processes
    from alpro.pool import in_this_process
    from alpro.stages.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "Processes", InProcess)
        # A task runs in a thread.
        patch.setattr(loop, "catch_stop_signals", lambda: nullcontext([]))
        with in_this_process():
            yield


@pytest.fixture(scope="session")
def first(workspace, prefect) -> dict[str, str]:
    """The artifacts of a first run of the tiny pipeline, by stage."""
    return alpro(TINY, workspace=workspace)


def alpro(
    config: str,
    data: str = "",
    changes: Iterable[str] = (),
    stage: str = "",
    *,
    workspace: Path,
    uri: str = "",
) -> dict[str, str]:
    """Runs a pipeline, or one stage of it, as a flow whose stages run in this process."""
    from alpro.pipeline.flows.flow import start
    from alpro.pipeline.tracking.tracker import Tracker

    with in_process():
        plan = plan_of(config, *changes, workspace=workspace, data=data, stage=stage)
        tracker = Tracker.open(uri, workspace, plan.settings.name)
        artifacts = start(plan, tracker)
        return {record.name: str(folder) for folder, record in artifacts}


@pytest.fixture
def copied(first, monkeypatch) -> None:
    """Stages copy what the first run built, if it is there, instead of computing: for tests that
    ask which ones run."""
    from alpro.artifact import RECORD, read_record
    from alpro.pipeline.flows import tasks
    from alpro.stages.execution.interface import Outcome

    built = {name: Path(folder) for name, folder in first.items()}

    compute = tasks.run_stage

    def work(step: Any, out: Path, *more: Any, **options: Any) -> Outcome:
        if (record := read_record(built[step.name])) is None:
            return compute(step, out, *more, **options)
        ignore = shutil.ignore_patterns(RECORD)
        shutil.copytree(built[step.name], out, dirs_exist_ok=True, ignore=ignore)
        # Otherwise what follows would not run: its inputs would be equal.
        (out / "of").write_text(step.fingerprint)
        return Outcome(dict(record.counts), dict(record.metrics))

    monkeypatch.setattr(tasks, "run_stage", work)


def runs(workspace: Path) -> tuple[list, dict[str, list]]:
    """The pipelines' MLflow runs, newest first, and the nested runs of each."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    listed = client.search_runs(
        [client.get_experiment_by_name("tiny").experiment_id], max_results=1000
    )
    nested: dict[str, list] = {}
    for run in listed:
        nested.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    return nested.pop(""), nested


def last_run(workspace: Path, changes: Iterable[str] = (), stage: str = "") -> RunEntry:
    """The last run with these arguments, as the log has it."""
    asked = (tuple(changes), stage)
    return [run for run in read_runs(workspace) if (run.changes, run.stage) == asked][
        -1
    ]


def states_of(
    workspace: Path, changes: Iterable[str] = (), stage: str = ""
) -> dict[str, str]:
    """What became of the steps of a run, by name."""
    return dict(last_run(workspace, changes, stage).states)


def statuses_of(workspace: Path) -> dict[str, str]:
    """The statuses of the newest pipeline's run in MLflow, under an empty name, and of its
    stages."""
    (parent, *_), nested = runs(workspace)
    stages = {
        run.info.run_name.split(" · ")[0]: run.info.status
        for run in nested.get(parent.info.run_id, [])
    }
    return {"": parent.info.status} | stages


STAGES = [
    "render_sample",
    "decode_videos clips",
    "decode_videos stills",
    "train_tokenizer",
    "build_vocabulary",
]
STAGES += [
    "train_prompter",
    "cache_prompts",
    "pretrain",
    "finetune_retrieval",
    "finetune_qa",
]
EVALUATED = [
    f"evaluate {task}" for task in ("prompter", "pretrained", "retrieval", "qa")
]
STAGES += EVALUATED
RUN_STAGE = "alpro.pipeline.flows.tasks.run_stage"


def newest_run() -> tuple[Any, Any]:
    """Prefect's run of the newest pipeline, and the filter that selects it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    return run, FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))


def newest_runs() -> tuple[Any, dict[UUID, Any]]:
    """Prefect's run of the newest pipeline and those of its steps, once the server has recorded
    their final states."""
    from prefect.client.orchestration import get_client

    run, only = newest_run()
    with get_client(sync_client=True) as client:

        def recorded() -> list[Any]:
            found = client.read_task_runs(flow_run_filter=only)
            final = [one for one in found if one.state and one.state.is_final()]
            return final if len(final) == len(STAGES) else []

        return run, {one.id: one for one in wait_for(recorded, 600)}


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
