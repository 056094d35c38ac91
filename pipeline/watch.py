"""Ends the run of a deployment that was cancelled while its worker could not end it.

Prefect's worker ends the runs that are cancelled, and prints their log. If the worker is killed, its runs continue
without it: nothing is lost, and their process sends Prefect's heartbeats. From here they look at their own state.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import Abort, ObjectNotFound, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Running
from rich.console import Console

POLL_SECONDS = 10.0
PATIENCE = 9  # looks in which a worker may end a cancelled run itself; it kills the run's process after 30 s


@contextmanager
def ended_if_cancelled() -> Iterator[None]:
    """Ends the body if Prefect's server has this run as cancelled, or no longer has it, and nobody signals it.

    The body receives TerminationSignal, as from a worker: its stages write checkpoints. Only for runs of deployments.
    """
    if not deployment.id or threading.current_thread() is not threading.main_thread():
        yield
        return
    Console.on_broken_pipe = drop_output  # type: ignore  # rich would raise SystemExit from a log line
    watch = Watch(UUID(flow_run.id), get_run_logger())
    thread = threading.Thread(target=copy_context().run, args=(watch.run, os.getppid), daemon=True)
    try:
        thread.start()
        yield
    except TerminationSignal:
        if not watch.found_cancelled.is_set():
            raise
        watch.report_cancelled()
        # For any other exception Prefect would report this run as crashed.
        raise Abort("the run was cancelled") from None
    finally:
        watch.ended.set()


class Watch:
    """Looks at the state of this run from a thread of its own."""

    def __init__(self, run_id: UUID, logger: "Logger | LoggerAdapter[Any]"):
        self.run_id, self.logger = run_id, logger
        self.ended = threading.Event()  # the run, by itself
        self.found_cancelled = threading.Event()
        self.worker_lost = False
        self.unreachable = False
        self.times_cancelling = 0

    def run(self, parent: Callable[[], int]) -> None:
        """Looks again and again. Sends SIGTERM to this process if the run has to end. `parent` returns the id of the
        process that this one is a child of, which changes if the worker ends."""
        worker = parent()
        while not self.ended.wait(POLL_SECONDS):
            if parent() != worker and not self.worker_lost:
                self.worker_lost = True
                drop_output()
                self.logger.warning("The worker of this run has ended; the run continues without it")
            if self.look() and not self.ended.is_set():
                self.found_cancelled.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def look(self) -> bool:
        """Looks at the state once. Returns whether the run has to end."""
        try:
            with get_client(sync_client=True) as client:
                must_end = self.judge(client)
        except ObjectNotFound:  # deleted
            return True
        except Exception as error:  # of the network or the server; training goes on
            if not self.unreachable:
                self.logger.warning("Prefect's server does not answer (%s); the run continues", type(error).__name__)
            self.unreachable = True
            return False
        if self.unreachable:
            self.logger.info("Prefect's server answers again")
        self.unreachable = False
        return must_end

    def judge(self, client: SyncPrefectClient) -> bool:
        state = client.read_flow_run(self.run_id).state
        if state is None or self.ended.is_set():
            return False
        if state.is_crashed():  # by the automation for missing heartbeats, after an outage of the server or the network
            client.set_flow_run_state(self.run_id, Running(message="its process is alive"), force=True)
            return False
        self.times_cancelling += state.is_cancelling()
        return state.is_cancelled() or (
            state.is_cancelling() and (self.worker_lost or self.times_cancelling > PATIENCE)
        )

    def report_cancelled(self) -> None:
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self.run_id, Cancelled(message="stopped after a checkpoint"), force=True)
        except Exception as error:  # it was deleted, or the server is gone
            self.logger.warning("Prefect's server did not receive that this run was cancelled: %s", error)


def drop_output(console: Any = None) -> None:
    """Writes standard output and error to nowhere if they are pipes that nobody reads any more."""
    for number in (sys.__stdout__.fileno(), sys.__stderr__.fileno()) if sys.__stdout__ and sys.__stderr__ else ():
        if is_broken(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def is_broken(number: int) -> bool:
    """Whether an open file is the writing end of a pipe without a reader."""
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
