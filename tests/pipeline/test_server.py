"""Against a real Prefect server and workers, started here: deployments of every flow, runs, cache, cancellation."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from alpro.stages import STAGES

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def prefect(*arguments: str, environment: dict[str, str], timeout: float = 1200) -> str:
    """Runs Prefect's command line; returns what it printed, and fails with it where it fails."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    """A server with both pools, every deployment and a worker in each pool; yields its environment."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # What runs may read: each has its workspace in that of the workers.
        "ALPRO_WORKSPACE": str(tmp_path_factory.getbasetemp()),
        "ALPRO_CONFIGS": str(ROOT / "tests"),
    }
    environment.pop("PREFECT_LOGGING_LEVEL", None)
    log = open(home / "log.txt", "w")

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=environment,
            start_new_session=True,
        )

    processes = [start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))]
    wait_for(lambda: call(environment, "GET", "/health"), 600)
    for pool in ("cpu", "gpu"):
        prefect("work-pool", "create", pool, "--type", "process", environment=environment)
    prefect("work-pool", "set-concurrency-limit", "gpu", "1", environment=environment)
    prefect("deploy", "--all", environment=environment)
    processes += [start("alpro.pipeline.servers.worker", pool, "--limit", "0") for pool in ("cpu", "gpu")]
    yield environment
    for process in reversed(processes):  # the server is the last
        process.terminate()
        process.wait(300)
    log.close()


def call(environment: dict[str, str], method: str, path: str, body: dict | None = None, tries: int = 20):
    """One request to Prefect's API; None where nothing answers. Like Prefect's own clients, it asks again where the
    server is busy: SQLite cannot always wait for another transaction."""
    request = urllib.request.Request(environment["PREFECT_API_URL"] + path, method=method)
    request.add_header("Content-Type", "application/json")
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            return json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        if error.code >= 500 and tries:
            time.sleep(0.5)
            return call(environment, method, path, body, tries - 1)
        raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()[:500]}") from error
    except OSError:
        return None


def wait_for(condition, seconds: float):
    """Waits until the condition gives something true, and returns it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


def deployment(environment, name: str, **parameters) -> dict:
    """Runs a deployment to its end; returns its run."""
    identity = call(environment, "GET", f"/deployments/name/{name}")["id"]
    run = call(environment, "POST", f"/deployments/{identity}/create_flow_run", {"parameters": parameters})
    return wait_for(lambda: finished(environment, run["id"]), 1200)


def finished(environment, run: str) -> dict | None:
    found = call(environment, "GET", f"/flow_runs/{run}")
    return found if found and found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def task_states(environment, run: dict) -> dict[str, str]:
    found = call(environment, "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return {task["name"].rpartition(" · ")[0] or task["name"]: task["state"]["name"] for task in found}


def test_every_flow_has_a_deployment_with_described_parameters(server):
    found = call(server, "POST", "/deployments/filter", {"limit": 50})
    pools = {d["name"]: d["work_pool_name"] for d in found}
    assert pools == {
        **dict.fromkeys((name.replace("_", "-") for name in ("alpro", *STAGES)), "cpu"),
        "cpu": "cpu",
        "gpu": "gpu",
    }
    for one in found:
        assert ":" in one["entrypoint"]
        assert "/" not in one["entrypoint"]
        shown = one["parameter_openapi_schema"]["properties"]
        assert all(field["description"] and ("type" in field or "anyOf" in field) for field in shown.values())


def test_one_stage_then_the_whole_by_deployment(server):
    run = ("deployment", "run", "decode-videos/decode-videos", "--watch", "-p", f"config={TINY}")
    assert "Completed" in prefect(*run, environment=server)
    assert len(list((Path(server["ALPRO_WORKSPACE"]) / "artifacts" / "decode_videos").glob("*/artifact.json"))) == 2

    whole = deployment(server, "alpro/alpro", config=TINY, stages_by_deployment=False)
    assert whole["state"]["name"] == "Completed", whole["state"]["message"]
    states = task_states(server, whole)
    assert states["decode_videos clips"] == "Cached"
    assert states["evaluate"] == "Completed"

    # By default each step is a run of the deployment of its pool, also where `gpu` runs one at a time.
    changed = {"config": TINY, "changes": ["finetune_qa.lr=3e-4"]}
    by_stage = deployment(server, "alpro/alpro", **changed)
    assert by_stage["state"]["name"] == "Completed", by_stage["state"]["message"]
    states = task_states(server, by_stage)
    assert {"pretrain": "Cached", "finetune_retrieval": "Cached"}.items() <= states.items()
    assert states["finetune_qa"] == "Completed"  # a task that waits for the run of the step
    runs = call(server, "POST", "/flow_runs/filter", {"deployments": {"name": {"any_": ["gpu"]}}})
    states = {run["name"].partition(" · ")[0]: run["state"]["name"] for run in runs}
    assert states == {"finetune_qa": "Completed", "evaluate": "Completed"}


def test_a_mistake_fails_the_run_with_its_one_line(server, tmp_path):
    run = deployment(server, "pretrain/pretrain", config=TINY, workspace=str(tmp_path), changes=["pretrain.lrr=1"])
    assert run["state"]["type"] == "FAILED"
    assert "pretrain.lrr: unknown key; did you mean 'lr'?" in run["state"]["message"]


def training_processes(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "alpro.pipeline.execution.run_stage" in line and str(folder) in line:
            found.append(int(path.parent.name))
    return found


def step_run(environment, workspace: Path) -> dict:
    """The run of the step that trains, in the pool `gpu`."""
    found = call(environment, "POST", "/flow_runs/filter", {"deployments": {"name": {"any_": ["gpu"]}}})
    (run,) = (run for run in found or () if run["parameters"]["workspace"] == str(workspace))
    return run


def start_long_training(environment, workspace: Path, *more: str, flow: str = "train-prompter", **others) -> dict:
    """Starts a run that trains until it is stopped, and waits until it trains."""
    identity = call(environment, "GET", f"/deployments/name/{flow}/{flow}")["id"]
    changes = ["train_prompter.phases.0.steps=100000", *more]
    parameters = {"config": TINY, "workspace": str(workspace), "changes": changes, **others}
    run = call(environment, "POST", f"/deployments/{identity}/create_flow_run", {"parameters": parameters})
    wait_for(lambda: list((workspace / "artifacts" / "train_prompter").glob("*/metrics.jsonl")), 1200)
    return run


def cancel(environment, run: dict, workspace: Path) -> None:
    """Cancels a training run. It is then shown as cancelled, and left a checkpoint and no process."""
    call(environment, "POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert wait_for(lambda: finished(environment, run["id"]), 600)["state"]["type"] == "CANCELLED"
    wait_for(lambda: not training_processes(workspace), 300)
    (folder,) = (workspace / "artifacts" / "train_prompter").glob("*/")
    assert not (folder / "artifact.json").exists()
    assert list((folder / "checkpoints").glob("step-*"))

    def ended() -> bool:
        with closing(sqlite3.connect(workspace / "mlflow.db")) as database:
            states = database.execute("select status from runs where status != 'FINISHED'").fetchall()
        return states == [("KILLED",), ("KILLED",)]  # the pipeline and the stage

    wait_for(ended, 300)
    wait_for(lambda: step_run(environment, workspace)["state"]["type"] == "CANCELLED", 300)


def test_cancelling_ends_the_whole_process_group_and_leaves_a_checkpoint(server, tmp_path):
    run = start_long_training(server, tmp_path, "resources.processes=2")
    assert len(training_processes(tmp_path)) >= 3  # torchrun and two ranks
    cancel(server, run, tmp_path)
    wait_for(lambda: task_states(server, run)["train_prompter"] == "Interrupted", 300)


def workers(environment, pool: str) -> list[psutil.Process]:
    """The worker of a pool."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if {"alpro.pipeline.servers.worker", pool} <= set(process.cmdline()):
                found += [process] * (process.environ().get("PREFECT_API_URL") == environment["PREFECT_API_URL"])
    return found


