"""Memory and time of a prompter step in one piece, in micro-batches, and in micro-batches with contrast over the batch.

    python benchmarks/whole_batch.py [--batch N] [--parts N] [--turns N] [--json FILE]

Each variant runs in a separate process, in turns, on the CPU, with the same weights, frames of 64 pixels and texts. The
memory is the peak of the process above that before the first step. Loss and gradient norm of contrast over the batch
have to be those of one piece, else the exit status is 1.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig
from alpro.stages.training.batch import Batch
from alpro.stages.training.contrast_cache import contrast_whole_batch
from alpro.stages.training.objective import PrompterObjective
from alpro.stages.training.throughput import memory_gib

WORDS = 24
SHAPE = ModelConfig(
    init="scratch",
    video=VideoConfig(image_size=64, patch_size=16, frames=4, width=128, depth=4, heads=4, drop_path=0.0),
    text=TextConfig(vocab_size=500, width=128, depth=6, fusion_layer=4, heads=4, max_length=32, dropout=0.0),
    embed_dim=64,
)
VARIANTS = ("one piece", "micro-batches", "micro-batches, contrast over the batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step")
    parser.add_argument("--parts", type=int, default=8, help="micro-batches of a step")
    parser.add_argument("--turns", type=int, default=3, help="processes per variant; medians are printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.turns):
        for name in VARIANTS:
            with context.Pool(1) as pool:
                turns[name].append(pool.apply(measure, (name, arguments.batch, arguments.parts)))
    figures = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in turns.items()
    }
    whole = figures[VARIANTS[0]]
    print(f"{arguments.batch} pairs, {arguments.parts} micro-batches")
    print(f"{'':40}{'seconds':>9}{'ratio':>7}{'MiB':>8}{'VTC':>9}")
    for name, row in figures.items():
        ratio = row["seconds"] / whole["seconds"]
        print(f"{name:40}{row['seconds']:9.2f}{ratio:7.2f}{row['mebibytes']:8.0f}{row['loss']:9.5f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    other = figures[VARIANTS[2]]
    sys.exit(not all(math.isclose(whole[key], other[key], rel_tol=1e-5) for key in ("loss", "norm")))


def measure(variant: str, size: int, parts: int, steps: int = 3) -> dict[str, float]:
    """Processor seconds of a step, peak memory above the start, loss, and norm of the gradient."""
    torch.manual_seed(0)
    objective = PrompterObjective(Prompter(SHAPE), [0.5] * 3, [0.25] * 3).train()
    frames, text = torch.randint(0, 256, (size, 4, 3, 64, 64), dtype=torch.uint8), torch.randint(5, 500, (size, WORDS))
    batch = Batch(0, "video", [str(n) for n in range(size)], torch.arange(size), frames, text, torch.ones_like(text))
    memory, started = memory_gib(), time.process_time()
    for _ in range(steps):
        objective.zero_grad(set_to_none=True)
        loss = step(objective, batch, variant, parts)
    seconds = (time.process_time() - started) / steps
    norm = float(nn.utils.clip_grad_norm_(objective.parameters(), math.inf))
    return {"seconds": seconds, "mebibytes": (memory_gib() - memory) * 1024, "loss": loss, "norm": norm}


def step(objective: PrompterObjective, batch: Batch, variant: str, parts: int) -> float:
    """Loss and gradients of a step, as in stages/training/loop.py."""
    micro_batches: list[Any] = [(part, nullcontext) for part in batch.split(1 if variant == VARIANTS[0] else parts)]
    if variant == VARIANTS[2]:
        micro_batches = contrast_whole_batch(objective, batch.split(parts), nullcontext, (0,))
    total = 0.0
    for part, context in micro_batches:
        with context():
            loss, _ = objective(part)
        (loss / len(micro_batches)).backward()
        total += loss.item() / len(micro_batches)
    return total


if __name__ == "__main__":
    main()
