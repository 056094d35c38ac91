"""The training data set: which examples step n has, and their arrays. A batch is a function of the seed and the step,
so that a checkpoint stores the position in the data as one number."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from alpro.errors import InputError
from alpro.models.clip_prompter import words_of
from alpro.models.word_pieces import WordPieces
from alpro.shards.reader import Sample, ShardReader, Unreadable
from alpro.shards.sampling import frames_at_random, frames_in_halves, grouped_order, segment_starts
from alpro.shards.transforms import augment_image, augment_video, random_crop, squash
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch, collate, keep_patches, mask_words, random_box
from alpro.stages.training.config import Phase, TrainingConfig

Unit = Literal["sample", "caption", "question"]
MAX_MEASURED = (
    5000  # texts of a source that are tokenized before training to count those that are cut
)
MAX_ATTEMPTS = 20  # consecutive samples to try if one cannot be read
PREFETCH_BATCHES = 32  # batches in shared memory per training process
PREFETCH_BYTES = 2**31  # and their bytes
SHARED_MEMORY = Path("/dev/shm")  # where loading processes leave their batches


class CorpusExamples:
    """The training examples of one corpus and one kind.

    unit "sample": one example per sample, with a random one of its captions (pre-training); "caption": one per caption,
    so that an epoch has a video once with each (retrieval); "question": one per question (QA). Samples without a text
    are skipped and counted in `skipped`.
    """

    def __init__(self, name: str, folder: Path, kind: str, unit: Unit, first_video: int):
        self.name, self.kind = name, kind
        self.reader = ShardReader(folder, "train", kind)
        column = self.reader.column("questions" if unit == "question" else "captions")
        texts = (
            np.array([len(value) for value in column], np.int64)
            if len(self.reader)
            else np.zeros(0, np.int64)
        )
        self.skipped = int((texts == 0).sum())
        if unit == "sample":
            self.examples = np.stack(
                [np.flatnonzero(texts), np.full((texts > 0).sum(), -1)], axis=1
            )
        else:
            samples = np.repeat(np.arange(len(texts)), texts)
            starts = np.repeat(np.cumsum(texts) - texts, texts)
            self.examples = np.stack([samples, np.arange(len(samples)) - starts], axis=1)
        groups = (
            self.reader.column("group").dictionary_encode().indices.to_numpy(zero_copy_only=False)
        )
        self.groups = groups[self.examples[:, 0]]
        self.first_video = first_video
        self._orders: dict[tuple[int, bool], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def order(self, seed: int, epoch: int, grouped: bool) -> np.ndarray:
        """The examples of an epoch in training order. grouped: examples of a group are adjacent."""
        if (epoch, grouped) not in self._orders:
            rng = np.random.default_rng([seed, 17, self.first_video, epoch])
            order = grouped_order(self.groups, rng) if grouped else rng.permutation(len(self))
            self._orders = {k: v for k, v in self._orders.items() if k[0] == epoch - 1} | {
                (epoch, grouped): order
            }
        return self._orders[epoch, grouped]

    def at(self, position: int, count: int, seed: int, grouped: bool) -> list[tuple[int, int]]:
        """`count` pairs (epoch, example) from `position` on in the infinite sequence of epochs."""
        examples: list[tuple[int, int]] = []
        while len(examples) < count:
            epoch, offset = divmod(position + len(examples), len(self))
            chosen = self.order(seed, epoch, grouped)[offset : offset + count - len(examples)]
            examples += [(epoch, int(example)) for example in chosen]
        return examples


@dataclass(frozen=True)
class Examples:
    """What a training example is made of.

    unit: see `CorpusExamples`. frames, image_size, grid: shape of the video encoder's input, grid in patches.
    mlm_probability: unless None, examples have masked tokens and crops. crop_share: share of the examples that show a
    crop, of crop_area of the frame; their box is then that of what is shown. answers: the classes of question
    answering.
    """

    unit: Unit
    frames: int
    image_size: int
    grid: int = 0
    mlm_probability: float | None = None
    crop_share: float = 0.0
    crop_area: tuple[float, float] = (0.3, 0.75)
    answers: tuple[str, ...] = ()


class TrainingDataset(Dataset[Batch]):
    """The batches of a training run: item n is this rank's part of step n, a pure function of seed, step and rank.

    corpora: folders of decoded corpora by name. one_length: all texts are padded to max_text_tokens. Raises InputError
    if a phase has no examples or the batch size is not divisible.
    """

    def __init__(
        self,
        config: TrainingConfig,
        corpora: dict[str, Path],
        tokenizer: Tokenizer,
        examples: Examples,
        rank: int = 0,
        ranks: int = 1,
        one_length: bool = False,
    ):
        self.config, self.words, self.of = config, words_of(tokenizer), examples
        self.answers = {answer: index for index, answer in enumerate(examples.answers)}
        self.rank, self.ranks, self.one_length = rank, ranks, one_length
        config.check_division(ranks)
        self.sources: list[CorpusExamples] = []
        self.skipped = 0
        for name in config.corpora:
            for kind in ("video", "image"):
                first = sum(len(s.reader) for s in self.sources)
                source = CorpusExamples(name, corpora[name], kind, examples.unit, first)
                self.skipped += source.skipped  # also for a source without examples
                if len(source):
                    self.sources.append(source)
        self._schedule()

    def cut_texts(self) -> Iterator[str]:
        """A warning for each source with texts of more than `max_text_tokens` tokens, of which the rest is not used."""
        limit, name = (
            self.config.max_text_tokens,
            "questions" if self.of.unit == "question" else "captions",
        )
        for source in self.sources:
            # Of a large corpus, evenly spaced samples.
            rows = source.reader.column(name).take(
                segment_starts(len(source.reader), min(len(source.reader), MAX_MEASURED))
            )
            texts = [
                one["question"] if self.of.unit == "question" else one
                for row in rows.to_pylist()
                for one in row
            ]
            lengths = [len(ids) for ids in self.words.ids(texts, limit + 1)]
            if cut := sum(length > limit for length in lengths):
                yield (
                    f"{source.name}: {cut} of {len(texts)} {name} have more than max_text_tokens = {limit} tokens and "
                    "are cut"
                )

    def _schedule(self) -> None:
        """Assigns a source to every step, and counts the earlier batches of that source."""
        rng = np.random.default_rng([self.config.seed, 11])
        chosen = []
        for phase in self.config.phases:
            sources = [i for i, s in enumerate(self.sources) if s.name in phase.corpora]
            if not sources:
                text = "question" if self.of.unit == "question" else "caption"
                raise InputError(
                    f"no training examples with a {text} in {', '.join(phase.corpora)}"
                )
            shares = np.array([self._share(i, phase) for i in sources])
            chosen.append(
                rng.choice(sources, self.steps_of(phase, sources), p=shares / shares.sum())
            )
        self.phase_steps = [len(steps) for steps in chosen]
        self.source_of = np.concatenate(chosen)
        self.turn = np.zeros(len(self.source_of), np.int64)
        for i in range(len(self.sources)):
            steps = self.source_of == i
            self.turn[steps] = np.arange(steps.sum())

    def _share(self, source: int, phase: Phase) -> float:
        """The relative number of steps of a source: the weight of its corpus, or its number of examples."""
        name = self.sources[source].name
        weight = phase.weights[phase.corpora.index(name)] if phase.weights else None
        if weight is None:
            return len(self.sources[source])
        return (
            weight * len(self.sources[source]) / sum(len(s) for s in self.sources if s.name == name)
        )

    def steps_of(self, phase: Phase, sources: list[int]) -> int:
        examples = sum(len(self.sources[i]) for i in sources)
        return phase.steps or max(1, round(phase.epochs * examples / self.config.batch_size))

    def __len__(self) -> int:
        return len(self.source_of)

    def __getitem__(self, step: int) -> Batch:
        source = self.sources[self.source_of[step]]
        size = self.config.batch_size
        phase = self.config.phases[np.searchsorted(np.cumsum(self.phase_steps), step, side="right")]
        examples = source.at(
            int(self.turn[step]) * size, size, self.config.seed, phase.group_batches
        )
        # All ranks share each micro-batch, so that its examples do not depend on the number of ranks.
        places = (
            np.arange(size)
            .reshape(self.config.accumulation_steps, self.ranks, -1)[:, self.rank]
            .ravel()
        )
        unreadable: list[str] = []
        drawn = (examples[place] for place in places)
        items = [
            self.readable(source, epoch, n, phase.patch_dropping, unreadable) for epoch, n in drawn
        ]
        length = self.config.max_text_tokens if self.one_length else 0
        batch = collate(step, source.kind, items, self.words.pad_id, length)
        return replace(batch, unreadable=unreadable)

    def readable(
        self, source: CorpusExamples, epoch: int, number: int, dropped: float, unreadable: list[str]
    ) -> dict:
        """The arrays of an example, or of the next readable one; then the error is added to `unreadable`.

        The batch size stays the same on all ranks. Raises InputError after MAX_ATTEMPTS unreadable samples.
        """
        samples = source.examples[:, 0]
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self.example(source, epoch, number, dropped)
            except Unreadable as error:
                if not attempt:
                    unreadable.append(str(error))
                last = str(error)
            # The next example of another sample: adjacent examples can be captions of the same video.
            others = np.flatnonzero(np.roll(samples, -number) != samples[number])
            if not len(others):
                break
            number = (number + int(others[0])) % len(source)
        raise InputError(
            f"{attempt + 1} consecutive samples cannot be read, the last: {last}; check the shards"
        )

    def example(
        self, source: CorpusExamples, epoch: int, number: int, dropped: float = 0.0
    ) -> dict:
        """The arrays of an example. Its random generator is seeded by seed, epoch and example.

        dropped: fraction of the patches that are not encoded.
        """
        rng = np.random.default_rng([self.config.seed, 23, source.first_video, epoch, number])
        sample_number, text_number = source.examples[number]
        sample = source.reader[int(sample_number)]
        if self.of.unit == "question":
            question = sample.about["questions"][text_number]
            text = question["question"]
            full_text = f"{text} {question['answer']}"
        else:
            captions = sample.about["captions"]
            full_text = text = captions[
                int(rng.integers(len(captions))) if text_number < 0 else text_number
            ]
        frames = (self.still if source.kind == "image" else self.clip)(sample, full_text, rng)
        ids = token_ids(self.words, text, self.config.max_text_tokens)
        item = {
            "id": sample.about["id"],
            "video": source.first_video + int(sample_number),
            "frames": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
            "ids": ids,
        }
        if self.of.unit == "question":
            item["answer"] = self.answers.get(question["answer"], -100)
        if self.of.mlm_probability is not None:
            special = np.zeros(len(ids), bool)
            special[[0, -1]] = True
            masked = mask_words(
                ids, special, self.words.mask_id, self.words.size, self.of.mlm_probability, rng
            )
            item["masked"], item["labels"] = masked
            item["box"] = random_box(self.of.grid, rng)
        if self.of.crop_share:
            shows_crop = rng.random() < self.of.crop_share
            grid = self.of.grid
            item["box"] = (
                random_box(grid, rng, self.of.crop_area) if shows_crop else (0, 0, grid, grid)
            )
        item["uniforms"] = rng.random(2)
        if dropped:
            item["kept"] = keep_patches(self.of.grid, dropped, rng)
        return item

    def clip(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """Sampled, cropped and augmented frames of a video (T, H, W, 3) uint8; the model resizes them."""
        choose = frames_in_halves if self.config.sampling == "halves" else frames_at_random
        chosen = (
            choose(len(sample), self.of.frames, rng) if len(sample) > 1 else [0] * self.of.frames
        )
        frames = random_crop(sample.frames(chosen), self.config.random_crop, rng)
        return (
            augment_video(frames, text, rng) if self.config.augmentation == "official" else frames
        )

    def still(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """An image of any aspect ratio: a still clip (T, size, size, 3) uint8, or one frame."""
        frame = sample.frames([0])
        if self.config.augmentation == "official":
            frame = augment_image(frame[0], self.of.image_size, text, rng)[None]
        else:
            frame = squash(random_crop(frame, self.config.random_crop, rng), self.of.image_size)
        return np.broadcast_to(
            frame, (self.of.frames if self.config.repeat_images else 1, *frame.shape[1:])
        )

    def batch_bytes(self, step: int) -> int:
        """The bytes of the frames of a step's batch on this rank, from one example."""
        source = self.sources[self.source_of[min(step, len(self) - 1)]]
        example = self.readable(source, 0, 0, 0.0, [])
        return example["frames"].nbytes * (self.config.batch_size // self.ranks)

    def loader(self, first: int, resources: Resources, device: torch.device) -> Iterator[Batch]:
        """The batches from step `first` on, in order; on a GPU worker processes, which start at once, prefetch them."""
        # On a CPU, worker processes would compete with training for the same cores.
        workers, ahead = 0, None
        if device.type == "cuda":
            # The training processes of this machine share its cores and its shared memory.
            local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            batches = batches_ahead(self.batch_bytes(first), shared_memory() // local)
            workers = max(1, min(resources.worker_count // local, batches))
            ahead = max(1, min(4, batches // workers))
        loader = DataLoader(
            _ErrorsAsItems(self),
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=ahead,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # otherwise the loader advances the restored global generator
        )
        return map(_raise_errors, iter(loader))


def shared_memory() -> int:
    """Free bytes of shared memory on this machine; on a system without its folder, no limit is known."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 2 * PREFETCH_BYTES


def batches_ahead(batch_bytes: int, available: int) -> int:
    """How many batches loading processes may hold. Raises InputError if one does not fit into half of the available
    bytes of shared memory: a write beyond its end would kill the process (bus error)."""
    number = min(PREFETCH_BATCHES, min(PREFETCH_BYTES, available // 2) // batch_bytes)
    if number or batch_bytes <= available // 2:
        return max(1, number)
    raise InputError(
        f"{SHARED_MEMORY} has {available / 2**20:.0f} MiB free for each training process, and a batch has "
        f"{batch_bytes / 2**20:.0f}; start the container with --shm-size=16g, or lower batch_size"
    )


@lru_cache(2**16)
def token_ids(words: WordPieces, text: str, length: int) -> np.ndarray:
    """The ids of one text as of `words.ids`. They must not be changed."""
    return words.ids([text], length)[0]


def _raise_errors(item: Batch | InputError) -> Batch:
    if isinstance(item, InputError):
        raise item
    return item


@dataclass
class _ErrorsAsItems(Dataset[Batch | InputError]):
    """Returns InputErrors as items, so that the training process raises them without the worker's traceback."""

    dataset: TrainingDataset

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.dataset[step]
        except InputError as error:
            return error


def ignore_signals(worker: int) -> None:
    """Worker processes receive signals of the process group too; the training process stops and terminates them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
