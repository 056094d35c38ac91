"""Measures the losses and the time of one variant of benchmarks/train_step.py, in a separate process."""

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from five_passes import FivePasses
from torch import Tensor, nn

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.attention import Attention
from alpro.models.folder import Preprocessing
from alpro.models.frames import NormalizedModel
from alpro.models.text import TextConfig
from alpro.models.timesformer import TimeSformer, VideoConfig
from alpro.stages.execution.interface import Resources
from alpro.stages.training import objective as objective_module
from alpro.stages.training.batch import Batch, collate
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.loop import configure_layers
from alpro.stages.training.masking import keep_patches, mask_words, random_box
from alpro.stages.training.optim import build_optimizer, step_if
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective
from alpro.stages.training.throughput import StepFlops, memory_gib

WORDS = 30  # of every text
ENTITIES = {"full": 1000, "small": 8}
MODELS = {
    # "scratch": with "bert", temporal attention has no effect and the losses hardly differ.
    "full": ModelConfig(init="scratch"),
    "small": ModelConfig(
        init="scratch",
        embed_dim=16,
        video=VideoConfig(image_size=64, frames=2, width=32, depth=2, heads=2),
        text=TextConfig(vocab_size=128, width=32, depth=4, fusion_layer=2, heads=2, max_length=64),
    ),
}
CONFIG = TrainingConfig(phases=(Phase(corpora=("none",), steps=1),))
ENCODERS = {
    "video encoder": "model.video_encoder",
    "text encoder": "model.text_encoder",
    "prompter": "prompter.video_encoder",
    "fusion": "model.multimodal_encoder",
}


@dataclass(frozen=True)
class Settings:
    """The settings that all variants of a run share."""

    device: str
    batch: int
    size: str
    steps: int
    warmup: int
    checkpoint_activations: bool
    tf32: bool
    processor_time: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def clock(self) -> float:
        """The time in seconds, after the device has finished its queued work."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.process_time() if self.processor_time else time.perf_counter()


@dataclass(frozen=True)
class Variant:
    """A variant of the training step."""

    name: str
    dtype: str
    five_passes: bool = False
    compile: bool = False
    patch_dropping: float = 0.0  # the fraction of the patches that the step does not encode


class Parts:
    """Seconds of the parts of a step; encoders: forward pass. Measured by events on a GPU, by the clock on a CPU."""

    def __init__(self, module: nn.Module, settings: Settings):
        self.settings = settings
        self.opened: dict[str, Any] = {}
        self.spans: list[tuple[str, Any, Any]] = []
        for name, path in ENCODERS.items():
            encoder = module.get_submodule(path)
            encoder.register_forward_pre_hook(functools.partial(self.open, name))
            encoder.register_forward_hook(functools.partial(self.close, name))

    def now(self) -> Any:
        if not self.settings.cuda:
            return self.settings.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def open(self, name: str, *_: Any) -> None:
        self.opened[name] = self.now()

    def close(self, name: str, *_: Any) -> None:
        self.spans.append((name, self.opened[name], self.now()))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.open(name)
        yield
        self.close(name)

    def read(self) -> dict[str, float]:
        """Seconds of each part, over all steps."""
        results: dict[str, float] = {}
        for name, opened, closed in self.spans:
            seconds = opened.elapsed_time(closed) / 1000 if self.settings.cuda else closed - opened
            results[name] = results.get(name, 0.0) + seconds
        results["heads, losses"] = results["forward"] - sum(results[name] for name in ENCODERS)
        return {name: results[name] for name in (*ENCODERS, "heads, losses", "backward", "clipping and AdamW")}


@dataclass
class Bench:
    """The model and the batch of a variant on its device, the model FLOPs of a step and the timers of its parts."""

    module: PretrainObjective | FivePasses
    batch: Batch
    flops: float
    parts: Parts


@functools.cache
def bench(variant: Variant, settings: Settings) -> Bench:
    allow_tf32(settings)
    shape, entities = MODELS[settings.size], ENTITIES[settings.size]
    torch.manual_seed(0)
    with torch.device(settings.device):
        model, prompter = Alpro(shape, entities=entities), Prompter(shape)
        prompts = F.normalize(torch.randn(entities, shape.embed_dim), dim=1)
        norm = [list(Preprocessing().mean), list(Preprocessing().std)]
        # Threshold 0: otherwise rounding would decide which pseudo-labels are kept.
        ours = PretrainObjective(
            model, *norm, NormalizedModel(prompter, *norm), {"video": prompts, "image": prompts}, LossWeights(), 0.0
        )
    batch = examples(settings, shape, variant.patch_dropping).to(torch.device(settings.device))
    flops = StepFlops(ours)(batch)
    module: PretrainObjective | FivePasses = ours
    if variant.five_passes:
        module = FivePasses(model, prompter, prompts, ours.mean, ours.std)
        for name in ("text", "mask", "masked", "labels"):
            setattr(batch, name, getattr(batch, name)[:, :WORDS])
    configure_layers(module, Resources(compile=variant.compile, checkpoint_activations=settings.checkpoint_activations))
    module.train()
    return Bench(module, batch, flops, Parts(module, settings))


def allow_tf32(settings: Settings) -> None:
    if settings.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def examples(settings: Settings, shape: ModelConfig, dropped: float = 0.0) -> Batch:
    """A batch of random examples: texts of exactly WORDS word pieces, padded as in training."""
    rng, video, special = np.random.default_rng(0), shape.video, np.zeros(WORDS, bool)
    special[[0, -1]] = True
    items = []
    for number in range(settings.batch):
        ids = rng.integers(5, shape.text.vocab_size, WORDS)
        masked, labels = mask_words(ids, special, 4, shape.text.vocab_size, 0.15, rng)
        frames = rng.integers(0, 256, (video.frames, 3, video.image_size, video.image_size), np.uint8)
        box = random_box(video.grid, rng)
        item = {"id": str(number), "video": number, "frames": frames, "ids": ids, "masked": masked, "labels": labels}
        items.append(item | {"box": box, "uniforms": rng.random(2)})
        if dropped:
            items[-1]["kept"] = keep_patches(video.grid, dropped, rng, box)
    return collate(0, "video", items, 0, WORDS)


def autocast(variant: Variant, settings: Settings) -> AbstractContextManager:
    return torch.autocast(settings.device, torch.bfloat16, enabled=variant.dtype == "bfloat16")


def disable_dropout(module: nn.Module) -> None:
    """Disables dropout and stochastic depth in training mode."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, Attention):
            part.dropout = 0.0
        elif isinstance(part, TimeSformer):
            part.keep_rates.fill_(1.0)


