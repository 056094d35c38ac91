"""Validation of the training stages on the validation split of every training corpus."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.stages.encoding.encode import sample_frames, similarities
from alpro.stages.evaluation.metrics import accuracy_by_type, mean_recall, retrieval_metrics
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_pairs
from alpro.stages.training.config import EncoderConfig, MatchingValidation, TrainingConfig
from alpro.stages.training.loop import Validate

Items = TypeVar("Items", Gallery, Questions)
Inputs = dict[str, Path]


def validate_contrast(
    encoder: NormalizedModel,
    inputs: Inputs,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    more: Callable[[Gallery], dict[str, float]] = lambda gallery: {},
) -> Validate | None:
    """Validates retrieval by similarity (VTC), and what `more` measures; None if no corpus has a validation split."""
    galleries = validation_galleries(encoder, inputs, config, config.validation.captions)
    if not galleries:
        return None

    def metrics(gallery: Gallery) -> dict[str, float]:
        texts, videos = encode_gallery(encoder, gallery, tokenizer, config.max_text_tokens, encoder.mean.device)
        similarity = similarities(texts.features, videos.features).cpu().numpy()
        values = retrieval_metrics(similarity, gallery.video_of_text)
        return {f"validation/vtc/{name}": value for name, value in values.items()} | more(gallery)

    return lambda: averaged(galleries, metrics)


def validate_retrieval(
    encoder: NormalizedModel, inputs: Inputs, tokenizer: Tokenizer, config: TrainingConfig
) -> tuple[Validate, str]:
    """Validates retrieval by matching (VTM) with the configured protocol; also returns the metric for model selection.

    Raises InputError if no corpus has validation captions.
    """
    validation = cast(MatchingValidation, config.validation)
    galleries = validation_galleries(encoder, inputs, config, validation.captions)
    if not galleries:
        raise InputError(no_validation("captions"))

    def metrics(gallery: Gallery) -> dict[str, float]:
        texts, videos = encode_gallery(encoder, gallery, tokenizer, config.max_text_tokens, encoder.mean.device)
        scores = match_pairs(cast(Alpro, encoder.model), texts, videos, validation.protocol, validation.k)
        values = retrieval_metrics(scores, gallery.video_of_text)
        values["mean_recall"] = mean_recall(values)
        return {f"validation/{name}": value for name, value in values.items()}

    return lambda: averaged(galleries, metrics), "validation/mean_recall"


def validate_qa(
    encoder: NormalizedModel, inputs: Inputs, tokenizer: Tokenizer, answers: list[str], config: TrainingConfig
) -> tuple[Validate, str]:
    """Validates the accuracy of the most likely answer; also returns the metric for model selection.

    Raises InputError if no corpus has validation questions.
    """
    questions = {
        name: Questions.of(inputs[name], "validation").first(config.validation.videos) for name in config.corpora
    }
    parts = readable(encoder, questions)
    if not parts:
        raise InputError(no_validation("questions"))

    def metrics(part: Questions) -> dict[str, float]:
        best = answer_logits(encoder, part, tokenizer, config.max_text_tokens, encoder.mean.device).argmax(1)
        right = np.array([answers[int(i)] == answer for i, answer in zip(best, part.answers, strict=True)])
        return {f"validation/qa/{name}": value for name, value in accuracy_by_type(right, part.types).items()}

    return lambda: averaged(parts, metrics), "validation/qa/acc"


def validation_galleries(
    encoder: NormalizedModel, inputs: Inputs, config: TrainingConfig, captions: int
) -> dict[str, Gallery]:
    """The validation galleries by corpus, for corpora with validation captions."""
    galleries = {name: Gallery.of(inputs[name], "validation") for name in config.corpora}
    galleries = {name: gallery.first(config.validation.videos, captions) for name, gallery in galleries.items()}
    return readable(encoder, galleries)


def readable(encoder: NormalizedModel, parts: dict[str, Items]) -> dict[str, Items]:
    """The non-empty parts. Raises Unreadable before training, rather than at its end, if a frame cannot be read."""
    parts = {name: part for name, part in parts.items() if part.texts}
    for part in parts.values():
        for number in part.numbers:
            sample_frames(part.reader[number], encoder.model.config.video)
    return parts


def averaged(parts: dict[str, Items], metrics: Callable[[Items], dict[str, float]]) -> dict[str, float]:
    """The metrics averaged over corpora; for several corpora also those of each as `<metric>/of/<corpus>`."""
    by_corpus = {name: metrics(part) for name, part in parts.items()}
    names = dict.fromkeys(name for values in by_corpus.values() for name in values)
    means = {name: float(np.mean([values[name] for values in by_corpus.values() if name in values])) for name in names}
    if len(by_corpus) > 1:
        means |= {
            f"{name}/of/{corpus}": value for corpus, values in by_corpus.items() for name, value in values.items()
        }
    return means


def no_validation(column: str) -> str:
    return f"no corpus has validation videos with {column}: assign some in the column split, or raise `validation`"
