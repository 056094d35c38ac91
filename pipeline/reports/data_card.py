"""The corpora of a run in a table: samples, captions and questions of each split, rejects."""

from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.pipeline.reports.results import Listed, ResultTable
from alpro.shards.schema import SPLITS
from alpro.stages import CORPUS_STAGES


def data_tables(artifacts: list[Listed]) -> list[ResultTable]:
    """The corpora of a run, with their counts by split; none without a corpus."""
    corpora = [(name, folder, record) for name, folder, record, _ in artifacts if record["stage"] in CORPUS_STAGES]
    splits = [line for corpus in corpora for line in split_lines(*corpus)]
    return [ResultTable("Data", ["", "", "samples", "captions", "questions", "rejected"], splits)] if splits else []


def name_of(step: str) -> str:
    """The name of a corpus: that of its step without the stage."""
    return step.partition(" ")[2] or step


def split_lines(name: str, folder: Path, record: dict[str, Any]) -> list[list[str]]:
    """A line for each split of a corpus that has samples, and one for all: rejects have no split."""
    path = folder / "statistics.json"
    splits = read_json(path).get("splits", {}) if path.is_file() else {}
    lines = []
    for split in SPLITS:
        counts = [splits.get(split, {}).get(key, [0])[0] for key in ("items", "captions", "questions")]
        if counts[0]:
            lines.append([name_of(name), split, *(f"{count:,}" for count in counts), ""])
    total = [record["counts"].get(key, 0) for key in ("samples", "captions", "questions", "rejected")]
    return [*lines, [name_of(name), "all", *(f"{count:,}" for count in total)]]
