"""Lines about a run on standard error: progress, warnings, and with `-v` the paths and processes of its stages.

The processes of stages inherit the level. Each line starts with its time, except on a terminal, and where the program
that reads the lines adds times of its own (TIMES).
"""

import logging
import os
import sys
from functools import cache

LEVEL = "ALPRO_LOG_LEVEL"  # environment variable: the name of a level of `logging`
TIMES = "ALPRO_LOG_TIMES"  # environment variable: 0 for lines without their times

log = logging.getLogger("alpro")


class Lines(logging.Handler):
    """Prints each record as a line on the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if os.environ.get(TIMES) != "0" and not sys.stderr.isatty():
            text = f"{logging.Formatter().formatTime(record, '%Y-%m-%d %H:%M:%S')} {text}"
        print(text, file=sys.stderr, flush=True)


def set_level(name: str) -> None:
    """Sets the level of this process and of the processes that it starts: DEBUG, INFO, or WARNING for no progress."""
    os.environ[LEVEL] = name
    log.setLevel(name)


@cache
def warn_once(text: str) -> None:
    """Logs a warning that other parts of a command may repeat."""
    log.warning(text)


if not log.handlers:
    log.addHandler(Lines())
    log.setLevel(os.environ.get(LEVEL, "INFO"))
    log.propagate = False  # the handlers of other libraries would print the lines again
