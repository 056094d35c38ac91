"""Floating-point operations of a training step, for model FLOPs utilization (MFU), and the peak of a device."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alpro.stages.training.examples import Batch

# Peak dense bfloat16 FLOP/s by a substring of the device name (vendor data sheets).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "V100": 125e12}


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
