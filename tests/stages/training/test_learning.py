"""Each objective learns what it is for, in a world of sixteen scenes, and no other objective does it instead.

Each loss has a metric on clips that are not in training. Trained with all losses, every metric passes its bound. With
the gradient of one loss cut, its metric stays near chance, and the others pass as before.

Over five seeds, the bounds lie between the lowest with the gradient and the highest without it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.frames import NormalizedModel
from alpro.models.losses import box_mask
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch, collate
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import Examples, TrainingDataset, Unit
from alpro.stages.training.distributed import World
from alpro.stages.training.loop import Run
from alpro.stages.training.objective import Objective, QaObjective, concatenate
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective
from benchmarks.tiny_world import ENTITIES, MODEL, SCENES, write_corpus, write_vocabulary
from tests.stages.training.conftest import losses_of

STEPS, COPIES, GRID = 200, 4, 4  # steps of training, clips of each scene, patches along a side
CUT = {"vtc": 0.3, "vtm": 0.6, "mlm": 0.4, "pem": 0.45, "qa": 0.4}  # upper bounds without the gradient of the loss
LEARNED = {"vtc": 0.8, "vtm": 0.7, "mlm": 0.8, "pem": 0.65, "qa": 0.8}  # lower bounds
TERMS = {"vtc": "contrast", "vtm": "matching", "mlm": "masked_words", "pem": "entities", "qa": "forward"}
MEAN, STD = [0.5] * 3, [0.25] * 3
BLACK = -MEAN[0] / STD[0]
COLORS = F.normalize(torch.tensor(list(ENTITIES.values()), dtype=torch.float), dim=1)
CONFIG = {"phases": [{"corpora": ["clips"], "steps": STEPS}], "random_crop": 1.0, "max_text_tokens": 16}
CONFIG |= {"batch_size": len(SCENES), "lr": 3e-3, "warmup_ratio": 0.1, "log_every": 50}
ALONE = World(0, 1, torch.device("cpu"))


# Objectives and their metrics


class ColorPrompter(Prompter):
    """A prompter that needs no training: the embedding of a clip is the hue of what is not black in it."""

    def encode_video(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        return (frames - BLACK).mean(dim=(1, 3, 4))[:, None]

    def project_video(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens[:, 0], dim=-1)


def shape(tokenizer: Tokenizer, **changes: object) -> ModelConfig:
    text = MODEL["text"] | {"vocab_size": tokenizer.get_vocab_size()}
    return ModelConfig.model_validate(MODEL | {"text": text} | changes)


def pretraining(tokenizer: Tokenizer) -> PretrainObjective:
    model = Alpro(shape(tokenizer), entities=len(ENTITIES))
    prompter = NormalizedModel(ColorPrompter(shape(tokenizer, temperature=0.03)), MEAN, STD)
    return PretrainObjective(model, MEAN, STD, prompter, {"video": COLORS}, LossWeights(), threshold=0.2)


def answering(tokenizer: Tokenizer) -> QaObjective:
    return QaObjective(Alpro(shape(tokenizer), answers=len(ENTITIES)), MEAN, STD)


@torch.no_grad()
def pretraining_metrics(objective: PretrainObjective, batch: Batch, tokenizer: Tokenizer) -> dict[str, float]:
    """vtc: recall by similarity in the batch; vtm: accuracy of matching, the mean of that on pairs and that on hard
    negatives; mlm: accuracy on masked skies and grounds; pem: accuracy of the entity that fills most of a crop."""
    model, frames = objective.model, objective.pixels(batch.frames)
    video, (text, masked) = model.encode_video(frames), objective.encode_texts(batch)
    _, v2t, t2v, metrics = objective.contrast(batch, video, text)
    positive, length = model.fuse(text, batch.mask, video), text.shape[1]
    negative = model.fuse_cls(*concatenate(objective.negatives(batch, video, text, v2t, t2v)[0]))
    match = model.vtm_head(torch.cat([positive[:, 0], negative])).argmax(1).float()
    words, labels = model.mlm_scores(model.fuse(masked, batch.mask, video, length)).argmax(-1), batch.labels
    content = torch.isin(labels, torch.tensor([tokenizer.token_to_id(word) for word in ENTITIES]))
    entities = model.pem_logits(positive[:, length + 1 :], box_mask(batch.boxes, GRID)).argmax(1)
    truth, known = crop_truth(batch)
    return {
        "vtc": metrics["in_batch_recall"].item(),
        "vtm": (match[: len(text)].mean() + 1 - match[len(text) :].mean()).item() / 2,
        "mlm": (words == labels)[content].float().mean().item(),
        "pem": (entities == truth)[known].float().mean().item(),
    }


def crop_truth(batch: Batch) -> tuple[Tensor, Tensor]:
    """The entity (B,) that fills most of each crop, and whether there is one (B,): not if the crop is half and half."""
    inside = box_mask(batch.boxes, GRID).view(-1, 2, GRID**2 // 2).sum(2)  # patches in the upper and lower half
    halves = torch.tensor([[list(ENTITIES).index(name) for name in sample.split("-")[1:3]] for sample in batch.ids])
    return halves.gather(1, inside.argmax(1, keepdim=True)).squeeze(1), inside[:, 0] != inside[:, 1]


@torch.no_grad()
def answering_metrics(objective: QaObjective, batch: Batch, tokenizer: Tokenizer) -> dict[str, float]:
    return {"qa": losses_of(objective, batch)[1]["qa_accuracy"].item()}


STAGES: dict[str, tuple[Unit, Callable, Callable]] = {
    "pretrain": ("sample", pretraining, pretraining_metrics),
    "qa": ("question", answering, answering_metrics),
}


# Training


@dataclass
class Steps:
    """The batches of a run: each has every scene once, or each question about every scene."""

    batches: list[Batch]

    def __len__(self) -> int:
        return STEPS

    def schedule_of(self, step: int) -> tuple[int, int]:
        return step, STEPS

    def loader(self, first: int, *_: object) -> Iterator[Batch]:
        return (self.batches[step % len(self.batches)] for step in range(first, STEPS))


@dataclass
class Batches:
    """Training and held-out batches by unit of an example, and the tokenizer."""

    training: dict[str, list[Batch]]
    held_out: dict[str, list[Batch]]
    tokenizer: Tokenizer


def examples(folder: Path) -> Batches:
    tokenizer = Tokenizer.from_file(str(write_vocabulary(folder / "vocabulary") / "tokenizer.json"))
    training = write_corpus(folder / "training", train=COPIES)
    held_out = write_corpus(folder / "held out", train=COPIES, seed=1)
    return Batches(
        {unit: read(training, tokenizer, unit, epochs) for unit, epochs in (("sample", 20), ("question", 4))},
        {unit: read(held_out, tokenizer, unit, 1) for unit in ("sample", "question")},
        tokenizer,
    )


def read(folder: Path, tokenizer: Tokenizer, unit: Unit, epochs: int) -> list[Batch]:
    """The batches of some epochs of a corpus, one for each copy of the scenes."""
    config, answers = TrainingConfig.model_validate(CONFIG), tuple(ENTITIES)
    masking = 0.3 if unit == "sample" else None
    data = TrainingDataset(config, {"clips": folder}, tokenizer, Examples(unit, 2, 32, GRID, masking, answers=answers))
    (source,) = data.sources
    size = len(source) // COPIES
    return [
        collate(epoch, "video", [data.example(source, epoch, first + n) for n in range(size)], data.words.pad_id, 0)
        for epoch in range(epochs)
        for first in range(0, len(source), size)
    ]


def without_gradient(term: Callable) -> Callable:
    """The same values; the loss, which is the first of them, has a gradient of zero."""

    def call(self: Objective, *args: Any) -> tuple:
        loss, *others = term(self, *args)
        return loss.detach() + 0 * loss, *others

    return call


def learn(data: Batches, stage: str, out: Path, cut: str = "", seed: int = 0) -> dict[str, float]:
    """The metrics after training, with the gradient of a loss cut if one is named."""
    unit, build, measure = STAGES[stage]
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(seed)
        objective = build(data.tokenizer)
        if cut:
            patch.setattr(type(objective), TERMS[cut], without_gradient(getattr(type(objective), TERMS[cut])))
        config = TrainingConfig.model_validate(CONFIG | {"seed": seed})
        resources = Resources(workers=1, device="cpu", checkpoint_interval=3600)
        Run(objective, Steps(data.training[unit]), config, out, ALONE, resources).train()
    objective.eval()
    metrics = [measure(objective, batch, data.tokenizer) for batch in data.held_out[unit]]
    return {name: sum(values[name] for values in metrics) / len(metrics) for name in metrics[0]}


def failed(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are not above their bounds."""
    return {name: value for name, value in metrics.items() if not value > LEARNED[name]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Batches:
    return examples(tmp_path_factory.mktemp("tiny world"))


@pytest.mark.parametrize("stage", STAGES)
def test_each_objective_learns_its_task(stage, data, tmp_path):
    assert failed(learn(data, stage, tmp_path)) == {}


@pytest.mark.long
@pytest.mark.parametrize("cut", TERMS)
def test_without_its_gradient_only_its_own_task_is_not_learned(cut, data, tmp_path):
    metrics = learn(data, "qa" if cut == "qa" else "pretrain", tmp_path, cut)
    assert metrics.pop(cut) < CUT[cut]
    assert failed(metrics) == {}
