"""The training data set: which examples a step has, and their arrays.

A batch is a function of the seed and the step, so a checkpoint stores the position in the data as
one number.
"""

import atexit
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import active_children
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset

from alpro.errors import InputError
from alpro.interpreter import set_parent_death_signal
from alpro.models.word_pieces import BertTokenizer
from alpro.shards.reader import REPAIR, Sample, ShardReader, Unreadable
from alpro.shards.sampling import (
    frames_at_random,
    frames_in_halves,
    grouped_order,
)
from alpro.shards.transforms import (
    augment_image,
    augment_video,
    random_box,
    random_crop,
    squash,
)
from alpro.stages.execution.interface import Corpora, Resources
from alpro.stages.training.batch import Batch, collate, mask_words
from alpro.stages.training.config import Phase, TrainingConfig

# An epoch has one example per sample, caption or question; see `CorpusExamples`.
Granularity = Literal["sample", "caption", "question"]
# How the frames of a clip are chosen, by the value of `sampling`.
SAMPLINGS = {"halves": frames_in_halves, "random": frames_at_random}
# First samples of a source whose texts are tokenized before training, to count those that are
# truncated.
MAX_MEASURED = 5000
MAX_ATTEMPTS = 20  # consecutive samples that are tried if one cannot be read
# DataLoader workers of a training process, which prefetch two batches each.
MAX_WORKERS = 16


def text_column(granularity: Granularity) -> str:
    """Return the column of the texts of a corpus: captions or questions."""
    return "questions" if granularity == "question" else "captions"


