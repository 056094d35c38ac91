"""`alpro eval`: scores of any model on any labels, as rows of `Results`. A text may have several
right videos."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
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
from alpro.inference.items import is_corpus
from alpro.inference.model import Model
from alpro.inference.search import RERANKED
from alpro.log import log
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
from alpro.stages.evaluation.scores import Question, add_answers, add_retrieval, unanswerable


@dataclass(frozen=True)
class Labeled:
    """A video with its labels: `captions`, `questions`, and in `meta` perhaps `entities` and
    `relevant`, the ids of other videos for which its captions are right, too."""

    source: Row | Sample
    metadata: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.metadata["id"])


def labeled(source: Location, split: str, models: Sequence[Path] = ()) -> tuple[list[Labeled], str]:
    """The videos with labels of a decoded corpus, a manifest or a folder, and which those are. Of a
    corpus, those of the split that are not also in training; of a manifest with a column `split`,
    those of the split. Otherwise all, but if one of the `models` was trained on some of them, those
    of its run's split."""
    source = absolute(source)
    # The record is in the artifact, above its folder `model`.
    artifacts = [model.parent if model.name == "model" else model for model in models]
    if is_corpus(source):
        items, what = labeled_samples(source, split)
    else:
        items, what = labeled_rows(source, split, artifacts)

    items = [item for item in items if item.metadata["captions"] or item.metadata["questions"]]
    if not items:
        raise InputError(f"{source}: no video with a caption or a question ({what})")
    return items, what


def labeled_samples(corpus: Location, split: str) -> tuple[list[Labeled], str]:
    """The samples of a split of a decoded corpus, without those that are also in training."""
    shared: set[str] = set()
    if isinstance(corpus, Path) and (corpus / "overlap.parquet").is_file():
        shared = also_in_training(corpus, split)
    reader = ShardReader(corpus, split, exclude=shared)

    items = []
    for index in range(len(reader)):
        sample = reader[index]
        # Without the bytes that were fetched: memory does not hold the frames of all samples.
        items.append(Labeled(replace(sample, fetched=None), sample.metadata))

    what = f"split {split}"
    if shared:
        what = f"{what}, without {len(shared)} that are also in training"
    return items, what


def labeled_rows(
    source: Location, split: str, artifacts: Sequence[Path]
) -> tuple[list[Labeled], str]:
    """The rows of a manifest or a folder: those of the split if they name splits, otherwise those
    of the split in the run of one of the artifacts that trained on them, otherwise all."""
    rows = [row for row in scan_source(source)[1] if not isinstance(row, Reject)]
    if any(row.split for row in rows):
        kept = [row for row in rows if row.split == split]
        what = f"split {split}"
    else:
        # On videos that a model was trained on, its scores would be too good.
        of_run = split_of_run(rows, source, artifacts, split)
        if of_run is not None:
            kept = of_run
            what = f"split {split} of the model's own run"
        else:
            kept = rows
            what = "all: the data names no split"
            unknown = [artifact.name for artifact in artifacts if not read_record(artifact)]
            if unknown:
                what += f", and no record says whether {' and '.join(unknown)} trained on it"
    return [Labeled(row, row.model_dump()) for row in kept], what


def split_of_run(
    rows: list[Row], source: Location, artifacts: Sequence[Path], split: str
) -> list[Row] | None:
    """The rows of the split in the run that trained one of the models. Rows that the run decoded
    keep its split; others get the split that their group's hash gives. None if no corpus of the
    runs has an id or half of the files.

    Raises InputError if a corpus is not there to tell.
    """
    corpora = chain.from_iterable(map(corpora_of, artifacts))
    for corpus in corpora:
        record = read_record(corpus)
        if record is None or not (corpus / "index.parquet").is_file():
            raise InputError(
                f"{source}: the data names no split, and {corpus}, on which a model was trained, "
                f"is gone: add a "
                "column split"
            )

        known = known_splits(corpus, rows)
        if known is None:
            continue

        # A corpus of `index_shards` has none of these settings.
        names = ("group_pattern", "validation", "test", "seed")
        settings = {name: record.config[name] for name in names if name in record.config}
        with TemporaryDirectory() as cache:
            # As the run drew the splits of its own rows.
            plan = DecodePlan(import_source(source, Path(cache)), **settings)
            return [
                row for row in plan.rows(plan.row_indices) if known.get(row.id, row.split) == split
            ]
    return None


