"""torchrun that ends on SIGTERM with status 75 and leaves no rank: `python -m
alpro.pipeline.execution.torchrun ARGUMENTS...`.

On a signal, torchrun raises an exception wherever it is. While it starts a rank, which it does not
know yet, the rank would be left running, or torchrun itself would wait forever for a thread. Here
the exception is raised once the ranks are known.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.run import main

from alpro.environment import protect_descendants
from alpro.pipeline.execution.run_stage import END_SECONDS
from alpro.stages.execution.interface import EXIT_INTERRUPTED
from alpro.stages.execution.lifecycle import PARENT, ignore_signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Termination:
    """Raises SystemExit on a signal, unless that is deferred."""

    def __init__(self) -> None:
        self.received = False
        self._deferred = False

    def handle(self, number: int, _: FrameType | None) -> None:
        # A second one while torchrun waits for its ranks would leave them there, and the kernel may
        # send several.
        ignore_signals(*SIGNALS)
        # Whatever the exception interrupts, this process ends, and with it its ranks.
        signal.alarm(END_SECONDS)
        self.received = True
        if not self._deferred:
            sys.exit(EXIT_INTERRUPTED)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal that arrives in this block, or in a function that this decorates, raises at its
        end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.received:
            sys.exit(EXIT_INTERRUPTED)


termination = Termination()


if __name__ == "__main__":
    protect_descendants()  # a person starts this program on other nodes
    os.environ[PARENT] = str(os.getpid())
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGUSR2"  # for torchrun's own handler: not these
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as Ctrl-C is in a background job
            signal.signal(number, termination.handle)
    # Where it starts ranks, and where it takes locks that its end needs, too.
    for name in ("_start_workers", "_monitor_workers"):
        function = getattr(LocalElasticAgent, name)
        setattr(LocalElasticAgent, name, termination.deferred()(function))

    try:
        main()
    except BaseException:
        # Interrupted code may have raised another exception on its way out.
        if termination.received:
            sys.exit(EXIT_INTERRUPTED)
        raise
