"""Waiting for programs that tests start."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def wait_for(condition: Callable[[], Any], seconds: float, check: Callable[[], None] = lambda: None) -> Any:
    """Waits until the condition returns something true, and returns it. `check` may raise what makes it impossible."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        check()
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")