def known_splits(corpus: Path, rows: list[Row]) -> dict[str, str] | None:
    """The splits of a corpus by the ids of samples; by the ids of the rows if none is the same, but
    at least half of the files are. None if the corpus was not decoded from these rows."""
    index = pq.read_table(corpus / "index.parquet", columns=["id", "source", "split"]).to_pydict()
    by_id = dict(zip(index["id"], index["split"], strict=True))
    if any(row.id in by_id for row in rows):
        return by_id

    by_file = dict(zip(index["source"], index["split"], strict=True))
    splits = {row.id: by_file[row.file_name] for row in rows if row.file_name in by_file}
    # Single files of one name, such as video1.mp4, are in many data sets.
    return splits if len(splits) >= max(1, len(rows) / 2) else None


def corpora_of(artifact: Path) -> Iterator[Path]:
    """The decoded corpora on which the model of an artifact was trained, and those on which its
    inputs were."""
    record = read_record(artifact)
    if record is None:
        return
    for source in record.inputs.values():
        # A model is trained on corpora and on other models, which have inputs of their own.
        folder = input_folder(artifact, source)
        if source.stage in CORPUS_STAGES:
            yield folder
        else:
            yield from corpora_of(folder)


def labels_of(items: list[Labeled]) -> Labels:
    """Which videos are right for each text. Equal captions, whatever their case, are one text with
    several videos."""
    index_of_id = {item.id: i for i, item in enumerate(items)}
    texts: dict[str, str] = {}  # by their key, as the first video writes them
    videos_of_text: dict[str, set[int]] = {}
    for i, item in enumerate(items):
        videos = {i}
        for other in item.metadata["meta"].get("relevant") or ():
            # The other video may be of another split, or have failed to decode.
            if other in index_of_id:
                videos.add(index_of_id[other])

        for text in item.metadata["captions"]:
            key = text.casefold()
            texts.setdefault(key, text)
            videos_of_text.setdefault(key, set()).update(videos)

    relevant = np.zeros((len(texts), len(items)), bool)
    for row, key in zip(relevant, texts, strict=True):
        row[list(videos_of_text[key])] = True
    return Labels([item.id for item in items], list(texts.values()), relevant)


def encode(model: Model, items: list[Labeled]) -> tuple[list[Labeled], Videos]:
    """The items that could be decoded, and their encoded videos. Raises InputError if there are
    none."""
    kept: list[Labeled] = []
    tokens = []
    features = []
    # Only ALPRO's matching and answer heads read the tokens of patches.
    cls_only = not isinstance(model.folder.model, Alpro)
    sources = [item.source for item in items]
    for batch in model.batches(sources, cls_only=cls_only, total=len(items)):
        if batch.decoded:
            kept += [items[i] for i in batch.decoded]
            tokens.append(batch.videos.tokens)
            features.append(batch.videos.features)

    if not kept:
        raise InputError("none of the videos could be decoded")
    return kept, Videos(torch.cat(tokens), torch.cat(features))


@dataclass(frozen=True)
class Threshold:
    """A similarity below which nothing fits, for `alpro search --nothing-below`, and its errors,
    shares of the texts: `missed`, of which it rejects every video; `accepted`, of which it accepts
    a video although theirs are left out. Of all thresholds, the one with the smallest sum."""

    similarity: float
    missed: float
    accepted: float

    def separates(self, texts: int) -> bool:
        """Whether it separates right from wrong better than chance would for so many texts: two
        samples of n values from one distribution are apart by more than 1.36 sqrt(2 / n) in 5 of
        100 cases (Kolmogorov-Smirnov)."""
        return 1 - self.missed - self.accepted > 1.36 * math.sqrt(2 / texts)

    @classmethod
    def of(cls, similarity: np.ndarray, relevant: np.ndarray) -> "Threshold":
        """similarity, relevant (boolean): (texts, videos)."""
        best = np.sort(similarity.max(1))
        best_wrong = np.sort(np.where(relevant, -np.inf, similarity).max(1))

        # Both shares change at these similarities only; `searchsorted` counts what lies below.
        levels = np.unique(np.concatenate([best, best_wrong]))
        missed = np.searchsorted(best, levels) / len(best)
        accepted = 1 - np.searchsorted(best_wrong, levels) / len(best_wrong)

        i = int(np.argmin(missed + accepted))
        return cls(float(levels[i]), missed=float(missed[i]), accepted=float(accepted[i]))


