"""The servers of a command and of `alpro up`; see test_nights.py for real ones."""

import asyncio
import os
import signal
import sys
from unittest.mock import AsyncMock, Mock

import httpx
import prefect
import pytest
import yaml
from filelock import FileLock, Timeout
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Crashed, Pending, Running

from alpro.pipeline.flows import flow, servers, worker
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages import STAGES, WITH_MODEL
from alpro.stages.execution.interface import StageFailed
from tests.conftest import one_line
from tests.pipeline.conftest import ROOT

# The server of a command.


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """own_server(program): the function that waits for a command's own server, which is a Python
    program instead."""
    monkeypatch.setattr(os, "environ", os.environ | {"PREFECT_HOME": str(tmp_path)})
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ends = []
    monkeypatch.setattr(servers.atexit, "register", ends.append)
    create = servers.Processes

    def start(program):
        def processes(command, *more, **values):
            return create([sys.executable, "-c", program], *more, **values)

        monkeypatch.setattr(servers, "Processes", processes)
        return servers.start_temporary_server()

    yield start
    for end in reversed(ends):
        end()


ENDLESS = "import signal; signal.pause()"


def test_while_a_server_creates_its_database_another_command_does_not(
    own_server, tmp_path, monkeypatch
):
    monkeypatch.setattr(servers, "answers", lambda port: True)
    starting = FileLock(tmp_path / "starting.lock")

    wait = own_server(ENDLESS)

    with pytest.raises(Timeout):
        starting.acquire(blocking=False)
    wait()
    with starting.acquire(blocking=False):
        pass


def test_a_commands_own_server_takes_no_settings_of_a_permanent_one(
    own_server, monkeypatch
):
    """Its client would lack the password, and its database is another machine's."""
    permanent = (
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_API_DATABASE_CONNECTION_URL",
    )
    for name in permanent:
        monkeypatch.setenv(name, "of the server")

    own_server(ENDLESS)

    assert not [name for name in permanent if name in os.environ]


def test_a_server_that_does_not_start_says_why(own_server):
    wait = own_server("raise SystemExit('database is locked')")
    with one_line("database is locked", of=StageFailed):
        wait()


def test_a_named_server_that_does_not_answer_is_one_line(free_port):
    address = f"http://me:hush@127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: address}),
        one_line("Failed to reach API", "PREFECT_API_URL") as error,
    ):
        flow.start(Mock(), Mock(), title="one")
    assert "hush" not in str(error.value)


def test_clients_take_a_socks_proxy():
    for scheme in ("socks5", "socks5h"):
        # ImportError without its package.
        with httpx.Client(proxy=f"{scheme}://proxy:1080") as client:
            assert not client.is_closed


# `alpro up`.


def test_two_servers_need_two_ports(call, free_port):
    port = free_port()
    status, _, error = call("up", "--prefect-port", port, "--mlflow-port", port)
    assert status == 2
    assert error.endswith("choose another with --mlflow-port\n")


