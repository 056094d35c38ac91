"""Training and evaluation in several processes: the process group, and collectives that are no-ops in a single one."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources


@dataclass(frozen=True)
class World:
    """Global rank, number of ranks and device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and metrics."""
        return self.rank == 0


@contextmanager
def init_distributed(resources: Resources) -> Iterator[World]:
    """Initializes the process group under torchrun; a world of size 1 without it."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(resources, local)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(0, 1, device)
        return
    timeout = timedelta(seconds=resources.rank_timeout)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield World(dist.get_rank(), size, device)
    # Not in a `finally`: the other ranks would report the lost rank before this one reports its error.
    dist.destroy_process_group()


def pick_device(resources: Resources, local: int = 0) -> torch.device:
    """The configured device; for GPUs the one with index `local`. Raises InputError if there is no GPU."""
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "resources.device = cuda, but torch finds no GPU on this machine; set it to cpu or auto"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """The global rank of this process; 0 without distributed training."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(local: Tensor) -> Tensor:
    """All-gather with gradients: (B, ...) -> (ranks * B, ...), in rank order."""
    return cast(Tensor, _Gather.apply(local)) if dist.is_initialized() else local


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The sum of the ranks' gradients of this rank's part."""
        (gradient,) = gradients
        return all_reduce_sum(gradient.contiguous()).chunk(world_size())[rank()]


def distributed(module: torch.nn.Module) -> DistributedDataParallel:
    """Averages gradients over the ranks. Buffers are constants, which need no synchronization."""
    new = (
        "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    )  # since PyTorch 2.13
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(module, **options)


def all_reduce_max(values: list[float], device: torch.device) -> list[float]:
    """Elementwise maximum over all ranks; for flags, whether any rank sets it."""
    if not dist.is_initialized():
        return values
    maxima = torch.tensor([float(value) for value in values], device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def all_reduce_sum(local: Tensor) -> Tensor:
    """Sum over all ranks, without gradient."""
    summed = local.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(summed)
    return summed


def is_own(batch: int) -> bool:
    """Whether this rank computes a batch, of those that all ranks count alike: every rank takes its turn. `merge` then
    gives all ranks the results of all."""
    return batch % world_size() == rank()


def merge(results: Tensor) -> Tensor:
    """Results of the batches that are `is_own`, zero elsewhere: the same tensor, complete. Each batch is computed by
    one rank, so the values do not depend on the number of ranks."""
    if dist.is_initialized():
        dist.all_reduce(results)
    return results
