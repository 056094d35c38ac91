"""A program that tests start: losses and gradients of every objective on this rank's part of one batch.

python part_of_a_batch.py OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.frames import NormalizedModel
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.distributed import all_reduce_sum, gather, init_distributed
from alpro.stages.training.objective import (
    MatchingObjective,
    Objective,
    PrompterObjective,
    QaObjective,
)
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective

SIZE, WORDS, ENTITIES, ANSWERS = 8, 40, 6, 5
VIDEO = {"image_size": 16, "patch_size": 4, "frames": 2, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.0}
TEXT = {"vocab_size": WORDS, "width": 16, "depth": 2, "fusion_layer": 1, "heads": 2, "max_length": 16, "dropout": 0.0}
WEIGHTS = LossWeights(vtm=1.5, mlm=0.5, pem=2.0)


def whole_batch() -> Batch:
    """Eight examples: two captions of one video in different halves, and unlike numbers of masked words and answers."""
    random = torch.Generator().manual_seed(3)
    text = torch.randint(5, WORDS, (SIZE, 8), generator=random)
    labels = torch.where(torch.rand(SIZE, 8, generator=random) < 0.2, text, -100)
    return Batch(
        step=0,
        kind="video",
        ids=[str(n) for n in range(SIZE)],
        video=torch.tensor([0, 1, 2, 3, 4, 1, 6, 7]),
        frames=torch.randint(0, 256, (SIZE, 2, 3, 16, 16), generator=random, dtype=torch.uint8),
        text=text,
        mask=(torch.arange(8) < torch.tensor([8, 5, 6, 8, 4, 3, 8, 7])[:, None]).long(),
        masked=torch.where(labels != -100, 4, text),
        labels=labels,
        boxes=torch.tensor([[0, 0, 3, 2], [1, 1, 2, 3], [0, 2, 4, 2], [2, 0, 2, 4]] * 2),
        answers=torch.tensor([0, 1, -100, 3, 4, -100, -100, 2]),
        uniforms=torch.rand(SIZE, 2, generator=random),
        max_masked=8,
    )


def objectives() -> dict[str, Objective]:
    config = ModelConfig.model_validate({"video": VIDEO, "text": TEXT, "embed_dim": 8, "init": "scratch"})
    torch.manual_seed(0)
    prompts = {kind: torch.randn(ENTITIES, 8) for kind in ("video", "image")}
    mean_std = [0.5] * 3, [0.25] * 3
    teacher = NormalizedModel(Prompter(config), *mean_std)
    return {
        "prompter": PrompterObjective(Prompter(config), *mean_std),
        "matching": MatchingObjective(Alpro(config), *mean_std),
        "matching in pools of 2": MatchingObjective(Alpro(config), *mean_std, 2),
        "matching in pools of 4": MatchingObjective(Alpro(config), *mean_std, 4),
        "pretrain": PretrainObjective(Alpro(config, ENTITIES), *mean_std, teacher, prompts, WEIGHTS, 0.9),
        "qa": QaObjective(Alpro(config, answers=ANSWERS), *mean_std),
    }


def losses_and_gradients(rank: int, ranks: int) -> dict[str, Tensor]:
    """By `<objective>/loss` and `<objective>/<parameter>`: of this rank's part, gradients averaged over the ranks."""
    part = whole_batch().split(ranks)[rank]
    actual = {}
    for name, objective in objectives().items():
        module = DistributedDataParallel(objective, find_unused_parameters=True) if ranks > 1 else objective
        mine = objective.labeled(part)
        loss, _ = module(mine, objective.step_counts([mine]))
        loss.backward()
        actual[f"{name}/loss"] = loss.detach()
        actual |= {f"{name}/{key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
    return actual


if __name__ == "__main__":
    with init_distributed(Resources(device="cpu")) as world:
        result = losses_and_gradients(world.rank, world.size)
        rows = torch.arange(2.0)[:, None] + 10 * world.rank
        result["gathered"] = gather(rows)
        result["total"] = all_reduce_sum(torch.tensor(1.0 + world.rank))
        result["rank"] = torch.tensor(world.rank)
    save_file(result, Path(sys.argv[1]) / f"{world.rank}.safetensors")