def test_ctrl_c_ends_what_a_script_started_in_the_background(tmp_path, monkeypatch):
    """Such a shell has SIGINT ignored."""
    monkeypatch.chdir(tmp_path)  # `up` leaves the current folder
    (tmp_path / "prefect").mkdir()

    def press_ctrl_c(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("Ctrl-C was ignored")

    monkeypatch.setattr(servers, "Processes", press_ctrl_c)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            servers.up(tmp_path, 4200, 5000)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (1, None, {"cpu": None, "gpu": None}),
        (2, None, {"cpu": None, "gpu-0": "0", "gpu-1": "1"}),
        (8, "4,5,6,7", {"cpu": None, "gpu": None}),  # for trainings on all of them
    ],
)
def test_each_gpu_has_a_worker(gpus, visible, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    workers = servers.get_workers()

    found = {name: more.get("CUDA_VISIBLE_DEVICES") for name, more in workers.items()}
    assert found == expected


def test_two_workers_have_different_names(tmp_path, monkeypatch):
    """Each takes it that another one of its name has ended."""
    monkeypatch.setattr(os, "environ", os.environ | {"ALPRO_WORKSPACE": str(tmp_path)})
    (tmp_path / "prefect").mkdir()
    with (
        FileLock(tmp_path / "prefect" / "worker-one.lock"),
        one_line("one runs already"),
    ):
        worker.main("gpu", "one")


def test_a_worker_needs_an_absolute_workspace(monkeypatch):
    monkeypatch.setattr(
        os, "environ", os.environ | {"ALPRO_WORKSPACE": "relative/folder"}
    )
    with one_line("ALPRO_WORKSPACE", "relative/folder"):
        worker.main("gpu", "one")


def test_a_worker_whose_terminal_is_closed_ends_its_runs_first(monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored

    async def start():
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.Event().wait()

    ends = AsyncMock()
    monkeypatch.setattr(worker, "ProcessWorker", Mock(return_value=Mock(start=start)))
    monkeypatch.setattr(worker, "end_earlier_runs", AsyncMock())
    monkeypatch.setattr(worker, "end_own_runs", ends)

    asyncio.run(worker.work("gpu", "mine", None))

    ends.assert_awaited_once_with("gpu", "mine")


@prefect.flow
def nothing():
    """Stands for the flow of a deployment."""


# The runs that an earlier life of the worker `mine` left: the worker and the states, and what it is
# afterwards in Prefect and in MLflow.
LEFT = {
    # The worker died before it wrote its name.
    "pending": (None, [Pending()], "Crashed", "KILLED"),
    "running": ("mine", [Pending(), Running()], "Crashed", "KILLED"),
    "cancelling": ("mine", [Pending(), Cancelling()], "Crashed", "KILLED"),
    # By an automation, before the worker came back.
    "crashed": ("mine", [Pending(), Running(), Crashed()], "Crashed", "KILLED"),
    "of another": ("other", [Pending(), Running()], "Running", "RUNNING"),
    "scheduled": (None, [], "Scheduled", "RUNNING"),
}


@pytest.mark.usefixtures("prefect")
def test_what_an_earlier_life_of_a_worker_left_is_crashed_and_its_slot_free(
    mlflow_store, tmp_path, monkeypatch
):
    mlflow_store(tmp_path)
    monkeypatch.setenv("ALPRO_WORKSPACE", str(tmp_path))
    tracker = Tracker.open("", tmp_path, "sample")
    mlflow_runs = {}

    async def leave_and_start():
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
            flow = await client.create_flow(nothing)
            deployment = await client.create_deployment(
                flow, "nightly", work_pool_name="pool", concurrency_limit=4
            )
            runs = {}
            for name, (owner, states, *_) in LEFT.items():
                run = await client.create_flow_run_from_deployment(deployment)
                if owner:
                    await client.update_flow_run_labels(
                        run.id, {"prefect.worker.name": owner}
                    )
                for state in states:
                    await client.set_flow_run_state(run.id, state)
                runs[name] = run.id
                tags = {"prefect_flow_run": str(run.id)}
                created = tracker.client.create_run(tracker.experiment, tags=tags)
                mlflow_runs[name] = created.info.run_id

            await worker.end_earlier_runs("pool", "mine")

            names = {
                name: (await client.read_flow_run(run)).state.name
                for name, run in runs.items()
            }
            limit = (await client.read_deployment(deployment)).global_concurrency_limit
            return names, limit.active_slots

    names, slots = asyncio.run(leave_and_start())

    client = MlflowClient(tracker.uri)
    statuses = {
        name: client.get_run(run).info.status for name, run in mlflow_runs.items()
    }
    assert names == {name: after for name, (*_, after, _) in LEFT.items()}
    assert statuses == {name: status for name, (*_, status) in LEFT.items()}
    assert slots == 1


def test_deployments_are_the_flow_with_each_stage_in_the_pool_of_its_kind():
    text = (ROOT / "prefect.yaml").read_text()
    found = {one["name"]: one for one in yaml.safe_load(text)["deployments"]}
    # What was a stage of its own is a step now.
    stages = {name: name for name in STAGES} | {
        "alpro": "",
        "zero_shot": "evaluate pretrained",
    }

    assert servers.DEPLOYMENTS.read_text() == text
    assert found.keys() == stages.keys()
    for name, stage in stages.items():
        pool = "gpu" if stage.partition(" ")[0] in WITH_MODEL else "cpu"
        assert found[name]["entrypoint"] == "alpro.pipeline.flows.flow:alpro"
        assert found[name]["work_pool"]["name"] == pool
        assert found[name].get("parameters", {}).get("stage", "") == stage
