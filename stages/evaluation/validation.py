"""Validation of the training stages on the validation split of every training corpus."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.inference.encoding import encode_texts, sample_frames, similarities
from alpro.log import log
from alpro.models.frames import NormalizedModel
from alpro.models.losses import box_mask, find_confident
from alpro.models.ranks import rank
from alpro.stages.evaluation.gallery import Gallery, Questions, draw_searches
from alpro.stages.evaluation.metrics import mean_recall, retrieval_metrics
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.evaluation.scores import accuracy_scores
from alpro.stages.training.batch import random_box
from alpro.stages.training.config import Corpora, EncoderConfig, MatchingValidation, TrainingConfig
from alpro.stages.training.loop import Validate
from alpro.stages.training.pretrain_objective import PretrainObjective

SEARCHES = 3  # texts whose best clips are shown
PICTURE = "pictures/search.png"

Items = TypeVar("Items", Gallery, Questions)


def validate_contrast(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    out: Path,
    more: Callable[[Gallery], dict[str, float]] = lambda gallery: {},
) -> Validate | None:
    """Validates retrieval by similarity (VTC), and what `more` measures; None if no corpus has a
    validation split.

    Each time it prints what a search for the first texts finds, and draws it
    (`out`/pictures/search.png): the first result of a run, long before its end.
    """
    galleries = validation_galleries(encoder, corpora, config, config.validation.captions)
    if not galleries:
        return None

    def metrics(gallery: Gallery) -> dict[str, float]:
        texts, videos = Scorer(encoder, tokenizer, config.max_text_tokens).encode(gallery)
        similarity = similarities(texts.features, videos.features).cpu().numpy()
        # Every process has all scores, and one of them writes.
        if rank() == 0:
            show_searches(gallery, similarity, out / PICTURE)

        values = retrieval_metrics(similarity, gallery.labels.relevant)
        return {f"validation/vtc/{name}": value for name, value in values.items()} | more(gallery)

    return lambda: averaged(galleries, metrics)


def show_searches(gallery: Gallery, similarity: np.ndarray, picture: Path) -> None:
    """Prints the best video for each of the first texts, and draws the best four. similarity:
    (texts, videos)."""
    searches = range(min(SEARCHES, len(gallery.texts)))
    for text in searches:
        best = int(similarity[text].argmax())
        caption = gallery.texts[int(np.searchsorted(gallery.video_of_text, best))]
        log.info(
            f'search "{gallery.texts[text]:.100}": found {gallery.ids[best]}, "{caption:.100}"'
        )
    if searches:
        draw_searches(gallery, similarity, searches, picture)
        log.info(f"the best four: {picture}")


def validate_pretraining(
    objective: PretrainObjective,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    out: Path,
) -> Validate | None:
    """Validates retrieval by similarity, as `validate_contrast`, and PEM where it is trained."""
    if "pem" not in objective.losses:
        return validate_contrast(objective, corpora, tokenizer, config, out)
    scores = partial(pem_scores, objective, tokenizer, config.max_text_tokens)
    return validate_contrast(objective, corpora, tokenizer, config, out, scores)


@torch.no_grad()
def pem_scores(
    objective: PretrainObjective,
    tokenizer: Tokenizer,
    length: int,
    gallery: Gallery,
    batch: int = 32,
) -> dict[str, float]:
    """PEM on one random crop of each clip of a gallery, drawn with a fixed seed, with the first
    caption of the clip.

    acc: how often (%) the head and the prompter name the same entity, of the crops whose label PEM
    keeps; kept: the share (%) of these crops; label_entropy: the mean entropy of their labels.
    """
    model = objective.model
    config = model.config.video
    device = objective.mean.device

    # The same crops at each validation, so that its curve shows the model alone.
    rng = np.random.default_rng([0, 59])
    gallery = gallery.first(0, texts=1)
    all_kinds = gallery.reader.column("kind").to_pylist()
    kinds = [all_kinds[index] for index in gallery.sample_indices]

    sums: Counter[str] = Counter()
    # Videos and images apart: they have prompts of their own.
    for kind in ("video", "image"):
        of_kind = [i for i in range(len(kinds)) if kinds[i] == kind]
        for start in range(0, len(of_kind), batch):
            chosen = of_kind[start : start + batch]
            stored = []
            for i in chosen:
                sample = gallery.reader[gallery.sample_indices[i]]
                stored.append(sample_frames(sample, config))
            frames = torch.from_numpy(np.stack(stored)).to(device)
            texts = encode_texts(model, tokenizer, [gallery.texts[i] for i in chosen], length)
            boxes = torch.tensor([random_box(config.grid, rng) for _ in chosen], device=device)

            labels = objective.pseudo_labels(frames, boxes, kind)
            video = model.encode_video(objective.pixels(frames))
            fused = model.fused_patches(texts.tokens, texts.mask, video)
            logits = model.pem_logits(fused, box_mask(boxes, config.grid)).float()

            kept = find_confident(labels, objective.threshold)
            # With a weight of 1 for each label, the metrics are sums over the batch.
            values = objective.pem_metrics(logits, labels, kept, kept.new_ones(()).float())
            sums.update({name: float(value) for name, value in values.items()})
            sums["kept"] += int(kept.sum())

    kept_count = max(1, sums["kept"])
    return {
        "validation/pem/acc": 100 * sums["pem_accuracy"] / kept_count,
        "validation/pem/kept": 100 * sums["kept"] / len(gallery.sample_indices),
        "validation/pem/label_entropy": sums["pseudo_label_entropy"] / kept_count,
    }


def validate_retrieval(
    encoder: NormalizedModel, corpora: Corpora, tokenizer: Tokenizer, config: TrainingConfig
) -> tuple[Validate, str]:
    """Validates retrieval by matching (VTM) with the configured protocol, and by similarity (VTC);
    also returns the metric for model selection, which is of matching as in the paper.

    Raises InputError if no corpus has validation captions.
    """
    validation = cast(MatchingValidation, config.validation)
    galleries = validation_galleries(encoder, corpora, config, validation.captions)
    if not galleries:
        raise InputError(no_validation("captions"))

    def metrics(gallery: Gallery) -> dict[str, float]:
        scorer = Scorer(encoder, tokenizer, config.max_text_tokens, validation.top_k)
        matching, similarity = scorer.score(gallery)
        by_name: dict[str, float] = {}
        # Of both: a model folder says which one ranks better.
        for prefix, scores in (("validation", matching), ("validation/vtc", similarity)):
            values = retrieval_metrics(scores, gallery.labels.relevant)
            values["mean_recall"] = mean_recall(values)
            by_name |= {f"{prefix}/{name}": value for name, value in values.items()}
        return by_name

    return lambda: averaged(galleries, metrics), "validation/mean_recall"


def validate_qa(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    answers: list[str],
    config: TrainingConfig,
) -> tuple[Validate, str]:
    """Validates the accuracy of the most likely answer; also returns the metric for model
    selection.

    Raises InputError if no corpus has validation questions.
    """
    by_corpus = {}
    for name in config.corpora:
        questions = Questions.of(corpora[name], "validation")
        by_corpus[name] = questions.first(config.validation.videos)
    by_corpus = readable(encoder, by_corpus)
    if not by_corpus:
        raise InputError(no_validation("questions"))

    def metrics(questions: Questions) -> dict[str, float]:
        scorer = Scorer(encoder, tokenizer, config.max_text_tokens)
        best = scorer.answer(questions).argmax(1).tolist()
        predicted = [answers[i] for i in best]
        # Validation shows no chance level: the baseline does not matter.
        scores = accuracy_scores(predicted, predicted, questions.items, questions.video_ids)
        return {f"validation/qa/{score.metric.key}": score.value for score in scores}

    return lambda: averaged(by_corpus, metrics), "validation/qa/acc"


def validation_galleries(
    encoder: NormalizedModel, corpora: Corpora, config: TrainingConfig, captions: int
) -> dict[str, Gallery]:
    """The validation galleries by corpus, for corpora with validation captions."""
    galleries = {}
    for name in config.corpora:
        gallery = Gallery.of(corpora[name], "validation")
        galleries[name] = gallery.first(config.validation.videos, captions)
    return readable(encoder, galleries)


def readable(encoder: NormalizedModel, galleries: dict[str, Items]) -> dict[str, Items]:
    """The galleries with a text. Raises Unreadable before training, rather than at its end, if a
    frame cannot be read."""
    with_texts = {name: gallery for name, gallery in galleries.items() if gallery.texts}
    for gallery in with_texts.values():
        for index in gallery.sample_indices:
            sample_frames(gallery.reader[index], encoder.model.config.video)
    return with_texts


def averaged(
    galleries: dict[str, Items], metrics: Callable[[Items], dict[str, float]]
) -> dict[str, float]:
    """The metrics averaged over corpora; for several corpora also those of each as
    `<metric>/of/<corpus>`."""
    by_corpus = {corpus: metrics(gallery) for corpus, gallery in galleries.items()}

    # A corpus lacks the accuracy of types of questions that it does not have.
    values_of: dict[str, list[float]] = {}
    for values in by_corpus.values():
        for name, value in values.items():
            values_of.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in values_of.items()}

    # Of a single corpus they would be the same values twice.
    if len(by_corpus) > 1:
        for corpus, values in by_corpus.items():
            for name, value in values.items():
                means[f"{name}/of/{corpus}"] = value
    return means


def no_validation(column: str) -> str:
    return f"no corpus has validation videos with {column}: assign some in the column split, or raise `validation`"
