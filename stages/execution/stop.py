"""Stops the stages of a pipeline. They run in threads, and only the main thread receives signals."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alpro.stages.execution.interface import Stopped

SendSignal = Callable[[signal.Signals], None]


class Stop:
    """A request to stop, which the stages of one pipeline share. Thread-safe."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._groups: set[SendSignal] = set()

    def is_requested(self) -> bool:
        return self._requested.is_set()

    def request(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal to all process groups; stages without a process of their own raise Stopped soon."""
        with self._lock:
            self._requested.set()
            for send in self._groups:
                send(number)

    def check(self) -> None:
        """Raises Stopped if the pipeline stops."""
        if self._requested.is_set():
            raise Stopped("the pipeline was stopped")

    def wait(self, seconds: float) -> None:
        """Waits. Raises Stopped as soon as the pipeline stops."""
        self._requested.wait(seconds)
        self.check()

    @contextmanager
    def signals(self, send: SendSignal) -> Iterator[None]:
        """Registers a process group, by the function that sends it a signal, for the time of the body."""
        with self._lock:
            self.check()
            self._groups.add(send)
        try:
            yield
        finally:
            with self._lock:
                self._groups.discard(send)


# The pipeline's; without a pipeline, one that is never requested.
STOP: ContextVar[Stop] = ContextVar("STOP", default=Stop())  # noqa: B039 (shared on purpose)
