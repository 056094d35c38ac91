"""Ends of processes: one property, a run that is killed at a random instant leaves no process and
continues to the same bytes; and the laws that it stands on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from functools import cache
from itertools import product
from pathlib import Path

import psutil
import pytest

from alpro.files import checksum, write_json
from alpro.pipeline.execution import run_stage
from alpro.pipeline.execution.processes import Processes, write_work
from alpro.pipeline.store.artifacts import Store
from alpro.stages.execution.step import Step
from tests.conftest import ROOT
from tests.pipeline.conftest import TINY
from tests.pipeline.stops import ROLES, SIGNALS, end_at_random, start
from tests.plans import configure

STEPS = 60
# Exit statuses of the run that was killed. 0: what was killed was not needed, or the stage continued
# by itself.
ENDS = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}


@pytest.fixture(scope="session")
def step(clips, stills, vocabulary):
    """A training alone, without Prefect and MLflow."""
    config = configure(TINY, f"train_prompter.phases.0.steps={STEPS}").train_prompter
    given = {"clips": clips, "stills": stills, "tokenizer": vocabulary}
    return Step("train_prompter", "train_prompter", config, given=given)


@pytest.fixture(scope="session")
def stage(step, tmp_path_factory):
    """stage(folder, ranks): the command of the training."""
    file = tmp_path_factory.mktemp("step") / "step.json"
    described = {
        "config": step.config.model_dump(mode="json"),
        "fingerprint": step.fingerprint,
        "paths": {name: str(path) for name, path in step.given.items()},
    }
    write_json(file, described)
    return lambda folder, ranks: [
        "tests.pipeline.one_stage",
        str(file),
        str(folder),
        str(ranks),
    ]


def pipeline(workspace, ranks):
    """Return the command of a training with Prefect's server and MLflow."""
    command = ["alpro.pipeline.cli.main", "run", "train_prompter", "--config", TINY]
    changes = [
        f"train_prompter.phases.0.steps={STEPS}",
        "resources.checkpoint_interval=0.05",
    ]
    for change in (*changes, f"resources.processes={ranks}"):
        command += ["--set", change]
    return [*command, "--workspace", str(workspace)]


def read_weights(folder):
    """Return the checksum of the model of the only training in a folder."""
    (file,) = folder.rglob("train_prompter/*/model/model.safetensors")
    return checksum(file)


def run_to_the_end(command, folder):
    """Run a command that nothing interrupts. Returns the checksum of its model."""
    status = start(command, folder / "log").wait(600)
    assert status == 0, (folder / "log").read_text()
    return read_weights(folder)


@pytest.fixture(scope="session")
def train_here(step, two_ranks, resources):
    """train_here(folder, ranks): trains to the end in this process, or in two forks, from what the
    folder has. Returns the checksum of its model.

    A process of its own would import torch again.
    """

    def train(folder, ranks):
        store = Store(folder)
        out = store.folder(step)
        out.mkdir(parents=True, exist_ok=True)
        work = write_work(step, out, store, resources)
        program = Path(run_stage.__file__)
        statuses = [run_stage.main(work)] if ranks == 1 else two_ranks(program, work)
        assert set(statuses) == {0}
        return read_weights(folder)

    return train


@pytest.fixture(scope="session")
def whole_stage(train_here, build_once):
    """whole_stage(ranks): the checksum of the model of a training that nothing interrupts."""

    def train(ranks):
        name = f"prompter-{ranks}"
        return read_weights(build_once(name, lambda folder: train_here(folder, ranks)))

    return train


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """whole_run(ranks): a workspace, and the checksum of its model; nothing interrupted the run."""

    @cache
    def run(ranks):
        workspace = tmp_path_factory.mktemp("whole")
        return workspace, run_to_the_end(pipeline(workspace, ranks), workspace)

    return run


def kill(draw, command, folder, role, signals):
    """Kill a run at a random instant."""
    log = folder / "log"

    killed = start(command, log)
    end_at_random(
        killed, role, SIGNALS[signals], draw, seconds=draw.choice([0.0, 0.5, 1.5])
    )
    assert killed.returncode in ENDS, f"{role}, {signals}\n{log.read_text()}"


