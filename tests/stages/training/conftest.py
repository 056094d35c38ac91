"""What the tests of training share: small objectives and batches, corpora to sample from, training runs."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.frames import NormalizedModel
from alpro.stages.execution.interface import Resources
from alpro.stages.training import loop
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import Examples, TrainingDataset
from alpro.stages.training.distributed import World
from alpro.stages.training.loop import EXIT_INTERRUPTED
from alpro.stages.training.loop import Run as TrainingRun
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.objective import (
    MatchingObjective,
    Objective,
    PrompterObjective,
    QaObjective,
)
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective

SIZE, LENGTH, WORDS, ENTITIES, ANSWERS = 4, 8, 40, 6, 5
MEAN, STD = [0.5] * 3, [0.25] * 3
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def small_batch() -> Batch:
    """Four videos in two frames of 32 x 32; three words of the longest text are masked."""
    random = torch.Generator().manual_seed(3)
    text = torch.randint(5, WORDS, (SIZE, LENGTH), generator=random)
    labels = torch.full_like(text, -100)
    for row, positions in enumerate(([1, 4, 6], [2], [], [1, 2])):
        labels[row, positions] = text[row, positions]
    return Batch(
        step=0,
        kind="video",
        ids=[f"clip{n}" for n in range(SIZE)],
        video=torch.arange(SIZE),
        frames=torch.randint(0, 256, (SIZE, 2, 3, 32, 32), generator=random, dtype=torch.uint8),
        text=text,
        mask=(torch.arange(LENGTH) < torch.tensor([8, 5, 6, 4])[:, None]).long(),
        masked=torch.where(labels != -100, 4, text),
        labels=labels,
        boxes=torch.tensor([[0, 0, 3, 2], [1, 1, 2, 3], [0, 2, 4, 2], [2, 0, 2, 4]]),
        answers=torch.tensor([0, 3, -100, 4]),
        uniforms=torch.rand(SIZE, 2, generator=random, dtype=torch.double),
        max_masked=3,
    )


@pytest.fixture
def small_objective() -> Callable[..., Objective]:
    """small_objective(name, width=..., dropout=..., pool=..., **weights): an objective by the name of its stage,
    the same each time."""

    def make(name: str, width: int = 16, dropout: float = 0.0, pool: int = 0, **weights: float) -> Objective:
        video = {"image_size": 32, "patch_size": 8, "frames": 2, "width": width, "depth": 2, "heads": 2}
        text = {"vocab_size": WORDS, "width": width, "depth": 4, "fusion_layer": 2, "heads": 2, "max_length": 16}
        values: dict[str, Any] = {"video": video | {"drop_path": dropout}, "text": text | {"dropout": dropout}}
        shape = ModelConfig.model_validate(values | {"embed_dim": 8, "init": "scratch"})
        torch.manual_seed(0)
        if name == "prompter":
            return PrompterObjective(Prompter(shape), MEAN, STD)
        if name == "retrieval":
            return MatchingObjective(Alpro(shape), MEAN, STD, pool)
        if name == "qa":
            return QaObjective(Alpro(shape, answers=ANSWERS), MEAN, STD)
        prompts = {kind: torch.randn(ENTITIES, 8) for kind in ("video", "image")}
        model, teacher = Alpro(shape, ENTITIES), NormalizedModel(Prompter(shape), MEAN, STD)
        return PretrainObjective(model, MEAN, STD, teacher, prompts, LossWeights(**weights), 0.0, pool)

    return make


@pytest.fixture(scope="module")
def batches(clips, stills, training, tokenizer) -> dict[str, Batch]:
    """A batch of videos and one of images, by kind."""
    config = training(("clips", "stills"), 12)
    data = TrainingDataset(config, {"clips": clips, "stills": stills}, tokenizer, Examples("sample", 4, 32, 4, 0.3))
    actual = {}
    for step in range(len(data)):
        actual.setdefault(data.sources[data.source_of[step]].kind, data[step])
    return actual


@pytest.fixture(scope="module")
def pretraining(tiny_model, tokenizer) -> Callable[..., PretrainObjective]:
    """pretraining(threshold=..., **weights): a pre-training objective on a tiny model, the same each time."""

    def make(threshold: float = 0.0, **weights: float) -> PretrainObjective:
        torch.manual_seed(0)
        shape = tiny_model(tokenizer.get_vocab_size())
        prompter = NormalizedModel(Prompter(shape), MEAN, STD)
        prompts = {kind: F.normalize(torch.randn(8, 16), dim=1) for kind in ("video", "image")}
        torch.manual_seed(0)
        return PretrainObjective(
            Alpro(shape, entities=8), MEAN, STD, prompter, prompts, LossWeights(**weights), threshold
        )

    return make


def losses_of(objective: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and metrics of a step of one micro-batch."""
    batch = objective.labeled(batch)
    return objective(batch, objective.step_counts([batch]))


