"""A corpus's rows on disk: which split each is in, and which shard. A million of them take no more memory than ten.

The file has no name: it disappears when the process ends, even if it is killed, because a row holds the URL from which
its file is fetched, with any credentials in it.

Which rows share a shard follows from the rows alone: those of one split and kind, in the manifest's order, cut where a
hash of an id says so. A row more or less moves the cuts near it and no others, so that the other shards need not be
made again.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from alpro.shards.database import database
from alpro.shards.schema import SPLITS, Reject, Row

KINDS = ("video", "image")
MIN_PREFIX_LENGTH = 4  # characters; shorter ones, as in `a1` and `a2`, say nothing about the source
LAST = b"\xff" * 33  # after every SHA-256


@dataclass(frozen=True)
class Alike:
    """Files whose names differ from others only in a trailing number: their count, and two that begin with `prefix`."""

    items: int
    prefix: str
    examples: tuple[str, str]


@dataclass(frozen=True)
class Unit:
    """The rows of one shard: what one worker does without knowing of others."""

    name: str
    rows: list[Row]


class Plan:
    """Rows, rejects and units in an SQLite file."""

    def __init__(self, db: sqlite3.Connection, made_splits: bool):
        self.db, self.made_splits = db, made_splits

    @classmethod
    @contextmanager
    def make(
        cls,
        folder: Path,
        records: Iterable[Row | Reject],
        validation: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        most: int = 256,
    ) -> Iterator["Plan"]:
        """Reads all records; the plan is valid within the context. `validation` and `test` are shares of the groups,
        used if no row names a split; `most` is the maximum number of rows in a unit."""
        path = folder / "plan.sqlite"
        with database(path) as db:
            path.unlink()  # the open file stays
            db.execute(
                "create table rows (n integer primary key, split, kind, source, mark, captions, questions, prefix, row)"
            )
            db.execute("create table rejects (row)")
            db.execute("create table units (name primary key, split, kind, first, last)")
            for record in records:
                if isinstance(record, Row):
                    source = hashlib.sha256(f"{seed}/{record.group}".encode()).digest()
                    mark = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "big")
                    said = len(record.captions), len(record.questions)
                    row = (
                        None,
                        record.split,
                        record.kind,
                        source,
                        mark,
                        *said,
                        _prefix(record),
                        record.model_dump_json(),
                    )
                    db.execute("insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)  # None: the next number
                else:
                    db.execute("insert into rejects values (?)", (record.model_dump_json(),))
            made = _split(db, validation, test)
            db.execute("create index place on rows (split, kind, n)")
            _cut(db, most)
            db.execute("commit")  # a full disk is noticed now, before anything is decoded
            db.execute("begin")
            yield cls(db, made)

    def rejects(self) -> Iterator[Reject]:
        """The rows that are bad in themselves."""
        for (row,) in self.db.execute("select row from rejects order by rowid"):
            yield Reject.model_validate_json(row)

    def names(self) -> Iterator[str]:
        """The units' names, in order."""
        for (name,) in self.db.execute("select name from units order by rowid"):
            yield name

    def units(self) -> Iterator[Unit]:
        """The units in order, one read at a time."""
        for name, split, kind, first, last in self.db.execute("select * from units order by rowid"):
            found = self.db.execute(
                "select row from rows where split = ? and kind = ? and n between ? and ? order by n",
                (split, kind, first, last),
            )
            yield Unit(name, [_row(row, split) for (row,) in found])

    def count(self, table: str) -> int:
        """How many rows, rejects or units there are."""
        return self.db.execute(f"select count(*) from {table}").fetchone()[0]

    def names_alike(self) -> Alike | None:
        """Files that may be clips of the same videos, judging by their names, if splits were made that only keep the
        items of a file together. None if splits or groups are given, or if names are not alike."""
        if not self.made_splits:
            return None
        named = "select prefix, count(distinct source) files from rows where prefix != '' group by prefix"
        # A prefix that half of all files share is the name of the data set, not of a video.
        few = f"select * from ({named}) where files > 1 and 2 * files < (select count(distinct source) from rows)"
        (items,) = self.db.execute(f"select sum(files) from ({few})").fetchone()
        if not items:
            return None
        (prefix,) = self.db.execute(f"select prefix from ({few}) order by length(prefix) desc, prefix").fetchone()
        rows = self.db.execute("select min(n), row from rows where prefix = ? group by source order by 1", (prefix,))
        first, second = (Row.model_validate_json(row).file_name for _, row in rows.fetchmany(2))
        return Alike(items, prefix, (first, second))

    def texts_by_split(self) -> dict[str, dict[str, int]]:
        """By split, the items that have a caption or a question, and how many captions and questions they have."""
        found = self.db.execute(
            "select split, count(*), sum(captions), sum(questions) from rows where captions + questions group by split"
        )
        counts = {
            split: dict(zip(("items", "captions", "questions"), numbers, strict=True)) for split, *numbers in found
        }
        return {split: counts.get(split, {"items": 0, "captions": 0, "questions": 0}) for split in SPLITS}


def _prefix(row: Row) -> str:
    """The name of a file up to its trailing number, if the file is the row's group; otherwise empty."""
    numbered = re.fullmatch(r"(.*\D)\d+", PurePosixPath(row.file_name).stem)
    return (
        numbered[1] if numbered and len(numbered[1]) >= MIN_PREFIX_LENGTH and row.group.endswith(row.file_name) else ""
    )


def _row(text: str, split: str) -> Row:
    return Row.model_validate_json(text).model_copy(update={"split": split})


def _split(db: sqlite3.Connection, validation: float, test: float) -> bool:
    """Fills in every split. If no row names one they are made, of whole groups, in the order of a seeded hash.

    Rows without a group are grouped by file, so that clips of one video stay together. If some rows name a split, the
    others are for training. Returns whether there are several splits that were made.
    """
    if db.execute("select exists (select 1 from rows where split != '')").fetchone()[0]:
        db.execute("update rows set split = 'train' where split = ''")
        return False
    groups = db.execute("select count(distinct source) from rows").fetchone()[0]
    least = 1 if groups >= 3 else 0  # a share above 0 is at least one group
    tested, validated = (max(least, round(groups * share)) if share else 0 for share in (test, validation))

    def border(number: int) -> bytes:
        found = db.execute("select distinct source from rows order by source limit 1 offset ?", (number,)).fetchone()
        return found[0] if found else LAST

    db.execute(
        "update rows set split = case when source < ? then 'test' when source < ? then 'validation' else 'train' end",
        (border(tested), border(tested + validated)),
    )
    return tested + validated > 0


def _cut(db: sqlite3.Connection, most: int) -> None:
    """Makes the units of each split and kind."""
    for split in SPLITS:
        for kind in KINDS:
            rows = db.execute("select n, mark from rows where split = ? and kind = ? order by n", (split, kind))
            for number, (first, last) in enumerate(cuts(rows, most)):
                unit = f"{split}-{kind}-{number:05d}", split, kind, first, last
                db.execute("insert into units values (?, ?, ?, ?, ?)", unit)


def cuts(rows: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The first and the last number of each unit, of rows as (number, mark): half of `most` rows, and on to the next
    row whose mark is a multiple of a quarter of it, or to `most`."""
    first, last, items = 0, 0, 0
    for number, mark in rows:
        first, last, items = first if items else number, number, items + 1
        if items == most or (items >= most // 2 and mark % max(2, most // 4) == 0):
            yield first, last
            items = 0
    if items:
        yield first, last