@torch.inference_mode()
def evaluate(
    model: Model, items: list[Labeled], split: str, out: Path, prompter: Model | None = None
) -> tuple[Results, list[Labeled], Threshold | None]:
    """Scores a model on what the data has labels for: answers if it answers questions, otherwise
    retrieval; and the entities of its prompter. Returns the results, which are written to a folder,
    the videos that could be decoded, and the threshold of a model that searches. Raises InputError
    if there is nothing to score."""
    results = Results(split, out)
    decoded, videos = encode(model, items)
    # No score counts these: the results say how many there are.
    if len(decoded) < len(items):
        results.add_share(
            table="decoded",
            key="data",
            what="videos of the data",
            name="decoded",
            share=(len(decoded), len(items)),
        )

    threshold = None
    if model.folder.answers:
        _add_answers(results, model, decoded, videos)
    else:
        labels = labels_of(decoded)
        if labels.texts:
            threshold = _add_retrieval(results, model, labels, videos)

    # Its videos are encoded already.
    if prompter is not None and prompter is model:
        _add_entities(results, prompter, decoded, videos)
    elif prompter is not None:
        decoded_by_prompter, prompter_videos = encode(prompter, decoded)
        _add_entities(results, prompter, decoded_by_prompter, prompter_videos)

    if not results.rows:
        raise InputError(f"no labels that this {model.folder.task} model could be scored on")
    results.outcome()
    return results, decoded, threshold


def _add_retrieval(results: Results, model: Model, labels: Labels, videos: Videos) -> Threshold:
    """Adds retrieval by similarity and, of a model that matches, as `alpro search --rerank`
    ranks."""
    frames = f"{model.folder.model.config.video.frames} frames"
    protocol = f"all pairs, {frames}"
    similarity = similarities(model.embed_texts(labels.texts), videos.features).cpu().numpy()
    add_retrieval(
        results,
        what="by similarity",
        name="similarity",
        scores=similarity,
        labels=labels,
        protocol=protocol,
    )

    # A text may have several right videos, of which recall counts the best alone.
    for direction, (ranked, relevant) in by_direction(similarity, labels.relevant).items():
        precision = average_precision(ranked, relevant, labels.queries(direction))
        results.add(precision, "by similarity", "similarity", direction, protocol)

    if isinstance(model.folder.model, Alpro):
        # A search ranks videos for a text, never texts for a video.
        with model.autocast():
            texts = model.texts(labels.texts)
            (scores,) = match_top_k(
                model.folder.model, texts, videos, k=RERANKED, directions=("t2v",)
            )
        add_retrieval(
            results,
            what=f"with --rerank {RERANKED}",
            name="rerank",
            scores=scores,
            labels=labels,
            directions=("t2v",),
            protocol=f"top {RERANKED}, {frames}",
        )
    return Threshold.of(similarity, labels.relevant)


def _add_answers(results: Results, model: Model, items: list[Labeled], videos: Videos) -> None:
    """Adds the accuracy of answers by type; beside it that of the most frequent right answer of
    each type."""
    questions: list[Question] = []
    video_of_question: list[int] = []
    for i, item in enumerate(items):
        questions += item.metadata["questions"]
        video_of_question += [i] * len(item.metadata["questions"])

    if not questions:
        raise InputError("this model answers questions, and the data has none")
    for line in unanswerable(questions, model.folder.answers):
        log.warning(line)

    alpro = cast(Alpro, model.folder.model)
    pairs = np.stack([np.arange(len(questions)), np.array(video_of_question)], axis=1)
    with model.autocast():
        texts = model.texts([question["question"] for question in questions])
        logits = score(alpro, cast(nn.Module, alpro.qa_head), texts, videos, pairs).cpu()
    add_answers(
        results,
        what="question answering",
        name="qa",
        logits=logits,
        answers=model.folder.answers,
        asked=questions,
        video_ids=[items[i].id for i in video_of_question],
        # There are no training questions: the baseline knows the right answers, and is optimistic.
        trained=questions,
    )


def _add_entities(results: Results, prompter: Model, items: list[Labeled], videos: Videos) -> None:
    """Adds the accuracy of the prompter's most likely entity on the videos and images with a known
    one."""
    entities = prompter.folder.entities
    # Videos and images have prompts of their own.
    best_of_kind = {}
    for kind, prompts in prompter.prompts.items():
        best_of_kind[kind] = similarities(videos.features, prompts).argmax(1).tolist()

    predictions = []
    for i, item in enumerate(items):
        truth = true_entities(item.metadata, entities)
        if truth:
            best = best_of_kind[prompter.prompt_kind(item.source)][i]
            captions = CAPTIONS.join(item.metadata["captions"])
            predictions.append(EntityPrediction(item.id, captions, truth, named=entities[best]))
    add_entities(results, predictions, entities)
