"""Score models of any origin on labeled videos of any data, for `alpro eval`."""

from collections.abc import Sequence
from pathlib import Path

from alpro.errors import InputError
from alpro.inference import search
from alpro.inference.model import Model
from alpro.log import log
from alpro.stages.evaluation.evaluate_model import Asked, evaluate_model
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.results import Results


def score_models(
    models: Sequence[tuple[str, Model, Path]], gallery: Gallery, split: str
) -> None:
    """Score models on the same frames of the same videos, and write their results.

    Args:
        models: Name of each in the results, the model, and the folder of its results. All see as
            many frames as the first.
        gallery: As in `score_model`. Each model is scored on what those before it could decode.
        split: Split of the videos.
    """
    frames = models[0][1].folder.model.config.video.frames
    for name, model, out in models:
        model.folder.model.set_frames(frames)
        results = score_model(name, model, gallery)
        gallery = results.gallery or gallery
        out.mkdir(parents=True, exist_ok=True)
        results.write(out, split)


def score_model(name: str, model: Model, gallery: Gallery) -> Results:
    """Score a model on what it can do and the data has labels for.

    Args:
        name: Name of the model in the results.
        model: The model: answers if it answers questions, otherwise retrieval as a search ranks, and
            entities if it has prompts.
        gallery: Videos with questions for a model that answers, otherwise with captions.

    Raises:
        InputError: If there is nothing to score.
    """
    if model.folder.answers and not gallery.questions:
        raise InputError("this model answers questions, and the data has none")

    # A search ranks videos for a text, never texts for a video. There are no training questions:
    # the baseline of answers knows the right ones, and is optimistic.
    asked = Asked(
        top_k=search.RERANKED,
        matched=("t2v",),
        training_questions=gallery.questions,
    )
    loaded = LoadedModel(name, model.folder, model.encoder)
    with model.autocast():
        results = evaluate_model(loaded, gallery, asked)
    for line in results.warnings:
        log.warning(line)
    if not results.scores:
        raise InputError(
            f"none of the videos that could be decoded has a label for this {model.folder.task} model"
        )

    # No score counts the others.
    assert results.gallery is not None
    decoded = len(results.gallery.ids)
    videos = len(gallery.ids)
    if decoded < videos:
        results.add_share("decoded/data", "videos of the data", decoded, videos)
    return results
