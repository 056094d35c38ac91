"""A program that tests start and kill: a short training run that leaves a checkpoint after every other step or so.

python part_of_a_life.py OUT CORPUS TOKENIZER, with RANK and WORLD_SIZE as torchrun sets them, or alone. When it is done
it writes weights.safetensors, and beside it the samples of each step in the order in which they were trained on.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from alpro.models.alpro import Alpro, ModelConfig
from alpro.stages.execution.interface import Resources
from alpro.stages.training import loop
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import Examples, TrainingDataset
from alpro.stages.training.distributed import World, init_distributed
from alpro.stages.training.loop import Run
from alpro.stages.training.objective import MatchingObjective, Objective

STEPS = 40
loop.MIN_SAVE_INTERVAL_RATIO = 0  # however long it takes

VIDEO = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.0}
TEXT = {"width": 16, "depth": 2, "fusion_layer": 1, "heads": 2, "max_length": 32, "dropout": 0.2}


def train(
    out: Path,
    corpus: Path,
    tokenizer: Tokenizer,
    build: Callable[[ModelConfig], Objective],
    unit: Literal["sample", "caption"],
    begun: Callable[[Batch, World], None],
    resources: Resources,
    **values,
) -> None:
    """A short run of a small model; `begun` is called as each step begins."""
    config = TrainingConfig.model_validate({"batch_size": 4, **values})
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        text = TEXT | {"vocab_size": tokenizer.get_vocab_size()}
        objective = build(ModelConfig.model_validate({"video": VIDEO, "text": text, "embed_dim": 8, "init": "scratch"}))
        shared = objective.shares_texts(config.batch_size // world.size)
        data = TrainingDataset(
            config, {"clips": corpus}, tokenizer, Examples(unit, 2, 16), world.rank, world.size, shared
        )
        load = data.loader

        def loader(*args):
            for batch in load(*args):
                begun(batch, world)
                yield batch

        data.loader = loader
        Run(objective, data, config, out, world, resources).train()
        if world.main:
            save_file({name: p.detach() for name, p in objective.named_parameters()}, out / "weights.safetensors")


def main(out: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    def note(batch: Batch, here: World) -> None:
        with open(out / f"seen.{here.rank}.jsonl", "a") as file:
            file.write(json.dumps([batch.step, here.size, batch.ids]) + "\n")

    resources = Resources(device="cpu", workers=1, checkpoint_interval=0.05)
    build = lambda shape: MatchingObjective(Alpro(shape), [0.5] * 3, [0.25] * 3)  # noqa: E731
    phases = [{"corpora": ["clips"], "steps": STEPS}]
    train(out, corpus, tokenizer, build, "caption", note, resources, phases=phases, log_every=2, max_text_tokens=24)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Tokenizer.from_file(sys.argv[3]))
    except SystemExit as left:
        os._exit(left.code)
