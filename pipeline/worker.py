"""A Prefect worker on a machine that may be taken away: `python -m alpro.pipeline.worker gpu --limit 1`.

Slurm and Kubernetes send SIGTERM before they end a job or a pod. The runs of the worker then write their checkpoints,
and are scheduled again: another worker of the pool, or this one after its restart, continues them. `prefect worker
start` alone would kill its runs, and they would have to be started again by hand.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event

import psutil

from alpro.pipeline.launch import GRACE_SECONDS
from alpro.pipeline.up import adopt_orphans, children

RUN_SECONDS = GRACE_SECONDS + 20  # for a run to write its checkpoint
EXIT_SECONDS = 10.0  # for a worker without runs
POLL_SECONDS = 0.25
RUN_ID = "PREFECT__FLOW_RUN_ID"  # set by the worker in the environment of a run


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status of Prefect's worker, 0 if a signal ended it."""
    parser = argparse.ArgumentParser(
        prog="python -m alpro.pipeline.worker",
        description="Runs a Prefect worker. On SIGTERM its runs write checkpoints and are scheduled again.",
    )
    parser.add_argument("pool", help="work pool to take runs from")
    parser.add_argument("--limit", type=int, default=1, help="runs at the same time (default 1)")
    options = parser.parse_args(arguments)
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    adopt_orphans()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", options.pool]
    command += ["--type", "process", "--limit", str(options.limit)]
    worker = subprocess.Popen(command, start_new_session=True)
    while worker.poll() is None and not stopping.wait(POLL_SECONDS):
        pass
    if not stopping.is_set():
        return worker.returncode
    runs = end_runs(worker)
    worker.terminate()
    wait_for_children(EXIT_SECONDS)
    schedule_again(runs)
    print("stopped", flush=True)
    return 0


def end_runs(worker: subprocess.Popen) -> set[str]:
    """Asks the runs of a worker to end, and waits for their checkpoints. Returns the ids of the flow runs."""
    asked: dict[psutil.Process, str] = {}
    end = time.monotonic() + RUN_SECONDS
    while (runs := children(worker.pid, recursive=False)) and time.monotonic() < end:
        for run in set(runs) - asked.keys():  # the worker may have started one more in the meantime
            with suppress(psutil.Error):
                asked[run] = run.environ().get(RUN_ID, "")
                run.terminate()
        time.sleep(POLL_SECONDS)
    return set(filter(None, asked.values()))


def wait_for_children(seconds: float) -> None:
    """Waits until no process is left below this one, then kills the rest."""
    left = children(os.getpid(), recursive=True)
    _, left = psutil.wait_procs(left, seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, seconds)


def schedule_again(run_ids: set[str]) -> None:
    """Schedules interrupted runs again, except those that are complete, have failed or were cancelled."""
    from prefect.client.orchestration import get_client
    from prefect.states import AwaitingRetry, State

    with get_client(sync_client=True) as client:
        for run_id in run_ids:
            run = client.read_flow_run(run_id)  # type: ignore[arg-type]
            if run.state and (run.state.is_running() or run.state.is_pending() or run.state.is_crashed()):
                state: State = AwaitingRetry(message="its worker was stopped; the run continues from its checkpoint")
                client.set_flow_run_state(run.id, state, force=True)
                print(f"{run.name} is scheduled again", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
