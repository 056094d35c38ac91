"""The device, and mixed precision: bfloat16 where the device computes it natively and the model is
large enough to gain."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from alpro.errors import InputError, one_line

# Narrower models stay in float32 on a CPU. With bfloat16, the sample's prompter of width 96 takes
# 0.74 of the CPU time (AMX).
WIDE = 96
# Instructions for bfloat16 of Intel since 2023, AMD since Zen 4, and ARM. Other processors emulate
# them slowly.
NATIVE = ("amx_bf16", "avx512_bf16", "bf16")

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


def compute_dtype(width: int, device: torch.device, mixed: bool = True) -> torch.dtype:
    """Return the autocast dtype of a model.

    Args:
        width: Hidden size of the model.
        mixed: If False, the dtype is float32.

    Returns:
        bfloat16 on a GPU with instructions for it, and on a CPU with instructions for it if the
        width is at least WIDE; otherwise float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = width >= WIDE and cpu_has_bfloat16()
    return torch.bfloat16 if mixed and native else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Return an autocast context. Weights, embeddings and similarities stay float32, and so do the
    heads in evaluation."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def as_residual(x: Tensor) -> Tensor:
    """Cast the residual stream of an encoder to the autocast dtype on a GPU.

    Autocast would leave it in float32, with twice the bytes between layers. The gradient of 12
    layers with random weights is off by 1.4 % with matrix products in bfloat16, and by 2.5 % if the
    residual stream is bfloat16 as well. A CPU, whose layers are not bandwidth-bound, gains nothing
    (0.96 of the time of a step with AMX).
    """
    return x.to(get_autocast_dtype(x)) if is_on_gpu(x) else x


def get_autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the autocast dtype if autocast is enabled on the device of x, else x.dtype."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def cpu_has_bfloat16() -> bool:
    """Return True if this processor has instructions for bfloat16 matrix products."""
    # Since torch 2.13.
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in NATIVE)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
