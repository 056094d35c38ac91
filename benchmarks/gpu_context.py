"""What a trial of benchmarks/gpu.py knows and reports."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alpro.models.precision import autocast


class Skipped(Exception):
    """A trial cannot run here; the message says why."""


class Failed(Exception):
    """A trial's check failed; the message says which."""


@dataclass
class Context:
    """The device of a trial, the time at which it is killed (`time.monotonic`), and its folder.

    Results are written to result.json as they come, so that a killed trial has those so far.
    """

    device: torch.device
    deadline: float
    folder: Path
    summary: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def size(self) -> str:
        """The size of models, a key of `timed_step.MODELS`."""
        return "full" if self.cuda else "small"

    @property
    def left(self) -> float:
        """Seconds until the trial is killed."""
        return self.deadline - time.monotonic()

    def need_gpu(self) -> None:
        """Raises Skipped without a GPU."""
        if not self.cuda:
            raise Skipped("requires a GPU")

    def report(self, line: str, **figures: Any) -> None:
        """Adds a line to the table, and figures to the JSON."""
        self.summary.append(line)
        self.figures |= figures
        print(line, flush=True)
        self.write("running")

    def write(self, status: str) -> None:
        result = {"status": status, "summary": self.summary, "figures": self.figures}
        temporary = self.folder / "result.json.part"
        temporary.write_text(json.dumps(result))
        temporary.replace(self.folder / "result.json")

    def clock(self) -> float:
        """The time in seconds, after the device has finished its queued work."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self, mixed: bool) -> Any:
        """bfloat16 autocast if `mixed`."""
        return autocast(torch.bfloat16 if mixed else torch.float32, self.device)
