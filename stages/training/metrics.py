"""Metrics of a training as JSON lines, from which MLflow and the report are made."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alpro.files import atomic_write, sync
from alpro.log import log
from alpro.models.ranks import all_reduce_sum, world_size
from alpro.stages.execution.interface import Metrics


class MetricsFile:
    """metrics.jsonl of a stage: one object per line with `step`, `time` and the metrics. Only rank 0
    writes it."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"

    def write(self, step: int, values: Metrics) -> None:
        """Append a line. A failed write is logged and does not stop training."""
        line = {"step": step, "time": round(time.time(), 3), **values}
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk may have space again later
            # Otherwise the next line would continue the one that was written in part.
            with suppress(OSError):
                os.truncate(self.path, size)
            log.warning(f"{self.path}: step {step} not written: {error.strerror}")

    def sync(self) -> None:
        """Write the lines to disk. Called before a checkpoint: steps before it are not run again."""
        if self.path.exists():
            sync(self.path)
            sync(self.path.parent)

    def drop_after(self, step: int) -> None:
        """Remove the lines after `step`, which a run that resumes from a checkpoint writes again."""
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, without those that were not written as a whole. A missing
    file has no lines."""
    lines: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), open(path) as file:
        for line in file:
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


class Mean:
    """Means of metrics over the steps since the last `read`. The sums stay on the device: only
    `read` synchronizes with it."""

    def __init__(self, state: Metrics, device: torch.device) -> None:
        """Continue from the `state` of a checkpoint, or with an empty one."""
        self.names = tuple(name for name in state if name)
        # Sum of each metric, followed by the number of steps.
        self.sums: Tensor | None = None
        if state:
            values = [*state.values()]
            self.sums = torch.tensor(values, dtype=torch.double, device=device)

    def add(self, names: tuple[str, ...], values: Tensor, counted: Tensor) -> None:
        """Add the metrics of a step.

        Args:
            names: The same M names in each step.
            values: The metrics (M,).
            counted: A boolean tensor; if it is False, the step is left out.
        """
        assert names == self.names or self.sums is None, (
            "all steps of a stage have the same metrics"
        )
        row = torch.cat([values.double(), values.new_ones(1, dtype=torch.double)])
        # Multiplying by 0 instead would keep NaN.
        row = torch.where(counted, row, 0.0)
        self.names = names
        self.sums = row if self.sums is None else self.sums + row

    def read(self) -> Metrics:
        """Return the means over all ranks since the last read; empty if no step was counted."""
        sums = self.state()
        self.sums = None
        count = sums.pop("", 0)
        return {name: value / count for name, value in sums.items()} if count else {}

    def state(self) -> Metrics:
        """Return the sums by name, and the number of steps under "", for a checkpoint: means over all
        ranks, which every rank restores, so that their number may change."""
        if self.sums is None:
            return {}
        names = (*self.names, "")
        sums = all_reduce_sum(self.sums) / world_size()
        return dict(zip(names, sums.tolist(), strict=True))
