"""What the training stages will cost: steps, passes over the data, hours on this machine, and checkpoints."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.precision import autocast, precision
from alpro.stages.execution.interface import Resources
from alpro.stages.training.config import EncoderConfig, TrainingConfig
from alpro.stages.training.distributed import pick_device

# Passes through the video encoder and the multimodal encoder for each example. A teacher's forward pass is a third;
# VTM has three pairs, MLM and PEM share one.
PASSES = {
    "train_prompter": (1.0, 0),
    "pretrain": (4 / 3, 4),
    "finetune_retrieval": (1.0, 3),
    "finetune_qa": (1.0, 1),
}
STATES = 2 * 3 * 4  # bytes of a weight in two checkpoints: itself and AdamW's two moments, in float32
SMALL = 1e11  # operations below which the time of one clip is too short to measure


def training_costs(
    trainings: Mapping[str, TrainingConfig], train: Mapping[str, int], model: ModelConfig, resources: Resources
) -> dict[str, dict[str, Any]]:
    """By stage, its examples, steps, epochs, seconds on this device, and bytes of checkpoints.

    train: items, captions and questions of the split for training. model: of stages that do not have their own. The
    time is that of the matrix products, at the rate of one forward and backward pass of the video encoder that is run
    here; loading of data, validation and further devices are not in it.
    """
    device, costs, rates = pick_device(resources), dict[str, dict[str, Any]](), dict[ModelConfig, float]()
    examples = {"finetune_retrieval": train["captions"], "finetune_qa": train["questions"]}
    for stage, config in trainings.items():
        if not (count := examples.get(stage, min(train["items"], train["captions"]))):
            continue
        sizes = config.model if isinstance(config, EncoderConfig) else model
        steps = sum(phase.steps or max(1, round(phase.epochs * count / config.batch_size)) for phase in config.phases)
        with torch.device("meta"):
            network = Alpro(sizes)
        if sizes not in rates:
            rates[sizes] = measured_rate(sizes, device, precision(sizes.video.width, device, config.mixed_precision))
        frames = getattr(config, "frames", sizes.video.frames)
        seconds = steps * config.batch_size * operations(network, stage, frames, config.max_text_tokens) / rates[sizes]
        costs[stage] = {
            "examples": count,
            "steps": steps,
            "batch_size": config.batch_size,
            "epochs": steps * config.batch_size / count,
            "seconds": seconds,
            "device": str(device),
            "bytes": STATES * sum(parameter.numel() for parameter in network.parameters()),
        }
    return costs


def operations(network: Alpro, stage: str, frames: int, text: int) -> float:
    """The floating-point operations of an example forward and backward: six for each weight and token, as in scaling
    laws; attention scores are not counted."""
    clip, fusions = PASSES[stage]
    video = frames * network.config.video.grid**2
    total = clip * video * weights(network.video_encoder) + text * weights(network.text_encoder)
    return 6 * (total + fusions * (video + text) * weights(network.multimodal_encoder))


def weights(module: nn.Module) -> int:
    """The number of weights in matrices, without embeddings, which are looked up."""
    return sum(p.numel() for name, p in module.named_parameters() if p.ndim > 1 and "embed" not in name)


def measured_rate(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Operations in a second, as `operations` counts them, of the video encoder on this device: on a CPU those of one
    core, by its processor time, which other programs do not change, times the cores that torch uses."""
    encoder, video, threads = Alpro(config).video_encoder.to(device), config.video, torch.get_num_threads()
    each = 6.0 * video.frames * video.grid**2 * weights(encoder)
    count = 1 if each > SMALL else 8
    clips = torch.zeros(count, video.frames, 3, video.image_size, video.image_size, device=device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run() -> float:
        started = clock()
        with autocast(dtype, device):
            encoder(clips).float().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - started

    if device.type != "cpu":
        run()  # compiles kernels
        return count * each / run()
    torch.set_num_threads(1)
    try:
        return threads * count * each / run()
    finally:
        torch.set_num_threads(threads)
