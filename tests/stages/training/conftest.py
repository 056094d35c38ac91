"""What the tests of training share: small objectives and batches, corpora to sample from, training
runs."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, Prompter
from alpro.models.word_pieces import BertTokenizer
from alpro.stages.execution.interface import EXIT_STOPPED, Resources
from alpro.stages.training import dataset
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import ExampleSpec, TrainingDataset
from alpro.stages.training.distributed import World
from alpro.stages.training.loop import Trainer
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.objective import Objective, PrompterObjective

MEAN = [0.5] * 3
STD = [0.25] * 3
ALONE = World(0, 1, torch.device("cpu"))


class Steps:
    """A data set of ten steps without batches."""

    def __len__(self) -> int:
        return 10


def run_of(
    objective: Objective,
    config: TrainingConfig,
    out: Path,
    world: World | None = None,
) -> Trainer:
    """A training run in one process, to update by hand."""
    resources = Resources(device="cpu")
    return Trainer(objective.train(), Steps(), config, out, world or ALONE, resources)


def sample_rows(
    count: int,
    captions: int = 1,
    kind: str = "video",
    prefix: str = "v",
    group: int = 1,
    **more,
) -> list[dict]:
    """`count` samples in groups of `group`, each with captions of its own."""
    texts = [f"the red ball moves {word}" for word in ("left", "right", "up")]
    rows = []
    for number in range(count):
        row = {"id": f"{prefix}{number}", "kind": kind, "captions": texts[:captions]}
        rows.append(row | {"group": f"{prefix}{number // group}", **more})
    return rows


@pytest.fixture(scope="module")
def corpus(corpus_of, tmp_path_factory):
    """corpus(count, **rows): a corpus of `count` samples, built once per combination."""
    cache = {}

    def make(count, **overrides):
        key = (count, *sorted(overrides.items()))
        if key not in cache:
            rows = sample_rows(count, **overrides)
            cache[key] = corpus_of(tmp_path_factory.mktemp("corpus"), rows)
        return cache[key]

    return make


@pytest.fixture(scope="module")
def steps_of(tokenizer, training):
    """steps_of(corpora, steps, unit=..., rank=..., ranks=..., **config): the batches of a training
    run."""

    def make(
        corpora,
        steps=4,
        unit="sample",
        rank=0,
        ranks=1,
        mlm=None,
        answers=(),
        crops=0.0,
        **config,
    ):
        config = training(tuple(corpora), steps, **config)
        crop = {"crop_share": crops, "crop_area": (0.55, 0.75)}
        examples = ExampleSpec(unit, 4, 8, 4, mlm, answers=answers, **crop)
        return TrainingDataset(
            config, corpora, BertTokenizer(tokenizer), examples, rank, ranks, ranks > 1
        )

    return make


@pytest.fixture(scope="session")
def two_ranks_trained(build_once, two_ranks):
    """What the two processes of part_of_steps.py leave."""

    def build(out):
        assert two_ranks(Path(__file__).with_name("part_of_steps.py"), out) == [0, 0]

    return build_once("two-ranks-trained", build)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: the kernel refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def loading_processes(count: int) -> Iterator[None]:
    """So many processes load batches, as where there is a GPU."""
    loader = dataset.DataLoader
    more = {"num_workers": count, "prefetch_factor": 1 if count else None}
    with mock.patch.object(
        dataset, "DataLoader", lambda *a, **k: loader(*a, **k | more)
    ):
        yield


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

    def start(
        self, before: int = -1, stop: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Trains to the end; as step `before` begins, `stop` is called."""
        torch.manual_seed(self.config.seed)
        self.trained = self.build()
        data = self.data()
        load = data.loader

        def stopping(batches):
            for batch in batches:
                if batch.step == before:
                    stop()
                yield batch

        data.loader = lambda *args: stopping(load(*args))
        resources = Resources(
            workers=1, device="cpu", checkpoint_interval=self.checkpoint_interval
        )
        validate = (lambda: self.validate(self.trained)) if self.validate else None
        self.out.mkdir(exist_ok=True)
        run = Trainer(self.trained, data, self.config, self.out, ALONE, resources)
        return run.train(validate, self.select)

    def interrupt(self, before: int) -> None:
        """A SIGTERM as step `before` begins."""
        with pytest.raises(SystemExit) as left:
            self.start(before=before, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert left.value.code == EXIT_STOPPED

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
        return [
            {key: value for key, value in line.items() if key not in TIMING}
            for line in actual
        ]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.out / "checkpoints").iterdir())


@pytest.fixture(scope="session")
def run_in(training, clips, stills, tokenizer, tiny_model):
    """run_in(out, objective=..., dropout=..., steps=..., run=..., **config): a run of 8 steps on
    clips and stills, in a folder."""
    corpora = {"clips": clips, "stills": stills}

    def make(
        out,
        objective=PrompterObjective,
        dropout=0.0,
        steps=8,
        run=(),
        **changes,
    ):
        config = training(tuple(corpora), steps, **changes)
        shape = tiny_model(tokenizer.get_vocab_size(), dropout)
        kind = Prompter if issubclass(objective, PrompterObjective) else Alpro
        return Run(
            out,
            config,
            lambda: objective(kind(shape), MEAN, STD),
            lambda: TrainingDataset(
                config, corpora, BertTokenizer(tokenizer), ExampleSpec("sample", 4, 32)
            ),
            **dict(run),
        )

    return make


@pytest.fixture
def new_run(tmp_path, run_in):
    """new_run(name, ...): as run_in, in a folder of this test."""
    return lambda name, *args, **changes: run_in(tmp_path / name, *args, **changes)
