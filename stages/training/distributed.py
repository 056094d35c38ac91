"""The process group of a training or evaluation in several processes. Collectives without a
gradient are in models/ranks.py."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alpro.models.precision import pick_device
from alpro.models.ranks import all_reduce_sum, rank, world_size
from alpro.stages.execution.interface import Resources


@dataclass(frozen=True)
class World:
    """The global rank and device of this process, and the number of ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and metrics."""
        return self.rank == 0


@contextmanager
def init_distributed(resources: Resources) -> Iterator[World]:
    """Initialize the process group under torchrun. Without torchrun, the world has one rank."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(resources.device, local)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(0, 1, device)
        return

    timeout = timedelta(seconds=resources.rank_timeout)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timeout
    )
    yield World(dist.get_rank(), size, device)
    # Do not use `finally`: the other ranks would report the lost rank before this one reports
    # its error.
    dist.destroy_process_group()


def distributed(module: torch.nn.Module) -> DistributedDataParallel:
    """Wrap a module so that its gradients are averaged over the ranks. Its buffers are constants
    and are not synchronized."""
    # Gradients are views of the reduced buckets, which saves a copy of them.
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    # Set here, because PyTorch 2.13 renamed the argument.
    wrapped.broadcast_buffers = False
    return wrapped


def gather(local: Tensor) -> Tensor:
    """Gather the tensors of all ranks, with gradients.

    Shape:
        (B, ...) -> (ranks * B, ...), in rank order.
    """
    if not dist.is_initialized():
        return local
    # Collectives refuse strided tensors.
    return Gather.apply(local.contiguous())


class Gather(torch.autograd.Function):
    """all_gather with a gradient: the losses of other ranks train this rank's pairs."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = all_reduce_sum(grad_outputs[0].contiguous())
        return total.chunk(world_size())[rank()]
