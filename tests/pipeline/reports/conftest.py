"""Rows of results.json whose numbers all differ, so that no two can be confused."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

BASELINES = {"retrieval": "chance", "qa": "most frequent answer", "entities": "best constant", "decoded": ""}
RANKS = ["R@1", "R@5", "MdR"]


def rows_of(table: str, what: str, key: str, metrics: list[str], numbers: Iterator[int], items: int, way: str = ""):
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    return [
        {
            "name": "/".join(filter(None, (key, way, metric))),
            "table": table,
            "what": what,
            "direction": way,
            "protocol": f"all pairs, {items} frames" if table == "retrieval" else "",
            "metric": metric,
            "value": next(numbers) + 0.25,
            "low": None,
            "high": None,
            "unit": "rank" if metric == "MdR" else "%",
            "higher_is_better": metric != "MdR",
            "items": items,
            "videos": items,
            "independent_videos": float(items),
            "chance": next(numbers) + 0.75 if BASELINES[table] else None,
            "baseline": BASELINES[table],
        }
        for metric in metrics
    ]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    numbers = count(1)
    return [
        *rows_of("qa", "question answering", "qa", ["all questions", "what"], numbers, 300),
        *rows_of("qa", "control: text only", "qa_text_only", ["all questions"], numbers, 290),
        *rows_of("entities", "prompter", "entities", ["entity accuracy"], numbers, 150),
        *rows_of("decoded", "decoded of clips", "decoded", ["190 of 200"], numbers, 200),
        *rows_of("retrieval", "zero-shot retrieval", "zero_shot", RANKS, numbers, 400, "t2v"),
        *rows_of("retrieval", "zero-shot retrieval", "zero_shot", RANKS[:1], numbers, 200, "v2t"),
    ]
