"""Mixed precision: bfloat16 where the device computes it natively and the model is large enough to
gain."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Narrower models stay in float32 on a CPU. The sample's prompter, at width 96, takes 0.74 of the
# CPU time (AMX).
WIDE = 96
# Of Intel since 2023, of AMD since Zen 4, of ARM; other processors emulate them slowly.
NATIVE = ("amx_bf16", "avx512_bf16", "bf16")


def precision(width: int, device: torch.device, mixed: bool = True) -> torch.dtype:
    """The type of the matrix products of a model of this width.

    bfloat16 if `mixed`, on a GPU with instructions for it and on a CPU with bfloat16 instructions
    if the width is at least WIDE; otherwise float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = width >= WIDE and cpu_has_bfloat16()
    return torch.bfloat16 if mixed and native else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Matrix products in `dtype`; weights, embeddings, similarities and heads stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def as_residual(x: Tensor) -> Tensor:
    """The residual stream of an encoder, on a GPU in the type of autocast's products.

    Autocast would leave it in float32, with twice the bytes between the layers. The gradient of 12
    layers with random weights is off by 1.4 % with products in bfloat16, and by 2.5 % with the
    stream, too (experiments/rounding.py).
    """
    return x.to(type_of_products(x)) if keeps_half(x) else x


def type_of_products(x: Tensor) -> torch.dtype:
    """The type in which the matrix products of x are computed: that of autocast, without it x's."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def keeps_half(x: Tensor) -> bool:
    """Whether the device gains: memory of a GPU is slower than its products, that of a CPU is not
    (0.96 of a step with AMX)."""
    return x.is_cuda


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 matrices."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # since torch 2.13
    capabilities: Mapping[str, Any] = get_capabilities()
    return any(capabilities.get(name) for name in NATIVE)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