def losses(variant: Variant, settings: Settings) -> dict[str, Any]:
    """The four losses, the norm of the gradient and the drawn negatives, without dropout and stochastic depth."""
    prepared, drawn = bench(variant, settings), list[list[int]]()
    disable_dropout(prepared.module)
    sample = objective_module.hard_negatives

    def recorded(*args: Tensor) -> tuple[Tensor, Tensor]:
        columns, valid = sample(*args)
        drawn.append(columns.tolist())
        return columns, valid

    with autocast(variant, settings), patch.object(objective_module, "hard_negatives", recorded):
        loss, metrics = prepared.module(prepared.batch)
    loss.backward()
    results: dict[str, Any] = {name: float(value) for name, value in metrics.items() if name.startswith("loss_")}
    results["grad_norm"] = float(nn.utils.clip_grad_norm_(prepared.module.parameters(), float("inf")))
    return results | {"negatives": [column for rows in drawn or prepared.module.drawn for column in rows]}


def turn(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Seconds per step, peak memory and the seconds of the parts, after the warm-up."""
    prepared = bench(variant, settings)
    torch.manual_seed(1)
    optimizer = build_optimizer(prepared.module, CONFIG)
    if variant.five_passes:
        groups = [{name: group[name] for name in ("params", "weight_decay")} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas)
    for _ in range(settings.warmup):
        step(variant, settings, prepared, optimizer)
    if settings.cuda:
        torch.cuda.reset_peak_memory_stats()
    prepared.parts.spans.clear()
    started = settings.clock()
    for _ in range(settings.steps):
        step(variant, settings, prepared, optimizer)
    seconds = (settings.clock() - started) / settings.steps
    parts = {name: value / settings.steps for name, value in prepared.parts.read().items()}
    gigabytes = torch.cuda.max_memory_allocated() / 2**30 if settings.cuda else memory_gib()
    del optimizer
    prepared.module.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()  # frees memory for the next variant
    return {"seconds": seconds, "gigabytes": gigabytes, "flops": prepared.flops, "parts": parts}


def step(variant: Variant, settings: Settings, prepared: Bench, optimizer: torch.optim.AdamW) -> None:
    """One optimizer step; ours as in stages/training/loop.py."""
    optimizer.zero_grad(set_to_none=True)
    with prepared.parts.timed("forward"), autocast(variant, settings):
        loss, metrics = prepared.module(prepared.batch)
    with prepared.parts.timed("backward"):
        loss.backward()
    with prepared.parts.timed("clipping and AdamW"):
        norm = nn.utils.clip_grad_norm_(prepared.module.parameters(), CONFIG.max_grad_norm)
        if variant.five_passes:
            optimizer.step()
        else:
            values = torch.stack([loss.detach(), *(value.float() for value in metrics.values()), norm.detach()])
            step_if(optimizer, torch.isfinite(values).all())
        prepared.module.model.clamp_temperature_()
