"""A Prefect worker on this machine: `python -m alpro.pipeline.flows.worker POOL NAME [LIMIT]`.

It is Prefect's worker of processes, and two things more. When it starts, the runs that an earlier
life of it left unfinished become Crashed, so that they take no slot of a deployment. When SIGTERM,
Ctrl-C or a closed terminal ends it, its runs write checkpoints and report first; Prefect's own would
kill them.

NAME must be the same in each life, and of one worker at a time. LIMIT is the number of runs at a
time. The environment says where runs read and write: PREFECT_API_URL, ALPRO_WORKSPACE,
ALPRO_TRACKING_URI.
"""

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress

import psutil
from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from alpro.environment import prepare
from alpro.errors import InputError
from alpro.files import make_folder
from alpro.locks import acquire, file_lock
from alpro.pipeline.flows.servers import get_worker_workspace
from alpro.pipeline.tracking.store import end_runs, store_uri
from alpro.stages.execution.lifecycle import PARENT

UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
WORKER_LABEL = "prefect.worker.name"
END_SECONDS = 60.0  # for runs to write checkpoints and to report
POLL_SECONDS = 0.5
CRASHED = "its worker ended while it ran; run it again to continue"


async def work(pool: str, name: str, limit: int | None) -> None:
    """Run a worker until it receives a signal that stops it."""
    await end_earlier_runs(pool, name)

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    worker = ProcessWorker(pool, name=name, limit=limit)
    take_runs = worker.get_and_submit_flow_runs

    async def take_runs_unless_stopping() -> list[FlowRun]:
        return [] if stopping.is_set() else await take_runs()

    worker.get_and_submit_flow_runs = take_runs_unless_stopping  # type: ignore[method-assign]
    working = asyncio.create_task(worker.start())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        await end_own_runs(pool, name)
        working.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def find_runs(pool: str, name: str, states: list[StateType]) -> list[FlowRun]:
    """Return the runs of the worker of this name in some states, as the server knows them."""
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": states}}}
            ),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    # A worker that died just after it had taken a run has not labelled it.
    return [run for run in runs if run.labels.get(WORKER_LABEL, name) == name]


async def end_earlier_runs(pool: str, name: str) -> None:
    """Mark the runs that an earlier life of a worker left unfinished as ended: in MLflow first, so
    that a run which is Crashed in Prefect is nowhere shown as running.

    Raises:
        InputError, HTTPError, RuntimeError: If a server does not answer. Whoever starts this worker,
            such as systemd, starts it again.
    """
    # An automation may have found that a run has crashed, and MLflow shows it as running.
    runs = await find_runs(pool, name, [*UNFINISHED, StateType.CRASHED])
    if not runs:
        return

    uri = os.environ.get("ALPRO_TRACKING_URI") or store_uri(get_worker_workspace())
    end_runs(uri, [str(run.id) for run in runs])
    async with get_client() as client:
        for run in runs:
            if run.state_type in UNFINISHED:
                # Forced, because nothing else leads out of Cancelling.
                await client.set_flow_run_state(
                    run.id, Crashed(message=CRASHED), force=True
                )


async def end_own_runs(pool: str, name: str) -> None:
    """Have the runs of this process write checkpoints and end, and wait until the server knows."""
    deadline = time.monotonic() + END_SECONDS
    signalled: set[int] = set()
    with suppress(HTTPError):  # nobody is left to report to
        while time.monotonic() < deadline:
            runs = psutil.Process().children()
            for run in runs:
                if run.pid not in signalled:
                    run.terminate()
                    signalled.add(run.pid)
            await asyncio.sleep(POLL_SECONDS)
            if not runs and not await find_runs(pool, name, UNFINISHED):
                return


def main(pool: str, name: str, limit: str = "") -> None:
    """Run a worker.

    Raises:
        InputError: If the environment lacks something, or a worker of this name runs already.
        HTTPError, RuntimeError: If Prefect's server ends while the worker starts.
    """
    prepare()
    # Runs that start after this process has ended notice it.
    os.environ[PARENT] = str(os.getpid())
    folder = get_worker_workspace() / "prefect"
    make_folder(folder)
    lock = file_lock(folder / f"worker-{name}.lock")
    if not acquire(lock, blocking=False):
        raise InputError(
            f"a worker named {name} runs already; give this one another name"
        )

    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("PREFECT_API_URL: set the address of Prefect's server")
    asyncio.run(work(pool, name, int(limit) if limit else None))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (InputError, HTTPError, RuntimeError) as error:
        sys.exit(f"error: {error}")
