"""The training data set: which examples step n has, and their arrays. A batch is a function of the
seed and the step, so that a checkpoint stores the position in the data as one number."""

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from alpro.errors import InputError
from alpro.interpreter import set_parent_death_signal
from alpro.models.clip_prompter import wrap_tokenizer
from alpro.models.word_pieces import BertTokenizer
from alpro.shards.reader import Sample, ShardReader, Unreadable
from alpro.shards.sampling import frames_at_random, frames_in_halves, grouped_order, segment_starts
from alpro.shards.transforms import augment_image, augment_video, random_crop, squash
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch, collate, mask_words, random_box
from alpro.stages.training.config import Phase, TrainingConfig

# What there is one training example of; see `CorpusExamples`.
Granularity = Literal["sample", "caption", "question"]
# Texts of a source that are tokenized before training to count those that are cut.
MAX_MEASURED = 5000
MAX_ATTEMPTS = 20  # consecutive samples to try if one cannot be read
PREFETCH_BATCHES = 32  # batches in shared memory per training process
PREFETCH_BYTES = 2**31  # and their bytes
SHARED_MEMORY = Path("/dev/shm")  # where loading processes leave their batches


class CorpusExamples:
    """The training examples of one corpus and one kind.

    granularity "sample": one example per sample, with a random one of its captions (pre-training);
    "caption": one per caption, so that an epoch has a video once with each (retrieval); "question":
    one per question (QA). Samples without a text are skipped and counted in `skipped`.
    """

    def __init__(
        self, name: str, folder: Path, kind: str, granularity: Granularity, first_video: int
    ):
        self.name = name
        self.kind = kind
        self.first_video = first_video
        self.reader = ShardReader(folder, "train", kind)

        texts = self.reader.column("questions" if granularity == "question" else "captions")
        counts = pc.list_value_length(texts).to_numpy(zero_copy_only=False)
        self.skipped = int((counts == 0).sum())

        # Rows (sample, text) of the examples; text -1: a random one.
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
        """The examples of an epoch in training order. grouped: examples of a group are adjacent."""
        key = (epoch, grouped)
        if key not in self._orders:
            # 17 keeps this generator apart from those of the schedule (11) and of examples (23).
            rng = np.random.default_rng([seed, 17, self.first_video, epoch])
            order = grouped_order(self.groups, rng) if grouped else rng.permutation(len(self))

            # A batch may span two epochs; earlier orders are not asked for again.
            previous = {k: v for k, v in self._orders.items() if k[0] == epoch - 1}
            self._orders = {**previous, key: order}
        return self._orders[key]

    def at(self, position: int, count: int, seed: int, grouped: bool) -> list[tuple[int, int]]:
        """`count` pairs (epoch, example) from `position` on in the infinite sequence of epochs."""
        examples: list[tuple[int, int]] = []
        while len(examples) < count:
            epoch, start = divmod(position + len(examples), len(self))
            end = start + count - len(examples)
            chosen = self.order(seed, epoch, grouped)[start:end]
            examples += [(epoch, int(example)) for example in chosen]
        return examples


@dataclass(frozen=True)
class Examples:
    """What a training example is made of.

    granularity: see `CorpusExamples`. frames, image_size, grid: shape of the video encoder's input,
    grid in patches. mlm_probability: unless None, examples have masked tokens and crops.
    crop_share: share of the examples that show a crop, of crop_area of the frame; their box is then
    that of what is shown. answers: the classes of question answering.
    """

    granularity: Granularity
    frames: int
    image_size: int
    grid: int = 0
    mlm_probability: float | None = None
    crop_share: float = 0.0
    crop_area: tuple[float, float] = (0.3, 0.75)
    answers: tuple[str, ...] = ()


