"""Ranks of a distributed run, and collectives that are no-ops in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the global rank of this process; 0 without distributed training."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_max(values: list[float], device: torch.device) -> list[float]:
    """Return the elementwise maximum over all ranks. A flag is 1 if any rank sets it."""
    if not dist.is_initialized():
        return values

    maxima = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def broadcast(tensors: list[Tensor]) -> None:
    """Copy the values of rank 0 to all ranks, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def all_reduce_sum(local: Tensor) -> Tensor:
    """Return the sum over all ranks, without gradient."""
    return all_reduce_(local.detach().clone())


def belongs_to_this_rank(batch: int) -> bool:
    """Return True if this rank computes a batch. Batches are assigned to ranks round-robin.

    Afterwards `all_reduce_` gives every rank the results of all.

    Args:
        batch: Index of the batch.
    """
    return batch % world_size() == rank()


def all_reduce_(results: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place, and return it.

    Each rank has filled in its batches and left zeros elsewhere. So each value comes from one rank,
    and does not depend on the number of ranks.
    """
    if dist.is_initialized():
        dist.all_reduce(results)
    return results
