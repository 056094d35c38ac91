"""A day with the pipeline, as docs/deploying.md and docs/evaluate.md describe it.

Up, run, change a value, rerun, cancel; a worker and a run are killed and work continues; compare, register, load,
another machine, remove, down. On real servers and workers, with PostgreSQL where it is installed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpro.stages import STAGES
from tests.pipeline.postgresql import SECRET, leaks, postgres, program, stored
from tests.pipeline.started import TINY, Up, call, finished, wait_for

LONG = ["train_prompter.phases.0.steps=3000", "train_prompter.log_every=20"]
LOAD = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/day@champion")
print(json.dumps(model.predict(pd.DataFrame(json.loads(sys.argv[1]))).to_dict("list")))
"""


class Day:
    """The folders of the first machine, and of what both share."""

    def __init__(self, folder: Path):
        self.workspace, self.shared = folder / "here" / "w", folder / "shared"
        self.config = self.workspace / "configs" / "day.toml"
        self.config.parent.mkdir(parents=True)
        self.shared.mkdir()
        self.config.write_text(f'{Path(TINY).read_text()}artifacts = "{self.shared}"\n')

    def artifacts(self, stage: str) -> list[Path]:
        """The finished artifacts of a stage, the oldest first."""
        found = [path.parent for path in (self.workspace / "artifacts" / stage).glob("*/artifact.json")]
        return sorted(found, key=lambda folder: (folder / "artifact.json").stat().st_mtime_ns)

    def training(self) -> Path | None:
        """The folder of the long training once it has logged steps."""
        files = (self.workspace / "artifacts" / "train_prompter").glob("*/metrics.jsonl")
        return next((path.parent for path in files if not path.with_name("artifact.json").exists()), None)

    def steps(self, folder: Path) -> list[int]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines if "train/loss" in line]


