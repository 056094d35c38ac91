"""Small objectives and a batch for them."""

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.frames import NormalizedModel
from alpro.stages.training.batch import Batch
from alpro.stages.training.objective import (
    MatchingObjective,
    Objective,
    PrompterObjective,
    QaObjective,
)
from alpro.stages.training.pretrain_objective import (
    LossWeights,
    PretrainObjective,
    PretrainSettings,
)

SIZE = 8
WORDS = 40
ENTITIES = 6
ANSWERS = 5
VIDEO = {
    "image_size": 16,
    "patch_size": 4,
    "frames": 2,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "drop_path": 0.0,
}
TEXT = {
    "vocab_size": WORDS,
    "width": 16,
    "depth": 2,
    "fusion_layer": 1,
    "heads": 2,
    "max_length": 16,
    "dropout": 0.0,
}
NORM = [0.5] * 3, [0.25] * 3
WEIGHTS = {"vtm": 1.5, "mlm": 0.5, "pem": 2.0}
NAMES = (
    "prompter",
    "matching",
    "matching in pools of 2",
    "matching in pools of 4",
    "pretrain",
    "qa",
)


def whole_batch() -> Batch:
    """Eight examples in unlike colors: two captions of one video in different halves, two next to
    each other, unlike numbers of masked words and known answers."""
    random = torch.Generator().manual_seed(3)
    text = torch.randint(5, WORDS, (SIZE, 8), generator=random)
    labels = torch.where(torch.rand(SIZE, 8, generator=random) < 0.2, text, -100)
    colors = torch.rand(SIZE, 1, 3, 1, 1, generator=random)
    return Batch(
        step=0,
        kind="video",
        ids=[str(n) for n in range(SIZE)],
        video=torch.tensor([0, 1, 2, 3, 4, 1, 6, 6]),
        frames=(256 * torch.rand(SIZE, 2, 3, 16, 16, generator=random) * colors).byte(),
        text=text,
        mask=(torch.arange(8) < torch.tensor([8, 5, 6, 8, 4, 3, 8, 7])[:, None]).long(),
        masked=torch.where(labels != -100, 4, text),
        labels=labels,
        boxes=torch.tensor(
            [
                [0, 0, 3, 2],
                [1, 1, 2, 3],
                [0, 2, 4, 2],
                [2, 0, 2, 4],
            ]
            * 2
        ),
        answers=torch.tensor([0, 1, -100, 3, 4, -100, -100, 2]),
        uniforms=torch.rand(SIZE, 2, generator=random),
        max_masked=5,
    )


def objective_of(
    name: str,
    dropout: float = 0.0,
    weights: dict[str, float] | None = None,
    threshold: float = 0.64,
    pool: int = 0,
) -> Objective:
    """An objective of NAMES, the same each time. Pre-training with weights, WEIGHTS by default, in
    pools of `pool`."""
    sizes = {
        "video": VIDEO | {"drop_path": dropout},
        "text": TEXT | {"dropout": dropout},
        "embed_dim": 8,
        "init": "scratch",
    }
    config = ModelConfig.model_validate(sizes)
    torch.manual_seed(0)
    if name == "prompter":
        return PrompterObjective(Prompter(config), *NORM)
    if name.startswith("matching"):
        return MatchingObjective(
            Alpro(config), *NORM, int(name[-1]) if "pools" in name else 0
        )
    if name == "qa":
        return QaObjective(Alpro(config, answers=ANSWERS), *NORM)
    model = Alpro(config, ENTITIES)
    teacher = NormalizedModel(Prompter(config), *NORM)
    # So that labels differ: without what all clips have in common in an untrained prompter.
    frames = teacher.pixels(whole_batch().frames)
    common = (
        teacher.model.project_video(teacher.model.encode_video(frames)).detach().mean(0)
    )
    prompts = {}
    for kind in ("video", "image"):
        random = 5 * torch.randn(ENTITIES, 8)
        prompts[kind] = random - (random @ common)[:, None] * common / common.dot(
            common
        )
    settings = PretrainSettings(
        weights=LossWeights(**(WEIGHTS if weights is None else weights)),
        threshold=threshold,
    )
    return PretrainObjective(model, *NORM, teacher, prompts, settings, pool)


def losses_of(objective: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and metrics of a step of one micro-batch."""
    batch = objective.with_pseudo_labels(batch)
    return objective(batch, objective.step_counts([batch]))


def losses_and_gradients(rank: int, ranks: int) -> dict[str, Tensor]:
    """By `<objective>/loss` and `<objective>/<parameter>`: of this rank's part, gradients averaged
    over the ranks."""
    part = whole_batch().split(ranks)[rank]
    actual = {}
    for name in NAMES:
        objective = module = objective_of(name)
        # As for the picture of pseudo-labels: nothing is asked of the other ranks.
        if rank == 0:
            objective.with_pseudo_labels(part)
        if ranks > 1:
            module = DistributedDataParallel(objective, find_unused_parameters=True)
        mine = objective.with_pseudo_labels(part)
        loss, _ = module(mine, objective.step_counts([mine]))
        loss.backward()
        actual[f"{name}/loss"] = loss.detach()
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                actual[f"{name}/{key}"] = parameter.grad
    return actual
