"""A program that tests start: short training runs on batches that need no corpus, each as one rank
of a job, and the losses and gradients of every objective on this rank's part of a batch.

python part_of_steps.py OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets
them. What each run leaves is OUT/<run>.<rank>.safetensors: weights, and what was noted; its
metrics.jsonl is in OUT/<run>. Losses and gradients are in OUT/objectives.<rank>.safetensors.
"""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from alpro.models.alpro import Alpro, ModelConfig
from alpro.stages.execution.interface import Resources
from alpro.stages.pretrain import Config
from alpro.stages.training import loop, optim
from alpro.stages.training.batch import Batch
from alpro.stages.training.distributed import World, init_distributed
from alpro.stages.training.loop import Trainer
from alpro.stages.training.objective import MatchingObjective
from tests.stages.training.part_of_a_batch import (
    NORM,
    SIZE,
    TEXT,
    VIDEO,
    losses_and_gradients,
    whole_batch,
)

RUNS = {
    "plain": {"steps": 4},
    "muon": {"steps": 2, "optimizer": "muon", "mixed_precision": False},
    "accumulated": {"steps": 2, "accumulation_steps": 2},
    "in one piece": {"steps": 2, "pool": 4},
    "contrast over the batch": {
        "steps": 2,
        "pool": 4,
        "accumulation_steps": 2,
        "contrast": "batch",
    },
    "a loss of one rank is NaN": {"steps": 2, "spoil": "loss"},
    "a gradient of one rank is infinite": {"steps": 2, "spoil": "gradient"},
    "stopped": {"steps": 4, "stop": 2},
    "dropout": {"steps": 4, "dropout": 0.5, "optimizer": "muon"},
    "resumed": {"steps": 4, "dropout": 0.5, "optimizer": "muon", "stop": 2},
}


class Spoiled(MatchingObjective):
    """In the second of two steps the last rank has a loss of NaN with a good gradient, or the other
    way round."""

    spoil = ""
    steps = 0
    last = False

    def forward(self, *step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().forward(*step)
        self.steps += 1
        if self.steps == 2 and self.last and self.spoil == "loss":
            loss = loss + torch.nan  # a constant: the gradient does not see it
        if self.steps == 2 and self.last and self.spoil == "gradient":
            temperature = self.model.temperature
            # 0, with an infinite slope.
            loss = loss + (temperature - temperature.detach()).sqrt()
        return loss, metrics


class Batches:
    """This rank's part of a batch, the same in every step; it may send itself a signal as a step
    begins."""

    def __init__(self, world: World, steps: int, accumulation_steps: int, stop: int):
        self.steps = steps
        self.stop = stop
        places = (
            np.arange(SIZE)
            .reshape(accumulation_steps, world.size, -1)[:, world.rank]
            .ravel()
        )
        whole = replace(
            whole_batch(), masked=None, labels=None, boxes=None, answers=None
        )
        part = whole.map(lambda tensor: tensor[places])
        self.batch = replace(part, ids=[whole.ids[place] for place in places])

    def __len__(self) -> int:
        return self.steps

    def loader(self, first: int, *_) -> Iterator[Batch]:
        for step in range(first, self.steps):
            if step == self.stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield replace(self.batch, step=step)


def train(
    out: Path,
    world: World,
    steps: int,
    accumulation_steps=1,
    spoil="",
    dropout=0.0,
    stop=-1,
    pool=0,
    **more,
):
    """One run; returns its weights by name, and what was noted: which values the first dropout
    kept, and how many micro-batches did not average their gradients over the ranks."""
    shape = {
        "video": VIDEO,
        "text": TEXT | {"dropout": dropout},
        "embed_dim": 8,
        "init": "scratch",
    }
    values = {
        "phases": [{"corpora": ["x"], "steps": steps}],
        "batch_size": SIZE,
        "accumulation_steps": accumulation_steps,
        "negative_pool_size": pool,
        "lr": 1e-2,
        "warmup_ratio": 0.0,
        "log_every": 4 if steps == 4 else 1,
    }
    out.mkdir(parents=True, exist_ok=True)
    resources = Resources(device="cpu", checkpoint_interval=3600)
    config = Config.model_validate(values | more)
    torch.manual_seed(0)
    model = Alpro(ModelConfig.model_validate(shape))
    objective = Spoiled(model, *NORM, pool)
    objective.spoil = spoil
    objective.last = world.rank == world.size - 1
    noted = {}

    def note(_, args, result):
        noted.setdefault("kept", (result != 0).float())

    first = next(part for part in objective.modules() if isinstance(part, nn.Dropout))
    first.register_forward_hook(note)
    try:
        batches = Batches(world, steps, accumulation_steps, stop)
        # AdamW makes steps of gradients that are zero but for rounding; the ranks ask each other
        # after every step.
        eps = patch.object(optim, "EPS", 1e-3)
        often = patch.object(loop, "SYNC_SECONDS", 0)
        with eps, often:
            Trainer(objective, batches, config, out, world, resources).train()
    except SystemExit:
        if world.size > 1:
            dist.barrier()  # the restart follows when the checkpoint is written
        return train(out, world, steps, dropout=dropout, **more) | {
            "starts": torch.tensor(2)
        }
    return {
        name: p.detach().clone() for name, p in objective.named_parameters()
    } | noted


def main(out: Path, world: World) -> None:
    for name, settings in RUNS.items():
        save_file(
            train(out / name, world, **settings),
            out / f"{name}.{world.rank}.safetensors",
        )
    results = losses_and_gradients(world.rank, world.size)
    save_file(results, out / f"objectives.{world.rank}.safetensors")


if __name__ == "__main__":
    with init_distributed(Resources(device="cpu")) as world:
        main(Path(sys.argv[1]), world)
    # As a stage ends: gloo's threads may abort a process during Python's shutdown.
    os._exit(0)
