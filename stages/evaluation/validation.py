"""Validation of the training stages on the validation split of every training corpus."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.inference.encoding import sample_frames
from alpro.log import log
from alpro.models.frames import NormalizedModel
from alpro.models.ranks import rank
from alpro.stages.evaluation.evaluate_model import (
    MATCHING,
    SIMILARITY,
    Asked,
    evaluate_model,
)
from alpro.stages.evaluation.gallery import Gallery, draw_searches
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.metrics import mean_recall
from alpro.stages.training.config import (
    Corpora,
    EncoderConfig,
    MatchingValidation,
    TrainingConfig,
)
from alpro.stages.training.loop import Validate

SEARCHES = 3  # texts whose best clips are shown
PICTURE = "pictures/search.png"
# The prefixes of metrics by the names of scores: a training selects by matching, as in the paper.
PREFIXES = {MATCHING: "validation", SIMILARITY: "validation/vtc"}

Metrics = dict[str, float]


def validate_contrast(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    out: Path,
) -> Validate | None:
    """Validate retrieval by similarity (VTC).

    Each time it draws what a search for the first texts finds (`out`/pictures/search.png): the first
    result of a run, long before its end.

    Returns:
        The validation; None if no corpus has validation captions.
    """
    galleries = read_galleries(
        encoder, corpora, config, "captions", config.validation.captions
    )
    if not galleries:
        return None
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens)
    asked = Asked(tasks=("retrieval",), matched=())
    return partial(
        average, galleries, partial(measure, model, asked, picture=out / PICTURE)
    )


def validate_retrieval(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: TrainingConfig,
) -> tuple[Validate, str]:
    """Validate retrieval by matching (VTM) with the configured protocol, and by similarity (VTC).

    Returns:
        The validation, and the metric for model selection, which is of matching as in the paper.

    Raises:
        InputError: If no corpus has validation captions.
    """
    validation = cast(MatchingValidation, config.validation)
    galleries = read_galleries(
        encoder, corpora, config, "captions", validation.captions
    )
    check_validation(galleries, "captions")
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens)
    asked = Asked(tasks=("retrieval",), top_k=validation.top_k)
    return partial(
        average, galleries, partial(measure, model, asked)
    ), "validation/mean_recall"


def validate_qa(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    answers: list[str],
    config: TrainingConfig,
) -> tuple[Validate, str]:
    """Validate the accuracy of the most likely answer.

    Returns:
        The validation, and the metric for model selection.

    Raises:
        InputError: If no corpus has validation questions.
    """
    galleries = read_galleries(encoder, corpora, config, "questions")
    check_validation(galleries, "questions")
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens, answers)
    asked = Asked(tasks=("qa",))
    return partial(
        average, galleries, partial(measure, model, asked)
    ), "validation/qa/acc"


def measure(
    model: LoadedModel,
    asked: Asked,
    gallery: Gallery,
    picture: Path | None = None,
) -> Metrics:
    """Score a model on a gallery.

    Args:
        model: The model.
        asked: What to score.
        gallery: The gallery.
        picture: File of the picture of searches to draw, if any.

    Returns:
        The scores under the names of validation, and the mean recall of each ranking, by which
        weights are selected.
    """
    results = evaluate_model(model, gallery, asked)
    # Every process has all scores, and one of them writes.
    if picture and rank() == 0 and results.similarity is not None:
        is_new = not picture.exists()
        searches = range(min(SEARCHES, len(gallery.texts)))
        draw_searches(gallery, results.similarity, searches, picture)
        # Later checks replace it.
        if is_new:
            log.info(f"what the first texts find: {picture}")

    metrics = {}
    for name, value in results.values().items():
        ranking, _, rest = name.partition("/")
        prefix = PREFIXES.get(ranking, f"validation/{ranking}")
        metrics[f"{prefix}/{rest}"] = value
    for prefix in PREFIXES.values():
        if f"{prefix}/t2v/R1" in metrics:
            metrics[f"{prefix}/mean_recall"] = mean_recall(metrics, prefix)
    return metrics


def read_galleries(
    encoder: NormalizedModel,
    corpora: Corpora,
    config: TrainingConfig,
    column: str,
    texts: int = 0,
) -> dict[str, Gallery]:
    """Read the validation galleries of the corpora that have any.

    Args:
        encoder: Encoder that will read the frames.
        corpora: Folders of the corpora.
        config: Configuration of the training.
        column: captions or questions.
        texts: Texts of each video; 0: all.

    Raises:
        Unreadable: A frame cannot be read: before training, rather than at its end.
    """
    galleries = {}
    for name in config.corpora:
        gallery = Gallery.read(corpora[name], "validation", column=column)
        gallery = gallery.first(config.validation.videos, texts)
        if gallery.texts:
            galleries[name] = gallery
        for index in range(len(gallery.ids)):
            sample_frames(gallery.sample(index), encoder.model.config.video)
    return galleries


def check_validation(galleries: Mapping[str, Gallery], column: str) -> None:
    """Raise InputError if no corpus has a validation gallery."""
    if not galleries:
        raise InputError(
            f"no corpus has validation videos with {column}: assign some in the column split, or "
            "raise `validation`"
        )


def average(
    galleries: Mapping[str, Gallery], measure: Callable[[Gallery], Metrics]
) -> Metrics:
    """Return metrics averaged over corpora; for several corpora, also the metrics of each as
    `<metric>/of/<corpus>`."""
    by_corpus = {corpus: measure(gallery) for corpus, gallery in galleries.items()}

    # A corpus lacks the accuracy of types of questions that it does not have.
    values_by_name: dict[str, list[float]] = {}
    for metrics in by_corpus.values():
        for name, value in metrics.items():
            values_by_name.setdefault(name, []).append(value)
    means = {name: float(np.mean(values)) for name, values in values_by_name.items()}

    # With a single corpus they would be the same values twice.
    if len(by_corpus) > 1:
        for corpus, metrics in by_corpus.items():
            means |= {f"{name}/of/{corpus}": value for name, value in metrics.items()}
    return means
