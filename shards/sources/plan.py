"""Assigns the rows of a manifest to splits and shards. Only numbers are in memory: 15 bytes a row.

The rows alone determine the shards: the rows of a split and kind, in the manifest's order, are cut
at content-defined positions (a hash of the id). An added or removed row only moves the cuts near
it, so the other shards are reused.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import KINDS, SPLITS, Reject, Row
from alpro.shards.sources.manifest import ROW_GROUP, Manifest

# Characters. A shorter prefix, as in `a1` and `a2`, does not indicate the source.
MIN_PREFIX_LENGTH = 4
TEXT_COUNTS = ("captions", "questions")


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
        singles = [self.table.take(pa.array([i])) for i in range(len(self))]
        return [DecodeUnit(single["id"][0].as_py(), single) for single in singles]


def read_rows(table: pa.Table) -> Iterator[Row]:
    """Yield the rows of a part of a manifest."""
    for values in table.to_pylist():
        values["meta"] = json.loads(values["meta"])
        yield Row.model_validate(values)


class DecodePlan:
    """The splits and the units of the rows of a manifest."""

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
        """kinds: the kind of the rows that are planned, or all. group_pattern: what it finds in the
        name of a row without a group is its group: the first parenthesized group, or the whole
        match. `validation` and `test` are the chances of a group to be in these splits, used if no
        row has a split; `max_rows` is the maximum number of rows in a unit. Raises InputError if
        the pattern matches no name."""
        self.manifest = manifest
        self.pattern = re.compile(group_pattern) if group_pattern else None
        self.named_splits = manifest.about["splits"]
        self.generated_splits = not self.named_splits and test + validation > 0
        columns = ("kind", "split", "cut", *TEXT_COUNTS)
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in columns}

        is_matched = False
        unmatched = ""
        for batch in manifest.batches([*columns, "group", "name"]):
            if self.pattern:
                without_group = batch.filter(pc.equal(batch["group"], ""))
                names = without_group["name"].to_pylist()
                is_matched = is_matched or any(map(self.pattern.search, names))
                unmatched = unmatched or next(iter(names), "")

            if self.named_splits:
                split_index = pc.index_in(batch["split"], pa.array(SPLITS))
                # A row without a split is for training.
                split = pc.fill_null(split_index, 0).to_numpy()
            elif self.generated_splits:
                split = _splits(f"{seed}/", self._groups(batch), test, validation)
            else:
                split = np.zeros(len(batch), np.int8)

            kind = pc.index_in(batch["kind"], pa.array(KINDS)).to_numpy()
            arrays["split"].append(split.astype(np.int8))
            arrays["kind"].append(kind.astype(np.int8))
            arrays["cut"].append(batch["cut"].to_numpy())
            for name in TEXT_COUNTS:
                text_count = pc.list_value_length(batch[name]).to_numpy(zero_copy_only=False)
                arrays[name].append(text_count.astype(np.int32))

        if self.pattern and unmatched and not is_matched:  # every file would be its own group
            raise InputError(
                f"{manifest.about['source']}: group_pattern = {group_pattern!r} matches no file's "
                f"path, such as {unmatched!r}"
            )

        empty = [np.zeros(0, np.int64)]
        self.columns: dict[str, np.ndarray] = {}
        for name, batches in arrays.items():
            self.columns[name] = np.concatenate(batches or empty)

        row_count = len(self.columns["kind"])
        self.is_planned = np.ones(row_count, bool)  # of each row of the manifest
        if kinds != "all":
            self.is_planned = self.columns["kind"] == KINDS.index(kinds)

        self.row_indices = np.flatnonzero(self.is_planned)
        self.rows_of_unit = dict(self._cut(max_rows))  # indices of rows in the manifest
        file = pq.ParquetFile(manifest.file)
        # Consecutive units are in the same row groups.
        self._row_group = lru_cache(maxsize=4)(file.read_row_group)

    def _groups(self, batch: pa.RecordBatch | pa.Table) -> list[str]:
        """The group of each row of a batch with the columns `group` and `name`."""
        groups = batch["group"].to_pylist()
        names = batch["name"].to_pylist()
        return [
            group or self._group_of_name(name) for group, name in zip(groups, names, strict=True)
        ]

    def _group_of_name(self, name: str) -> str:
        match = self.pattern.search(name) if self.pattern else None
        if not match:
            return name
        if match.re.groups:
            return match[1] or match[0]
        return match[0]

    def _cut(self, max_rows: int) -> Iterator[tuple[str, np.ndarray]]:
        """The units of each split and kind. A unit, except the last, has at least half of
        `max_rows` rows. It ends at the next row whose hash is a multiple of a quarter of
        `max_rows`, or at `max_rows` rows."""
        min_rows = max(1, max_rows // 2)
        divisor = max(2, max_rows // 4)
        is_possible_end = self.columns["cut"] % divisor == 0
        for (split_code, split), (kind_code, kind) in product(enumerate(SPLITS), enumerate(KINDS)):
            is_split = self.columns["split"] == split_code
            is_kind = self.columns["kind"] == kind_code
            rows = np.flatnonzero(self.is_planned & is_split & is_kind)
            possible_ends = np.flatnonzero(is_possible_end[rows]) + 1

            first = 0
            unit_count = 0
            while first < len(rows):
                last = min(first + max_rows, len(rows))
                after_half = np.searchsorted(possible_ends, first + min_rows)
                if after_half < len(possible_ends):
                    next_end = int(possible_ends[after_half])
                    last = min(last, next_end)
                yield f"{split}-{kind}-{unit_count:05d}", rows[first:last]
                first = last
                unit_count += 1

    def tables(self, indices: np.ndarray) -> Iterator[pa.Table]:
        """Yield the rows of the manifest with these indices, with their splits and groups, in
        parts."""
        if not len(indices):
            return
        # The file is read by row groups: each run of indices in one group is taken at once.
        group_indices = indices // ROW_GROUP
        group_starts = np.flatnonzero(np.diff(group_indices)) + 1
        for in_group in np.split(indices, group_starts):
            group_index = int(in_group[0]) // ROW_GROUP
            row_group = self._row_group(group_index)
            table = row_group.take(pa.array(in_group % ROW_GROUP))

            split_codes = pa.array(self.columns["split"][in_group])
            columns = {
                "split": pa.array(SPLITS).take(split_codes),
                "group": pa.array(self._groups(table), pa.string()),
            }
            for name, values in columns.items():
                table = table.set_column(table.schema.get_field_index(name), name, values)
            yield table

    def rows(self, indices: np.ndarray) -> Iterator[Row]:
        """Yield the rows of the manifest with these indices, with their splits and groups."""
        for table in self.tables(indices):
            yield from read_rows(table)

    def units(self) -> Iterator[DecodeUnit]:
        """Yield the units in order, read one at a time."""
        for name, indices in self.rows_of_unit.items():
            yield DecodeUnit(name, pa.concat_tables(self.tables(indices)))

    def rejects(self) -> Iterator[Reject]:
        return (Reject(**row) for row in self.manifest.rejects().to_pylist())

    def evenly_spaced(self, count: int) -> list[Row]:
        """At most `count` rows, evenly spaced in the order of the manifest."""
        planned = len(self.row_indices)
        starts = segment_starts(planned, min(count, planned))
        # Typed: an empty list would be an array of floats, which cannot be an index.
        chosen = self.row_indices[np.asarray(starts, np.int64)]
        return list(self.rows(chosen))

    def texts_by_split(self) -> dict[str, dict[str, int]]:
        """By split, the number of items with a caption or a question, and the number of captions
        and questions."""
        captions = self.columns["captions"][self.is_planned]
        questions = self.columns["questions"][self.is_planned]
        splits = self.columns["split"][self.is_planned]
        has_text = captions + questions > 0

        counts = {}
        for code, split in enumerate(SPLITS):
            in_split = splits == code
            counts[split] = {
                "items": int(has_text[in_split].sum()),
                "captions": int(captions[in_split].sum()),
                "questions": int(questions[in_split].sum()),
            }
        return counts

    def group_hint(self) -> str:
        """A hint if splits are generated and files may be clips of the same videos, judging by
        their names, which differ only in a trailing number; otherwise an empty string."""
        if not self.generated_splits or self.pattern:
            return ""

        prefixes = self._prefixes()
        named = Counter(filter(None, prefixes.values()))
        # A prefix that half of all files share is the name of the data set. Many groups of few
        # clips are videos; a few groups of many files are collections.
        half = len(prefixes) / 2
        counts = {prefix: count for prefix, count in named.items() if 1 < count < half}
        while counts and len(counts) < max(counts.values()):
            largest = max(counts, key=counts.__getitem__)
            del counts[largest]
        if not counts:
            return ""

        longest = min(counts, key=lambda prefix: (-len(prefix), prefix))
        examples = (name for name, prefix in prefixes.items() if prefix == longest)
        first = PurePosixPath(next(examples)).name
        second = PurePosixPath(next(examples)).name

        # The names of collections are no groups: the pattern excludes their prefixes.
        collections = []
        for prefix, count in named.items():
            if count > 1 and prefix not in counts:
                collections.append(re.escape(prefix))
        not_collections = ""
        if collections:
            not_collections = f"^(?!(?:.*/)?(?:{'|'.join(collections)}))"
        separator = ""
        if not longest[-1].isalnum():
            separator = re.escape(longest[-1])
        pattern = rf"{not_collections}(.+?){separator}\d+\.[^.]+$"

        file_count = sum(counts.values())
        return (
            f"the names of {file_count} files differ only in a number, such as {first} "
            f"and {second}; if they are clips of one video, group_pattern = '{pattern}' keeps "
            "them in one split"
        )

    def _prefixes(self) -> dict[str, str]:
        """What is before the trailing number in the name of each group, which is a file; an empty
        string for a name without a number or with a short prefix, and for a group of the user's."""
        prefixes: dict[str, str] = {}
        for batch in self.manifest.batches(["group", "name"]):
            groups = batch["group"].to_pylist()
            names = batch["name"].to_pylist()
            for group, name in zip(groups, names, strict=True):
                if group:
                    prefixes[group] = ""
                    continue
                stem = PurePosixPath(name).stem
                numbered = re.fullmatch(r"(.*\D)\d+", stem)
                prefix = numbered[1] if numbered else ""
                is_long = len(prefix) >= MIN_PREFIX_LENGTH
                prefixes[name] = prefix if is_long else ""
        return prefixes


def _splits(seed: str, groups: list[str], test: float, validation: float) -> np.ndarray:
    """The split of each group, by its seeded hash alone, so that no other row moves when rows are
    added, removed or renamed: by two thresholds, so that the shares are met only on average."""
    hashes = bytearray()
    for group in groups:
        digest = hashlib.sha256((seed + group).encode()).digest()
        hashes += digest[:8]

    fractions = np.frombuffer(hashes, ">u8") / 2.0**64
    is_test = fractions < test
    is_validation = fractions < test + validation
    # The codes of SPLITS.
    return np.select([is_test, is_validation], [2, 1], default=0)