@pytest.mark.parametrize(
    ("role", "signals", "ranks"),
    [
        ("pipeline", "SIGTERM", 1),
        ("torchrun", "SIGKILL", 2),
        ("rank", "SIGKILL", 1),
        ("DataLoader worker", "SIGINT twice", 1),
    ],
)
def test_a_stage_that_is_killed_continues_to_the_same_bytes(
    role, signals, ranks, stage, train_here, whole_stage, tmp_path
):
    kill(random.Random(0), stage(tmp_path, ranks), tmp_path, role, signals)
    assert train_here(tmp_path, ranks) == whole_stage(ranks)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_a_run_that_is_killed_continues_to_the_same_bytes(seed, whole_run):
    role, signals = [*product(ROLES, SIGNALS)][seed % 15]
    ranks = 2 if role == "torchrun" else 1 + seed % 2
    workspace, expected = whole_run(ranks)
    shutil.rmtree(workspace / "artifacts" / "train_prompter")
    command = pipeline(workspace, ranks)
    kill(random.Random(seed), command, workspace, role, signals)
    assert run_to_the_end(command, workspace) == expected


# A group of processes.


def python(text):
    return [sys.executable, "-c", textwrap.dedent(text)]


def run_group(text, on_line=lambda line: None, **options):
    """Run a Python program as a supervised group; returns its exit status."""
    return Processes(python(text), os.environ, on_line=on_line, **options).wait()


def test_the_output_of_a_group_is_read_to_its_end():
    lines: list[str] = []
    both = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(3)"
    group = Processes(python(both), os.environ, on_line=lines.append)

    assert group.wait() == 3
    assert sorted(lines) == ["to stderr", "to stdout"]
    assert sorted(group.last_lines) == sorted(lines)


def test_the_output_of_a_group_is_read_whatever_the_log_raises():
    def raise_as_rich_does(line):
        raise SystemExit(1)

    long = "for _ in range(40_000): print('more than the pipe and its reader hold')"
    assert run_group(long, raise_as_rich_does) == 0


def test_what_a_group_leaves_behind_ends_with_it():
    reading, writing = os.pipe()
    child = "import signal; print('ready', flush=True); signal.pause()"
    leaves = f"""
        import subprocess, sys
        command = [sys.executable, "-c", {child!r}]
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.readline()"""

    assert run_group(leaves, descriptors=[writing]) == 0

    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody has it open any more
    os.close(reading)


def test_a_group_is_killed_before_its_leader_is_reaped(monkeypatch):
    """Later, another group may have its number."""
    killpg = os.killpg
    states = []

    def record(leader, number):
        states.append(psutil.Process(leader).status())
        killpg(leader, number)

    monkeypatch.setattr(os, "killpg", record)
    run_group("")
    assert states == [psutil.STATUS_ZOMBIE]


# A supervisor.

PRINT_PID = "print(os.getpid(), flush=True)"
WAITS = "import signal; print('ready', flush=True); signal.pause()"
STOPS = """
import pathlib, sys, time
print("ready", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print("stopped", flush=True)
sys.exit(75)
"""


def run_until_ready(command, *grace):
    """Start a command that prints `ready`, and wait for it."""
    ready = threading.Event()
    group = Processes(command, os.environ, *grace, on_line=lambda line: ready.set())
    assert ready.wait(60)
    return group


def test_sigterm_to_a_supervisor_creates_the_stop_file_however_often_it_comes(tmp_path):
    file = tmp_path / "stop"
    group = run_until_ready([*python(STOPS), str(file)], 600, file)

    for _ in range(3):
        group.stop()

    assert group.wait() == 75
    assert list(group.last_lines) == ["ready", "stopped"]


def test_a_command_that_does_not_stop_in_time_is_killed(tmp_path):
    group = run_until_ready(python(WAITS), 0.1, tmp_path / "stop")
    group.stop()
    assert group.wait() == 128 + signal.SIGKILL


def test_a_command_without_a_stop_file_receives_sigterm():
    group = run_until_ready(python(WAITS), 600)
    group.stop()
    assert group.wait() == 128 + signal.SIGTERM


STARTER = """
import os, signal, subprocess, sys
from alpro.stages.execution.lifecycle import supervised
command = supervised(sys.argv[2:])
if sys.argv[1]:
    command[4] = sys.argv[1]  # another client
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
print(child.pid, child.stdout.readline().strip())
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def start_and_kill_parent(command, client=""):
    """Start a supervised command from a process that is killed then.

    Returns:
        The number of the supervisor, and the first line that the command has printed.
    """
    starter = [*python(STARTER), client, *command]
    done = subprocess.run(
        starter, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=120
    )
    supervisor, _, printed = done.stdout.partition(" ")
    return int(supervisor), printed


def test_a_command_whose_parent_is_killed_is_killed(wait_for_end):
    supervisor, printed = start_and_kill_parent(
        python(f"import os; {PRINT_PID}; {WAITS}")
    )
    wait_for_end(supervisor)
    wait_for_end(int(printed))


def test_a_command_whose_client_has_ended_already_does_not_start():
    gone = subprocess.Popen(["true"])
    gone.wait()
    _, printed = start_and_kill_parent(python("print('started')"), client=str(gone.pid))
    assert "started" not in printed
