"""The results of an evaluation: rows of results.json, the values of queries, and tables for people.

Every score gets its interval, and its part in a comparison, from `Results.add`, which takes the
values of the queries and not their mean.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import write_json
from alpro.stages.evaluation.comparison import SCORES, VALUES
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.score_names import full_name
from alpro.stages.evaluation.statistics import bootstrap_interval
from alpro.stages.execution.interface import Metrics

Row = dict[str, Any]


@dataclass
class Results:
    """The scores of one model.

    Attributes:
        model: Name of the model.
        gallery: The gallery that was scored, without videos that could not be decoded.
        scores: Rows without intervals, each with the score that it shows.
        tables: Tables of the queries by name, for people.
        warnings: Lines for the end of a run and its report.
    """

    model: str
    gallery: Gallery | None = None
    scores: list[tuple[Row, Score]] = field(default_factory=list)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(
        self,
        score: Score,
        name: str,
        what: str,
        direction: str = "",
        protocol: str = "",
    ) -> None:
        """Add a score as <name>/<direction>/<key of the metric>.

        Args:
            score: The score.
            name: What was evaluated.
            what: The same in words.
            direction: Direction of retrieval.
            protocol: What the score is comparable with.
        """
        metric = score.metric
        row = {
            "model": self.model,
            "name": "/".join(filter(None, (name, direction, metric.key))),
            "table": metric.table,
            "what": what,
            "direction": direction,
            "protocol": protocol,
            "metric": metric.label,
            "value": score.value,
            "low": None,
            "high": None,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "statistic": metric.statistic,
            "items": score.items or len(score.values),
            "chance": score.chance,
            "baseline": metric.baseline,
        }
        self.scores.append((row, score))

    def add_share(self, name: str, what: str, count: int, items: int) -> None:
        """Add the percentage of the items of a corpus that something concerns.

        Args:
            name: Name of the row, which begins with the table that shows it.
            what: The items.
            count: Number of the items that are concerned.
            items: Number of all items.
        """
        name, _, key = name.rpartition("/")
        table = name.partition("/")[0]
        metric = Metric(key, f"{count} of {items}", table, baseline="")
        percent = np.array([100 * count / items])
        # It describes the data: every model has the same.
        data = Results("")
        data.add(Score(metric, percent, items=items), name, what)
        self.extend(data)

    def rows(self) -> list[Row]:
        """Return a row for each score.

        A row has what its readers need to show it: `model` and `what` were evaluated, `table` is
        the table that it is in, `direction` (of retrieval), `metric` and `protocol` say how,
        `unit`, `higher_is_better`, `baseline` and `statistic` describe the `Metric`, `low` and
        `high` are the ends of the 95 % interval (None if undefined), `items` is the number of
        queries, and `videos` of their videos.
        """
        return [with_interval(row, score) for row, score in self.scores]

    def extend(self, other: "Results") -> None:
        """Add the results of the same model on another gallery, or of another model."""
        self.scores += other.scores
        self.tables |= other.tables
        self.warnings += other.warnings

    def write(self, out: Path, split: str) -> tuple[list[Row], Metrics]:
        """Write results.json, scores.parquet and the tables.

        Returns:
            The rows, and the values by <split>/<model>/<name>.
        """
        rows = self.rows()
        write_json(out / "results.json", rows)
        values = []
        for row, score in self.scores:
            if score.queries:
                values.append(list_values(row["name"], score.values, score.queries))
        if values:
            pq.write_table(pa.concat_tables(values).unify_dictionaries(), out / SCORES)
        for name, table in self.tables.items():
            pq.write_table(table, out / f"{name}.parquet")
        return rows, {f"{split}/{full_name(row)}": row["value"] for row in rows}


def with_interval(row: Row, score: Score) -> Row:
    """Return a row with the interval of its score, and the number of videos."""
    if score.queries is None:
        return row
    videos = score.queries.ids
    low = high = None
    # A median has no sums by video.
    if score.metric.statistic == "mean":
        low, high = bootstrap_interval(score.values, videos) or (None, None)
    return row | {"low": low, "high": high, "videos": len(set(videos))}


def list_values(name: str, values: np.ndarray, queries: Queries) -> pa.Table:
    """Return the values of the queries of a score as rows of scores.parquet."""
    # Dictionaries: a million questions have few texts, and many scores have the same ones.
    texts = [np.repeat(name, len(values)), queries.ids, queries.texts]
    columns = [pa.array(text, pa.string()).dictionary_encode() for text in texts]
    return pa.Table.from_arrays(
        [*columns, pa.array(values, pa.float64())], VALUES.names
    )
