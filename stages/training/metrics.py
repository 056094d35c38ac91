"""Metrics as lines of JSON beside the model: what MLflow, the report and a person with a text editor read."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alpro.errors import InputError
from alpro.files import atomic_write
from alpro.stages.training.distributed import gather_objects, total


class MetricsFile:
    """metrics.jsonl of a stage: one object a line with `step`, `time` and the metrics."""

    def __init__(self, folder: Path, active: bool = True):
        self.path = folder / "metrics.jsonl"
        self.active = active  # only one rank writes

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.active:
            return
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n"
        try:
            with open(self.path, "a") as file:
                file.write(line)
        except OSError as error:  # a full disk is no reason to end what may find room again
            print(f"{self.path}: step {step} not written: {error.strerror}", file=sys.stderr, flush=True)

    def cut(self, step: int) -> None:
        """Drops the lines after `step`: a run that continues from a checkpoint writes them again."""
        if self.active and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Mean:
    """Means of metrics over the steps since the last reading. They stay on their device until all are read at once."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None  # of each metric, and behind them the number of steps

    def add(self, names: tuple[str, ...], values: Tensor, counted: Tensor) -> None:
        """Metrics (M,) of a step; one that is not counted (a boolean) is left out."""
        assert names == self.names or self.sums is None, "a stage's steps all have the same metrics"
        row = torch.cat([values.double(), values.new_ones(1, dtype=torch.double)])
        row = torch.where(counted, row, 0.0)
        self.names, self.sums = names, row if self.sums is None else self.sums + row

    def read(self) -> dict[str, float]:
        """The means since the last reading, over all ranks; none where no step counted."""
        found = {} if self.sums is None else self._over(total(self.sums))
        self.sums = None
        return found

    def _over(self, sums: Tensor) -> dict[str, float]:
        *values, count = sums.tolist()
        return {name: value / count for name, value in zip(self.names, values, strict=True)} if count else {}

    def state(self) -> dict[str, float]:
        """The sums of all ranks by name, and the number of steps under "", for a checkpoint: one rank restores them."""
        return {} if self.sums is None else dict(zip((*self.names, ""), total(self.sums).tolist(), strict=True))

    def restore(self, state: dict[str, float], device: torch.device) -> None:
        if state:
            self.names = tuple(name for name in state if name)
            self.sums = torch.tensor(list(state.values()), dtype=torch.double, device=device)


class Skipped:
    """Steps that were not taken because a loss or the gradient was not finite.

    Whether a step was finite stays on the device until `read`, which looks at all since the last reading at once.
    """

    def __init__(self, in_row: int):
        self.in_row = in_row
        self.pending: list[tuple[int, list[str], tuple[str, ...], Tensor, Tensor]] = []

    def add(self, step: int, ids: list[str], names: tuple[str, ...], values: Tensor, finite: Tensor) -> None:
        self.pending.append((step, ids, names, values, finite))

    def read(self, most: int) -> int:
        """How many of the steps since the last reading were skipped. Raises InputError after `most` in a row."""
        if not self.pending:
            return 0
        finite = torch.stack([step[4] for step in self.pending]).tolist()
        pending, self.pending = self.pending, []
        for good, step in zip(finite, pending, strict=True):
            self.in_row = 0 if good else self.in_row + 1
            if self.in_row >= most:
                raise InputError(self.say(most, *step[:4]))
        return finite.count(False)

    def say(self, most: int, step: int, ids: list[str], names: tuple[str, ...], values: Tensor) -> str:
        """What went wrong on which rank: all ranks come here at the same step."""
        lost = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
        losses = [name for name in lost if name.startswith("loss_")]
        others = [name for name in lost if name not in ("loss", "grad_norm")]
        found = gather_objects((losses or others or ["gradient"], ids[:4]))
        where = next((r for r, (names, _) in enumerate(found) if any(n.startswith("loss") for n in names)), 0)
        what, samples = found[where]
        on = f" of rank {where}" if len(found) > 1 else ""
        return (
            f"{', '.join(what)} not finite in {most} steps in a row, the last being step {step} "
            f"(samples{on} {', '.join(samples)}, ...); lower lr or max_grad_norm"
        )
