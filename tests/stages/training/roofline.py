"""A roofline of a training step on an A100 and an H100, from fake tensors: a model, not a
measurement.

    python -m tests.stages.training.roofline [--stage pretrain] [--batches 16 32 64] [--json FILE]

A kernel takes the longest of its bytes over the memory's bandwidth, its FLOPs over the rate of its
kind, and 2.5 microseconds. Attention is computed in tiles of 128 queries and 128 keys, however
short a sequence is. In a compiled layer, what lies between two matrix products or attentions is one
kernel for each size of its results, which reads its inputs once and writes what is used later; the
whole backward pass counts as compiled then. MFU counts the FLOPs of the method, without those of
padding.
"""

import argparse
import json
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from alpro.models.text import Layer
from alpro.models.timesformer import Block
from alpro.stages import pretrain, train_prompter
from tests.stages.training.conftest import run_of
from tests.stages.training.simulated import as_on_a_gpu, batch_of, objective_at_size

LAUNCH = 2.5e-6  # seconds of the smallest kernel
TILE = 128
OPTIMIZER_BYTES = 40  # read and written for each trained weight
NO_KERNEL = {"empty", "empty_like", "scalar_tensor", "new_empty", "detach", "alias"}
STAGES = {"pretrain": pretrain.Config, "train_prompter": train_prompter.Config}


@dataclass(frozen=True)
class Gpu:
    """Rates that kernels reach: products in bfloat16 and float32, attention, bytes; and the peak of
    MFU."""

    bfloat16: float
    float32: float
    attention: float
    bandwidth: float
    multiprocessors: int
    peak: float


GPUS = {
    "H100": Gpu(600e12, 50e12, 400e12, 2.8e12, 132, 989e12),
    "A100": Gpu(235e12, 19e12, 160e12, 1.7e12, 108, 312e12),
}


@dataclass
class Kernel:
    """One or `count` kernels: bytes that move, FLOPs that count, and for attention the tiles."""

    kind: str
    bytes: float
    flops: float = 0.0
    count: int = 1
    tiles: float = 0.0
    head_width: int = 0
    backward: bool = False

    def seconds(self, gpu: Gpu) -> float:
        longest = max(self.bytes / gpu.bandwidth, LAUNCH * self.count)
        if self.kind == "attention":
            flops = self.tiles * 4 * TILE * TILE * self.head_width * (2.5 if self.backward else 1.0)
            # Two blocks run on a multiprocessor; a block takes at least its loads and its epilogue.
            blocks = self.tiles / (2 * gpu.multiprocessors) * (4e-6 if self.backward else 2e-6)
            return max(longest, flops / (0.6 * gpu.attention), blocks)
        rate = gpu.float32 if self.kind == "float32" else gpu.bfloat16
        return max(longest, self.flops / rate)


