"""Validations of the training stages: on the validation split of every corpus that a stage trains on."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.stages.evaluation.encode import uniform_frames
from alpro.stages.evaluation.metrics import accuracy_by_type, retrieval_metrics
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_pairs
from alpro.stages.training.config import EncoderConfig, MatchingValidation, TrainingConfig
from alpro.stages.training.loop import Validate
from alpro.stages.training.objective import Objective

Part = TypeVar("Part", Gallery, Questions)
Inputs = dict[str, Path]


def validate_contrast(
    objective: Objective, inputs: Inputs, tokenizer: Tokenizer, config: EncoderConfig
) -> Validate | None:
    """Retrieval by the similarity of the unimodal features alone; None where no corpus has a validation split, as
    pre-training corpora often do not."""
    galleries = validation_galleries(objective, inputs, config, config.validation.captions)
    if not galleries:
        return None

    def metrics(gallery: Gallery) -> dict[str, float]:
        texts, videos = encode_gallery(objective, gallery, tokenizer, config.max_text_tokens, objective.mean.device)
        found, _, _ = retrieval_metrics((texts.features @ videos.features.T).cpu().numpy(), gallery.video_of_text)
        return {f"validation/vtc/{name}": value for name, value in found.items()}

    return lambda: averaged(galleries, metrics)


def validate_retrieval(
    objective: Objective, inputs: Inputs, tokenizer: Tokenizer, config: TrainingConfig
) -> tuple[Validate, str]:
    """Retrieval by matching, with the configured protocol; and the metric to select by."""
    validation = cast(MatchingValidation, config.validation)
    galleries = validation_galleries(objective, inputs, config, validation.captions)
    if not galleries:
        raise InputError(no_validation("captions"))

    def metrics(gallery: Gallery) -> dict[str, float]:
        texts, videos = encode_gallery(objective, gallery, tokenizer, config.max_text_tokens, objective.mean.device)
        scores = match_pairs(cast(Alpro, objective.model), texts, videos, validation.protocol, validation.k)
        found, _, _ = retrieval_metrics(scores, gallery.video_of_text)
        found["mean_recall"] = float(np.mean([found[f"{way}/R{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)]))
        return {f"validation/{name}": value for name, value in found.items()}

    return lambda: averaged(galleries, metrics), "validation/mean_recall"


def validate_qa(
    objective: Objective, inputs: Inputs, tokenizer: Tokenizer, answers: list[str], config: TrainingConfig
) -> tuple[Validate, str]:
    """Accuracy of the most likely answer, and the metric to select by."""
    every = {name: Questions.of(inputs[name], "validation").first(config.validation.videos) for name in config.corpora}
    parts = readable(objective, every)
    if not parts:
        raise InputError(no_validation("questions"))

    def metrics(part: Questions) -> dict[str, float]:
        best = answer_logits(objective, part, tokenizer, config.max_text_tokens, objective.mean.device).argmax(1)
        right = np.array([answers[int(i)] == answer for i, answer in zip(best, part.answers, strict=True)])
        return {f"validation/qa/{name}": value for name, value in accuracy_by_type(right, part.types).items()}

    return lambda: averaged(parts, metrics), "validation/qa/acc"


def validation_galleries(
    objective: Objective, inputs: Inputs, config: TrainingConfig, captions: int
) -> dict[str, Gallery]:
    """The gallery of each corpus that has validation videos with captions, by the name of the corpus."""
    galleries = {name: Gallery.of(inputs[name], "validation") for name in config.corpora}
    galleries = {name: gallery.first(config.validation.videos, captions) for name, gallery in galleries.items()}
    return readable(objective, galleries)


def readable(objective: Objective, parts: dict[str, Part]) -> dict[str, Part]:
    """The parts that have something to validate on. Raises Unreadable now, rather than at the end of training, if a
    frame of theirs cannot be read."""
    parts = {name: part for name, part in parts.items() if part.texts}
    for part in parts.values():
        for number in part.numbers:
            uniform_frames(part.reader, number, objective.model.config.video)
    return parts


def averaged(parts: dict[str, Part], metrics: Callable[[Part], dict[str, float]]) -> dict[str, float]:
    """The metrics of one corpus; of several their means, and those of each under `<metric>/of/<corpus>`."""
    found = {name: metrics(part) for name, part in parts.items()}
    names = dict.fromkeys(name for values in found.values() for name in values)
    means = {name: float(np.mean([values[name] for values in found.values() if name in values])) for name in names}
    if len(found) > 1:
        means |= {f"{name}/of/{corpus}": value for corpus, values in found.items() for name, value in values.items()}
    return means


def no_validation(column: str) -> str:
    return f"no corpus has validation videos with {column}: mark some in the column split, or raise `validation`"
