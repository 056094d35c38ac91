"""Ranks of a distributed run, and collectives that are no-ops in a single process."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from alpro.errors import InputError, one_line

Device = Literal["auto", "cpu", "cuda"]
NO_GPU = "resources.device = cuda, but torch finds no GPU on this machine; set it to cpu or auto"


def pick_device(name: Device, local: int = 0) -> torch.device:
    """Return the device of a name.

    Args:
        name: `auto` is a GPU if there is one.
        local: Index of the GPU.

    Raises:
        InputError: If the name is `cuda`, and there is no GPU.
    """
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise InputError(NO_GPU)
        return torch.device("cpu")

    device = torch.device("cuda", local)
    # NCCL and functions without a device use the current one, by default GPU 0 for all.
    torch.cuda.set_device(device)
    return device


def check_devices(name: Device, processes: int) -> None:
    """Check that this machine has the devices that processes ask for, and that CUDA can use them.

    Raises:
        InputError: If there is no GPU for `cuda`, there are fewer GPUs than processes, or CUDA cannot
            use a GPU. With `auto`, training would be on the CPU.
    """
    count = 0 if name == "cpu" else torch.cuda.device_count()
    if name == "cuda" and not count:
        raise InputError(NO_GPU)
    if 0 < count < processes:
        raise InputError(
            f"resources.processes = {processes}, but this machine has {count} visible GPUs"
        )

    # NVML also counts GPUs that CUDA cannot use, as with an old driver.
    if count and not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except RuntimeError as error:
            raise InputError(
                f"CUDA cannot use the GPU of this machine: {one_line(error)}; set resources.device = "
                "cpu to run without it"
            ) from error


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
