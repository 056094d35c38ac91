"""Validation of the training stages on the validation split of every training corpus."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.inference.encoding import encode_texts, sample_frames
from alpro.log import log
from alpro.models.frames import NormalizedModel
from alpro.models.losses import box_mask, find_confident
from alpro.models.ranks import rank
from alpro.stages.evaluation.evaluate_model import MATCHING, SIMILARITY, Asked, evaluate_model
from alpro.stages.evaluation.gallery import Gallery, draw_searches
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.metrics import mean_recall
from alpro.stages.training.batch import random_box
from alpro.stages.training.config import Corpora, EncoderConfig, MatchingValidation, TrainingConfig
from alpro.stages.training.loop import Validate
from alpro.stages.training.pretrain_objective import PretrainObjective

SEARCHES = 3  # texts whose best clips are shown
PICTURE = "pictures/search.png"
PEM_BATCH = 32
# The prefixes of metrics by the names of scores: a training selects by matching, as in the paper.
PREFIXES = {MATCHING: "validation", SIMILARITY: "validation/vtc"}

Metrics = dict[str, float]


def validate_contrast(
    encoder: NormalizedModel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    out: Path,
    more: Callable[[Gallery], Metrics] = lambda gallery: {},
) -> Validate | None:
    """Validate retrieval by similarity (VTC), and what `more` measures.

    Each time it prints what a search for the first texts finds, and draws it
    (`out`/pictures/search.png): the first result of a run, long before its end.

    Returns:
        The validation; None if no corpus has validation captions.
    """
    galleries = read_galleries(encoder, corpora, config, "captions", config.validation.captions)
    if not galleries:
        return None
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens)
    asked = Asked(tasks=("retrieval",), matched=())

    def measure(gallery: Gallery) -> Metrics:
        results = evaluate_model(model, gallery, asked)
        # Every process has all scores, and one of them writes.
        if rank() == 0 and results.similarity is not None:
            show_searches(gallery, results.similarity, out / PICTURE)
        return name_metrics(results.values()) | more(gallery)

    return lambda: average(galleries, measure)


def name_metrics(scores: Mapping[str, float]) -> Metrics:
    """Return scores of retrieval under the names of validation.

    >>> name_metrics({"similarity/t2v/R1": 50.0, "matching/v2t/MdR": 2.0})
    {'validation/vtc/t2v/R1': 50.0, 'validation/v2t/MdR': 2.0}
    """
    metrics = {}
    for name, value in scores.items():
        ranker, _, rest = name.partition("/")
        metrics[f"{PREFIXES[ranker]}/{rest}"] = value
    return metrics


def show_searches(gallery: Gallery, similarity: np.ndarray, picture: Path) -> None:
    """Print the best video for each of the first texts, and draw the best four.

    Args:
        gallery: The gallery.
        similarity: (texts, videos).
        picture: File to write.
    """
    searches = range(min(SEARCHES, len(gallery.texts)))
    for text in searches:
        best = int(similarity[text].argmax())
        caption = gallery.texts[int(np.searchsorted(gallery.video_of_text, best))]
        log.info(
            f'search "{gallery.texts[text]:.100}": found {gallery.ids[best]}, "{caption:.100}"'
        )
    draw_searches(gallery, similarity, searches, picture)
    log.info(f"the best four: {picture}")


def validate_pretraining(
    objective: PretrainObjective,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: EncoderConfig,
    out: Path,
) -> Validate | None:
    """Validate retrieval by similarity, as `validate_contrast`, and PEM where it is trained."""
    if "pem" not in objective.losses:
        return validate_contrast(objective, corpora, tokenizer, config, out)
    measure = partial(measure_pem, objective, tokenizer, config.max_text_tokens)
    return validate_contrast(objective, corpora, tokenizer, config, out, measure)


@torch.no_grad()
def measure_pem(
    objective: PretrainObjective, tokenizer: Tokenizer, length: int, gallery: Gallery
) -> Metrics:
    """Measure PEM on one random crop of each video of a gallery, drawn with a fixed seed, with the
    first caption of the video.

    Returns:
        acc: how often (%) the head and the prompter name the same entity, of the crops whose label
        PEM keeps. kept: the percentage of these crops. label_entropy: the mean entropy of their
        labels.
    """
    model = objective.model
    config = model.config.video
    device = objective.mean.device

    # The same crops at each validation, so that its curve shows the model alone.
    rng = np.random.default_rng([0, 59])
    gallery = gallery.first(0, texts=1)
    kinds = [gallery.metadata(index)["kind"] for index in range(len(gallery.ids))]

    sums: Counter[str] = Counter()
    # Videos and images apart: they have prompts of their own.
    for kind in ("video", "image"):
        of_kind = [index for index, other in enumerate(kinds) if other == kind]
        for start in range(0, len(of_kind), PEM_BATCH):
            chosen = of_kind[start : start + PEM_BATCH]
            stored = [sample_frames(gallery.sample(index), config) for index in chosen]
            frames = torch.from_numpy(np.stack(stored)).to(device)
            captions = [gallery.texts[index] for index in chosen]
            texts = encode_texts(model, tokenizer, captions, length)
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
        "validation/pem/kept": 100 * sums["kept"] / len(gallery.ids),
        "validation/pem/label_entropy": sums["pseudo_label_entropy"] / kept_count,
    }


def validate_retrieval(
    encoder: NormalizedModel, corpora: Corpora, tokenizer: Tokenizer, config: TrainingConfig
) -> tuple[Validate, str]:
    """Validate retrieval by matching (VTM) with the configured protocol, and by similarity (VTC).

    Returns:
        The validation, and the metric for model selection, which is of matching as in the paper.

    Raises:
        InputError: No corpus has validation captions.
    """
    validation = cast(MatchingValidation, config.validation)
    galleries = read_galleries(encoder, corpora, config, "captions", validation.captions)
    check_validation(galleries, "captions")
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens)
    asked = Asked(tasks=("retrieval",), top_k=validation.top_k)

    def measure(gallery: Gallery) -> Metrics:
        metrics = name_metrics(evaluate_model(model, gallery, asked).values())
        # Validate both: a model folder says which one ranks better.
        for prefix in PREFIXES.values():
            metrics[f"{prefix}/mean_recall"] = mean_recall(metrics, prefix)
        return metrics

    return lambda: average(galleries, measure), "validation/mean_recall"


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
        InputError: No corpus has validation questions.
    """
    galleries = read_galleries(encoder, corpora, config, "questions")
    check_validation(galleries, "questions")
    model = LoadedModel("", encoder, tokenizer, config.max_text_tokens, answers)

    def measure(gallery: Gallery) -> Metrics:
        scores = evaluate_model(model, gallery, Asked(tasks=("qa",))).values()
        return {f"validation/{name}": value for name, value in scores.items()}

    return lambda: average(galleries, measure), "validation/qa/acc"


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


def average(galleries: Mapping[str, Gallery], measure: Callable[[Gallery], Metrics]) -> Metrics:
    """Return metrics averaged over corpora; for several corpora also those of each as
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
