"""The names of scores.

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


def full_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row among the rows of several models.

    >>> full_name({"model": "fine-tuned", "name": "qa/acc"}), full_name({"name": "decoded/clips"})
    ('fine-tuned/qa/acc', 'decoded/clips')
    """
    return "/".join(filter(None, (row.get("model", ""), row["name"])))
