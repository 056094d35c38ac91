"""Metrics as lines of JSON beside the model: what MLflow, the report and a person with a text editor read."""

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class MetricsFile:
    """metrics.jsonl of a stage: one object a line with `step`, `time` and the metrics."""

    def __init__(self, folder: Path, active: bool = True):
        self.path = folder / "metrics.jsonl"
        self.active = active  # only one rank writes

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.active:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def cut(self, step: int) -> None:
        """Drops the lines after `step`: a run that continues from a checkpoint writes them again."""
        if self.active and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            temporary = self.path.with_suffix(".part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Mean:
    """Means of metrics over the steps since the last reading. Tensors stay on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] += 1

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, defaultdict(int)
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """Sums and counts, for a checkpoint."""
        return {name: (float(value), self.counts[name]) for name, value in self.sums.items()}

    def restore(self, state: dict[str, tuple[float, int]], device: torch.device) -> None:
        self.sums = {name: torch.tensor(value, device=device) for name, (value, _) in state.items()}
        self.counts = defaultdict(int, {name: count for name, (_, count) in state.items()})
