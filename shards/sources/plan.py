"""Assigns the rows of a corpus to splits and shards, on disk: memory does not grow with the number of rows.

The database file is unlinked as soon as it is open, so it disappears with the process, even if that is killed: a row
contains the URL of its file, including credentials.

The rows alone determine the shards: the rows of a split and kind, in the manifest's order, are cut at content-defined
positions (a hash of the id). An added or removed row only moves the cuts near it, so the other shards are reused.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from alpro.shards.database import database
from alpro.shards.sampling import segment_starts
from alpro.shards.schema import KINDS, SPLITS, Reject, Row

MIN_PREFIX_LENGTH = 4  # characters; shorter prefixes, as in `a1` and `a2`, do not indicate the source


@dataclass(frozen=True)
class SimilarNames:
    """Files whose names differ only in a trailing number: their count, and two examples that start with `prefix`."""

    items: int
    prefix: str
    examples: tuple[str, str]


@dataclass(frozen=True)
class DecodeUnit:
    """The rows of one shard, decoded independently by one worker."""

    name: str
    rows: list[Row]


class DecodePlan:
    """Rows, rejects and units in an SQLite file."""

    def __init__(self, db: sqlite3.Connection, generated_splits: bool):
        self.db, self.generated_splits = db, generated_splits

    @classmethod
    @contextmanager
    def create(
        cls,
        folder: Path,
        records: Iterable[Row | Reject],
        validation: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        max_rows: int = 256,
    ) -> Iterator["DecodePlan"]:
        """Reads all records. The plan is valid within the context. `validation` and `test` are the chances of a group
        to be in these splits, used if no row has a split; `max_rows` is the maximum number of rows in a unit."""
        path = folder / "plan.sqlite"
        with database(path) as db:
            path.unlink()  # the open file remains usable
            db.execute(
                "create table rows (n integer primary key, split, kind, source, cut_hash, "
                "captions, questions, prefix, row)"
            )
            db.execute("create table rejects (row)")
            db.execute("create table units (name primary key, split, kind, first, last)")
            for record in records:
                if isinstance(record, Row):
                    source = hashlib.sha256(f"{seed}/{record.group}".encode()).digest()
                    cut_hash = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "big")
                    texts = len(record.captions), len(record.questions), _prefix(record), record.model_dump_json()
                    row = None, record.split, record.kind, source, cut_hash, *texts  # None: the next number
                    db.execute("insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                else:
                    db.execute("insert into rejects values (?)", (record.model_dump_json(),))
            generated = _assign_splits(db, validation, test)
            db.execute("create index place on rows (split, kind, n)")
            _create_units(db, max_rows)
            db.execute("commit")  # raises now if the disk is full, before anything is decoded
            db.execute("begin")
            yield cls(db, generated)

    def rejects(self) -> Iterator[Reject]:
        for (row,) in self.db.execute("select row from rejects order by rowid"):
            yield Reject.model_validate_json(row)

    def unit_names(self) -> Iterator[str]:
        for (name,) in self.db.execute("select name from units order by rowid"):
            yield name

    def units(self) -> Iterator[DecodeUnit]:
        """The units in order, read one at a time."""
        for name, split, kind, first, last in self.db.execute("select * from units order by rowid"):
            rows = self.db.execute(
                "select row from rows where split = ? and kind = ? and n between ? and ? order by n",
                (split, kind, first, last),
            )
            yield DecodeUnit(name, [_row(row, split) for (row,) in rows])

    def count(self, table: str) -> int:
        """The number of rows, rejects or units."""
        return self.db.execute(f"select count(*) from {table}").fetchone()[0]

    def evenly_spaced(self, count: int) -> list[Row]:
        """At most `count` rows, evenly spaced in the order of the records."""
        total = self.count("rows")
        rows = []
        for number in segment_starts(total, min(count, total)):
            (row,) = self.db.execute("select row from rows order by n limit 1 offset ?", (number,)).fetchone()
            rows.append(Row.model_validate_json(row))
        return rows

    def captions(self, split: str) -> Iterator[str]:
        """The captions of a split."""
        for (row,) in self.db.execute("select row from rows where split = ? and captions order by n", (split,)):
            yield from Row.model_validate_json(row).captions

    def splits(self) -> Iterator[str]:
        """The split of each row, in the order of the records."""
        for (split,) in self.db.execute("select split from rows order by n"):
            yield split

    def similar_names(self) -> SimilarNames | None:
        """Files that may be clips of the same videos, judging by their names. None if the manifest has splits or
        groups, or if no names are similar."""
        if not self.generated_splits:
            return None
        named = "select prefix, count(distinct source) files from rows where prefix != '' group by prefix"
        # A prefix that at least half of all files share is the name of the data set, not of a video.
        selected = f"select * from ({named}) where files > 1 and 2 * files < (select count(distinct source) from rows)"
        items, groups, largest = self.db.execute(
            f"select coalesce(sum(files), 0), count(*), coalesce(max(files), 0) from ({selected})"
        ).fetchone()
        # Many groups of few clips are videos; a few groups of many files are collections.
        if not items or groups < largest:
            return None
        (prefix,) = self.db.execute(f"select prefix from ({selected}) order by length(prefix) desc, prefix").fetchone()
        rows = self.db.execute("select min(n), row from rows where prefix = ? group by source order by 1", (prefix,))
        first, second = (Row.model_validate_json(row).file_name for _, row in rows.fetchmany(2))
        return SimilarNames(items, prefix, (first, second))

    def texts_by_split(self) -> dict[str, dict[str, int]]:
        """By split, the number of items with a caption or a question, and the number of captions and questions."""
        rows = self.db.execute(
            "select split, count(*), sum(captions), sum(questions) from rows where captions + questions group by split"
        )
        counts = {
            split: dict(zip(("items", "captions", "questions"), numbers, strict=True)) for split, *numbers in rows
        }
        return {split: counts.get(split, {"items": 0, "captions": 0, "questions": 0}) for split in SPLITS}


def _prefix(row: Row) -> str:
    """A file name up to its trailing number if the file is the row's group; otherwise an empty string."""
    numbered = re.fullmatch(r"(.*\D)\d+", PurePosixPath(row.file_name).stem)
    return (
        numbered[1] if numbered and len(numbered[1]) >= MIN_PREFIX_LENGTH and row.group.endswith(row.file_name) else ""
    )


