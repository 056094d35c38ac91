"""The corpora of a run in tables: samples, captions and questions of each split, lengths, rejects."""

from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.files import read_json
from alpro.pipeline.reports.results import Listed, Table
from alpro.shards.inspect_corpus import inspect
from alpro.shards.schema import SPLITS
from alpro.stages import CORPUS_STAGES

MAX_SAMPLES = 200_000  # of a corpus whose lengths are computed: a second or two
NOTE = "Lengths: median, in brackets 5 to 95 % of the items."
LARGE = "Lengths are missing for corpora of more than {:,} samples; `alpro data inspect FINGERPRINT` computes them."


def data_tables(artifacts: list[Listed]) -> list[Table]:
    """The corpora of a run: their counts by split, and their lengths; none without a corpus."""
    corpora = [(name, folder, record) for name, folder, record, _ in artifacts if record["stage"] in CORPUS_STAGES]
    splits = [line for corpus in corpora for line in split_lines(*corpus)]
    measured = [(corpus, lengths_of(corpus[1], corpus[2])) for corpus in corpora]
    lengths = [[name_of(corpus[0]), "", *map(spread, values.values())] for corpus, values in measured if values]
    tables = []
    if splits:
        heads = ["", "", "samples", "captions", "questions", "rejected"]
        tables.append(Table("Data", heads, splits))
    if lengths:
        heads = ["", "", *next(values for _, values in measured if values)]
        large = any(record["counts"].get("samples", 0) > MAX_SAMPLES for _, _, record in corpora)
        tables.append(Table("Lengths", heads, lengths, f"{NOTE} {LARGE.format(MAX_SAMPLES) if large else ''}".strip()))
    return tables


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


def lengths_of(folder: Path, record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The quantiles of the lengths in a corpus; empty for a large one, and if its index cannot be read."""
    if record["counts"].get("samples", 0) > MAX_SAMPLES:
        return {}
    try:
        return inspect([folder], max_samples=0)["lengths"]
    except (InputError, OSError):
        return {}


def spread(values: dict[str, float]) -> str:
    """Quantiles as text, such as 2.0 [1.6, 3.1]; a dash without values."""
    return f"{values['median']:.3g} [{values['5 %']:.3g}, {values['95 %']:.3g}]" if values else "-"
