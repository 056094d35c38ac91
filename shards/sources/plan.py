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
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import KINDS, SPLITS, Reject, Row
from alpro.shards.sources.manifest import ROW_GROUP, Manifest

MIN_PREFIX_LENGTH = (
    4  # characters; shorter prefixes, as in `a1` and `a2`, do not indicate the source
)
TEXT_COUNTS = ("captions", "questions")


@dataclass(frozen=True)
class DecodeUnit:
    """The rows of one shard, decoded independently by one worker."""

    name: str
    rows: list[Row]


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
        self.manifest, self.pattern = manifest, re.compile(group_pattern) if group_pattern else None
        self.named_splits = manifest.about["splits"]
        self.generated_splits = not self.named_splits and test + validation > 0
        parts: dict[str, list[np.ndarray]] = {
            name: [] for name in ("kind", "split", "cut", *TEXT_COUNTS)
        }
        is_matched, unmatched = False, ""
        for batch in manifest.batches([*parts, "group", "name"]):
            if self.pattern:
                names = batch.filter(pc.equal(batch["group"], ""))["name"].to_pylist()
                is_matched = is_matched or any(map(self.pattern.search, names))
                unmatched = unmatched or next(iter(names), "")
            if self.named_splits:
                split = pc.fill_null(pc.index_in(batch["split"], pa.array(SPLITS)), 0).to_numpy()
            elif self.generated_splits:
                split = _splits(f"{seed}/", self._groups(batch), test, validation)
            else:
                split = np.zeros(len(batch), np.int8)
            parts["split"].append(split.astype(np.int8))
            parts["kind"].append(
                pc.index_in(batch["kind"], pa.array(KINDS)).to_numpy().astype(np.int8)
            )
            parts["cut"].append(batch["cut"].to_numpy())
            for name in TEXT_COUNTS:
                parts[name].append(
                    pc.list_value_length(batch[name])
                    .to_numpy(zero_copy_only=False)
                    .astype(np.int32)
                )
        self.columns = {
            name: np.concatenate(arrays or [np.zeros(0, np.int64)])
            for name, arrays in parts.items()
        }
        self.mask = np.ones(
            len(self.columns["kind"]), bool
        )  # which rows of the manifest are planned
        if kinds != "all":
            self.mask = self.columns["kind"] == KINDS.index(kinds)
        self.numbers = np.flatnonzero(self.mask)
        if self.pattern and unmatched and not is_matched:  # every file would be its own group
            raise InputError(
                f"{manifest.about['source']}: group_pattern = {group_pattern!r} matches no file's path, such as "
                f"{unmatched!r}"
            )
        self.places = dict(self._cut(max_rows))  # of each unit: the numbers of its rows
        self._group = lru_cache(maxsize=4)(pq.ParquetFile(manifest.file).read_row_group)

    def _groups(self, batch: pa.RecordBatch) -> list[str]:
        """The group of each row of a batch with the columns `group` and `name`."""
        groups = batch["group"].to_pylist()
        return [
            group or self._found(name)
            for group, name in zip(groups, batch["name"].to_pylist(), strict=True)
        ]

    def _found(self, name: str) -> str:
        match = self.pattern.search(name) if self.pattern else None
        if not match:
            return name
        return match[1] or match[0] if match.re.groups else match[0]

    def _cut(self, max_rows: int) -> Iterator[tuple[str, np.ndarray]]:
        """The units of each split and kind. A unit, except the last, has at least half of
        `max_rows` rows. It ends at the next row whose hash is a multiple of a quarter of
        `max_rows`, or at `max_rows` rows."""
        for split in range(len(SPLITS)):
            for kind in range(len(KINDS)):
                chosen = (
                    self.mask & (self.columns["split"] == split) & (self.columns["kind"] == kind)
                )
                numbers = np.flatnonzero(chosen)
                ends = np.flatnonzero(self.columns["cut"][numbers] % max(2, max_rows // 4) == 0)
                first, count = 0, 0
                while first < len(numbers):
                    possible = np.searchsorted(ends, first + max(1, max_rows // 2) - 1)
                    next_end = int(ends[possible]) + 1 if possible < len(ends) else len(numbers)
                    last = min(next_end, first + max_rows, len(numbers))
                    yield f"{SPLITS[split]}-{KINDS[kind]}-{count:05d}", numbers[first:last]
                    first, count = last, count + 1

    def rows(self, numbers: np.ndarray) -> Iterator[Row]:
        """The rows of these numbers, with their splits and groups."""
        for part in np.split(numbers, np.flatnonzero(np.diff(numbers // ROW_GROUP)) + 1):
            if not len(part):
                continue
            table = self._group(int(part[0]) // ROW_GROUP).take(pa.array(part % ROW_GROUP))
            for number, values in zip(part, table.to_pylist(), strict=True):
                values |= {
                    "split": SPLITS[self.columns["split"][number]],
                    "meta": json.loads(values["meta"]),
                }
                yield Row.model_validate(
                    values | {"group": values["group"] or self._found(values["name"])}
                )

    def units(self) -> Iterator[DecodeUnit]:
        """The units in order, read one at a time."""
        return (DecodeUnit(name, list(self.rows(numbers))) for name, numbers in self.places.items())

    def rejects(self) -> Iterator[Reject]:
        return (Reject(**row) for row in self.manifest.rejects().to_pylist())

    def evenly_spaced(self, count: int) -> list[Row]:
        """At most `count` rows, evenly spaced in the order of the manifest."""
        starts = segment_starts(len(self.numbers), min(count, len(self.numbers)))
        return list(self.rows(self.numbers[np.asarray(starts, np.int64)]))

    def texts_by_split(self) -> dict[str, dict[str, int]]:
        """By split, the number of items with a caption or a question, and the number of captions
        and questions."""
        captions, questions, splits = (
            self.columns[name][self.mask] for name in (*TEXT_COUNTS, "split")
        )
        counts = {}
        for code, split in enumerate(SPLITS):
            chosen = splits == code
            numbers = (
                (captions + questions > 0)[chosen].sum(),
                captions[chosen].sum(),
                questions[chosen].sum(),
            )
            counts[split] = dict(zip(("items", *TEXT_COUNTS), map(int, numbers), strict=True))
        return counts

    def group_hint(self) -> str:
        """A hint if splits are generated and files may be clips of the same videos, judging by
        their names, which differ only in a trailing number; otherwise an empty string."""
        if not self.generated_splits or self.pattern:
            return ""
        prefixes: dict[str, str] = {}  # of the groups, which are files
        for batch in self.manifest.batches(["group", "name"]):
            for group, name in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                numbered = None if group else re.fullmatch(r"(.*\D)\d+", PurePosixPath(name).stem)
                is_long = numbered and len(numbered[1]) >= MIN_PREFIX_LENGTH
                prefixes[group or name] = numbered[1] if numbered and is_long else ""
        named = Counter(filter(None, prefixes.values()))
        # A prefix that half of all files share is the name of the data set. Many groups of few
        # clips are videos; a few groups of many files are collections.
        counts = {p: n for p, n in named.items() if 1 < n < len(prefixes) / 2}
        while counts and len(counts) < max(counts.values()):
            del counts[max(counts, key=counts.__getitem__)]
        if not counts:
            return ""
        prefix = min(counts, key=lambda p: (-len(p), p))
        first, second, *_ = (
            PurePosixPath(name).name for name, own in prefixes.items() if own == prefix
        )
        others = "|".join(re.escape(p) for p, n in named.items() if n > 1 and p not in counts)
        pattern = f"^(?!(?:.*/)?(?:{others}))" if others else ""
        pattern += (
            "(.+?)" + ("" if prefix[-1].isalnum() else re.escape(prefix[-1])) + r"\d+\.[^.]+$"
        )
        return (
            f"the names of {sum(counts.values())} files differ only in a number, such as {first} and {second}; if "
            f"they are clips of one video, group_pattern = '{pattern}' keeps them in one split"
        )


def _splits(seed: str, groups: list[str], test: float, validation: float) -> np.ndarray:
    """The split of each group, by its seeded hash alone, so that no other row moves when rows are
    added, removed or renamed: by two thresholds, so that the shares are met only on average."""
    hashes = b"".join(hashlib.sha256((seed + group).encode()).digest()[:8] for group in groups)
    fractions = np.frombuffer(hashes, ">u8") / 2.0**64
    return np.where(fractions < test, 2, np.where(fractions < test + validation, 1, 0))
