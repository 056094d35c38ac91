"""Trains steps of pre-training at the paper's sizes on drawn clips: samples per second, memory and utilization.

    python benchmarks/gpu.py [--steps 30] [--batch 16] [--small] [--compile] [--json FILE]

The stages are those of a run: one step of the prompter, the prompts, then pre-training with its loader, augmentation
and checkpoint. Only the vocabulary is smaller, 200 word pieces and 8 entities. With --small the models are
those of the tests, for a CPU: this shows that the program works, and its figures mean nothing.

The baseline of the ratio is a large matrix multiplication in the precision of training, measured on the same device.
FLOPs of a step: 6 for each parameter and token that it trains, 2 for those of the frozen prompter, without attention.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tiny_world import MODEL, add_inputs, configuration, run_stage, write_inputs

from alpro.models.alpro import Alpro, ModelConfig
from alpro.stages.execution.interface import Resources
from alpro.stages.training.metrics import read_metrics

WARMUP = 5  # steps that are not counted
TEXT_TOKENS = 32


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="steps that are counted")
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="samples of a step; the paper has 16 on each of 16 GPUs",
    )
    parser.add_argument("--small", action="store_true", help="small models, for a CPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    model = ModelConfig.model_validate(MODEL if options.small else {"init": "scratch"})
    changes = {
        "model": model.model_dump(),
        "batch_size": options.batch,
        "max_text_tokens": TEXT_TOKENS,
    }
    changes |= {"negative_pool_size": 0, "start": "scratch", "mixed_precision": True}
    with tempfile.TemporaryDirectory() as temporary:
        folder, resources = Path(temporary), Resources(compile=options.compile)
        inputs = write_inputs(folder)
        for stage, steps in (("train_prompter", 1), ("pretrain", WARMUP + options.steps)):
            own = changes if stage == "pretrain" else {"model": changes["model"], "batch_size": 2}
            config = configuration(stage, steps, own)
            config["phases"] = [{"corpora": ["clips"], "steps": steps}]
            run_stage(stage, config, inputs, folder / stage / "out", resources)
            add_inputs(stage, inputs, folder / stage / "out", resources)
        lines = [
            line
            for line in read_metrics(folder / "pretrain" / "out" / "metrics.jsonl")
            if "train/loss" in line
        ]
    counted = lines[WARMUP:]
    speed = statistics.median(line["train/samples_per_second"] for line in counted)
    flops, peak = speed * flops_of_a_sample(model), matmul_flops(cuda, options.small)
    figures = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "batch": options.batch,
        "samples_per_second": speed,
        "milliseconds": 1000 * options.batch / speed,
        "memory_gib": max(line["train/memory_gib"] for line in counted),
        "data_wait": statistics.median(line["train/data_wait"] for line in counted),
        "tflops": flops / 1e12,
        "matmul_tflops": peak / 1e12,
        "utilization": flops / peak,
        "loss": counted[-1]["train/loss"],
    }
    for name, value in figures.items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


def flops_of_a_sample(config: ModelConfig) -> float:
    """A sample's video (trained and in the prompter), its text twice (clean, masked), and its four pairs."""
    with torch.device("meta"):
        model = Alpro(config, entities=8)
    video, text, fusion = (
        sum(parameter.numel() for parameter in part.parameters() if parameter.dim() > 1)
        for part in (model.video_encoder, model.text_encoder, model.multimodal_encoder)
    )
    patches = (config.video.image_size // config.video.patch_size) ** 2
    tokens = config.video.frames * patches
    return float(
        8 * video * tokens
        + 6 * text * 2 * TEXT_TOKENS
        + 6 * fusion * 4 * (patches + 1 + TEXT_TOKENS)
    )


def matmul_flops(cuda: bool, small: bool) -> float:
    """FLOPs per second of the best of several large matrix multiplications."""
    side, device = 512 if small else 8192 if cuda else 2048, "cuda" if cuda else "cpu"
    a, b = (
        torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
        for _ in range(2)
    )
    seconds = []
    for _ in range(6):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


if __name__ == "__main__":
    sys.exit(main())
