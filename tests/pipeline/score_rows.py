"""Rows of results.json, as an evaluation writes them."""

from typing import Any

ROW = {
    "model": "",
    "name": "similarity/t2v/R1",
    "table": "retrieval",
    "split": "test",
    "what": "by similarity",
    "direction": "t2v",
    "metric": "R@1",
    "unit": "%",
    "higher_is_better": True,
    "protocol": "",
    "value": 60.0,
    "low": None,
    "high": None,
    "chance": 0.5,
    "baseline": "chance",
    "items": 500,
    "videos": 200,
}
ANSWERS = {
    "name": "qa/acc",
    "table": "qa",
    "what": "question answering",
    "direction": "",
    "metric": "all questions",
    "baseline": "most frequent answer",
}
RANK = {
    "name": "similarity/t2v/MdR",
    "metric": "MdR",
    "unit": "rank",
    "higher_is_better": False,
}


def score_row(**values: Any) -> dict[str, Any]:
    """Return the row of a retrieval score, but for these values."""
    return ROW | values
