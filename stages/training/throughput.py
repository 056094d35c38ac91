"""Throughput and memory of a training process."""

import resource
import sys
import time


class Clock:
    """Throughput since the last logged step, without the time of validation."""

    def __init__(self) -> None:
        self.last_step = self.last_save = time.monotonic()
        self.saving = 0.0  # seconds to write the last checkpoint
        self.pace = 1e-3  # seconds per step
        self.start_window()

    def start_window(self) -> None:
        self.started, self.steps, self.waited = time.monotonic(), 0, 0.0

    def batch_loaded(self) -> None:
        self.waited += time.monotonic() - self.last_step

    def step_done(self) -> None:
        self.steps += 1
        self.pace = max(1e-3, (time.monotonic() - self.started) / self.steps)

    def step_ended(self) -> None:
        self.last_step = time.monotonic()

    @property
    def window(self) -> float:
        """Seconds since the start of the window."""
        return max(time.monotonic() - self.started, 1e-9)

    def saved(self, seconds: float) -> None:
        self.last_save, self.saving = time.monotonic(), seconds

    @property
    def since_saved(self) -> float:
        return time.monotonic() - self.last_save


def memory_gib() -> float:
    """Peak resident memory of this process in GiB."""
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss / (2**30 if sys.platform == "darwin" else 2**20)
