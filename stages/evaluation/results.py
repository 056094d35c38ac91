"""The results of an evaluation: rows of results.json, metrics, and tables of queries.

A score of any evaluation gets its interval, and its part in a comparison, from `Results.add`: it
takes the values of the queries and not their mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from alpro.files import write_json
from alpro.inference.encoding import width_of
from alpro.log import log
from alpro.models.precision import autocast, compute_dtype, dtype_name
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.comparison import SCORE_COLUMNS, SCORES
from alpro.stages.evaluation.metrics import Metric, Score
from alpro.stages.evaluation.protocol import EvaluationConfig, also_in_training, check_items
from alpro.stages.evaluation.statistics import bootstrap_interval, count_independent_videos
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training.distributed import init_distributed


@dataclass
class Results:
    """Rows of results.json, metrics, and the output folder.

    A row has what its readers need to show it: `table` is the table that it is in, `what` was
    evaluated, `direction` (of retrieval), `metric` and `protocol` say how, `unit`,
    `higher_is_better`, `baseline` and `statistic` are those of the `Metric`, `low` and `high` are
    the ends of the 95 % interval (`bootstrap_interval`; None if undefined), `items` is the number
    of queries, `videos` of their videos, and `independent_videos` what these count for.
    """

    split: str
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    precision: str = ""  # type of the models' matrix products
    queries: list[pa.Table] = field(default_factory=list)  # the parts of scores.parquet
    warnings: list[str] = field(default_factory=list)  # for the end of the run and its report

    @classmethod
    def of(cls, config: EvaluationConfig, corpora: dict[str, Path], out: Path) -> "Results":
        """Creates results; the first rows report items that could not be decoded or are also in
        training, if any.

        Raises InputError as `check_items` does.
        """
        results = cls(config.split, out)
        for name in config.corpora:
            for column, decoded, annotated in check_items(config, name, corpora[name]):
                if decoded < annotated:
                    results.add_share(
                        table="decoded",
                        key=column,
                        what=f"{column} of {name}",
                        name=f"decoded/{name}",
                        share=(decoded, annotated),
                    )

            # A row whether they are excluded or not: with them, scores are too good.
            shared = len(also_in_training(corpora[name], config.split))
            if shared:
                table = "left_out" if config.exclude_overlap else "also_in_training"
                items = len(ShardReader(corpora[name], config.split))
                results.add_share(
                    table=table,
                    key=name,
                    what=f"items of {name}",
                    name=table,
                    share=(shared, items),
                )
        return results

    def add(
        self, score: Score, what: str, name: str, direction: str = "", protocol: str = ""
    ) -> None:
        """Adds a score as <name>/<direction>/<key of the metric>, with its interval, and its
        queries to scores.parquet."""
        metric = score.metric
        queries = score.queries
        full_name = "/".join(filter(None, (name, direction, metric.key)))
        row = self._row(metric, full_name, what, value=score.value, items=score.items)

        low = high = None
        # A median has no sums by video.
        if metric.statistic == "mean":
            low, high = bootstrap_interval(score.values, queries.ids) or (None, None)
        row |= {
            "direction": direction,
            "protocol": protocol,
            "low": low,
            "high": high,
            "chance": score.chance,
            "videos": len(set(queries.ids)),
            "independent_videos": count_independent_videos(queries.ids),
        }

        # Dictionaries: a million questions have few texts, and many scores have the same ones.
        columns = [
            pa.DictionaryArray.from_arrays(np.zeros(score.items, np.int32), [full_name]),
            pa.array(queries.ids, pa.string()).dictionary_encode(),
            pa.array(queries.texts, pa.string()).dictionary_encode(),
            pa.array(score.values, pa.float64()),
        ]
        self.queries.append(pa.Table.from_arrays(columns, SCORE_COLUMNS))

    def add_value(self, metric: Metric, what: str, name: str, value: float, items: int) -> None:
        """Adds a value that is no mean of those of queries, and has no interval, as <name>/<key of
        the metric>."""
        self._row(metric, f"{name}/{metric.key}", what, value=value, items=items)

    def add_share(self, table: str, key: str, what: str, name: str, share: tuple[int, int]) -> None:
        """Adds a share (%) of the items of a corpus, which has no interval, as <name>/<key>.

        share: the counts of the items concerned and of all items.
        """
        count, items = share
        metric = Metric(key, f"{count} of {items}", table, baseline="")
        self._row(metric, f"{name}/{key}", what, value=100 * count / items, items=items)

    def _row(
        self, metric: Metric, name: str, what: str, value: float, items: int
    ) -> dict[str, Any]:
        """Adds a row without a protocol, an interval and a chance level, and returns it."""
        row = {
            "name": name,
            "table": metric.table,
            "what": what,
            "direction": "",
            "protocol": "",
            "metric": metric.label,
            "value": value,
            "low": None,
            "high": None,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "statistic": metric.statistic,
            "items": items,
            "chance": None,
            "baseline": metric.baseline,
        }
        self.rows.append(row)
        self.metrics[f"{self.split}/{name}"] = value
        return row

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes per-query results for people to `name`.parquet. scores.parquet has the values of
        every score."""
        pq.write_table(pa.Table.from_pylist(rows), self.out / f"{name}.parquet")

    def outcome(self) -> Outcome:
        """Writes results.json and scores.parquet; returns the number of items of each score, and
        the metrics."""
        write_json(self.out / "results.json", self.rows)
        if self.queries:
            pq.write_table(pa.concat_tables(self.queries).unify_dictionaries(), self.out / SCORES)

        items = {row["name"]: row["items"] for row in self.rows}
        return Outcome(items, self.metrics, warnings=self.warnings, precision=self.precision)


@contextmanager
def evaluating(
    config: EvaluationConfig,
    corpora: dict[str, Path],
    models: Sequence[Path | None],
    out: Path,
    resources: Resources,
) -> Iterator[tuple[Results, torch.device]]:
    """The results of an evaluation and this process's device, in the precision of the
    configuration. Several processes share the encoding of videos and the scoring of pairs; all have
    all results, and the first one writes them."""
    with (
        init_distributed(resources) as world,
        # The other processes compute the same results: what they write is deleted.
        nullcontext(str(out)) if world.main else TemporaryDirectory() as folder,
    ):
        width = max(width_of(model) for model in models if model)
        dtype = compute_dtype(width, world.device, config.mixed_precision)
        results = Results.of(config, corpora, Path(folder))
        results.precision = dtype_name(dtype)

        if world.main:
            log.info(f"matrix products in {results.precision}, on {world.device.type}")
        with autocast(dtype, world.device):
            yield results, world.device
