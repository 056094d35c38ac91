"""Validation of what is trained by contrast: recall by the similarity of the unimodal features alone."""

from pathlib import Path

from tokenizers import Tokenizer

from shards.schema import InputError
from stages.evaluation.encode import check_readable
from stages.evaluation.metrics import retrieval_metrics
from stages.evaluation.retrieval import encode_gallery, validation_gallery
from stages.training.loop import Validate
from stages.training.objective import Objective


def validate_contrast(
    objective: Objective, inputs: dict[str, Path], tokenizer: Tokenizer, length: int, most: int = 500
) -> Validate | None:
    """A validation of retrieval by similarity on the validation split; None where no corpus has one (pre-training
    corpora often have none)."""
    try:
        gallery = validation_gallery(inputs, most)
    except InputError:
        return None
    check_readable(gallery.reader, gallery.numbers)

    def validate() -> dict[str, float]:
        texts, videos = encode_gallery(objective, gallery, tokenizer, length, objective.mean.device)
        scores = (texts.features @ videos.features.T).cpu().numpy()
        metrics, _, _ = retrieval_metrics(scores, gallery.video_of_text)
        return {f"validation/vtc/{name}": value for name, value in metrics.items()}

    return validate
