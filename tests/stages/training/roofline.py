"""A roofline of a training step on an A100 and an H100, from fake tensors: a model, not a
measurement.

    python -m tests.stages.training.roofline [--batches 16 32 64] [--frames 4] [--json FILE]

A kernel takes the longest of its bytes over the memory's bandwidth, its FLOPs over the rate of its
kind, and 2.5 microseconds. Attention is computed in tiles of 128 queries and 128 keys, however
short a sequence is, and so are batches of products.

In a compiled layer, what lies between two matrix products or attentions is one kernel for each size
of its results, which reads its inputs once and writes what is used later; the whole backward pass
counts as compiled then. Kernels are those of the forward and backward passes; the optimizer counts
by its bytes. MFU counts the FLOPs of the method, without those of padding.

For each batch size, the variants of temporal attention follow: the step above, packed and compiled,
with another attention. `--frames 4 8 16` computes the attention alone for other numbers of frames.
"""

import argparse
import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from alpro.models.attention import (
    attention_by_products,
    block_mask,
    packed_attention,
    sequences_in_a_tile,
)
from alpro.models.text import Layer
from alpro.models.timesformer import Block, VideoConfig
from alpro.stages import pretrain, train_prompter
from alpro.stages.training.objective import Objective
from alpro.stages.training.pretrain_objective import PretrainObjective
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
    """One or `count` kernels: bytes that move, FLOPs that count, and of attention and of batches of
    products the tiles."""

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
        blocks = self.tiles / (2 * gpu.multiprocessors) * 2e-6
        return max(longest, self.flops / rate, blocks)


class Kernels(TorchDispatchMode):
    """Records the kernels of what runs. `fused`: element-wise work counts as compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.fused = False
        self.read: dict[int, float] = {}
        self.written: dict[int, tuple[weakref.ref, float]] = {}
        self.sizes: set[int] = set()

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
            self.fuse(name, inputs, results)
        else:
            moved = sum(map(stored_bytes, [*inputs, *results]))
            self.kernels.append(Kernel("element-wise", moved))
        return result

    def fuse(self, name: str, inputs: list[Tensor], results: list[Tensor]) -> None:
        for tensor in inputs:
            key = tensor.untyped_storage()._cdata
            if key not in self.written:
                self.read[key] = max(self.read.get(key, 0.0), stored_bytes(tensor))

        # The cast of a bias is part of the kernel that reads it.
        if name == "_to_copy" and results[0].dim() == 1:
            return
        for tensor in results:
            # One kernel writes what is normalized and the statistics of its rows.
            size = results[0].numel() if name == "native_layer_norm" else tensor.numel()
            storage = tensor.untyped_storage()
            alive = weakref.ref(storage)
            self.written[storage._cdata] = alive, stored_bytes(tensor)
            # Apart from `written`, where a later result replaces a freed one at its address.
            self.sizes.add(size)

    def flush(self) -> None:
        """Ends a run of element-wise work: results that are freed already were never written."""
        if not self.read and not self.written:
            return
        kept = [value for value in self.written.values() if value[0]() is not None]
        moved = sum(self.read.values()) + sum(size for _, size in kept)
        self.kernels.append(Kernel("element-wise", moved, count=max(1, len(self.sizes))))
        self.read = {}
        self.written = {}
        self.sizes = set()

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
    tiles = 0
    if name == "bmm":
        batch, rows, columns = result.shape
        tiles = batch * math.ceil(rows / TILE) * math.ceil(columns / TILE)
    return Kernel(kind, moved, float(flops), tiles=tiles)


def cast_teacher(objective: Objective) -> None:
    """As a run does on a GPU (`Objective.cast_frozen_`), whose conversion fails for fake weights.
    All weights: those that stay in float32 are small."""
    if not isinstance(objective, PretrainObjective) or objective.prompter is None:
        return
    for module in objective.prompter.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.bfloat16(), requires_grad=False))


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
        cast_teacher(objective)
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


def attention_by_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As F.scaled_dot_product_attention (B, heads, L, D), by element-wise products and sums."""
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
    return (scores.softmax(-1)[..., None] * v[..., None, :, :]).sum(-2)


ATTENTIONS = ("alone", "products", "broadcast", "packed")


def attentions(shape: tuple[int, ...]) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The variants of ATTENTIONS for queries of this shape. All layers share the mask of the last,
    so that it is computed before."""
    packed = sequences_in_a_tile(shape[0], shape[2])
    mask = block_mask(packed, shape[2], torch.bfloat16, torch.device("cpu"))
    variants = (
        F.scaled_dot_product_attention,
        attention_by_products,
        attention_by_broadcast,
        partial(packed_attention, mask=mask),
    )
    return dict(zip(ATTENTIONS, variants, strict=True))


def temporal_attention(variant: str, clips: int, frames: int) -> list[Kernel]:
    """The kernels of one layer's temporal attention, compiled: forward and backward in the student,
    forward in the teacher."""
    video = VideoConfig()
    shape = (clips * video.grid**2, video.heads, frames, video.width // video.heads)
    recorded = Kernels()
    with FakeTensorMode():
        attend = attentions(shape)[variant]
        q, k, v = (torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        with recorded:
            with recorded.compiled(True):
                output = attend(q, k, v)
            with recorded.compiled(True):
                output.backward(torch.empty_like(output))
            with recorded.compiled(True), torch.no_grad():
                attend(q, k, v)
    return recorded.kernels


def attention_rows(clips: int, frames: int, step: list[Kernel] | None, weights: int) -> list[dict]:
    """A row for each variant of temporal attention in all layers of the student and, forward, of
    the teacher; with the kernels of a packed and compiled `step`, its speed with each variant."""
    depth = VideoConfig().depth
    packed = temporal_attention("packed", clips, frames)
    rows = []
    for variant in ATTENTIONS:
        kernels = temporal_attention(variant, clips, frames)
        row: dict[str, Any] = {"batch": clips, "frames": frames, "attention": variant}
        row["kernels"] = depth * sum(kernel.count for kernel in kernels)
        row["gigabytes"] = depth * sum(kernel.bytes for kernel in kernels) / 1e9
        row["tflop"] = depth * sum(kernel.flops for kernel in kernels) / 1e12
        for name, gpu in GPUS.items():
            seconds = depth * sum(kernel.seconds(gpu) for kernel in kernels)
            row[f"{name} ms"] = 1000 * seconds
            if step:
                others = seconds_of(step, weights, gpu)
                others -= depth * sum(kernel.seconds(gpu) for kernel in packed)
                row[f"{name} samples/s"] = clips / (others + seconds)
        rows.append(row)
    return rows


def seconds_of(step: list[Kernel], weights: int, gpu: Gpu) -> float:
    optimizer = weights * OPTIMIZER_BYTES / gpu.bandwidth
    return sum(kernel.seconds(gpu) for kernel in step) + optimizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=sorted(STAGES), default="pretrain")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--frames", type=int, nargs="+", default=[4])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        cells = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(" | ".join(cells), flush=True)

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
                seconds = seconds_of(kernels, weights, gpu)
                row[f"{name} samples/s"] = size / seconds
                row[f"{name} MFU"] = flops / seconds / gpu.peak
            add(row)
        # The last variant is packed and compiled.
        if options.stage == "pretrain":
            for frames in options.frames:
                step = kernels if frames == VideoConfig().frames else None
                for row in attention_rows(size, frames, step, weights):
                    add(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
