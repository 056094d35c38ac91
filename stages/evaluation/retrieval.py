"""Rows of results for text-video retrieval, and the ranks of its queries."""

import numpy as np

from alpro.stages.evaluation.gallery import Gallery, Labels
from alpro.stages.evaluation.metrics import DIRECTIONS, Ranks, by_direction, retrieval_scores
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.scorer import Scorer


def add_rankers(results: Results, what: str, name: str, model: Scorer, gallery: Gallery) -> np.ndarray:
    """Adds retrieval by matching as `name`, and by similarity as <name>_vtc. Returns the scores of matching."""
    scores, similarity = model.score(gallery)
    add_retrieval(results, f"{what} retrieval", name, scores, gallery.labels, protocol=model.protocol())
    all_pairs = model.protocol(by_similarity=True)
    add_retrieval(results, f"{what} by similarity", f"{name}_vtc", similarity, gallery.labels, protocol=all_pairs)
    return scores


def add_retrieval(
    results: Results,
    what: str,
    name: str,
    scores: np.ndarray,
    labels: Labels,
    directions: tuple[str, ...] = DIRECTIONS,
    protocol: str = "all pairs",
) -> None:
    """Adds the metrics of retrieval, and writes the rank of every query with the best items of its gallery. scores: as
    of `by_direction`."""
    for direction in directions:
        ranked, relevant = by_direction(scores, labels.relevant)[direction]
        ranks, queries = Ranks.of(ranked, relevant), labels.queries(direction)
        for one in retrieval_scores(ranks, queries):
            results.add(one, what, name, direction, protocol)
        items = np.array(labels.ids if direction == "t2v" else labels.texts, object)
        best = ranked.argsort(axis=1)[:, ::-1][:, :5]
        columns = {
            "id": queries.ids,
            "text": queries.texts,
            "rank": ranks.expected.tolist(),
            "best": items[best].tolist(),
            "best_scores": np.take_along_axis(ranked, best, axis=1).tolist(),
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        results.table(f"{name}_{direction}", rows)
