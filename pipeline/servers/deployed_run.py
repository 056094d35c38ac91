"""A run that a worker has started ends with its worker, leaves checkpoints, and is scheduled again."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import AwaitingRetry
from rich.console import Console

from alpro.pipeline.execution.lifecycle import RUN_SECONDS, drop_output, end_after, parent_ended

WORKER = "ALPRO_WORKER"  # in the environment of a run: the process that started it


@contextmanager
def continued_later() -> Iterator[None]:
    """A run of a deployment that is interrupted in the body, or whose worker ends, is scheduled again; a cancelled one
    is not. The body receives TerminationSignal, and has time to write checkpoints."""
    if not deployment.id or threading.current_thread() is not threading.main_thread():
        yield
        return
    Console.on_broken_pipe = lambda console: None  # type: ignore  # rich would raise SystemExit from a log line
    worker = int(os.environ.get(WORKER, 0)) or os.getppid()
    end_after(lambda: worker_ended(worker), RUN_SECONDS)
    try:
        yield
    except TerminationSignal:
        if not schedule_again(UUID(flow_run.id)):
            raise
        raise Abort("the run was interrupted; it is scheduled again") from None  # else Prefect would report a crash


def worker_ended(worker: int) -> None:
    """Returns when the worker that prints this run's output is gone. The output goes nowhere from then on."""
    parent_ended(worker)
    drop_output()


def schedule_again(run_id: UUID) -> bool:
    """Schedules an interrupted run again, except if it is complete, has failed or was cancelled. Returns whether."""
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
            if not run.state or not (run.state.is_running() or run.state.is_pending() or run.state.is_crashed()):
                return False
            state: Any = AwaitingRetry(message="its worker ended; the run continues from its checkpoint")
            client.set_flow_run_state(run.id, state, force=True)
    except Exception as error:  # of the client: the server is gone, or the run was deleted
        print(f"run {run_id} is not scheduled again: {error}", file=sys.stderr, flush=True)
        return False
    print(f"{run.name} is scheduled again", flush=True)
    return True
