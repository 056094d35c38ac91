"""A GPU simulated on a CPU: the update of a training with fake tensors, which have shapes, types
and no memory.

The tensors say that they are on a CPU: fake CUDA tensors need a build of torch with CUDA. What a
GPU would choose is set: bfloat16 and the fused attention. `Memory` counts the bytes of live
storages. Workspaces of kernels, fragments and the CUDA context are not counted: a real peak is
higher.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alpro.models import alpro, attention, precision
from alpro.models.alpro import Alpro, Prompter
from alpro.models.clip_prompter import ClipPrompter
from alpro.models.frames import NormalizedModel
from alpro.stages import train_prompter
from alpro.stages.training import loop
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.objective import (
    MatchingObjective,
    Objective,
    PrompterObjective,
    QaObjective,
)
from alpro.stages.training.pretrain_objective import PretrainObjective
from tests.stages.training.conftest import run_of

HALF = (0.5,) * 3
ENTITIES = 1000
STORED = 224  # pixels of a frame
ALIGNMENT = 512  # bytes to which CUDA's allocator rounds a tensor
GIB = 2**30

# openai/clip-vit-base-patch16, where it is not the default of transformers.
CLIP_B16 = {"projection_dim": 512, "vision_config": {"patch_size": 16}}
CLIP_B16["text_config"] = {"eos_token_id": 49407}


class Memory(TorchDispatchMode):
    """The bytes of live storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT

        def freed(_):
            self.live -= size
            self.storages.pop(key, None)

        self.storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def clip_towers(frames: int) -> ClipPrompter:
    """A CLIP of base size, trainable, with temporal attention."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**CLIP_B16)
    config._attn_implementation = "sdpa"
    towers = ClipPrompter(CLIPModel(config))
    towers.unfreeze(frames)
    return towers


def objective_at_size(stage: str, config: Any) -> Objective:
    """The objective of a stage with models of the paper's size, or of the CLIP that it starts
    from."""
    frames = (
        config.frames if stage.startswith("finetune") else config.model.video.frames
    )
    is_clip = stage == "train_prompter" and bool(config.clip)
    if is_clip:
        return PrompterObjective(
            clip_towers(frames), HALF, HALF, crop_share=config.crops.share
        )
    if stage == "train_prompter":
        return PrompterObjective(
            Prompter(config.model), HALF, HALF, crop_share=config.crops.share
        )
    if stage == "pretrain":
        # The frozen prompter of `from_clip` is a CLIP, which has no temporal attention until it is
        # trained.
        prompter = (
            clip_towers(frames)
            if config.model.video.pre_norm
            else Prompter(config.model)
        )
        width = 512 if config.model.video.pre_norm else config.model.embed_dim
        prompts = {kind: torch.empty(ENTITIES, width) for kind in ("video", "image")}
        model = Alpro(config.model, entities=ENTITIES)
        teacher = NormalizedModel(prompter, HALF, HALF)
        pool = config.negative_pool_size
        return PretrainObjective(model, HALF, HALF, teacher, prompts, config, pool)
    default = train_prompter.Config.model_fields["model"].default
    video = default.video.model_copy(update={"frames": frames})
    sizes = default.model_copy(update={"video": video})
    if stage == "finetune_qa":
        return QaObjective(Alpro(sizes, answers=config.answers), HALF, HALF)
    return MatchingObjective(
        Alpro(sizes, entities=ENTITIES), HALF, HALF, config.negative_pool_size
    )


def batch_of(stage: str, objective: Objective, size: int, length: int) -> Batch:
    """A batch of `size` clips with texts of `length` tokens."""
    video = objective.model.config.video
    text = torch.zeros(size, length, dtype=torch.long)
    batch = Batch(
        step=0,
        kind="video",
        ids=[str(number) for number in range(size)],
        video=torch.arange(size),
        frames=torch.empty(size, video.frames, 3, STORED, STORED, dtype=torch.uint8),
        text=text,
        mask=torch.ones_like(text),
        uniforms=torch.empty(size, 2, dtype=torch.double),
    )
    if stage in ("pretrain", "train_prompter"):
        batch.boxes = torch.zeros(size, 4, dtype=torch.long)
    if stage == "pretrain":
        batch.masked = text.clone()
        batch.labels = text.clone()
        batch.max_masked = 8
    if stage == "finetune_qa":
        batch.answers = torch.zeros(size, dtype=torch.long)
    return batch


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Fake tensors, bfloat16, the fused attention, and short sequences packed."""

    # Without dropout, which the fused kernel of a CPU does not have: PyTorch would compute products
    # in float32 instead. The memory-efficient kernel of a GPU has masks and dropout.
    fused = attention.attention_on_gpu

    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        patch.setattr(loop, "training_precision", lambda *_: torch.bfloat16)
        patch.setattr(precision, "is_on_gpu", lambda _: True)
        # Everything is float32 and on one device from the start; a conversion of fake parameters
        # fails.
        patch.setattr(nn.Module, "float", lambda module: module)
        patch.setattr(nn.Module, "to", lambda module, *_, **__: module)
        patch.setattr(attention, "attention_on_gpu", lambda *x: fused(*x[:4]))
        patch.setattr(attention, "is_on_gpu", lambda _: True)
        patch.setattr(alpro, "is_on_gpu", lambda _: True)
        yield


def peak_memory(stage: str, config: TrainingConfig, out: Path, ranks: int) -> float:
    """The computed peak, in GiB, of a step of a stage on one of `ranks` GPUs.

    Of many micro-batches two are computed: the others are the same, and add their frames.
    """
    micro_batch = config.batch_size // ranks // config.accumulation_steps
    computed = min(2, config.accumulation_steps)
    step = config.model_copy(
        update={"batch_size": computed * micro_batch, "accumulation_steps": computed}
    )
    with as_on_a_gpu():
        memory = Memory()
        with memory:
            objective = objective_at_size(stage, config)
            run = run_of(objective, step, out)
            fill_state(run.optimizer)
            batch = batch_of(stage, objective, step.batch_size, config.max_text_tokens)
            run.update(batch)
    others = config.accumulation_steps - computed
    return (memory.peak + others * batch.frames.nbytes // computed) / GIB


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives AdamW the state that it has after a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
