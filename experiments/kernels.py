"""How many kernels `torch.compile` generates for the layers of a model on a GPU, without a GPU.

    pip install triton
    python experiments/kernels.py

Inductor schedules each kind of layer as for a GPU and writes its Triton kernels, which are counted
but not run. What it decides by the GPU at hand is not in it, such as splitting a long sum in two.
`--set KEY=VALUE` changes a setting of torch._inductor.config, such as combo_kernels=True. It
replaces internals of PyTorch 2.13: another version may need other replacements.
"""

import argparse
import ast
import inspect
import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
import torch.utils._triton as triton_utilities
from torch import Tensor, nn
from torch._inductor import async_compile, lowering, scheduler
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

from alpro.models import attention, precision
from alpro.models.text import Layer, TextConfig
from alpro.models.timesformer import Block, VideoConfig

CLIPS = 2
FRAMES = 4
TEXT_LENGTH = 40
GENERATED = re.compile(r"^\s+triton_\w+\.run\(", re.MULTILINE)
LIBRARY = re.compile(r"^\s+(?:buf\d+ = )?(?:extern_kernels|torch\.ops|aten)\.", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    schedule_as_on_a_gpu()
    for setting in options.set:
        key, _, value = setting.partition("=")
        setattr(inductor, key, ast.literal_eval(value))

    rows: dict[str, Callable[[], list[str]]] = {
        "block of the video encoder": code_of_block,
        "block of the frozen prompter": code_of_frozen_block,
        "layer of the text encoder": lambda: code_of_layer(TEXT_LENGTH),
        "layer of the multimodal encoder": lambda: code_of_layer(TEXT_LENGTH + 197),
        "its last layer, where only [CLS] is read": lambda: code_of_layer(
            TEXT_LENGTH + 197, first=1
        ),
    }
    for name, code_of in rows.items():
        torch._dynamo.reset()
        for direction, code in zip(("forward", "backward"), code_of(), strict=False):
            generated = len(GENERATED.findall(code))
            library = len(LIBRARY.findall(code))
            print(f"{name}, {direction}: {generated} generated, {library} of libraries", flush=True)


def schedule_as_on_a_gpu() -> None:
    """Tensors of a CPU get the kernels of a GPU, which do nothing when they are called."""
    inductor.cpu_backend = "triton"
    nothing = SimpleNamespace(run=lambda *_, **__: None)
    replacements: list[tuple[Any, str, Any]] = [
        (scheduler, "has_triton", lambda: True),
        (triton_utilities, "triton_hash_with_backend", lambda: "none"),
        (async_compile.AsyncCompile, "triton", lambda *_, **__: nothing),
        (attention, "is_on_gpu", lambda _: True),
        (precision, "keeps_half", lambda _: True),
    ]
    for owner, name, replacement in replacements:
        patch.object(owner, name, replacement).start()

    # On a CPU, a concatenation would be a copy for each of its parts, and nothing is combined.
    define_again(lowering, inspect.getsource(lowering.cat), "if cpu_device:", "if False:")
    node = scheduler.ForeachKernelSchedulerNode
    source = inspect.cleandoc("\n" + inspect.getsource(node._default_group_nodes_for_combo_kernels))
    space = define_again(scheduler, source, ' or device.type == "cpu"', "")
    node.group_algorithm_for_combo_kernels = space[
        node._default_group_nodes_for_combo_kernels.__name__
    ]


def define_again(module: ModuleType, source: str, old: str, new: str) -> dict[str, Any]:
    """Runs the source of a module's function with one replacement; returns the module's names."""
    assert old in source, f"another version of PyTorch: {old!r} is not in it"
    space = vars(module)
    exec("from __future__ import annotations\n" + source.replace(old, new), space)
    return space


def code_of(function: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """The code of the forward pass and, where x needs a gradient, of the backward pass."""
    compiled = torch.compile(function, dynamic=False)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x)

    if x.requires_grad:
        _, codes = run_fw_bw_and_get_code(run)
    else:
        with torch.inference_mode():
            _, codes = run_and_get_code(run)
    return [code[code.index("def call") :] for code in codes]


def code_of_block() -> list[str]:
    config = VideoConfig()
    block = Block(config).train()
    x = torch.zeros(CLIPS, 1 + FRAMES * config.grid**2, config.width, requires_grad=True)
    keep = torch.ones(3, CLIPS, dtype=torch.bfloat16)
    mask = temporal_mask(config)
    return code_of(lambda x: block(x.bfloat16(), FRAMES, keep, mask), x)


def code_of_frozen_block() -> list[str]:
    """Its matrices are in bfloat16, as those of the teacher of PEM."""
    config = VideoConfig()
    block = Block(config).eval().requires_grad_(False)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            module.bfloat16()
    x = torch.zeros(CLIPS, 1 + FRAMES * config.grid**2, config.width, dtype=torch.bfloat16)
    mask = temporal_mask(config)
    return code_of(lambda x: block(x, FRAMES, mask=mask), x)


def code_of_layer(length: int, first: int | None = None) -> list[str]:
    config = TextConfig()
    layer = Layer(config).train()
    # The fused attention of a CPU has no dropout, that of a GPU has it inside.
    layer.attention.dropout = 0.0
    x = torch.zeros(CLIPS, length, config.width, requires_grad=True)
    mask = torch.ones(CLIPS, 1, 1, length, dtype=torch.bool)
    return code_of(lambda x: layer(x.bfloat16(), mask, first), x)


def temporal_mask(config: VideoConfig) -> Tensor | None:
    x = torch.zeros(1, dtype=torch.bfloat16)
    return attention.tile_mask(x, CLIPS * config.grid**2, FRAMES)


if __name__ == "__main__":
    main()
