"""Stops the stages of a pipeline. They run in threads, and only the main thread receives signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alpro.stages.execution.interface import Stopped
from alpro.stages.execution.lifecycle import signal_group


class Stop:
    """A request to stop, which the stages of one pipeline share. Thread-safe."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._leaders: set[int] = set()  # of process groups

    def is_requested(self) -> bool:
        return self._requested.is_set()

    def request(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal to all process groups; what waits raises Stopped."""
        with self._lock:
            self._requested.set()
            for leader in self._leaders:
                signal_group(leader, number)

    def wait(self, seconds: float) -> None:
        """Waits. Raises Stopped as soon as the pipeline stops."""
        if self._requested.wait(seconds):
            raise Stopped("the pipeline was stopped")

    @contextmanager
    def signals(self, leader: int) -> Iterator[None]:
        """Registers a process group for the time of the body."""
        with self._lock:
            if self._requested.is_set():
                raise Stopped("the pipeline was stopped")
            self._leaders.add(leader)
        try:
            yield
        finally:
            with self._lock:
                self._leaders.discard(leader)


# The pipeline's; without a pipeline, one that is never requested.
STOP: ContextVar[Stop] = ContextVar("STOP", default=Stop())  # noqa: B039 (shared on purpose)