def test_a_step_whose_worker_has_ended_leaves_a_checkpoint_and_continues_with_another(server, tmp_path):
    """The pipeline waits for it. Afterwards the pool `gpu` has no worker."""
    run = start_long_training(server, tmp_path, "resources.checkpoint_interval=600")
    (metrics,) = (tmp_path / "artifacts" / "train_prompter").glob("*/metrics.jsonl")

    def last_step() -> int:
        return json.loads(metrics.read_text().splitlines()[-1])["step"]

    def waits_after(ending: Callable[[], None]) -> None:
        step = last_step()
        ending()
        wait_for(lambda: step_run(server, tmp_path)["state"]["name"] == "AwaitingRetry", 300)
        wait_for(lambda: not training_processes(tmp_path), 300)
        checkpoints = metrics.parent.glob("checkpoints/step-*")
        assert max(int(checkpoint.name.removeprefix("step-")) for checkpoint in checkpoints) >= step
        assert call(server, "GET", f"/flow_runs/{run['id']}")["state"]["name"] == "Running"

    (first,) = workers(server, "gpu")
    waits_after(first.terminate)  # as a machine that is taken away does
    assert first.wait(600) == 0
    stopped = last_step()
    command = [sys.executable, "-m", "alpro.pipeline.servers.worker", "gpu"]
    with open(tmp_path / "second.log", "w") as log:
        # A worker ends with its standard input if that is a pipe: not with that of the tests.
        second = subprocess.Popen(command, env=server, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: last_step() > stopped, 600)
        waits_after(second.kill)
    finally:
        second.kill()
        second.wait()
    lines = call(
        server, "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [step_run(server, tmp_path)["id"]]}}}
    )
    found = re.search(r"continuing from step (\d+) of 100000", "\n".join(line["message"] for line in lines))
    assert int(found[1]) >= stopped > 0
    call(server, "POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert wait_for(lambda: finished(server, run["id"]), 600)["state"]["type"] == "CANCELLED"
    assert step_run(server, tmp_path)["state"]["type"] == "CANCELLED"  # without a worker that could do it


def test_a_run_whose_machine_is_gone_is_marked_as_crashed(server, tmp_path):
    """Afterwards the pool `cpu` has no worker."""
    command = [sys.executable, "-m", "alpro.pipeline.servers.automations", "--silence", "60"]
    subprocess.run(command, env=server, check=True)
    run = start_long_training(server, tmp_path, flow="alpro", stages_by_deployment=False)
    (worker,) = workers(server, "cpu")
    for process in (worker, *worker.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert call(server, "GET", f"/flow_runs/{run['id']}")["state"]["type"] == "RUNNING"
    state = wait_for(lambda: finished(server, run["id"]), 600)["state"]
    assert (state["type"], state["message"][:19]) == ("CRASHED", "no heartbeat for 60")
    wait_for(lambda: not training_processes(tmp_path), 300)
