"""One process or many: who I am, and features gathered from every rank with their gradients."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from alpro.errors import InputError
from alpro.stages.artifacts.store import Resources

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all: its global rank, how many there are, its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """The one rank that writes files and metrics."""
        return self.rank == 0


@contextmanager
def world(resources: Resources) -> Iterator[World]:
    """Joins the processes that torchrun started; alone where none did."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(resources, local)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(0, 1, device)
        return
    patience = timedelta(seconds=resources.rank_timeout)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    yield World(dist.get_rank(), size, device)
    # Not where this rank fails: the others would tell that it is gone before it has told why.
    dist.destroy_process_group()


def pick_device(resources: Resources, local: int = 0) -> torch.device:
    """The device that the resources name; GPU number `local` where they name a GPU."""
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("resources.device = cuda, but this machine has no GPU that torch sees; set it to cpu or auto")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def gather(local: Tensor) -> Tensor:
    """The rows of every rank, in order of rank: (B, ...) -> (ranks * B, ...). Gradients flow back to their ranks."""
    if not dist.is_initialized():
        return local
    if local.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(cast(list[Tensor], all_gather(local)))
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_bytes(local: Tensor, device: torch.device) -> list[Tensor]:
    """A byte tensor of every rank, on the CPU."""
    if not dist.is_initialized():
        return [local]
    parts = [torch.empty_like(local, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.to(device))
    return [part.cpu() for part in parts]


def gather_objects(local: T) -> list[T]:
    """What every rank has, for what is rare: it is pickled by one rank of this job for another."""
    if not dist.is_initialized():
        return [local]
    found: list[T] = [local] * dist.get_world_size()
    dist.all_gather_object(found, local)
    return found


def highest(values: list[float], device: torch.device) -> list[float]:
    """The highest of each value over all ranks; of flags, whether any rank has it."""
    if not dist.is_initialized():
        return values
    agreed = torch.tensor([float(value) for value in values], device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def total(local: Tensor) -> Tensor:
    """The sum over all ranks, without gradient."""
    summed = local.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(summed)
    return summed
