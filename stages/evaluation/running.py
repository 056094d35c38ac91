"""The processes of an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from alpro.stages.execution.interface import Resources
from alpro.stages.training.distributed import init_distributed


@contextmanager
def evaluating(out: Path, resources: Resources) -> Iterator[tuple[torch.device, Path]]:
    """Share an evaluation between processes. Yields the device and the folder of this one.

    The processes share the encoding of videos and the scoring of pairs. All have all results, and
    the first one writes them.
    """
    with (
        init_distributed(resources) as world,
        # The other processes compute the same results: what they write is deleted.
        nullcontext(str(out)) if world.main else TemporaryDirectory() as folder,
    ):
        yield world.device, Path(folder)
