"""The devices of this machine: the GPUs that stages may use, and what helps a stage that ran out of
memory."""

import os
import re
import sys

from alpro.errors import one_line
from alpro.stages.execution.interface import Resources

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# In the messages of PyTorch's out-of-memory errors.
NO_MEMORY = "out of memory|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator"


def find_gpus(resources: Resources) -> list[str]:
    """Return the GPUs that stages of this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if resources.device == "cpu":
        return []

    import torch

    count = torch.cuda.device_count()
    # CUDA stops at the first name that it does not know: the visible GPUs are the first ones.
    named = os.environ.get(VISIBLE_GPUS) or ",".join(map(str, range(count)))
    return named.replace(" ", "").split(",")[:count]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is used up."""
    # cuBLAS and the allocator of a CPU raise a plain RuntimeError.
    is_of_torch = isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error))
    return bool(is_of_torch) or isinstance(error, MemoryError)


def describe_memory(stage: str, error: Exception) -> str:
    """Return one line that says what ran out of memory, and which settings need less."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        if total - free - torch.cuda.memory_reserved() > total / 2:
            return (
                f"{stage} ran out of memory: other processes hold most of its GPU; wait until they "
                "end, or choose another GPU with CUDA_VISIBLE_DEVICES"
            )

    # torch's message continues with the statistics of its allocator.
    reason = one_line(error).partition(". ")[0]
    return (
        f"{stage} ran out of memory ({reason}): run it alone; a training needs less with a doubled "
        f"{stage}.accumulation_steps (VTC then compares the pairs of a smaller part), or with "
        "resources.checkpoint_activations=true, which takes a third more time; then run again"
    )