class CorpusExamples:
    """The training examples of one corpus and one kind.

    Samples without a text are skipped and counted in `skipped`.

    Args:
        granularity: "sample": one example per sample, with a random caption of it (pre-training).
            "caption": one per caption, so an epoch has a video once with each (retrieval).
            "question": one per question (QA).
        first_video: Index of its first sample among the samples of all sources.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        kind: str,
        granularity: Granularity,
        first_video: int,
    ):
        self.name = name
        self.kind = kind
        self.first_video = first_video
        self.reader = ShardReader(folder, "train", kind)

        texts = self.reader.column(text_column(granularity))
        counts = pc.list_value_length(texts).to_numpy(zero_copy_only=False)
        self.skipped = int((counts == 0).sum())

        # A row (sample, text) for each example; text -1 is a random caption.
        if granularity == "sample":
            samples = np.flatnonzero(counts)
            text_indices = np.full(len(samples), -1)
        else:
            samples = np.repeat(np.arange(len(counts)), counts)
            first_texts = np.repeat(np.cumsum(counts) - counts, counts)
            text_indices = np.arange(len(samples)) - first_texts
        self.examples = np.stack([samples, text_indices], axis=1)

        groups = self.reader.column("group").dictionary_encode().indices
        self.groups = groups.to_numpy(zero_copy_only=False)[samples]
        self._orders: dict[tuple[int, bool], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def order(self, seed: int, epoch: int, grouped: bool) -> np.ndarray:
        """Return the examples of an epoch in training order.

        Args:
            grouped: Whether examples of a group are adjacent.
        """
        key = (epoch, grouped)
        if key not in self._orders:
            # Different constants separate the generators of the order (17), schedule (11) and
            # examples (23).
            rng = np.random.default_rng([seed, 17, self.first_video, epoch])
            order = (
                grouped_order(self.groups, rng)
                if grouped
                else rng.permutation(len(self))
            )

            # A batch may span two epochs. Orders of earlier ones are not needed again.
            previous = {k: v for k, v in self._orders.items() if k[0] == epoch - 1}
            self._orders = {**previous, key: order}
        return self._orders[key]

    def at(
        self, position: int, count: int, seed: int, grouped: bool
    ) -> list[tuple[int, int]]:
        """Return `count` pairs (epoch, example), starting at `position` in the infinite sequence of
        epochs."""
        examples: list[tuple[int, int]] = []
        while len(examples) < count:
            epoch, start = divmod(position + len(examples), len(self))
            end = start + count - len(examples)
            indices = self.order(seed, epoch, grouped)[start:end]
            examples += [(epoch, int(index)) for index in indices]
        return examples


@dataclass(frozen=True)
class ExampleSpec:
    """Contents of a training example.

    Attributes:
        granularity: See `CorpusExamples`.
        frames, image_size, grid: Shape of the video encoder's input; `grid` in patches.
        mlm_probability: Fraction of the tokens that are masked. If None, examples have neither
            masked tokens nor boxes.
        crop_share: Fraction of the examples that show a crop. Their box is the crop, of the fraction
            `crop_area` of the frame.
        answers: The classes of question answering.
    """

    granularity: Granularity
    frames: int
    image_size: int
    grid: int = 0
    mlm_probability: float | None = None
    crop_share: float = 0.0
    crop_area: tuple[float, float] = (0.3, 0.75)
    answers: tuple[str, ...] = ()


@dataclass(eq=False)
class TrainingDataset(Dataset[Batch]):
    """The batches of a training run. Item n is this rank's part of step n, a pure function of seed,
    step and rank.

    Args:
        corpora: Folders of decoded corpora by name.
        spec: Contents of an example.
        one_length: Whether all texts are padded to max_text_tokens.

    Raises:
        InputError: If a phase has no examples, or the batch size is not divisible.
    """

    config: TrainingConfig
    corpora: Corpora
    words: BertTokenizer
    spec: ExampleSpec
    rank: int = 0
    ranks: int = 1
    one_length: bool = False

    def __post_init__(self) -> None:
        config = self.config
        config.check_division(self.ranks)
        self.answers = {answer: i for i, answer in enumerate(self.spec.answers)}

        self.sources: list[CorpusExamples] = []
        self.skipped = 0
        for name in config.corpora:
            for kind in ("video", "image"):
                # Videos are numbered across sources: equal numbers are the same video.
                first_video = sum(len(source.reader) for source in self.sources)
                source = CorpusExamples(
                    name, self.corpora[name], kind, self.spec.granularity, first_video
                )
                self.skipped += source.skipped  # including sources without examples
                if len(source):
                    self.sources.append(source)
        self._schedule()

    def find_truncated_texts(self) -> Iterator[str]:
        """Yield a warning for each source with texts of more than `max_text_tokens` tokens, which
        are truncated."""
        limit = self.config.max_text_tokens
        column = text_column(self.spec.granularity)
        for source in self.sources:
            texts = pc.list_flatten(source.reader.column(column).slice(0, MAX_MEASURED))
            if column == "questions":
                texts = pc.struct_field(texts, "question")

            # One token above the limit shows that a text is longer.
            tokens = self.words.ids(texts.to_pylist(), limit + 1)
            truncated = sum(len(ids) > limit for ids in tokens)
            if truncated:
                yield (
                    f"{source.name}: {truncated} of {len(tokens)} {column} have more than "
                    f"max_text_tokens = {limit} tokens and are truncated"
                )

    def _schedule(self) -> None:
        """Assign a source to every step, and count the earlier steps of that source."""
        rng = np.random.default_rng([self.config.seed, 11])
        sources_of_phases = []
        for phase in self.config.phases:
            sources = [i for i, s in enumerate(self.sources) if s.name in phase.corpora]
            if not sources:
                column = text_column(self.spec.granularity)
                raise InputError(
                    f"no training examples with {column} in {', '.join(phase.corpora)}"
                )

            shares = np.array([self._share(source, phase) for source in sources])
            examples = sum(len(self.sources[i]) for i in sources)
            passes = round(phase.epochs * examples / self.config.batch_size)
            steps = phase.steps or max(1, passes)
            sources_of_phases.append(
                rng.choice(sources, steps, p=shares / shares.sum())
            )
        self.phase_steps = [len(steps) for steps in sources_of_phases]
        self.step_sources = np.concatenate(sources_of_phases)

        self.earlier_steps = np.zeros(len(self.step_sources), np.int64)
        for source in range(len(self.sources)):
            is_source = self.step_sources == source
            self.earlier_steps[is_source] = np.arange(is_source.sum())

    def _share(self, source: int, phase: Phase) -> float:
        """Return the relative number of steps of a source: the weight of its corpus, or its number of
        examples."""
        name = self.sources[source].name
        examples = len(self.sources[source])
        if not phase.weights:
            return examples

        # Videos and images of a corpus share its weight in proportion to their numbers.
        weight = phase.weights[phase.corpora.index(name)]
        in_corpus = sum(len(source) for source in self.sources if source.name == name)
        return weight * examples / in_corpus

    def __len__(self) -> int:
        return len(self.step_sources)

    def __getitem__(self, step: int) -> Batch:
        source = self.sources[self.step_sources[step]]
        size = self.config.batch_size
        phase = self.config.phases[
            np.searchsorted(np.cumsum(self.phase_steps), step, side="right")
        ]
        position = int(self.earlier_steps[step]) * size
        examples = source.at(position, size, self.config.seed, phase.group_batches)

        # All ranks share each micro-batch, so its examples do not depend on the number of ranks.
        shares = np.arange(size).reshape(self.config.accumulation_steps, self.ranks, -1)
        indices = shares[:, self.rank].ravel()

        unreadable: list[str] = []
        items = []
        for index in indices:
            epoch, example = examples[index]
            items.append(self.read_or_replace(source, epoch, example, unreadable))

        length = self.config.max_text_tokens if self.one_length else 0
        batch = collate(step, source.kind, items, self.words.pad_id, length)
        return replace(batch, unreadable=unreadable)

    def read_or_replace(
        self,
        source: CorpusExamples,
        epoch: int,
        example: int,
        unreadable: list[str],
    ) -> dict[str, Any]:
        """Return the arrays of an example. If it is unreadable, its error is added to `unreadable`,
        and the next readable one takes its place: ranks need batches of the same size.

        Raises:
            InputError: If MAX_ATTEMPTS consecutive samples are unreadable.
        """
        samples = source.examples[:, 0]
        errors: list[str] = []
        for _ in range(MAX_ATTEMPTS):
            try:
                item = self.example(source, epoch, example)
                # Only the first error is of an example of this step.
                unreadable += errors[:1]
                return item
            except Unreadable as error:
                errors.append(str(error))

            # Adjacent examples can be captions of the same sample, which is skipped as a whole.
            others = np.flatnonzero(samples != samples[example])
            if not len(others):
                break
            # The next one, or after the last the first.
            example = int(others[np.searchsorted(others, example) % len(others)])
        raise InputError(
            f"{len(errors)} consecutive samples cannot be read, the last: {errors[-1]}; {REPAIR}"
        )

    def example(
        self, source: CorpusExamples, epoch: int, example: int
    ) -> dict[str, Any]:
        """Return the arrays of an example. Its random generator is seeded by seed, epoch and
        example."""
        # New random numbers are drawn after the existing ones: otherwise all examples change.
        rng = np.random.default_rng(
            [self.config.seed, 23, source.first_video, epoch, example]
        )
        sample_index, text_index = source.examples[example]
        sample = source.reader[int(sample_index)]

        item: dict[str, Any] = {
            "id": sample.metadata["id"],
            "video": source.first_video + int(sample_index),
        }
        if self.spec.granularity == "question":
            question = sample.metadata["questions"][text_index]
            text = question["question"]
            full_text = f"{text} {question['answer']}"
            item["answer"] = self.answers.get(question["answer"], -100)
        else:
            captions = sample.metadata["captions"]
            if text_index < 0:
                text_index = int(rng.integers(len(captions)))
            text = full_text = captions[text_index]

        # Augmentation reads the text: a clip is not mirrored if its text says left or right.
        load_frames = self.still if source.kind == "image" else self.clip
        frames = load_frames(sample, full_text, rng)
        item["frames"] = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))

        ids = token_ids(self.words, text, self.config.max_text_tokens)
        item["ids"] = ids
        grid = self.spec.grid
        if self.spec.mlm_probability is not None:
            item["masked"], item["labels"] = mask_words(
                ids,
                mask_id=self.words.mask_id,
                vocab_size=self.words.size,
                probability=self.spec.mlm_probability,
                rng=rng,
            )
            item["box"] = random_box(grid, rng)

        if self.spec.crop_share:
            shows_crop = rng.random() < self.spec.crop_share
            whole_frame = (0, 0, grid, grid)
            item["box"] = (
                random_box(grid, rng, self.spec.crop_area)
                if shows_crop
                else whole_frame
            )

        item["uniforms"] = rng.random(2)
        return item

    def clip(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """Sample, crop and augment frames of a video -> (T, H, W, 3) uint8. The model resizes
        them."""
        choose = SAMPLINGS[self.config.sampling]
        count = self.spec.frames
        indices = choose(len(sample), count, rng) if len(sample) > 1 else [0] * count

        frames = random_crop(sample.frames(indices), self.config.random_crop, rng)
        if self.config.augmentation == "official":
            frames = augment_video(frames, text, rng)
        elif self.config.augmentation != "none":
            assert_never(self.config.augmentation)
        return frames

    def still(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """Crop and augment an image of any aspect ratio -> a still clip (T, size, size, 3) uint8, or
        one frame."""
        frame = sample.frames([0])
        if self.config.augmentation == "official":
            frame = augment_image(frame[0], self.spec.image_size, text, rng)[None]
        elif self.config.augmentation == "none":
            frame = squash(
                random_crop(frame, self.config.random_crop, rng), self.spec.image_size
            )
        else:
            assert_never(self.config.augmentation)

        # Section 3.3: images are duplicated to static videos.
        count = self.spec.frames if self.config.repeat_images else 1
        return np.broadcast_to(frame, (count, *frame.shape[1:]))

    def loader(
        self,
        first_step: int,
        resources: Resources,
        device: torch.device,
    ) -> Iterator[Batch]:
        """Return the batches in order, starting at `first_step`. On a GPU, DataLoader workers, which
        start at once, prefetch them."""
        # On a CPU, DataLoader workers would compete with training for the same cores.
        workers = 0
        if device.type == "cuda":
            # The training processes of this machine share its cores.
            local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(resources.worker_count // local, MAX_WORKERS))

        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step, len(self)),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=prepare_worker,
            # Otherwise the loader advances the restored global generator.
            generator=torch.Generator(),
        )
        items = iter(loader)
        if loader.num_workers:
            # torch's handler raises wherever this process is when a worker dies. Without it, the
            # next batch raises.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # At exit, Python sends SIGTERM to a worker that is left, which ignores it, and waits.
            for worker in active_children():
                atexit.register(worker.kill)
        return raise_in_one_line(items)


@lru_cache(2**16)
def token_ids(words: BertTokenizer, text: str, length: int) -> np.ndarray:
    """Return the token ids of one text. They must not be modified: they are cached."""
    return words.ids([text], length)[0]


def raise_in_one_line(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches. An InputError of a DataLoader worker loses the traceback that torch adds."""
    try:
        yield from batches
    except InputError as error:
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


def prepare_worker(worker: int) -> None:
    """Have a DataLoader worker end with its parent, and by nothing else.

    Signals reach the whole process group, and the training process finishes its step first.
    """
    set_parent_death_signal(os.getppid(), signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