class TrainingDataset(Dataset[Batch]):
    """The batches of a training run: item n is this rank's share of step n, a pure function of
    seed, step and rank.

    corpora: folders of decoded corpora by name. spec: what an example is made of. one_length: all
    texts are padded to max_text_tokens. Raises InputError if a phase has no examples or the batch
    size is not divisible.
    """

    def __init__(
        self,
        config: TrainingConfig,
        corpora: Mapping[str, Path],
        tokenizer: Tokenizer,
        spec: Examples,
        rank: int = 0,
        ranks: int = 1,
        one_length: bool = False,
    ):
        config.check_division(ranks)
        self.config = config
        self.words = wrap_tokenizer(tokenizer)
        self.spec = spec
        self.answers = {answer: index for index, answer in enumerate(spec.answers)}
        self.rank = rank
        self.ranks = ranks
        self.one_length = one_length

        self.sources: list[CorpusExamples] = []
        self.skipped = 0
        for name in config.corpora:
            for kind in ("video", "image"):
                # Videos are numbered through all sources: equal numbers are one video.
                first_video = sum(len(source.reader) for source in self.sources)
                source = CorpusExamples(name, corpora[name], kind, spec.granularity, first_video)
                self.skipped += source.skipped  # also for a source without examples
                if len(source):
                    self.sources.append(source)
        self._schedule()

    def cut_texts(self) -> Iterator[str]:
        """A warning for each source with texts of more than `max_text_tokens` tokens, of which the
        rest is not used."""
        limit = self.config.max_text_tokens
        column = "questions" if self.spec.granularity == "question" else "captions"
        for source in self.sources:
            # Of a large corpus, evenly spaced samples.
            samples = len(source.reader)
            measured = segment_starts(samples, min(samples, MAX_MEASURED))
            texts: list[str] = []
            for values in source.reader.column(column).take(measured).to_pylist():
                texts += [text["question"] if column == "questions" else text for text in values]

            # One token more than the limit is enough to tell.
            lengths = [len(ids) for ids in self.words.ids(texts, limit + 1)]
            cut = sum(length > limit for length in lengths)
            if cut:
                yield (
                    f"{source.name}: {cut} of {len(texts)} {column} have more than "
                    f"max_text_tokens = {limit} tokens and are cut"
                )

    def _schedule(self) -> None:
        """Assigns a source to every step, and counts the earlier batches of that source."""
        rng = np.random.default_rng([self.config.seed, 11])
        sources_of_phases = []
        for phase in self.config.phases:
            sources = [i for i, s in enumerate(self.sources) if s.name in phase.corpora]
            if not sources:
                text = "question" if self.spec.granularity == "question" else "caption"
                raise InputError(
                    f"no training examples with a {text} in {', '.join(phase.corpora)}"
                )

            shares = np.array([self._share(source, phase) for source in sources])
            steps = self.steps_of(phase, sources)
            sources_of_phases.append(rng.choice(sources, steps, p=shares / shares.sum()))
        self.phase_steps = [len(steps) for steps in sources_of_phases]
        self.source_of = np.concatenate(sources_of_phases)

        self.turn = np.zeros(len(self.source_of), np.int64)
        for source in range(len(self.sources)):
            steps_of_source = self.source_of == source
            self.turn[steps_of_source] = np.arange(steps_of_source.sum())

    def _share(self, source: int, phase: Phase) -> float:
        """The relative number of steps of a source: the weight of its corpus, or its number of
        examples."""
        name = self.sources[source].name
        examples = len(self.sources[source])
        if not phase.weights:
            return examples

        # The videos and the images of a corpus divide its weight by their numbers.
        weight = phase.weights[phase.corpora.index(name)]
        in_corpus = sum(len(other) for other in self.sources if other.name == name)
        return weight * examples / in_corpus

    def steps_of(self, phase: Phase, sources: list[int]) -> int:
        examples = sum(len(self.sources[i]) for i in sources)
        return phase.steps or max(1, round(phase.epochs * examples / self.config.batch_size))

    def __len__(self) -> int:
        return len(self.source_of)

    def __getitem__(self, step: int) -> Batch:
        source = self.sources[self.source_of[step]]
        size = self.config.batch_size
        phase = self.config.phases[np.searchsorted(np.cumsum(self.phase_steps), step, side="right")]
        position = int(self.turn[step]) * size
        examples = source.at(position, size, self.config.seed, phase.group_batches)

        # All ranks share each micro-batch, so that its examples do not depend on the number of
        # ranks.
        shares = np.arange(size).reshape(self.config.accumulation_steps, self.ranks, -1)
        indices = shares[:, self.rank].ravel()

        unreadable: list[str] = []
        items = []
        for index in indices:
            epoch, example = examples[index]
            items.append(self.readable(source, epoch, example, unreadable))

        length = self.config.max_text_tokens if self.one_length else 0
        batch = collate(step, source.kind, items, self.words.pad_id, length)
        return replace(batch, unreadable=unreadable)

    def readable(
        self, source: CorpusExamples, epoch: int, example: int, unreadable: list[str]
    ) -> dict[str, Any]:
        """The arrays of an example, or of the next readable one; then the error is added to
        `unreadable`.

        The batch size stays the same on all ranks. Raises InputError after MAX_ATTEMPTS unreadable
        samples.
        """
        samples = source.examples[:, 0]
        errors: list[str] = []
        while len(errors) < MAX_ATTEMPTS:
            try:
                return self.example(source, epoch, example)
            except Unreadable as error:
                if not errors:
                    unreadable.append(str(error))
                errors.append(str(error))

            # The next example of another sample: adjacent examples can be captions of the same
            # video.
            others = np.flatnonzero(np.roll(samples, -example) != samples[example])
            if not len(others):
                break
            example = (example + int(others[0])) % len(source)
        raise InputError(
            f"{len(errors)} consecutive samples cannot be read, the last: {errors[-1]}; check the "
            "shards"
        )

    def example(self, source: CorpusExamples, epoch: int, example: int) -> dict[str, Any]:
        """The arrays of an example. Its random generator is seeded by seed, epoch and example."""
        # The draws below keep their order: a new one goes behind all others, or it changes every
        # example.
        rng = np.random.default_rng([self.config.seed, 23, source.first_video, epoch, example])
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

        # Augmentation reads the text: a clip is not mirrored if it says left or right.
        load_frames = self.still if source.kind == "image" else self.clip
        frames = load_frames(sample, full_text, rng)
        item["frames"] = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))

        ids = token_ids(self.words, text, self.config.max_text_tokens)
        item["ids"] = ids
        grid = self.spec.grid
        if self.spec.mlm_probability is not None:
            special = np.zeros(len(ids), bool)
            special[[0, -1]] = True  # [CLS] and [SEP]
            item["masked"], item["labels"] = mask_words(
                ids,
                special,
                mask_id=self.words.mask_id,
                vocab_size=self.words.size,
                probability=self.spec.mlm_probability,
                rng=rng,
            )
            item["box"] = random_box(grid, rng)

        if self.spec.crop_share:
            shows_crop = rng.random() < self.spec.crop_share
            whole_frame = (0, 0, grid, grid)
            item["box"] = random_box(grid, rng, self.spec.crop_area) if shows_crop else whole_frame

        item["uniforms"] = rng.random(2)
        return item

    def clip(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """Sampled, cropped and augmented frames of a video (T, H, W, 3) uint8; the model resizes
        them."""
        choose = frames_in_halves if self.config.sampling == "halves" else frames_at_random
        count = self.spec.frames
        chosen = choose(len(sample), count, rng) if len(sample) > 1 else [0] * count

        frames = random_crop(sample.frames(chosen), self.config.random_crop, rng)
        if self.config.augmentation == "official":
            frames = augment_video(frames, text, rng)
        return frames

    def still(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """An image of any aspect ratio: a still clip (T, size, size, 3) uint8, or one frame."""
        frame = sample.frames([0])
        if self.config.augmentation == "official":
            frame = augment_image(frame[0], self.spec.image_size, text, rng)[None]
        else:
            frame = squash(random_crop(frame, self.config.random_crop, rng), self.spec.image_size)

        # Section 3.3: images are duplicated to static videos.
        count = self.spec.frames if self.config.repeat_images else 1
        return np.broadcast_to(frame, (count, *frame.shape[1:]))

    def batch_bytes(self, step: int) -> int:
        """The bytes of the frames of a step's batch on this rank, from one example."""
        source = self.sources[self.source_of[min(step, len(self) - 1)]]
        example = self.readable(source, 0, 0, [])
        return example["frames"].nbytes * (self.config.batch_size // self.ranks)

    def loader(self, first: int, resources: Resources, device: torch.device) -> Iterator[Batch]:
        """The batches from step `first` on, in order; on a GPU worker processes, which start at
        once, prefetch them."""
        # On a CPU, worker processes would compete with training for the same cores.
        workers = 0
        batches_per_worker = None
        if device.type == "cuda":
            # The training processes of this machine share its cores and its shared memory.
            local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            batches = batches_ahead(self.batch_bytes(first), shared_memory() // local)
            workers = max(1, min(resources.worker_count // local, batches))
            batches_per_worker = max(1, min(4, batches // workers))

        loader = DataLoader(
            _ErrorsAsItems(self),
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=batches_per_worker,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # otherwise the loader advances the restored global generator
        )
        items = iter(loader)
        if loader.num_workers:
            # torch's handler raises wherever this process is when a worker dies. Without it, the
            # next batch raises.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return map(_raise_errors, items)


def shared_memory() -> int:
    """Free bytes of shared memory on this machine; on a system without its folder, no limit is
    known."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 2 * PREFETCH_BYTES


def batches_ahead(batch_bytes: int, available: int) -> int:
    """How many batches loading processes may hold. Raises InputError if one does not fit into half
    of the available bytes of shared memory: a write beyond its end would kill the process (bus
    error)."""
    usable = available // 2
    if batch_bytes <= usable:
        fitting = min(PREFETCH_BYTES, usable) // batch_bytes
        return max(1, min(PREFETCH_BATCHES, fitting))
    raise InputError(
        f"{SHARED_MEMORY} has {available / 2**20:.0f} MiB free for each training process, and a "
        f"batch has "
        f"{batch_bytes / 2**20:.0f}; start the container with --shm-size=16g, or lower batch_size"
    )


@lru_cache(2**16)
def token_ids(words: BertTokenizer, text: str, length: int) -> np.ndarray:
    """The ids of one text as of `words.ids`. They must not be changed."""
    return words.ids([text], length)[0]


def _raise_errors(item: Batch | InputError) -> Batch:
    if isinstance(item, InputError):
        raise item
    return item


@dataclass
class _ErrorsAsItems(Dataset[Batch | InputError]):
    """Returns InputErrors as items, so that the training process raises them without the worker's
    traceback."""

    dataset: TrainingDataset

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.dataset[step]
        except InputError as error:
            return error


def prepare_worker(worker: int) -> None:
    """Have a DataLoader worker end with its parent, and by nothing else.

    Signals reach the whole process group, and the training process finishes its step first.
    """
    set_parent_death_signal(os.getppid(), signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
