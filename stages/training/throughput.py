"""Throughput and memory of a training process, and the FLOPs of a step for model FLOPs utilization (MFU)."""

import resource
import sys
import time
from copy import deepcopy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alpro.stages.training.batch import Batch

# Peak dense bfloat16 FLOP/s by a substring of the device name (vendor data sheets).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "V100": 125e12}


class Clock:
    """Throughput since the last logged step, without the time of validation."""

    def __init__(self) -> None:
        self.last_step = self.last_save = time.monotonic()
        self.saving = 0.0  # seconds to write the last checkpoint
        self.pace = 1e-3  # seconds per step
        self.start_window()

    def start_window(self) -> None:
        self.started, self.steps, self.waited, self.flops = time.monotonic(), 0, 0.0, 0.0

    def batch_loaded(self) -> None:
        self.waited += time.monotonic() - self.last_step

    def step_done(self, flops: float) -> None:
        self.steps += 1
        self.flops += flops
        self.pace = max(1e-3, (time.monotonic() - self.started) / self.steps)

    def step_ended(self) -> None:
        self.last_step = time.monotonic()

    @property
    def window(self) -> float:
        """Seconds since the start of the window."""
        return max(time.monotonic() - self.started, 1e-9)

    def saved(self, seconds: float) -> None:
        self.last_save, self.saving = time.monotonic(), seconds

    @property
    def since_saved(self) -> float:
        return time.monotonic() - self.last_save


def memory_gib() -> float:
    """Peak resident memory of this process in GiB."""
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss / (2**30 if sys.platform == "darwin" else 2**20)


def peak(device: str) -> float:
    """Peak dense bfloat16 FLOP/s of an accelerator by its name; 0 if it is unknown.

    >>> peak("NVIDIA H200")
    989000000000000.0
    """
    return next((value for name, value in PEAKS.items() if name in device), 0.0)


class StepFlops:
    """Counts the floating-point operations of an objective's forward and backward pass, once per shape of a batch.

    PyTorch's counter runs on a copy of the objective on the meta device, whose tensors are shapes without data: nothing
    is computed, communicated or sampled, and the training step is not slowed down. The copy is in eval mode, without
    activation checkpointing and compilation, so that recomputation does not count. As is usual, only matrix products
    and convolutions count: no norms, activations, embeddings, softmax, resizing, optimizer. A count takes 0.9 s at the
    paper's size; texts are padded to multiples of 8, so that a run has few shapes.
    """

    def __init__(self, objective: nn.Module):
        parameters = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in objective.parameters()}
        buffers = {id(buffer): buffer.to("meta") for buffer in objective.buffers()}
        self.objective = deepcopy(objective, parameters | buffers).eval()
        self.counts: dict[tuple, float] = {}

    def __call__(self, batch: Batch) -> float:
        """Floating-point operations of one step on this batch."""
        shape = batch.shape
        if shape not in self.counts:
            # A fused attention kernel computes the scores again in its backward pass; this one does not.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                self.objective(batch.to(torch.device("meta")))[0].backward()
            self.objective.zero_grad(set_to_none=True)
            self.counts[shape] = counter.get_total_flops()
        return self.counts[shape]
