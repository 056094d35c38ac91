"""How the layers of a training compute: precision, compilation and activation checkpointing."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from alpro.log import log
from alpro.models.attention import TransformerLayer
from alpro.models.clip_prompter import ClipPrompter
from alpro.models.precision import compute_dtype
from alpro.stages.execution.interface import Resources
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.distributed import World
from alpro.stages.training.objective import Objective

MIN_COMPILED_WIDTH = 512  # smallest hidden size whose layers are compiled
MAX_GRAPHS = 32  # compiled graphs of one type of layer


def training_precision(
    objective: Objective, config: TrainingConfig, world: World
) -> torch.dtype:
    """Return the compute dtype of a training."""
    return compute_dtype(
        objective.model.config.video.width, world.device, config.mixed_precision
    )


def are_layers_compiled(
    objective: Objective, resources: Resources, world: World
) -> bool:
    """Return whether a training compiles its layers: on a GPU, if torch.compile finds its tools, and
    if the model is large enough to make up for the minutes of compilation."""
    if not resources.compile or world.device.type != "cuda":
        return False
    if objective.model.config.video.width < MIN_COMPILED_WIDTH:
        return False
    compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    compiler = any(shutil.which(name) for name in compilers if name)
    # Triton compiles a module of Python, with the headers of this scheme.
    headers = Path(sysconfig.get_path("include", "posix_prefix"))
    if find_spec("triton") and compiler and (headers / "Python.h").exists():
        return True
    if world.main:
        log.warning(
            "the layers are not compiled: torch.compile needs triton, a C compiler and Python.h "
            "(python3-dev)"
        )
    return False


def configure_layers(
    objective: Objective,
    compiled: bool = False,
    checkpoint_activations: bool = False,
) -> None:
    """Set up activation checkpointing and compilation of the encoders' layers.

    Layers are compiled one by one (regional compilation): layers of one type share compiled code,
    and collectives, sampling and losses are not compiled.
    """
    if compiled:
        # Otherwise graphs break at the boundaries of DDP's buckets.
        torch._dynamo.config.optimize_ddp = False
        # Pre-training with images of one frame and contrast over the batch has ten graphs of a
        # block. Above the default limit of 8, the others would stay eager.
        torch._dynamo.config.recompile_limit = MAX_GRAPHS

    for module in objective.modules():
        if isinstance(module, TransformerLayer):
            module.checkpoint_activations = checkpoint_activations
            if compiled:
                module.compile(dynamic=False)
        elif isinstance(module, ClipPrompter):
            if module.temporal and checkpoint_activations:
                module.clip.gradient_checkpointing_enable({"use_reentrant": False})
            for layer in module.layers() if compiled else ():
                layer.compile(dynamic=False)
