"""Validation of the training stages on the validation split of every training corpus."""

from collections.abc import Mapping

import numpy as np

from alpro.errors import InputError
from alpro.inference.clips import read_frames
from alpro.models.folder import ModelBundle
from alpro.models.frames import NormalizedModel
from alpro.stages.evaluation.evaluate_model import (
    MATCHING,
    SIMILARITY,
    Asked,
    evaluate_model,
)
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.metrics import DIRECTIONS, RECALLS
from alpro.stages.execution.interface import Corpora, Metrics
from alpro.stages.training.config import (
    EncoderConfig,
    TrainingConfig,
)
from alpro.stages.training.loop import Validate

# A model is trained with the similarity of all pairs, and matching them would take longer.
BY_SIMILARITY = Asked(matched=())
# The prefixes of metrics by the names of scores: a training selects by matching, as in the paper.
PREFIXES = {MATCHING: "validation", SIMILARITY: "validation/vtc"}


def build_validation(
    encoder: NormalizedModel,
    corpora: Corpora,
    bundle: ModelBundle,
    config: TrainingConfig,
    asked: Asked,
) -> Validate | None:
    """Build the validation of a training, on the first texts and videos that it asks for.

    Args:
        encoder: The model, as it is trained.
        corpora: Folders of the corpora.
        bundle: The model with its tokenizer and answers.
        config: Configuration of the training.
        asked: How to score it.

    Returns:
        The validation. None for a model's first training if no corpus has validation texts.

    Raises:
        InputError: If there are none for a fine-tuning, which selects weights by them.
    """
    column = "questions" if bundle.answers else "captions"
    galleries = read_galleries(encoder, corpora, config, column)
    if galleries:
        model = LoadedModel("", bundle, encoder, length=config.max_text_tokens)
        return lambda: average(
            {name: measure(model, asked, one) for name, one in galleries.items()}
        )
    if isinstance(config, EncoderConfig):
        return None
    raise InputError(
        f"no corpus has validation videos with {column}: assign some in the column split, or "
        "raise `validation`"
    )


def measure(model: LoadedModel, asked: Asked, gallery: Gallery) -> Metrics:
    """Score a model on a gallery.

    Returns:
        The scores under the names of validation, and the mean recall of each ranking, by which
        weights are selected.
    """
    results = evaluate_model(model, gallery, asked)
    metrics = {}
    for row, _ in results.scores:
        ranking, _, rest = row["name"].partition("/")
        prefix = PREFIXES.get(ranking, f"validation/{ranking}")
        metrics[f"{prefix}/{rest}"] = row["value"]
    for prefix in PREFIXES.values():
        if f"{prefix}/t2v/R1" in metrics:
            metrics[f"{prefix}/mean_recall"] = mean_recall(metrics, prefix)
    return metrics


def mean_recall(metrics: Mapping[str, float], prefix: str) -> float:
    """Return the mean of the recalls of both directions, for model selection.

    Args:
        metrics: Metrics by name, such as validation/vtc/t2v/R1.
        prefix: What precedes the direction, such as validation/vtc.
    """
    recalls = []
    for direction in DIRECTIONS:
        recalls += [
            metrics[f"{prefix}/{direction}/{recall.key}"] for recall in RECALLS.values()
        ]
    return float(np.mean(recalls))


def read_galleries(
    encoder: NormalizedModel,
    corpora: Corpora,
    config: TrainingConfig,
    column: str,
) -> dict[str, Gallery]:
    """Read the validation galleries of the corpora that have any.

    Args:
        encoder: Encoder that will read the frames.
        corpora: Folders of the corpora.
        config: Configuration of the training.
        column: captions or questions.

    Raises:
        Unreadable: A frame cannot be read: before training, rather than at its end.
    """
    galleries = {}
    for name in config.corpora:
        gallery = Gallery.read(
            corpora[name],
            "validation",
            column=column,
            videos=config.validation.videos,
            # All questions of a video are asked.
            texts=getattr(config.validation, "captions", 0),
        )
        if gallery.texts:
            galleries[name] = gallery
        video = encoder.model.config.video
        for index in range(len(gallery.ids)):
            read_frames(gallery.sample(index), video.frames, video.image_size)
    return galleries


def average(by_corpus: Mapping[str, Metrics]) -> Metrics:
    """Return metrics averaged over corpora; for several corpora, also the metrics of each as
    `<metric>/of/<corpus>`."""
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