class Steps:
    """A data set of ten steps without batches."""

    def __len__(self) -> int:
        return 10


def run_of(objective: Objective, config: TrainingConfig, out: Path, world: World | None = None) -> TrainingRun:
    """A training run in one process, to update by hand."""
    return TrainingRun(objective.train(), Steps(), config, out, world or ALONE, Resources(device="cpu"))


def sample_rows(
    count: int, captions: int = 1, kind: str = "video", prefix: str = "v", group: int = 1, **more
) -> list[dict]:
    """`count` samples in groups of `group`, each with captions of its own."""
    return [
        {
            "id": f"{prefix}{n}",
            "kind": kind,
            "captions": [f"the red ball moves {word}" for word in ("left", "right", "up")[:captions]],
            "group": f"{prefix}{n // group}",
            **more,
        }
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict]]:
    """rows(count, ...): see `sample_rows`."""
    return sample_rows


@pytest.fixture(scope="module")
def corpus(corpus_of, tmp_path_factory):
    """corpus(count, **rows): a corpus of `count` samples, built once per combination."""
    cache = {}

    def make(count: int, **overrides):
        key = (count, *sorted(overrides.items()))
        if key not in cache:
            cache[key] = corpus_of(tmp_path_factory.mktemp("corpus"), sample_rows(count, **overrides))
        return cache[key]

    return make


@pytest.fixture(scope="module")
def steps_of(tokenizer, training):
    """steps_of(corpora, steps, unit=..., rank=..., ranks=..., **config): the batches of a training run."""

    def make(
        corpora, steps=4, unit="sample", rank=0, ranks=1, mlm=None, answers=(), crops=0.0, **config
    ) -> TrainingDataset:
        config = training(tuple(corpora), steps, **config)
        examples = Examples(unit, 4, 8, 4, mlm, answers=answers, crop_share=crops, crop_area=(0.25, 0.5))
        return TrainingDataset(config, corpora, tokenizer, examples, rank, ranks, ranks > 1)

    return make


# Metrics that differ between equal runs.
TIMING = ("time", "train/data_wait", "train/samples_per_second", "train/memory_gib")


class Killed(BaseException):
    """Simulates a killed process: the loop cannot clean up."""


@dataclass
class Run:
    """One training run in a folder: can be stopped before any step, and started again."""

    out: Path
    config: Any
    build: Callable[[], Objective]
    data: Callable[[], TrainingDataset]
    validate: Callable[[Objective], dict[str, float]] | None = None
    select: str = ""
    checkpoint_interval: float = 3600

    def start(self, before: int = -1, stop: Callable[[], None] | None = None) -> dict[str, float]:
        """Trains to the end; as step `before` begins, `stop` is called."""
        torch.manual_seed(self.config.seed)
        self.trained, data = self.build(), self.data()
        load = data.loader

        def loader(*args):
            for batch in load(*args):
                if batch.step == before:
                    stop()
                yield batch

        data.loader = loader
        resources = Resources(workers=1, device="cpu", checkpoint_interval=self.checkpoint_interval)
        validate = (lambda: self.validate(self.trained)) if self.validate else None
        self.out.mkdir(exist_ok=True)
        return TrainingRun(self.trained, data, self.config, self.out, ALONE, resources).train(validate, self.select)

    def interrupt(self, before: int) -> None:
        """A SIGTERM as step `before` begins."""
        with pytest.raises(SystemExit) as left:
            self.start(before=before, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert left.value.code == EXIT_INTERRUPTED

    def kill(self, before: int) -> None:
        """An abrupt end as step `before` begins."""

        def stop():
            raise Killed

        with pytest.raises(Killed):
            self.start(before=before, stop=stop)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trained.named_parameters()}

    @property
    def lines(self) -> list[dict]:
        actual = read_metrics(self.out / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in TIMING} for line in actual]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.out / "checkpoints").iterdir())


@pytest.fixture
def new_run(tmp_path, training, clips, stills, tokenizer, tiny_model, monkeypatch):
    """new_run(name, objective=..., dropout=..., steps=..., run=..., **config): a run of 8 steps on clips and stills."""
    corpora = {"clips": clips, "stills": stills}
    monkeypatch.setattr(loop, "MIN_SAVE_INTERVAL_RATIO", 0)  # runs so short have no time between checkpoints

    def make(name: str, objective=PrompterObjective, dropout: float = 0.0, steps: int = 8, run=(), **changes) -> Run:
        config = training(tuple(corpora), steps, **changes)
        shape = tiny_model(tokenizer.get_vocab_size(), dropout)
        kind = Prompter if issubclass(objective, PrompterObjective) else Alpro
        return Run(
            tmp_path / name,
            config,
            lambda: objective(kind(shape), MEAN, STD),
            lambda: TrainingDataset(config, corpora, tokenizer, Examples("sample", 4, 32)),
            **dict(run),
        )

    return make