def _row(text: str, split: str) -> Row:
    return Row.model_validate_json(text).model_copy(update={"split": split})


def _assign_splits(db: sqlite3.Connection, validation: float, test: float) -> bool:
    """Fills in every split. If no row has a split, the seeded hash of its group alone decides, so that no other row
    moves when rows are added, removed or renamed: a threshold, so that the shares are met only on average.

    Rows without a group are grouped by file, so that clips of one video stay together. If some rows have a split, the
    others are for training. Returns whether the splits are generated and there are several.
    """
    if db.execute("select exists (select 1 from rows where split != '')").fetchone()[0]:
        db.execute("update rows set split = 'train' where split = ''")
        return False
    db.execute(
        "update rows set split = case when source < ? then 'test' when source < ? then 'validation' else 'train' end",
        (_threshold(test), _threshold(test + validation)),
    )
    return test + validation > 0


def _threshold(share: float) -> bytes:
    """The hash that this share of all hashes is below."""
    return min(int(share * 2**64), 2**64 - 1).to_bytes(8, "big")


def _create_units(db: sqlite3.Connection, max_rows: int) -> None:
    """Inserts the units of each split and kind."""
    for split in SPLITS:
        for kind in KINDS:
            rows = db.execute("select n, cut_hash from rows where split = ? and kind = ? order by n", (split, kind))
            for number, (first, last) in enumerate(cuts(rows, max_rows)):
                unit = f"{split}-{kind}-{number:05d}", split, kind, first, last
                db.execute("insert into units values (?, ?, ?, ?, ?)", unit)


def cuts(rows: Iterable[tuple[int, int]], max_rows: int) -> Iterator[tuple[int, int]]:
    """The first and last row number of each unit, for rows as (number, hash).

    A unit, except the last, has at least half of `max_rows` rows. It ends at the next row whose hash is a multiple of a
    quarter of `max_rows`, or at `max_rows` rows.
    """
    first, last, items = 0, 0, 0
    for number, cut_hash in rows:
        first, last, items = first if items else number, number, items + 1
        if items == max_rows or (items >= max_rows // 2 and cut_hash % max(2, max_rows // 4) == 0):
            yield first, last
            items = 0
    if items:
        yield first, last
