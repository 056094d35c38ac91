"""`alpro eval`: scores of any model on any labels, as rows of `Results`. A text may have several right videos."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.inference.encoding import Videos, match_top_k, score, similarities
from alpro.inference.find import input_folder
from alpro.inference.index_videos import is_corpus
from alpro.inference.model import Model
from alpro.inference.search import RERANKED
from alpro.models.alpro import Alpro
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.manifest import import_source
from alpro.shards.sources.plan import DecodePlan
from alpro.shards.sources.scan import scan_source
from alpro.shards.storage import Location, absolute
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.entities import EntityPrediction, add_entities, true_entities
from alpro.stages.evaluation.gallery import Labels
from alpro.stages.evaluation.metrics import CAPTIONS, average_precision, by_direction
from alpro.stages.evaluation.protocol import also_in_training
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.scores import add_answers, add_retrieval


@dataclass(frozen=True)
class Labeled:
    """A video with its labels: `captions`, `questions`, and in `meta` perhaps `entities` and `relevant`, the ids of
    other videos for which its captions are right, too."""

    source: Row | Sample
    about: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.about["id"])


def labeled(source: Location, split: str, models: Sequence[Path] = ()) -> tuple[list[Labeled], str]:
    """The videos with labels of a decoded corpus, a manifest or a folder, and which those are. Of a corpus, those of
    the split that are not also in training; of a manifest with a column `split`, those of the split. Otherwise all,
    but if one of the `models` was trained on some of them, those of its run's split."""
    source, models = (
        absolute(source),
        [model.parent if model.name == "model" else model for model in models],
    )
    if is_corpus(source):
        listed = isinstance(source, Path) and (source / "overlap.parquet").is_file()
        shared = also_in_training(Path(source), split) if listed else set()
        reader = ShardReader(source, split, exclude=shared)
        samples = map(reader.__getitem__, range(len(reader)))
        items = [
            Labeled(replace(sample, fetched=None), sample.about) for sample in samples
        ]  # not all in memory
        what = f"split {split}" + (
            f", without {len(shared)} that are also in training" if shared else ""
        )
    else:
        rows = [row for row in scan_source(source)[1] if not isinstance(row, Reject)]
        named = any(row.split for row in rows)
        own = None if named else own_split(rows, source, models, split)
        what = f"split {split}" if named else "all: the data names no split"
        if own is not None:
            what = f"split {split} of the model's own run"
        elif not named and (unknown := [model.name for model in models if not read_record(model)]):
            what += f", and no record says whether {' and '.join(unknown)} trained on it"
        kept = [row for row in rows if not named or row.split == split] if own is None else own
        items = [Labeled(row, row.model_dump()) for row in kept]
    items = [item for item in items if item.about["captions"] or item.about["questions"]]
    if not items:
        raise InputError(f"{source}: no video with a caption or a question ({what})")
    return items, what


def own_split(
    rows: list[Row], source: Location, models: Sequence[Path], split: str
) -> list[Row] | None:
    """The rows of the split in the run that trained one of the models: of the rows that it decoded, its own; of others,
    by the hash of their group, as it would decode them. None if its corpora have no id and less than half of the files.

    Raises InputError if a corpus is not there to tell.
    """
    for corpus in (corpus for model in models for corpus in corpora_of(model)):
        config = (read_record(corpus) or {}).get("config")
        if config is None or not (corpus / "index.parquet").is_file():
            raise InputError(
                f"{source}: the data names no split, and {corpus}, on which a model was trained, is gone: add a "
                "column split"
            )
        index = pq.read_table(
            corpus / "index.parquet", columns=["id", "source", "split"]
        ).to_pydict()
        known = dict(zip(index["id"], index["split"], strict=True))
        if not any(row.id in known for row in rows):
            files = dict(zip(index["source"], index["split"], strict=True))
            known = {row.id: files[row.file_name] for row in rows if row.file_name in files}
            if len(known) < max(1, len(rows) / 2):
                continue
        names = ("group_pattern", "validation", "test", "seed")
        with TemporaryDirectory() as cache:
            settings = {name: config[name] for name in names if name in config}
            plan = DecodePlan(import_source(source, Path(cache)), **settings)
            return [row for row in plan.rows(plan.numbers) if known.get(row.id, row.split) == split]
    return None


def corpora_of(artifact: Path) -> Iterator[Path]:
    """The decoded corpora on which the model of an artifact was trained, and those on which its inputs were."""
    for source in (read_record(artifact) or {"inputs": {}})["inputs"].values():
        folder = input_folder(artifact, source)
        yield from [folder] if source["stage"] in CORPUS_STAGES else corpora_of(folder)


def labels_of(items: list[Labeled]) -> Labels:
    """Which videos are right for each text. Equal captions, whatever their case, are one text with several videos."""
    place, owners = {item.id: i for i, item in enumerate(items)}, dict[str, tuple[str, set[int]]]()
    for i, item in enumerate(items):
        also = {
            place[other] for other in item.about["meta"].get("relevant") or () if other in place
        }
        for text in item.about["captions"]:
            owners.setdefault(text.casefold(), (text, set()))[1].update({i} | also)
    relevant = np.zeros((len(owners), len(items)), bool)
    for row, (_, videos) in zip(relevant, owners.values(), strict=True):
        row[list(videos)] = True
    return Labels([item.id for item in items], [text for text, _ in owners.values()], relevant)