def alpro(*arguments: Any, **environment: str) -> str:
    """The output of a command. It must succeed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | environment
    command = [sys.executable, "-m", "alpro.pipeline.cli.main", *map(str, arguments)]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def started(day: Day, ports: tuple[int, int], settings: dict[str, str]) -> Iterator[Up]:
    machine = Up(day.workspace, *ports, {"ALPRO_CONFIGS": "", **settings})
    with machine:
        yield machine


def states(machine: Up, run: dict) -> dict[str, str]:
    """The names of a run's stages and of their states on Prefect's page, which also lists the runs of deployments."""
    tasks = call(machine.prefect, "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {task["name"].rpartition(" · ")[0] or task["name"]: task["state"]["name"] for task in tasks}
    return {name: state for name, state in names.items() if name.partition(" ")[0] in STAGES}


def completed(machine: Up, name: str, **parameters: Any) -> dict[str, str]:
    """Runs a deployment; the states of its stages. It must complete."""
    run = machine.deploy(name, config="day.toml", **parameters)
    assert run["state"]["name"] == "Completed", run["state"]["message"]
    return states(machine, run)


def run_process(run: str) -> psutil.Process:
    """The process of a flow run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no process of {run}")


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that still run."""
    running = []
    for process in processes:
        with suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


@pytest.mark.long
def test_a_day(tmp_path, free_port):
    day, ports = Day(tmp_path), (free_port(), free_port())
    if not (program("initdb") and program("postgres")):
        play(day, ports, {})
        return
    with postgres(tmp_path, free_port()) as address:
        settings = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}/prefect",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{address}/mlflow",
        }
        play(day, ports, settings)
        assert leaks(tmp_path) == []
        assert not list(day.workspace.rglob("*.db"))
        for database, content in (("mlflow", "decode_videos"), ("prefect", "decode-videos")):
            rows = stored(address, database)
            assert content in rows
            assert database == "prefect" or SECRET not in rows


def play(day: Day, ports: tuple[int, int], settings: dict[str, str]) -> None:
    with started(day, ports, settings) as machine:
        run_change_and_rerun(day, machine)
        run_by_a_schedule(day, machine)
        assert tracebacks(day, "*") == []
        send_a_password(machine)
        cancel(day, machine)
        assert tracebacks(day, "[!w]*") == []  # Prefect logs the error of the run with a password in its worker's log
        kill_a_worker(day, machine)
    with started(day, ports, settings) as machine:
        kill_a_run_and_continue(day, machine)
        compare(day)
        register_and_load(day, machine)
        use_on_another_machine(day)
        remove(day, machine)
        processes = psutil.Process(machine.process.pid).children(recursive=True)
        machine.process.send_signal(signal.SIGINT)
        assert machine.process.wait(300) == 0
        assert left(processes) == []


def tracebacks(day: Day, names: str) -> list[str]:
    """What the servers and workers have logged and nobody would read: errors of theirs, such as of the scheduler."""
    found = []
    for log in (day.workspace / "up").glob(f"{names}.log"):
        lines = log.read_text(errors="replace").splitlines()
        found += [f"{log.name}: {line}" for line in lines if "Traceback" in line or "Error:" in line]
    return found


def run_change_and_rerun(day: Day, machine: Up) -> None:
    done = machine.deploy("alpro/alpro", config="day.toml")
    assert done["state"]["name"] == "Completed", done["state"]["message"]
    first = states(machine, done)
    assert len(first) == 11
    assert set(first.values()) == {"Completed"}
    look_at_pages(day, machine, done)

    changed = completed(machine, "alpro/alpro", changes=["finetune_retrieval.lr=3e-4"])
    ran = {name for name, state in changed.items() if state != "Cached"}
    assert {name.partition(" ")[0] for name in ran} == {"finetune_retrieval", "evaluate"}

    assert set(completed(machine, "evaluate/evaluate").values()) == {"Cached"}


def run_by_a_schedule(day: Day, machine: Up) -> None:
    """As in docs/deploying.md: a schedule with its parameters."""
    deployment = call(machine.prefect, "GET", "/deployments/name/decode-videos/decode-videos")["id"]
    schedule = {"schedule": {"cron": "* * * * *"}, "active": True, "parameters": {"config": "day.toml"}}
    (made,) = call(machine.prefect, "POST", f"/deployments/{deployment}/schedules", [schedule])
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["COMPLETED"]}}}}

    def scheduled() -> list[dict]:
        found = call(machine.prefect, "POST", "/flow_runs/filter", wanted)
        return [run for run in found or () if run["auto_scheduled"]]

    (run, *_) = wait_for(scheduled, 600, machine.check)
    assert run["parameters"]["config"] == "day.toml"
    call(machine.prefect, "DELETE", f"/deployments/{deployment}/schedules/{made['id']}")


def look_at_pages(day: Day, machine: Up, done: dict) -> None:
    """Prefect's page names what ran and links to MLflow, and MLflow links back."""
    (evaluated,) = day.artifacts("evaluate")
    mark = evaluated.name
    assert (done["name"], done["tags"]) == (f"tiny · {mark[:6]}", [f"result {mark[:8]}", "tiny"])
    steps = call(machine.prefect, "POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["step"]}}})
    assert f"evaluate · {mark[:8]}" in [step["name"] for step in steps]
    shown = call(machine.prefect, "POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [done["id"]]}}})
    links = {artifact["key"]: str(artifact["data"]) for artifact in shown}
    assert all(f"{machine.mlflow}/#/experiments/" in links[key] for key in ("mlflow", "report"))
    assert "chance" in links["results"]
    run = json.loads((evaluated / "artifact.json").read_text())["run"]["mlflow_run"]
    logged = call(machine.mlflow, "GET", f"/api/2.0/mlflow/runs/get?run_id={run}")["run"]
    assert logged["info"]["status"] == "FINISHED"
    (note,) = (tag["value"] for tag in logged["data"]["tags"] if tag["key"] == "mlflow.note.content")
    assert "/runs/task-run/" in note


def send_a_password(machine: Up) -> None:
    """A URL with a password is refused, and shown nowhere. No process has the database's on its command line."""
    url = f"s3://key:{SECRET}@bucket/x"
    refused = machine.deploy("decode-videos/decode-videos", config="day.toml", changes=[f"corpora.clips.data={url!r}"])
    assert "this URL contains a user name" in refused["state"]["message"]
    assert SECRET not in refused["name"] + refused["state"]["message"]
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not any(SECRET in line for line in lines)
    assert SECRET not in f"{call(machine.prefect, 'GET', '/admin/settings')}"


def cancel(day: Day, machine: Up) -> None:
    run = machine.start("train-prompter/train-prompter", config="day.toml", changes=LONG)
    folder = wait_for(day.training, 600, machine.check)
    call(machine.prefect, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert wait_for(lambda: finished(machine.prefect, run), 300, machine.check)["state"]["type"] == "CANCELLED"
    wait_for(lambda: list((folder / "checkpoints").glob("step-*")), 300, machine.check)  # of the step's run
    query = {"experiment_ids": experiments(machine), "filter": "attributes.status = 'KILLED'"}
    assert wait_for(lambda: call(machine.mlflow, "POST", "/api/2.0/mlflow/runs/search", query).get("runs"), 600)


def experiments(machine: Up) -> list[str]:
    found = call(machine.mlflow, "POST", "/api/2.0/mlflow/experiments/search", {"max_results": 100})
    return [experiment["experiment_id"] for experiment in found["experiments"]]


def kill_a_worker(day: Day, machine: Up) -> None:
    """`alpro up` starts it again, and the run continues where it was, without anybody's help."""
    folder = day.training()
    assert folder
    before = day.steps(folder)[-1]
    run = machine.start("train-prompter/train-prompter", config="day.toml", changes=LONG)
    wait_for(lambda: day.steps(folder)[-1] > before, 600, machine.check)
    processes = psutil.Process(machine.process.pid).children(recursive=True)
    (worker,) = (one for one in left(processes) if {"alpro.pipeline.servers.worker", "gpu"} <= set(one.cmdline()))
    worker.kill()
    step = day.steps(folder)[-1]
    wait_for(lambda: day.steps(folder)[-1] > step, 600, machine.check)
    assert "worker-gpu ended with status -9" in machine.output()
    call(machine.prefect, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: finished(machine.prefect, run), 300, machine.check)


def kill_a_run_and_continue(day: Day, machine: Up) -> None:
    folder = day.training()
    assert folder
    before = day.steps(folder)[-1]
    run = machine.start("train-prompter/train-prompter", config="day.toml", changes=LONG)
    wait_for(lambda: day.steps(folder)[-1] > before, 600, machine.check)
    run_process(run).kill()
    assert wait_for(lambda: finished(machine.prefect, run), 300, machine.check)["state"]["type"] == "CRASHED"

    command = [sys.executable, "-m", "prefect", "flow-run", "retry", run]
    subprocess.run(command, env=os.environ | {"PREFECT_API_URL": machine.prefect}, check=True)
    wait_for(lambda: not finished(machine.prefect, run), 600, machine.check)
    assert wait_for(lambda: finished(machine.prefect, run), 1800, machine.check)["state"]["type"] == "COMPLETED"
    assert day.steps(folder) == list(range(20, 3001, 20))  # as if it had never stopped


def compare(day: Day) -> None:
    one, other = day.artifacts("evaluate")
    printed = alpro("compare", one.name[:8], other.name[:8], "--workspace", day.workspace)
    assert "finetune_retrieval.lr" in printed
    assert list((day.workspace / "reports").glob("compare-*.html"))


def register_and_load(day: Day, machine: Up) -> None:
    (model, _) = day.artifacts("finetune_retrieval")
    command = ("model", "register", model.name, "--name", "day", "--alias", "champion", "--workspace", day.workspace)
    assert "day, version 1" in alpro(*command, "--tracking-uri", machine.mlflow)
    video = str(next((day.workspace / "artifacts").glob("render_sample/*/videos/*.mp4")))
    own = os.environ | {"MLFLOW_TRACKING_URI": machine.mlflow, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    pairs = json.dumps({"video": [video], "text": ["a red ball moves to the left"]})
    done = subprocess.run([sys.executable, "-c", LOAD, pairs], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted = json.loads(done.stdout.splitlines()[-1])
    assert predicted.keys() == {"similarity", "match"}
    assert 0 < predicted["match"][0] < 1


def use_on_another_machine(day: Day) -> None:
    """Its workspace is empty; the artifacts come from the shared folder."""
    there = day.shared.parent / "there" / "w"
    printed = alpro("run", "--config", day.config, "--workspace", there)
    assert "fetched from" in printed
    assert ": started" not in printed
    first, _ = day.artifacts("evaluate")
    assert [path.name for path in (there / "artifacts" / "evaluate").iterdir() if path.is_dir()] == [first.name]


def remove(day: Day, machine: Up) -> None:
    """Deleting a run in MLflow says that its artifacts are no longer needed."""
    query = {"experiment_ids": experiments(machine), "max_results": 500}
    runs = call(machine.mlflow, "POST", "/api/2.0/mlflow/runs/search", query)["runs"]
    names = {run["info"]["run_name"]: run["info"]["run_id"] for run in runs}
    (changed,) = (run for name, run in names.items() if "finetune_retrieval.lr=3e-4" in name)
    call(machine.mlflow, "POST", "/api/2.0/mlflow/runs/delete", {"run_id": changed})
    first, second = day.artifacts("evaluate")
    command = ("artifacts", "gc", "--workspace", day.workspace, "--tracking-uri", machine.mlflow)
    assert second.name[:8] in alpro(*command)
    assert second.exists()
    alpro(*command, "--yes")
    assert (first.exists(), second.exists()) == (True, False)
    verified = alpro("artifacts", "verify", "--workspace", day.workspace)
    assert "12 artifacts" in verified
    assert "as recorded" in verified
