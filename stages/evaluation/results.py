"""The results of an evaluation: rows of results.json, metrics, and tables of queries."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import write_json
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.metrics import DIRECTIONS, Metric, Ranks, Score, retrieval_ranks, retrieval_scores
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items, excluded
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.interface import Outcome


@dataclass
class Results:
    """Rows of results.json, metrics, and the output folder.

    A row has what its readers need to show it: `table` is the table that it is in, `what` was evaluated, `direction`
    (of retrieval) and `metric` say how, and `unit`, `higher_is_better` and `baseline` are those of the `Metric`.
    """

    split: str
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: EvaluationConfig, inputs: dict[str, Path], out: Path) -> "Results":
        """Creates results; the first rows report items that could not be decoded or are excluded, if any.

        Raises InputError as `check_items` does.
        """
        results = cls(config.split, out)
        for name in config.corpora:
            for column, decoded, annotated in check_items(config, name, inputs[name]):
                if decoded < annotated:
                    score = share("decoded", column, decoded, annotated)
                    results.add(score, f"{column} of {name}", f"decoded/{name}")
            if removed := len(excluded(config, inputs[name])):
                items = len(ShardReader(inputs[name], config.split))
                results.add(share("left_out", name, removed, items), f"items of {name}", "left_out")
        return results

    def add(self, score: Score, what: str, name: str, direction: str = "") -> None:
        """Adds a score as <name>/<direction>/<key of the metric>."""
        metric = score.metric
        name = "/".join(part for part in (name, direction, metric.key) if part)
        self.rows.append(
            {
                "name": name,
                "table": metric.table,
                "what": what,
                "direction": direction,
                "metric": metric.label,
                "value": score.value,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "items": score.items,
                "chance": score.chance,
                "baseline": metric.baseline,
            }
        )
        self.metrics[f"{self.split}/{name}"] = score.value

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes per-query results to `name`.parquet."""
        pq.write_table(pa.Table.from_pylist(rows), self.out / f"{name}.parquet")

    def outcome(self) -> Outcome:
        """Writes results.json; returns the number of items of each score, and the metrics."""
        write_json(self.out / "results.json", self.rows)
        return Outcome({row["name"]: row["items"] for row in self.rows}, self.metrics)


def share(table: str, key: str, part: int, items: int) -> Score:
    """A share (%) of the items of a corpus."""
    return Score(Metric(key, f"{part} of {items}", table, baseline=""), 100 * part / items, items, None)


def add_retrieval(
    results: Results,
    what: str,
    name: str,
    scores: np.ndarray,
    gallery: Gallery,
    directions: tuple[str, ...] = DIRECTIONS,
) -> dict[str, Ranks]:
    """Adds the metrics of retrieval, writes the rank of every query, and returns the ranks of texts and videos."""
    ranks = retrieval_ranks(scores, gallery.video_of_text)
    for direction in directions:
        for score in retrieval_scores(ranks[direction]):
            results.add(score, what, name, direction)
    scores = np.where(np.isnan(scores), -np.inf, scores)  # NaN is the lowest score, as in the ranks
    results.table(f"{name}_t2v", text_queries(gallery, scores, ranks["t2v"]))
    if "v2t" in directions:
        results.table(f"{name}_v2t", video_queries(gallery, scores, ranks["v2t"]))
    return ranks


def text_queries(gallery: Gallery, scores: np.ndarray, ranks: Ranks) -> list[dict[str, Any]]:
    """A row for each text: its rank, the score of its own video, and the five best videos."""
    best = scores.argsort(axis=1)[:, ::-1][:, :5]
    queries = zip(gallery.texts, gallery.video_of_text, ranks.expected, scores, best, strict=True)
    return [
        {
            "text": text,
            "id": gallery.ids[video],
            "rank": float(rank),
            "score": float(row[video]),
            "best": [gallery.ids[i] for i in first],
            "best_scores": row[first].tolist(),
        }
        for text, video, rank, row, first in queries
    ]


def video_queries(gallery: Gallery, scores: np.ndarray, ranks: Ranks) -> list[dict[str, Any]]:
    """A row for each video: its rank, and the five best texts."""
    best = scores.T.argsort(axis=1)[:, ::-1][:, :5]
    return [
        {
            "id": video,
            "rank": float(rank),
            "best": [gallery.texts[i] for i in first],
            "best_scores": row[first].tolist(),
        }
        for video, rank, row, first in zip(gallery.ids, ranks.expected, scores.T, best, strict=True)
    ]
