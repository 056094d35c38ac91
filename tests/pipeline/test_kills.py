"""A killed process leaves no artifact and no running process, and the next run continues its work."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from alpro.artifact import read_record
from alpro.pipeline.config.load import load_config
from alpro.pipeline.plan.dag import plan
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.store.artifacts import Store
from alpro.stages.training.metrics import read_metrics
from tests.pipeline.conftest import TINY, wait_for

LONG = ["--set", "train_prompter.phases.0.steps=400", "--set", "resources.checkpoint_interval=0.2"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """start(workspace, *arguments): `alpro run train_prompter` on the tiny pipeline, in a process group of its own, as
    a terminal starts it, whose Ctrl-C goes to the whole group."""
    started = []

    def run(workspace: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "alpro.pipeline.cli.main", "run", "train_prompter", "--config", TINY, *LONG]
        command += ["--workspace", str(workspace), *arguments]
        # A shell that starts the tests in the background has them ignore Ctrl-C, and their children with them.
        enable = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        options = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": enable, "start_new_session": True}
        started.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options))
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def prompter(workspace: Path) -> Path:
    """The folder of the artifact."""
    config = load_config(TINY, changes=LONG[1::2])
    step = next(s for s in plan(config, Digests(workspace / "digests.sqlite")) if s.stage == "train_prompter")
    return Store(workspace / "artifacts").folder(step)


def processes(module: str, file: str, text: str) -> list[int]:
    """The ids of the processes of a module with a text in their file in /proc: `cmdline` or `environ`."""
    ids = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, content = (path / "cmdline").read_bytes(), (path / file).read_bytes()
            if f"-m\0{module}\0".encode() in command and text.encode() in content:
                ids.append(int(path.name))
    return ids


def training(folder: Path) -> list[int]:
    """The ids of the training processes of a folder."""
    return processes("alpro.pipeline.execution.run_stage", "cmdline", str(folder))


def servers(workspace: Path) -> list[int]:
    """The ids of the temporary servers of a workspace."""
    return processes("uvicorn", "environ", f"PREFECT_HOME={workspace / 'prefect'}\0")


def rows(database: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(query)]


@pytest.mark.long
@pytest.mark.parametrize("how", ["training process", "pipeline", "pipeline of two ranks", "ctrl-c"])
def test_a_killed_stage_leaves_no_artifact_and_continues(how, start, tmp_path):
    process = start(tmp_path, *(["--set", "resources.processes=2"] if "ranks" in how else []))
    folder = prompter(tmp_path)
    wait_for(lambda: list(folder.glob("checkpoints/step-*")))
    (server,) = servers(tmp_path)
    assert os.getsid(server) == server  # out of the reach of a terminal's Ctrl-C
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(training(folder)[0] if how == "training process" else process.pid, signal.SIGKILL)
    assert process.wait(600) != 0
    if how == "ctrl-c":
        assert process.returncode == 130
        *progress, last = process.stderr.read().splitlines()
        assert last == "stopped; run the same command again to continue"
        assert not [line for line in progress if "Traceback" in line or "ERROR" in line]
        # The server was there to the end: it has the final state of the flow.
        assert rows(tmp_path / "prefect" / "prefect.db", "select state_type from flow_run") == ["CRASHED"]
        unfinished = rows(tmp_path / "mlflow.db", "select status from runs where status != 'FINISHED'")
        assert unfinished == ["KILLED", "KILLED"]  # the pipeline and the stage
        assert not servers(tmp_path)
    wait_for(lambda: not training(folder) and not servers(tmp_path))  # orphans end
    assert read_record(folder) is None
    reached = max(int(p.name.removeprefix("step-")) for p in folder.glob("checkpoints/step-*"))

    again = start(tmp_path)
    _, output = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert f"continuing from step {reached} of 400" in output
    assert read_record(folder) is not None
    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(2, 401, 2))


@pytest.mark.long
def test_concurrent_runs_build_an_artifact_once(start, tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    output = [process.communicate(timeout=600)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), output
    started = [line for text in output for line in text.splitlines() if line.endswith("train_prompter: started")]
    assert len(started) == 1
    assert read_record(prompter(tmp_path)) is not None
