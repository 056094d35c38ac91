"""Assigns the rows of a manifest to splits and shards. Only numbers are in memory: 15 bytes a row.

The rows alone determine the shards: the rows of a split and kind, in the manifest's order, are cut
at content-defined positions (a hash of the id). An added or removed row only moves the cuts near
it, so the other shards are reused.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.schema import (
    KINDS,
    MANIFEST,
    REJECTS,
    SPLITS,
    Row,
    SplitCounts,
)
from alpro.shards.sources.manifest import ROW_GROUP, Manifest, read_rows

# Names of patterns: the group of a file is the parenthesized part of its path. GoPro numbers the
# chapters of recording 0042 GX010042, GX020042, ..., and GOPR0042, GP010042, ... before. `times` are
# clips named by their start and end.
GROUPINGS = {
    "chapters": re.compile(r"(?i)(?:^|[/_ -])G(?:OPR|P\d\d|[HXLS]\d\d)(\d{4})\.\w+$"),
    # In `a1` and `a2`, a short prefix without a separator does not tell the recording.
    "prefix": re.compile(
        r"^(.*?[^/_. (-])(?:[_. (-]+|(?<=[^/]{3}[^/\d]))\d+(?: ?of ?\d+)?\)?\.\w+$"
    ),
    "times": re.compile(r"^(.*?[^/_. -])(?:[_ -]+\d+(?:\.\d+)?){2}\.\w+$"),
}
NAMES = ("group", "name")
TEXT_COUNTS = ("captions", "questions")
# What is in memory of each row; `split` and `kind` are indices in SPLITS and KINDS.
NUMBERS = pa.schema(
    {
        "kind": pa.int8(),
        "split": pa.int8(),
        "cut": MANIFEST.field("cut").type,
        "captions": pa.int32(),
        "questions": pa.int32(),
    }
)


@dataclass(frozen=True)
class DecodeUnit:
    """The rows of one shard, decoded independently by one worker.

    table: the rows as the manifest has them, with their splits and groups. A worker makes `rows` of
    them: it takes 80 us a row, more than the planner has if a hundred machines wait.
    """

    name: str
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def rows(self) -> list[Row]:
        return list(read_rows(self.table))

    def split(self) -> list["DecodeUnit"]:
        """Return a unit for each row, named by its id."""
        # `take` copies: a slice would be pickled with the whole table.
        return [
            DecodeUnit(row_id, self.table.take(pa.array([index])))
            for index, row_id in enumerate(self.table["id"].to_pylist())
        ]


class DecodePlan:
    """The splits and the units of the rows of a manifest.

    Args:
        kinds: The kind of the rows that are planned, or "all".
        group_pattern: What it finds in the name of a row without a group is its group: the first
            parenthesized group, or the whole match. It may be a name of GROUPINGS.
        validation: The probability of a group to be in this split, if no row has a split.
        test: The same of this split.
        max_rows: Maximum number of rows in a unit.

    Raises:
        InputError: If the pattern matches no name.
    """

    def __init__(
        self,
        manifest: Manifest,
        kinds: str = "all",
        group_pattern: str = "",
        validation: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        max_rows: int = 256,
    ):
        self.manifest = manifest
        self.named_splits = any(manifest.about["splits"])
        self.shares = {
            "train": 1 - validation - test,
            "validation": validation,
            "test": test,
        }
        self.generated_splits = not self.named_splits and test + validation > 0
        self.seed = seed
        self.kinds = list(KINDS) if kinds == "all" else [kinds]
        pattern = GROUPINGS.get(group_pattern, group_pattern)
        self.pattern = re.compile(pattern) if pattern else None
        if self.pattern:
            self._check_pattern(self.pattern, group_pattern)

        batches = manifest.batches(["kind", "split", "cut", *TEXT_COUNTS, *NAMES])
        # An empty manifest has no batch, so the schema is given.
        numbers = pa.Table.from_batches(map(self._read_columns, batches), NUMBERS)
        planned_kinds = [KINDS.index(kind) for kind in self.kinds]
        is_planned = np.isin(numbers["kind"], planned_kinds)
        # Each planned row has its index in the manifest, and its numbers.
        self.row_indices = np.flatnonzero(is_planned)
        self.columns = {
            name: numbers[name].to_numpy()[is_planned] for name in NUMBERS.names
        }
        self.rows_of_unit = dict(self._cut(max_rows))  # positions of planned rows
        file = pq.ParquetFile(manifest.file)
        # Consecutive units are in the same row groups.
        self._row_group = lru_cache(maxsize=4)(file.read_row_group)

    def _check_pattern(self, pattern: re.Pattern[str], key: str) -> None:
        name = ""
        for name in self._names_without_group():
            if pattern.search(name):
                return
        if name:
            # Every file would be its own group.
            raise InputError(
                f"{self.manifest.about['source']}: group_pattern = {key!r} matches no file's path, "
                f"such as {name!r}"
            )

    def _read_columns(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the numbers that describe each row of a batch."""
        kind = pc.index_in(batch["kind"], pa.array(KINDS)).cast(pa.int8())
        text_counts = [pc.list_value_length(batch[name]) for name in TEXT_COUNTS]
        columns = [
            kind,
            pa.array(self._assign_splits(batch)),
            batch["cut"],
            *text_counts,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=NUMBERS)

    def _assign_splits(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
        """Return the codes of the splits of rows with the columns `split`, `group` and `name`."""
        if self.named_splits:
            codes = pc.index_in(batch["split"], pa.array(SPLITS))
            # A row without a split is for training.
            return pc.fill_null(codes, 0).to_numpy().astype(np.int8)
        # A group's seeded hash alone decides, so that no other row moves when rows are added, removed or
        # renamed. The shares are met only on average.
        keys = [f"{self.seed}/{group}".encode() for group in self._groups(batch)]
        hashes = b"".join(hashlib.sha256(key).digest()[:8] for key in keys)
        fractions = np.frombuffer(hashes, ">u8") / 2.0**64
        test = self.shares["test"]
        codes = np.zeros(len(keys), np.int8)
        codes[fractions < test + self.shares["validation"]] = SPLITS.index("validation")
        codes[fractions < test] = SPLITS.index("test")
        return codes

    def _groups(self, batch: pa.RecordBatch | pa.Table) -> list[str]:
        """Return the group of each row of a batch with the columns `group` and `name`."""
        groups = batch["group"].to_pylist()
        for index, name in enumerate(batch["name"].to_pylist()):
            match = None
            if self.pattern and not groups[index]:
                match = self.pattern.search(name)
            if match:
                # What the first parentheses match, or all of it.
                groups[index] = match[1 if match.lastindex else 0] or match[0]
            groups[index] = groups[index] or name
        return groups

    def _cut(self, max_rows: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the units of each split and kind.

        A unit, except the last, has at least half of `max_rows` rows. It ends at the next row whose
        hash is a multiple of a quarter of `max_rows`, or at `max_rows` rows.
        """
        min_rows = max(1, max_rows // 2)
        divisor = max(2, max_rows // 4)
        is_possible_end = self.columns["cut"] % divisor == 0
        for split, kind in product(SPLITS, KINDS):
            is_split = self.columns["split"] == SPLITS.index(split)
            is_kind = self.columns["kind"] == KINDS.index(kind)
            rows = np.flatnonzero(is_split & is_kind)
            possible_ends = np.flatnonzero(is_possible_end[rows]) + 1

            first = 0
            unit_count = 0
            while first < len(rows):
                after_half = np.searchsorted(possible_ends, first + min_rows)
                # The first possible end after half of the rows, if there is one.
                hashed_end = possible_ends[after_half:][:1].tolist()
                last = min(first + max_rows, len(rows), *hashed_end)
                name = f"{split}-{kind}-{unit_count:05d}"
                yield name, rows[first:last]
                first = last
                unit_count += 1

    def tables(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """Yield planned rows by their positions, with their splits and groups, in parts."""
        if not len(rows):
            return
        indices = self.row_indices[rows]
        split_codes = self.columns["split"][rows]
        # The file is read by row groups: each run of indices in one group is taken at once.
        group_starts = np.flatnonzero(np.diff(indices // ROW_GROUP)) + 1
        for run in np.split(np.arange(len(rows)), group_starts):
            row_group = self._row_group(int(indices[run[0]]) // ROW_GROUP)
            table = row_group.take(pa.array(indices[run] % ROW_GROUP))
            columns = {
                "split": pa.array(SPLITS).take(pa.array(split_codes[run])),
                "group": pa.array(self._groups(table), pa.string()),
            }
            for name, values in columns.items():
                position = table.schema.get_field_index(name)
                table = table.set_column(position, name, values)
            yield table

    def units(self) -> Iterator[DecodeUnit]:
        """Yield the units in order, read one at a time."""
        for name, rows in self.rows_of_unit.items():
            yield DecodeUnit(name, pa.concat_tables(self.tables(rows)))

    def reject_table(self) -> pa.Table:
        """Return the rejects of the import, with the columns of REJECTS."""
        return self.manifest.rejects().select(REJECTS.names)

    def annotated(self) -> SplitCounts:
        """Return the numbers of items with a text, captions and questions that each split should
        have: of its rows, and of the items whose files are missing."""
        is_missing = pc.field("reason") == "missing"
        is_planned = pc.field("kind").isin(self.kinds)
        missing = self.manifest.rejects().filter(is_missing & is_planned)
        missing = missing.rename_columns({"path": "name"})
        splits = self._assign_splits(missing)
        columns = {"split": np.append(self.columns["split"], splits)}
        for name in TEXT_COUNTS:
            columns[name] = np.append(self.columns[name], missing[name])
        return count_by_split(columns)

    def evenly_spaced(self, count: int) -> list[Row]:
        """Return at most `count` rows, evenly spaced in the order of the manifest."""
        planned = len(self.row_indices)
        rows = np.linspace(
            0,
            planned,
            min(count, planned),
            endpoint=False,
            dtype=int,
        )
        return [row for table in self.tables(rows) for row in read_rows(table)]

    def splits(self) -> dict[str, dict[str, Any]]:
        """Return what each split has: the numbers of `items` with a caption or a question, of
        `captions` and of `questions`, and `why_empty`, if it has no items."""
        counts = count_by_split(self.columns)
        items = {split: counted["items"] for split, counted in counts.items()}
        named = ", ".join(
            f"{split} ({count})" for split, count in items.items() if count
        )
        splits: dict[str, dict[str, Any]] = {}
        for split, counted in counts.items():
            reason = (
                f"no row names one, and with {split} = {self.shares[split]:g}, none of the "
                f"{sum(items.values())} items with a text fell into it"
            )
            if self.named_splits:
                reason = f"the rows with a text name the splits {named or '-'}"
            splits[split] = counted | {"why_empty": "" if items[split] else reason}
        return splits

    def group_hint(self) -> str:
        """Return a hint if splits are generated and files may be parts of the same recordings,
        judging by their names; otherwise an empty string."""
        if not self.generated_splits or self.pattern:
            return ""
        names = {*self._names_without_group()}
        for key, pattern in GROUPINGS.items():
            matches = filter(None, map(pattern.search, names))
            counts = Counter(match[1] for match in matches).values()
            recordings = [count for count in counts if count > 1]
            largest = max(recordings, default=0)
            # Many groups of few files are recordings; a few of many files are collections.
            if 0 < largest <= len(recordings) and 2 * largest < len(names):
                return (
                    f"{sum(recordings)} files may be parts of {len(recordings)} recordings; "
                    f"group_pattern = {key!r} keeps the files of a recording in one split"
                )
        return ""

    def _names_without_group(self) -> Iterator[str]:
        for batch in self.manifest.batches(["group", "name"]):
            yield from batch.filter(pc.field("group") == "")["name"].to_pylist()


def count_by_split(columns: dict[str, np.ndarray]) -> SplitCounts:
    """Return by split how many items have a text, and how many texts of each kind there are.

    Args:
        columns: The split of each item, as its index in SPLITS, and the columns TEXT_COUNTS.
    """
    has_text = columns["captions"] + columns["questions"] > 0
    counted = {"items": has_text} | {name: columns[name] for name in TEXT_COUNTS}
    counts: SplitCounts = {}
    for code, split in enumerate(SPLITS):
        in_split = columns["split"] == code
        counts[split] = {
            name: int(values[in_split].sum()) for name, values in counted.items()
        }
    return counts
