"""The processes and the precision of an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from alpro.inference.encoding import width_of
from alpro.log import log
from alpro.models.precision import WIDE, autocast, compute_dtype, dtype_name
from alpro.stages.execution.interface import Resources
from alpro.stages.training.distributed import init_distributed


@dataclass(frozen=True)
class EvaluationRun:
    """Where an evaluation runs.

    Attributes:
        device: Device of this process.
        out: Folder that this process writes.
        precision: Name of the compute dtype.
    """

    device: torch.device
    out: Path
    precision: str


@contextmanager
def evaluating(
    model: Path,
    out: Path,
    resources: Resources,
    mixed_precision: bool,
) -> Iterator[EvaluationRun]:
    """Share an evaluation between processes, in the precision that suits the model.

    The processes share the encoding of videos and the scoring of pairs. All have all results, and
    the first one writes them.
    """
    with (
        init_distributed(resources) as world,
        # The other processes compute the same results: what they write is deleted.
        nullcontext(str(out)) if world.main else TemporaryDirectory() as folder,
    ):
        # A CLIP of the hub has no folder.
        width = width_of(model) if model.exists() else WIDE
        dtype = compute_dtype(width, world.device, mixed_precision)
        run = EvaluationRun(world.device, Path(folder), dtype_name(dtype))
        if world.main:
            log.info(f"matrix products in {run.precision}, on {world.device.type}")
        with autocast(dtype, world.device):
            yield run
