"""The names of scores, and which of them a user looks at first.

A row of results.json has the name NAME/DIRECTION/METRIC, such as similarity/t2v/R1: what was
evaluated (`evaluate_model.py` composes it), the direction of a retrieval, and the key of the metric
(`metrics.py`). The same score of two models has the same name. Where the scores of several models
stand side by side, it is MODEL/NAME, such as fine-tuned/similarity/t2v/R1.
"""

from collections.abc import Mapping
from typing import Any

PROMPTER = "prompter"
PRETRAINED = "pre-trained"
FINE_TUNED = "fine-tuned"

# The scores that a user looks at first, by the names under which MLflow has them. It sorts the
# sections of charts by the prefix, so that this one is before `test` and `training`.
HEADLINES = {
    # The ranking by similarity, as of `alpro search`.
    "score/R1": f"{FINE_TUNED}/similarity/t2v/R1",
    "score/QA": f"{FINE_TUNED}/qa/acc",
    "score/R1_pretrained": f"{PRETRAINED}/similarity/t2v/R1",
    "score/R10": f"{FINE_TUNED}/similarity/t2v/R10",
    "score/entities": f"{PROMPTER}/entities/acc",
}
# What a training reaches on the validation split, by the names of its metrics.
VALIDATION_SCORES = ("validation/t2v/R1", "validation/qa/acc", "validation/vtc/t2v/R1")
# The scores that decide which of two models is better, if both have one: the first of these. Search
# ranks by similarity.
DECISIVE = ("similarity/t2v/R1", "qa/acc", "entities/acc")
# The scores of each model that a run prints at its end: on one screen, beside what a single frame
# or the text alone reaches.
PRINTED = (
    "similarity/t2v/R1",
    "matching/t2v/R1",
    "similarity_single_frame/t2v/R1",
    "qa/acc",
    "qa_text_only/acc",
    "entities/acc",
    # PEM's labels: without the places of objects, any entity of the video is right and only ece
    # tells.
    "entity_crops/acc",
    "entity_crops/ece",
)
# The scores that a study compares if it names none.
STUDIED = ("*/similarity/t2v/R1", "*/matching/t2v/R1", "*/qa/acc", "*/entities/acc")


def full_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row among the rows of several models.

    >>> full_name({"model": "fine-tuned", "name": "qa/acc"}), full_name({"name": "decoded/clips"})
    ('fine-tuned/qa/acc', 'decoded/clips')
    """
    return "/".join(filter(None, (row.get("model", ""), row["name"])))


def main_score(metrics: Mapping[str, float]) -> str:
    """Return the score of a stage that a user looks at first: of an evaluation on its split, of a
    training on the validation split; empty without one.

    >>> main_score({"test/fine-tuned/similarity/t2v/R1": 89.51})
    'R@1 89.5'
    """
    # The names of an evaluation's metrics start with its split and its model.
    for ending in (*DECISIVE, *VALIDATION_SCORES):
        for name, value in metrics.items():
            if name.endswith(ending):
                metric = "R@1" if name.endswith("/R1") else "accuracy"
                return f"{metric} {value:.1f}"
    return ""