class Kernels(TorchDispatchMode):
    """Records the kernels of what runs. `fused`: element-wise work counts as compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.fused = False
        self.read: dict[int, float] = {}
        self.written: dict[int, tuple[weakref.ref, float, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if is_composite(function):  # in inference mode, such as the teacher's products
            with self:
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not results or name in NO_KERNEL or is_view(function):
            return result

        is_attention = "scaled_dot" in name
        if is_attention or function.overloadpacket in flop_registry:
            self.flush()
            moved = sum(map(stored_bytes, [*inputs, *results]))
            self.kernels.append(heavy(name, function, args, kwargs, result, moved))
        elif self.fused:
            self.fuse(inputs, results)
        else:
            moved = sum(map(stored_bytes, [*inputs, *results]))
            self.kernels.append(Kernel("element-wise", moved))
        return result

    def fuse(self, inputs: list[Tensor], results: list[Tensor]) -> None:
        for tensor in inputs:
            key = tensor.untyped_storage()._cdata
            if key not in self.written:
                self.read[key] = max(self.read.get(key, 0.0), stored_bytes(tensor))
        for tensor in results:
            storage = tensor.untyped_storage()
            alive = weakref.ref(storage)
            self.written[storage._cdata] = alive, stored_bytes(tensor), tensor.numel()

    def flush(self) -> None:
        """Ends a run of element-wise work: results that are freed already were never written."""
        if not self.read and not self.written:
            return
        kept = [value for value in self.written.values() if value[0]() is not None]
        moved = sum(self.read.values()) + sum(size for _, size, _ in kept)
        sizes = {number for *_, number in self.written.values() if number > 4096}
        self.kernels.append(Kernel("element-wise", moved, count=max(1, len(sizes))))
        self.read = {}
        self.written = {}

    @contextmanager
    def compiled(self, on: bool) -> Iterator[None]:
        before = self.fused
        self.flush()
        self.fused = on
        yield
        self.flush()
        self.fused = before


def is_composite(function: Any) -> bool:
    """Whether an operation consists of others."""
    if function is torch.ops.prim.device.default or function.overloadpacket in flop_registry:
        return False
    key = "CompositeImplicitAutograd"
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key)


def is_view(function: Any) -> bool:
    returns = function._schema.returns
    return bool(returns) and any(
        value.alias_info is not None and not value.alias_info.is_write for value in returns
    )


def stored_bytes(tensor: Tensor) -> float:
    """The bytes that are there: an expanded dimension has one element."""
    number = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= size if stride else 1
    return float(number * tensor.element_size())


def heavy(name: str, function: Any, args: Any, kwargs: Any, result: Any, moved: float) -> Kernel:
    """The kernel of a matrix product, a convolution or an attention."""
    backward = "backward" in name
    if "scaled_dot" in name:
        query, key, value = args[1:4] if backward else args[:3]
        batch, heads, length, width = query.shape
        tiles = batch * heads * math.ceil(length / TILE) * math.ceil(key.shape[2] / TILE)
        flops = 4 * batch * heads * length * key.shape[2] * value.shape[3]
        flops *= 2.5 if backward else 1
        return Kernel("attention", moved, flops, 1, tiles, width, backward)
    flops = flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
    matrices = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.dim() > 1]
    kind = "float32" if any(x.dtype == torch.float32 for x in matrices) else "bfloat16"
    return Kernel(kind, moved, float(flops))


def kernels_of_a_step(
    stage: str, batch_size: int, packed: bool, compiled: bool
) -> tuple[list[Kernel], int]:
    """The kernels of forward and backward passes of one step, and the number of trained weights."""
    values: dict[str, Any] = {"phases": [{"corpora": ["a"], "steps": 9}], "batch_size": batch_size}
    values |= {"negative_pool_size": 16} if stage == "pretrain" else {}
    config = STAGES[stage].model_validate(values)
    with TemporaryDirectory() as folder, as_on_a_gpu(packed):
        objective = objective_at_size(stage, config)
        run = run_of(objective, config, Path(folder))
        batch = batch_of(stage, objective, batch_size, 32, 224)
        recorded = Kernels()
        scopes: list[Any] = []

        def enter(*_: Any) -> None:
            scopes.append(recorded.compiled(compiled))
            scopes[-1].__enter__()

        def leave(*_: Any) -> None:
            scopes.pop().__exit__(None, None, None)

        for module in objective.modules():
            if isinstance(module, Block | Layer):
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave)
        with recorded:
            with run.autocast():
                part = objective.with_pseudo_labels(batch)
                loss, _ = objective(part, objective.step_counts([part]))
            with recorded.compiled(compiled):
                loss.backward()
    weights = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
    return recorded.kernels, weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=sorted(STAGES), default="pretrain")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = []
    for size in options.batches:
        flops = 0.0
        for variant, packed, compiled in (
            ("eager", False, False),
            ("packed", True, False),
            ("packed, compiled", True, True),
        ):
            kernels, weights = kernels_of_a_step(options.stage, size, packed, compiled)
            flops = flops or sum(kernel.flops for kernel in kernels)
            row: dict[str, Any] = {"batch": size, "variant": variant}
            row["kernels"] = sum(kernel.count for kernel in kernels)
            row["gigabytes"] = sum(kernel.bytes for kernel in kernels) / 1e9
            row["tflop"] = flops / 1e12
            for name, gpu in GPUS.items():
                seconds = sum(kernel.seconds(gpu) for kernel in kernels)
                seconds += weights * OPTIMIZER_BYTES / gpu.bandwidth
                row[f"{name} samples/s"] = size / seconds
                row[f"{name} MFU"] = flops / seconds / gpu.peak
            rows.append(row)
            print(" | ".join(f"{k} {v:.3g}" if k != "variant" else v for k, v in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
