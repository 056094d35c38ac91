"""Results of an evaluation: one row per score with the number of items and the chance level, and per-query tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import write_json
from alpro.shards.reader import ShardReader
from alpro.stages.artifacts.store import Outcome
from alpro.stages.evaluation.metrics import Ranks, chance_metrics, retrieval_metrics
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items, excluded
from alpro.stages.evaluation.retrieval import Gallery


@dataclass
class Results:
    """Rows of the results table, metrics, and the output folder."""

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
                    shown, key = f"{column} of {name}", f"decoded/{name}/{column}"
                    results.add(shown, f"{decoded} of {annotated}", 100 * decoded / annotated, annotated, None, key)
            if removed := len(excluded(config, inputs[name])):
                items = len(ShardReader(inputs[name], config.split))
                share = 100 * removed / items
                results.add(f"items of {name}", f"{removed} of {items}", share, items, None, f"left_out/{name}")
        return results

    def add(self, what: str, metric: str, value: float, items: int, chance: float | None, name: str) -> None:
        """Adds a score with its number of items and chance level (None: undefined)."""
        self.rows.append(
            {"name": name, "what": what, "metric": metric, "value": value, "items": items, "chance": chance}
        )
        self.metrics[f"{self.split}/{name}"] = value

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes per-query results to `name`.parquet."""
        pq.write_table(pa.Table.from_pylist(rows), self.out / f"{name}.parquet")

    def outcome(self) -> Outcome:
        """Writes results.json; returns the number of items of each score, and the metrics."""
        write_json(self.out / "results.json", self.rows)
        return Outcome({f"{row['what']}, {row['metric']}": row["items"] for row in self.rows}, self.metrics)


def add_retrieval(
    results: Results, what: str, name: str, scores: np.ndarray, gallery: Gallery, ways: tuple[str, ...] = ("t2v", "v2t")
) -> Ranks:
    """Adds R@1, R@5, R@10 and MdR, writes the rank of every query, and returns the ranks of the texts."""
    metrics, t2v, v2t = retrieval_metrics(scores, gallery.video_of_text)
    chance = chance_metrics(gallery.video_of_text, scores.shape[1])
    for way, ranks in (("t2v", t2v), ("v2t", v2t)):
        for column in ("R1", "R5", "R10", "MdR") if way in ways else ():
            key, shown = f"{way}/{column}", f"{way} {column.replace('R', 'R@') if column != 'MdR' else column}"
            results.add(what, shown, metrics[key], len(ranks.better), chance[key], f"{name}/{key}")
    scores = np.where(np.isnan(scores), -np.inf, scores)  # NaN is the lowest score, as in the ranks
    best = scores.argsort(axis=1)[:, ::-1][:, :5]
    rows = zip(gallery.texts, gallery.video_of_text, t2v.rank, scores, best, strict=True)
    results.table(
        f"{name}_t2v",
        [
            {
                "text": text,
                "id": gallery.ids[video],
                "rank": float(rank),
                "score": float(row[video]),
                "best": [gallery.ids[i] for i in first],
                "best_scores": row[first].tolist(),
            }
            for text, video, rank, row, first in rows
        ],
    )
    if "v2t" in ways:
        queries = zip(gallery.ids, v2t.rank, scores.T, scores.T.argsort(axis=1)[:, ::-1][:, :5], strict=True)
        results.table(
            f"{name}_v2t",
            [
                {
                    "id": video,
                    "rank": float(rank),
                    "best": [gallery.texts[i] for i in first],
                    "best_scores": row[first].tolist(),
                }
                for video, rank, row, first in queries
            ],
        )
    return t2v
