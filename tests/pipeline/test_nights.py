"""Real servers (`make test-long`): Ctrl-C to a command, the day of a deployment through two pools,
and the nights after each way to end `alpro up`."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import psutil
import pytest

from alpro.stages import WITH_MODEL
from alpro.stages.training.metrics import read_metrics
from tests.pipeline.conftest import ROOT, TINY, wait_for
from tests.pipeline.stops import descendants, start
from tests.plans import plan_of

pytestmark = pytest.mark.long

LONG = ["train_prompter.phases.0.steps=100000", "resources.checkpoint_interval=600"]
STEPS = 400


def rows(database, query):
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(query)]


def stages_of(folder):
    """The processes of stages of a workspace."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "execution.run_stage" in line and str(folder) in line:
            found.append(process)
    return found


def newest_checkpoint(workspace):
    """The step of the newest checkpoint of the prompter; 0 without one."""
    found = workspace.glob("artifacts/train_prompter/*/checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


# A command.


# How a command ends, its exit status, and the state of its run in Prefect. With "everything", its
# server ends as well: so systemd or a batch system ends a job.
ENDS_OF_A_COMMAND = {"ctrl-c": (130, ["CRASHED"]), "everything": (143, None)}


@pytest.mark.parametrize("how", ENDS_OF_A_COMMAND)
def test_a_command_that_is_stopped_reports_and_continues(how, tmp_path):
    command = ["alpro.pipeline.cli.main", "run", "train_prompter", "--config", TINY]
    command += ["--set", f"train_prompter.phases.0.steps={STEPS}"]
    command += [
        "--set",
        "resources.checkpoint_interval=0.2",
        "--workspace",
        str(tmp_path),
    ]
    log = tmp_path / "log"
    process = start(command, log)
    wait_for(lambda: newest_checkpoint(tmp_path))
    started = descendants(process)

    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        for one in (psutil.Process(process.pid), *started):
            with suppress(psutil.NoSuchProcess):
                one.terminate()

    status, state = ENDS_OF_A_COMMAND[how]
    assert process.wait(600) == status
    *progress, last = log.read_text().splitlines()
    assert last == "stopped; run the same command again to continue"
    assert not [line for line in progress if "Traceback" in line or "ERROR" in line]
    if state:
        assert (
            rows(tmp_path / "prefect/prefect.db", "select state_type from flow_run")
            == state
        )
    query = "select status from runs where status != 'FINISHED'"
    # Pipeline and stage.
    assert rows(tmp_path / "mlflow.db", query) == ["KILLED", "KILLED"]
    assert psutil.wait_procs(started, 60)[1] == []

    reached = newest_checkpoint(tmp_path)
    assert start(command, log).wait(600) == 0, log.read_text()
    assert f"continuing from step {reached} of {STEPS}" in log.read_text()
    (metrics,) = tmp_path.glob("artifacts/train_prompter/*/metrics.jsonl")
    steps = [line["step"] for line in read_metrics(metrics) if "train/loss" in line]
    assert steps == list(range(2, STEPS + 1, 2))


# `alpro up`.


class Machine:
    """A running `alpro up` in a workspace."""

    def __init__(self, workspace, ports):
        self.workspace = workspace
        self.api = f"http://127.0.0.1:{ports[0]}/api"
        self.log = workspace / "up.out"
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFECT_")
        }
        self.environment = own | {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(workspace / "client"),
        }
        self.log.write_text("")
        command = ["alpro.pipeline.cli.main", "up", "--workspace", str(workspace)]
        command += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        self.process = start(command, self.log)
        wait_for(
            lambda: "Ctrl-C stops everything" in self.log.read_text(), 1200, self.check
        )

    def find_worker(self):
        """The worker for trainings."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            line = " ".join(process.cmdline())
            if "flows.worker gpu" in line and "execution.lifecycle" not in line:
                return process
        raise AssertionError("no worker")

    def check(self):
        assert self.process.poll() is None, self.log.read_text()

    def prefect(self, *words):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name, *changes):
        """Start a run of a deployment; returns its id."""
        values = ("-p", f"config={TINY}", "-p", f"changes={json.dumps(changes)}")
        output = self.prefect("deployment", "run", f"alpro/{name}", *values)
        return re.findall(r"UUID: (\S+)", output)[0]

    def client(self):
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api, httpx_settings={"timeout": 120})

    def wait_for_state(self, run, condition, seconds):
        with self.client() as client:

            def look():
                state = client.read_flow_run(run).state
                return state if state and condition(state) else None

            # Each look takes the server some milliseconds.
            return wait_for(look, seconds, self.check, pause=1)

    def ended(self, run):
        """Return the final state of a run."""
        return self.wait_for_state(run, lambda state: state.is_final(), 1800)

    def step(self):
        """Return the last step of the training of the prompter; 0 before the first."""
        files = self.workspace.glob("artifacts/train_prompter/*/metrics.jsonl")
        return max(
            (line["step"] for file in files for line in read_metrics(file)), default=0
        )

    def train_on(self):
        """Wait until the training gets further; returns its step."""
        before = self.step()
        wait_for(lambda: self.step() > before, 1200, self.check)
        return self.step()

    def end(self, victims, number, statuses):
        """End programs, and with them `alpro up`; nothing is left behind."""
        everything = {*descendants(self.process), *stages_of(self.workspace)}
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # another one's end has ended it
                victim.send_signal(number)
        assert self.process.wait(300) in statuses
        assert psutil.wait_procs(everything, 120)[1] == []


@pytest.fixture
def machine(tmp_path, free_port):
    """machine(): `alpro up` in one workspace, with the same ports each time."""
    ports = (free_port(), free_port())
    started = []
    yield lambda: started.append(Machine(tmp_path, ports)) or started[-1]
    for one in started:
        one.process.kill()
        one.process.wait()


def test_a_day_of_deployments_through_two_pools(machine, tmp_path):
    up = machine()
    # A pipeline in the pool `cpu`, whose steps with a model are runs in `gpu`.
    run = up.start("alpro")
    assert up.ended(run).is_completed()
    with up.client() as client:
        runs = client.read_flow_runs()
    steps = plan_of(TINY, workspace=tmp_path).steps
    assert {one.work_pool_name for one in runs if str(one.id) != run} == {"gpu"}
    assert len(runs) == 1 + sum(step.stage in WITH_MODEL for step in steps)
    assert len(list(tmp_path.glob("artifacts/*/*/artifact.json"))) == len(steps)
    query = "select count(*) from tags where key = 'mlflow.parentRunId'"
    assert rows(tmp_path / "mlflow.db", query) == [len(steps)]  # in one run of MLflow

    # A mistake is one line, which the terminal shows.
    values = ("-p", f"config={TINY}", "-p", 'changes=["pretrain.lrr=1"]')
    with pytest.raises(AssertionError, match=r"did\s+you\s+mean\s+'lr'") as shown:
        up.prefect("deployment", "run", "alpro/pretrain", *values, "--watch")
    assert "Traceback" not in str(shown.value)

    # A pipeline that is cancelled cancels its run in the other pool, which leaves a checkpoint and
    # no process.
    run = up.start("alpro", *LONG)
    step = up.train_on()
    with up.client() as client:
        running = [one.id for one in client.read_flow_runs() if one.state.is_running()]
    assert len(running) == 2
    up.prefect("flow-run", "cancel", run)
    for one in running:
        assert up.ended(one).is_cancelled()
    wait_for(lambda: not stages_of(tmp_path), 300, up.check)
    assert newest_checkpoint(tmp_path) >= step


# How `alpro up` ends, and its possible exit statuses.
ENDS = {
    "ctrl-c": (signal.SIGINT, {130}),
    "sigterm": (signal.SIGTERM, {0}),
    "killed": (signal.SIGKILL, {-signal.SIGKILL}),
    "worker killed": (signal.SIGKILL, {1}),
    "all killed": (signal.SIGKILL, {1, -signal.SIGKILL}),
    "long stop": (signal.SIGKILL, {-signal.SIGKILL}),
}
UNFINISHED = "select distinct status from runs where status != 'FINISHED'"
WITHIN = 60  # seconds of the automation, which docs/cluster has at 900


def end_night(up, how):
    """End `alpro up` in one of the ways of ENDS."""
    number, statuses = ENDS[how]
    victims = [psutil.Process(up.process.pid)]
    if how == "worker killed":
        victims = [up.find_worker()]
    if how == "all killed":
        victims += descendants(up.process)
    up.end(victims, number, statuses)
    if how == "long stop":
        until = time.monotonic() + 2 * WITHIN
        wait_for(lambda: time.monotonic() > until)


def test_the_night_after_each_end_of_alpro_up_trains(machine, tmp_path):
    """With the deployment and the automation of docs/operate.md."""
    up = machine()
    automation = tmp_path / "automation.yaml"
    text = (ROOT / "docs" / "cluster" / "automation.yaml").read_text()
    automation.write_text(text.replace("within: 900", f"within: {WITHIN}"))
    up.prefect("automation", "create", "--from-file", str(automation))
    deployment = [
        "alpro.pipeline.flows.flow:alpro",
        "--name",
        "nightly",
        "--pool",
        "cpu",
    ]
    deployment += ["--cron", "0 2 * * *", "--timezone", "Europe/Berlin"]
    deployment += ["--concurrency-limit", "1", "--collision-strategy", "CANCEL_NEW"]
    up.prefect("deploy", *deployment, "--param", "stage=train_prompter")

    reached = 0
    database = tmp_path / "mlflow.db"
    run = up.start("nightly", *LONG)
    for how in ENDS:
        step = up.train_on()
        assert step > reached, how
        end_night(up, how)
        # What the machine had time for is in a checkpoint, also if everything was killed.
        if how != "all killed":
            assert newest_checkpoint(tmp_path) >= step, how
        reached = newest_checkpoint(tmp_path)

        up = machine()
        assert up.ended(run).is_crashed(), how
        # The run of the stage is in the other pool, whose worker may start later.
        wait_for(lambda: rows(database, UNFINISHED) == ["KILLED"], 300, up.check)
        run = up.start("nightly", *LONG)
        up.wait_for_state(run, lambda state: state.is_running(), 600)

    up.train_on()
    up.prefect("flow-run", "cancel", run)
    assert up.ended(run).is_cancelled()
    with up.client() as client:
        deployment = client.read_deployment_by_name("alpro/nightly")
    assert deployment.global_concurrency_limit.active_slots == 0
