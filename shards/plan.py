"""A corpus's rows on disk: which split each is in, and which shard. A million of them take no more memory than ten.

Which rows share a shard follows from the rows alone: those of one split and kind, in the manifest's order, cut where a
hash of an id says so. A row more or less moves the cuts near it and no others, so that the other shards need not be
made again.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.database import database
from shards.schema import SPLITS, Reject, Row

KINDS = ("video", "image")
LAST = b"\xff" * 33  # after every SHA-256


@dataclass(frozen=True)
class Unit:
    """The rows of one shard: what one worker does without knowing of others."""

    name: str
    rows: list[Row]


class Plan:
    """Rows, rejects and units in an SQLite file, which is made anew by `make` and may be read by many."""

    def __init__(self, path: Path):
        self.path = path
        self.db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    @classmethod
    def make(
        cls,
        path: Path,
        records: Iterable[Row | Reject],
        validation: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
        most: int = 256,
    ) -> "Plan":
        """Reads all records. `validation` and `test` are shares of the groups, for rows of which none names a split;
        `most` is the largest number of rows of a unit."""
        with database(path) as db:
            db.execute("create table rows (n integer primary key, split, kind, source, mark, captions, questions, row)")
            db.execute("create table rejects (row)")
            db.execute("create table units (name primary key, split, kind, first, last)")
            for record in records:
                if isinstance(record, Row):
                    source = hashlib.sha256(f"{seed}/{record.group}".encode()).digest()
                    mark = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "big")
                    said = len(record.captions), len(record.questions)
                    row = None, record.split, record.kind, source, mark, *said, record.model_dump_json()
                    db.execute("insert into rows values (?, ?, ?, ?, ?, ?, ?, ?)", row)  # None: the next number
                else:
                    db.execute("insert into rejects values (?)", (record.model_dump_json(),))
            _split(db, validation, test)
            db.execute("create index place on rows (split, kind, n)")
            _cut(db, most)
        return cls(path)

    def rows(self) -> Iterator[Row]:
        """All rows in the manifest's order, each with its split."""
        for row, split in self.db.execute("select row, split from rows order by n"):
            yield _row(row, split)

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

    def told(self) -> dict[str, dict[str, int]]:
        """By split, the items of which something is said, and their captions and questions."""
        found = self.db.execute(
            "select split, count(*), sum(captions), sum(questions) from rows where captions + questions group by split"
        )
        counts = {
            split: dict(zip(("items", "captions", "questions"), numbers, strict=True)) for split, *numbers in found
        }
        return {split: counts.get(split, {"items": 0, "captions": 0, "questions": 0}) for split in SPLITS}


def _row(text: str, split: str) -> Row:
    return Row.model_validate_json(text).model_copy(update={"split": split})


def _split(db: sqlite3.Connection, validation: float, test: float) -> None:
    """Fills in every split. Where no row names one they are made, of whole groups, in the order of a seeded hash.

    Rows without a group are grouped by file, so that clips of one video stay together. Where some rows name a split,
    the others are for training.
    """
    if db.execute("select exists (select 1 from rows where split != '')").fetchone()[0]:
        db.execute("update rows set split = 'train' where split = ''")
        return
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