def encode(model: Model, items: list[Labeled]) -> tuple[list[Labeled], Videos]:
    """The items that could be decoded, and their encoded videos. Raises InputError if there are none."""
    kept, tokens, features = list[Labeled](), [], []
    cls_only = not isinstance(model.folder.model, Alpro)
    for batch in model.batches(
        [item.source for item in items], cls_only=cls_only, total=len(items)
    ):
        if batch.decoded:
            kept += [items[i] for i in batch.decoded]
            tokens.append(batch.videos.tokens)
            features.append(batch.videos.features)
    if not kept:
        raise InputError("none of the videos could be decoded")
    return kept, Videos(torch.cat(tokens), torch.cat(features))


@dataclass(frozen=True)
class Threshold:
    """A similarity below which nothing fits, for `alpro search --nothing-below`, and its errors, shares of the texts:
    `missed`, of which it rejects every video; `accepted`, of which it accepts a video although theirs are left out.
    Of all thresholds, the one with the smallest sum."""

    similarity: float
    missed: float
    accepted: float

    def separates(self, texts: int) -> bool:
        """Whether it separates right from wrong better than chance would for so many texts: two samples of n values
        from one distribution are apart by more than 1.36 sqrt(2 / n) in 5 of 100 cases (Kolmogorov-Smirnov)."""
        return 1 - self.missed - self.accepted > 1.36 * math.sqrt(2 / texts)

    @classmethod
    def of(cls, similarity: np.ndarray, relevant: np.ndarray) -> "Threshold":
        """similarity, relevant (boolean): (texts, videos)."""
        best = np.sort(similarity.max(1))
        others = np.sort(np.where(relevant, -np.inf, similarity).max(1))
        levels = np.unique(np.concatenate([best, others]))
        missed = np.searchsorted(best, levels) / len(best)
        accepted = 1 - np.searchsorted(others, levels) / len(others)
        least = int(np.argmin(missed + accepted))
        return cls(float(levels[least]), float(missed[least]), float(accepted[least]))


@torch.inference_mode()
def evaluate(
    model: Model, items: list[Labeled], split: str, out: Path, prompter: Model | None = None
) -> tuple[Results, list[Labeled], Threshold | None]:
    """Scores a model on what the data has labels for: answers if it answers questions, otherwise retrieval; and the
    entities of its prompter. Returns the results, which are written to a folder, the videos that could be decoded, and
    the threshold of a model that searches. Raises InputError if there is nothing to score."""
    results, threshold = Results(split, out), None
    decoded, videos = encode(model, items)
    if len(decoded) < len(items):
        results.add_share(
            "decoded", "data", "videos of the data", "decoded", len(decoded), len(items)
        )
    if model.folder.answers:
        _answers(results, model, decoded, videos)
    elif (labels := labels_of(decoded)).texts:
        threshold = _retrieval(results, model, labels, videos)
    if prompter:
        named, of_prompter = (decoded, videos) if prompter is model else encode(prompter, decoded)
        _entities(results, prompter, named, of_prompter)
    if not results.rows:
        raise InputError(f"no labels that this {model.folder.task} model could be scored on")
    results.outcome()
    return results, decoded, threshold


def _retrieval(results: Results, model: Model, labels: Labels, videos: Videos) -> Threshold:
    """Adds retrieval by similarity and, of a model that matches, as `alpro search --rerank` ranks."""
    frames = f"{model.folder.model.config.video.frames} frames"
    similarity = similarities(model.embed_texts(labels.texts), videos.features).cpu().numpy()
    add_retrieval(
        results, "by similarity", "similarity", similarity, labels, protocol=f"all pairs, {frames}"
    )
    for direction, (ranked, relevant) in by_direction(similarity, labels.relevant).items():
        precision = average_precision(ranked, relevant, labels.queries(direction))
        results.add(precision, "by similarity", "similarity", direction, f"all pairs, {frames}")
    if isinstance(model.folder.model, Alpro):
        with model.precision():
            texts = model.texts(labels.texts)
            (scores,) = match_top_k(
                model.folder.model, texts, videos, RERANKED, directions=("t2v",)
            )
        protocol = f"top {RERANKED}, {frames}"
        add_retrieval(
            results, f"with --rerank {RERANKED}", "rerank", scores, labels, ("t2v",), protocol
        )
    return Threshold.of(similarity, labels.relevant)


def _answers(results: Results, model: Model, items: list[Labeled], videos: Videos) -> None:
    """Adds the accuracy of answers by type; beside it that of the most frequent right answer of each type."""
    asked = [(i, question) for i, item in enumerate(items) for question in item.about["questions"]]
    if not asked:
        raise InputError("this model answers questions, and the data has none")
    places, questions = zip(*asked, strict=True)
    alpro, pairs = cast(Alpro, model.folder.model), np.array([*enumerate(places)])
    with model.precision():
        texts = model.texts([question["question"] for question in questions])
        logits = score(alpro, cast(nn.Module, alpro.qa_head), texts, videos, pairs).cpu()
    about = [*questions], [items[i].id for i in places], [*questions]
    add_answers(results, "question answering", "qa", logits, model.folder.answers, *about)


def _entities(results: Results, prompter: Model, items: list[Labeled], videos: Videos) -> None:
    """Adds the accuracy of the prompter's most likely entity on the videos and images with a known one."""
    names = prompter.folder.entities
    best = {
        kind: similarities(videos.features, of).argmax(1).tolist()
        for kind, of in prompter.prompts.items()
    }
    named = (names[best[prompter.kind_of(item.source)][place]] for place, item in enumerate(items))
    known = (
        (item, true_entities(item.about, names), name)
        for item, name in zip(items, named, strict=True)
    )
    clips = [
        EntityPrediction(item.id, CAPTIONS.join(item.about["captions"]), truth, name)
        for item, truth, name in known
        if truth
    ]
    add_entities(results, clips, names)
