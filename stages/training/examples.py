"""From decoded corpora to batches: which examples make step n, and the arrays of each. Everything follows from the
seed and the step alone, whoever loads it, so that position in the data is one number."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alpro.errors import InputError
from alpro.models.losses import mask_words, random_box
from alpro.shards.reader import Sample, ShardReader, Unreadable
from alpro.shards.sampling import frames_at_random, frames_in_halves, grouped_order
from alpro.shards.transforms import random_crop, squash
from alpro.stages.artifacts.store import Resources
from alpro.stages.corpora.pictures import clip_strip, sheet
from alpro.stages.training.augment import augment_image, augment_video, each_operation
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.vocabulary.word_pieces import WordPieces, pad, padded

TRIES = 20  # samples that are tried one after the other where one cannot be read
LOADED_AHEAD = 32  # batches that wait for a process that trains, in shared memory


@dataclass
class Batch:
    """One step's part of one rank. Frames are raw uint8; the objective normalizes them on its device."""

    step: int
    kind: str
    ids: list[str]
    video: Tensor  # (B,) the number of each example's video, equal for two captions of one video
    frames: Tensor  # (B, T, 3, H, W) uint8
    text: Tensor  # (B, L) word ids
    mask: Tensor  # (B, L) 1 = token, 0 = padding
    masked: Tensor | None = None  # (B, L) word ids with some masked (MLM)
    labels: Tensor | None = None  # (B, L) the masked words, -100 elsewhere
    boxes: Tensor | None = None  # (B, 4) crops in patches (PEM)
    answers: Tensor | None = None  # (B,) answers, -100 = outside the vocabulary
    uniforms: Tensor | None = (
        None  # (B, 2) in [0, 1): what draws each example's hard negatives; None: uniforms of the moment
    )
    most_masked: int = 0  # at least the most masked words of a text, rounded up; 0: not known
    lengths: list[int] = field(default_factory=list)  # of the texts; empty where all batches have one
    unreadable: list[str] = field(default_factory=list)  # examples in whose place the next one is shown, and why

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` applied to each of its tensors."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in given.items()}
        return Batch(**changed)

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self.map(Tensor.pin_memory)

    def split(self, parts: int) -> list["Batch"]:
        """Equal parts in order, for gradient accumulation; each as wide as its own longest text."""
        if parts == 1:
            return [self]
        size = len(self.ids) // parts
        found = []
        for number in range(parts):
            cut = slice(number * size, (number + 1) * size)
            part = replace(self.map(itemgetter(cut)), ids=self.ids[cut], lengths=self.lengths[cut])
            if part.lengths:
                longest = padded(max(part.lengths))
                part.text, part.mask = part.text[:, :longest], part.mask[:, :longest]
                if part.masked is not None and part.labels is not None:
                    part.masked, part.labels = part.masked[:, :longest], part.labels[:, :longest]
            found.append(part)
        return found


class Source:
    """The training examples of one corpus and one kind.

    unit "sample": one example a sample, with one of its captions drawn each time (pre-training); "caption": one a
    caption, so that an epoch shows a video once with each (retrieval); "question": one a question (QA). Samples
    without a text are left out and counted in `skipped`.
    """

    def __init__(self, name: str, folder: Path, kind: str, unit: str, group_batches: bool, first_video: int):
        self.name, self.kind, self.unit, self.group_batches = name, kind, unit, group_batches
        self.reader = ShardReader(folder, "train", kind)
        column = self.reader.column("questions" if unit == "question" else "captions")
        texts = np.array([len(value) for value in column], np.int64) if len(self.reader) else np.zeros(0, np.int64)
        self.skipped = int((texts == 0).sum())
        if unit == "sample":
            self.examples = np.stack([np.flatnonzero(texts), np.full((texts > 0).sum(), -1)], axis=1)
        else:
            samples = np.repeat(np.arange(len(texts)), texts)
            starts = np.repeat(np.cumsum(texts) - texts, texts)
            self.examples = np.stack([samples, np.arange(len(samples)) - starts], axis=1)
        groups = self.reader.column("group").dictionary_encode().indices.to_numpy(zero_copy_only=False)
        self.groups = groups[self.examples[:, 0]]
        self.first_video = first_video
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The examples of an epoch in the order in which they are shown."""
        if epoch not in self._orders:
            rng = np.random.default_rng([seed, 17, self.first_video, epoch])
            order = grouped_order(self.groups, rng) if self.group_batches else rng.permutation(len(self))
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1} | {epoch: order}
        return self._orders[epoch]

    def at(self, position: int, count: int, seed: int) -> list[tuple[int, int]]:
        """`count` examples from `position` on of the endless run of epochs, as (epoch, example)."""
        found: list[tuple[int, int]] = []
        while len(found) < count:
            epoch, offset = divmod(position + len(found), len(self))
            chosen = self.order(seed, epoch)[offset : offset + count - len(found)]
            found += [(epoch, int(example)) for example in chosen]
        return found


class TrainingDataset(Dataset[Batch]):
    """The batches of a training run by number: item n is this rank's part of step n (the same whoever asks)."""

    def __init__(
        self,
        config: TrainingConfig,
        corpora: dict[str, Path],
        tokenizer: Tokenizer,
        unit: Literal["sample", "caption", "question"],
        frames: int,
        image_size: int,
        grid: int = 0,
        mlm_probability: float = 0.0,
        answers: dict[str, int] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.config, self.words, self.unit, self.answers = config, WordPieces(tokenizer), unit, answers
        self.frames, self.image_size, self.grid, self.mlm_probability = frames, image_size, grid, mlm_probability
        self.rank, self.ranks = rank, ranks
        self.one_length = ranks > 1  # texts are padded to the same length: on all ranks, in all steps
        config.check_division(ranks)
        self.sources: list[Source] = []
        self.skipped = 0
        for name in config.corpora:
            for kind in ("video", "image"):
                first = sum(len(s.reader) for s in self.sources)
                source = Source(name, corpora[name], kind, unit, config.group_batches, first)
                self.skipped += source.skipped  # also of a source that has no example
                if len(source):
                    self.sources.append(source)
        self._lay_out()

    def _lay_out(self) -> None:
        """Decides for every step which source it draws from and how many batches that source has given before."""
        rng = np.random.default_rng([self.config.seed, 11])
        chosen = []
        for phase in self.config.phases:
            sources = [i for i, s in enumerate(self.sources) if s.name in phase.corpora]
            if not sources:
                text = "question" if self.unit == "question" else "caption"
                raise InputError(f"no training examples with a {text} in {', '.join(phase.corpora)}")
            shares = np.array([self._share(i, phase) for i in sources])
            chosen.append(rng.choice(sources, self.steps_of(phase, sources), p=shares / shares.sum()))
        self.source_of = np.concatenate(chosen)
        self.turn = np.zeros(len(self.source_of), np.int64)
        for i in range(len(self.sources)):
            mine = self.source_of == i
            self.turn[mine] = np.arange(mine.sum())

    def _share(self, source: int, phase: Phase) -> float:
        """A source's share of a phase's steps: the weight of its corpus, or its number of examples."""
        name = self.sources[source].name
        weight = phase.weights[phase.corpora.index(name)] if phase.weights else None
        if weight is None:
            return len(self.sources[source])
        return weight * len(self.sources[source]) / sum(len(s) for s in self.sources if s.name == name)

    def steps_of(self, phase: Phase, sources: list[int]) -> int:
        examples = sum(len(self.sources[i]) for i in sources)
        return phase.steps or max(1, round(phase.epochs * examples / self.config.batch_size))

    def __len__(self) -> int:
        return len(self.source_of)

    def __getitem__(self, step: int) -> Batch:
        source = self.sources[self.source_of[step]]
        size = self.config.batch_size
        examples = source.at(int(self.turn[step]) * size, size, self.config.seed)
        # Each accumulated part is shared by all ranks, so that it is the same examples on any number of them.
        mine = np.arange(size).reshape(self.config.accumulation_steps, self.ranks, -1)[:, self.rank].ravel()
        unreadable: list[str] = []
        items = [self.readable(source, epoch, n, unreadable) for epoch, n in (examples[place] for place in mine)]
        length = self.config.max_text_tokens if self.one_length else 0
        batch = collate(step, source.kind, items, self.words.pad_id, length)
        return replace(batch, unreadable=unreadable)

    def readable(self, source: Source, epoch: int, number: int, unreadable: list[str]) -> dict:
        """An example's arrays; of one that cannot be read those of the next, and a line in `unreadable`.

        A batch keeps its size, as the other ranks' have it, and nothing is replaced in silence.
        """
        samples = source.examples[:, 0]
        for tried in range(TRIES):
            try:
                return self.example(source, epoch, number)
            except Unreadable as error:
                if not tried:
                    unreadable.append(str(error))
                last = str(error)
            # Of another sample: the next may be the same video with its next caption.
            others = np.flatnonzero(np.roll(samples, -number) != samples[number])
            if not len(others):
                break
            number = (number + int(others[0])) % len(source)
        raise InputError(
            f"{tried + 1} samples in a row cannot be read, the last: {last}; see what became of the shards"
        )

    def example(self, source: Source, epoch: int, number: int) -> dict:
        """One example's arrays. Its randomness is keyed by seed, epoch and example."""
        rng = np.random.default_rng([self.config.seed, 23, source.first_video, epoch, number])
        sample_number, text_number = source.examples[number]
        sample = source.reader[int(sample_number)]
        if self.unit == "question":
            question = sample.about["questions"][text_number]
            text = question["question"]
            said = f"{text} {question['answer']}"
        else:
            captions = sample.about["captions"]
            said = text = captions[int(rng.integers(len(captions))) if text_number < 0 else text_number]
        frames = (self.still if source.kind == "image" else self.clip)(sample, said, rng)
        ids = self.words.ids([text], self.config.max_text_tokens)[0]
        item = {
            "id": sample.about["id"],
            "video": source.first_video + int(sample_number),
            "frames": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
            "ids": ids,
        }
        if self.unit == "question":
            assert self.answers is not None
            item["answer"] = self.answers.get(question["answer"], -100)
        if self.mlm_probability:
            special = np.zeros(len(ids), bool)
            special[[0, -1]] = True
            masked = mask_words(ids, special, self.words.mask_id, self.words.size, self.mlm_probability, rng)
            item["masked"], item["labels"] = masked
            item["box"] = random_box(self.grid, rng)
        item["uniforms"] = rng.random(2)
        return item

    def clip(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """Frames of a video: (T, H, W, 3) uint8, still to be resized to the encoder's size."""
        choose = frames_in_halves if self.config.sampling == "halves" else frames_at_random
        chosen = choose(len(sample), self.frames, rng) if len(sample) > 1 else [0] * self.frames
        frames = random_crop(sample.frames(chosen), self.config.random_crop, rng)
        return augment_video(frames, text, rng) if self.config.augmentation == "official" else frames

    def still(self, sample: Sample, text: str, rng: np.random.Generator) -> np.ndarray:
        """An image, stored with any aspect ratio, as a clip that stands still: (T, size, size, 3) uint8."""
        frame = sample.frames([0])
        if self.config.augmentation == "official":
            frame = augment_image(frame[0], self.image_size, text, rng)[None]
        else:
            frame = squash(random_crop(frame, self.config.random_crop, rng), self.image_size)
        return np.broadcast_to(frame, (self.frames, *frame.shape[1:]))

    def draw_augmentation(self, path: Path) -> None:
        """A picture of the augmentation: for each source a clip as it is stored and under each operation alone, then
        examples as the model sees them."""
        rows = []
        for source in self.sources:
            try:
                sample = source.reader[int(source.examples[0, 0])]
                stored = sample.frames([0, len(sample) - 1])
                rows.append(
                    clip_strip(stored, [f"{source.name}, {source.kind}s: {sample.about['id']} as it is stored"])
                )
                rows += [clip_strip(done, [name]) for name, done in each_operation(stored, source.kind)]
                for number in range(min(4, len(source))):
                    seen = self.example(source, 0, number)
                    rows.append(clip_strip(seen["frames"].transpose(0, 2, 3, 1)[:4], [f"{seen['id']} as it is shown"]))
            except Unreadable:
                continue  # training tells and counts it
        if rows:
            path.parent.mkdir(exist_ok=True)
            sheet(rows, columns=min(3, len(rows))).save(path)

    def loader(self, first: int, resources: Resources, device: torch.device) -> Iterator[Batch]:
        """The batches from step `first` on, in order, loaded ahead by worker processes where there is a GPU to feed."""
        self.one_length |= resources.compile  # every length is compiled anew
        # On a CPU the loading competes with the training for the same cores, and a process more only costs.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share this machine
        workers = max(1, resources.worker_count // local) if device.type == "cuda" else 0
        loader = DataLoader(
            _Told(self),
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=max(1, min(4, LOADED_AHEAD // workers)) if workers else None,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # or it draws from the random state that a checkpoint has just restored
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


@dataclass
class _Told(Dataset[Batch | InputError]):
    """Steps whose mistakes are handed over, to be raised in the process that trains: as they are, on one line."""

    steps: TrainingDataset

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.steps[step]
        except InputError as error:
            return error


def ignore_signals(worker: int) -> None:
    """Loading processes get the signals of their group too: the process that trains stops, and ends them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def collate(step: int, kind: str, items: list[dict], pad_id: int, length: int) -> Batch:
    """Examples to a batch, texts padded to `length`; 0: to the longest."""
    batch = Batch(
        step=step,
        kind=kind,
        ids=[item["id"] for item in items],
        video=torch.tensor([item["video"] for item in items]),
        frames=torch.from_numpy(np.stack([item["frames"] for item in items])),
        text=torch.from_numpy(pad([item["ids"] for item in items], pad_id, length)),
        mask=torch.from_numpy(pad([np.ones_like(item["ids"]) for item in items], 0, length)),
        uniforms=torch.from_numpy(np.stack([item["uniforms"] for item in items])),
        lengths=[] if length else [len(item["ids"]) for item in items],
    )
    if "masked" in items[0]:
        batch.masked = torch.from_numpy(pad([item["masked"] for item in items], pad_id, length))
        batch.labels = torch.from_numpy(pad([item["labels"] for item in items], -100, length))
        batch.most_masked = padded(max(1, int((batch.labels != -100).sum(1).max())))
    if "box" in items[0]:
        batch.boxes = torch.tensor([item["box"] for item in items])
    if "answer" in items[0]:
        batch.answers = torch.tensor([item["answer"] for item in items])
    return batch
