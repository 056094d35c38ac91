"""A Prefect worker whose runs are never lost: `python -m alpro.pipeline.servers.worker gpu --limit 1`.

When it is asked to end (SIGTERM, Ctrl-C, or the end of its standard input with `alpro up`), its runs write their
checkpoints and are scheduled again: another worker of the pool, or this one after its restart, continues them. If it
is killed, its runs notice that, and do the same. Prefect's own worker would kill its runs, or leave them without one.
"""

import abc
import argparse
import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import psutil
from prefect.logging.configuration import setup_logging
from prefect.workers.process import ProcessWorker

from alpro.pipeline.execution.lifecycle import RUN_SECONDS, WORKER_SECONDS, end_after, input_ended
from alpro.pipeline.servers.deployed_run import WORKER, schedule_again

POLL_SECONDS = 0.25
RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of a run


class Worker(ProcessWorker, abc.ABC):  # ABC: not registered in the place of Prefect's
    """Knows which runs it has taken that have not ended. Takes none once it is stopping. Reports a crash once."""

    stopping = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.taken: set[UUID] = set()
        self.ended: set[UUID] = set()

    async def get_and_submit_flow_runs(self) -> list[Any]:
        if self.stopping:
            return []
        runs = await super().get_and_submit_flow_runs()
        self.taken.update(run.id for run in runs)
        return runs

    async def run(self, flow_run: Any, *arguments: Any, **options: Any) -> Any:
        self.ended.discard(flow_run.id)
        result = await super().run(flow_run, *arguments, **options)
        self.ended.add(flow_run.id)
        if not self.stopping:
            self.taken.discard(flow_run.id)
        return result

    async def _propose_crashed_state(self, flow_run: Any, *arguments: Any, **options: Any) -> None:
        """Not for a run whose process has ended: `run` has reported it. Prefect would report it again seconds later,
        when its hooks have run, and end a retry that somebody has started meanwhile."""
        if flow_run.id not in self.ended:
            await super()._propose_crashed_state(flow_run, *arguments, **options)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m alpro.pipeline.servers.worker",
        description="Runs a Prefect worker. When it ends, its runs write checkpoints and are scheduled again.",
    )
    parser.add_argument("pool", help="work pool to take runs from")
    parser.add_argument("--limit", type=int, default=1, help="runs at the same time, 0 for no limit (default 1)")
    options = parser.parse_args(arguments)
    os.environ[WORKER] = str(os.getpid())
    setup_logging()
    asyncio.run(serve(Worker(work_pool_name=options.pool, limit=options.limit or None)))
    print("stopped", flush=True)
    return 0


async def serve(worker: Worker) -> None:
    """Runs a worker until it is asked to end, then ends its runs."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # not a terminal, and not /dev/null as under Slurm
        end_after(input_ended, WORKER_SECONDS)
    working, waiting = asyncio.ensure_future(worker.start()), asyncio.ensure_future(asked.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()  # raises why it ended
    worker.stopping = True
    await asyncio.to_thread(end_runs)
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    for run_id in worker.taken:  # those that could not do it themselves
        await asyncio.to_thread(schedule_again, run_id)


def end_runs() -> None:
    """Asks the runs of this process to end, and waits for their checkpoints. Those that do not end are killed."""
    asked: set[psutil.Process] = set()
    end = time.monotonic() + RUN_SECONDS
    while (left := runs()) and time.monotonic() < end:
        for process in left - asked:  # the worker may just have started one more
            process.terminate()
        asked |= left
        time.sleep(POLL_SECONDS)
    for process in left:
        process.kill()


def runs() -> set[psutil.Process]:
    """The processes of the runs below this one."""
    found = set()
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if RUN_ID in process.environ():
                found.add(process)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
