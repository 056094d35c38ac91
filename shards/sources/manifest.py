"""Imports a source of items into one Parquet table, the manifest, which all later steps read.

A source is a manifest of the user's, a folder of videos with texts, annotation files of a data set,
or shards of video2dataset and img2dataset. Its rows are imported once: the table is kept under the
digest of the sizes and times of the source's files, so that an unchanged source is not parsed
again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.files import (
    atomic_write,
    checksum,
    digest,
    file_state,
    make_folder,
    read_json,
)
from alpro.locks import acquire, file_lock
from alpro.log import progress
from alpro.shards.schema import IMPORT_REJECTS, MANIFEST, MissingItem, Reject, Row
from alpro.shards.sources.downloads import tars
from alpro.shards.sources.form import VERSION, Columns, Record
from alpro.shards.sources.media import TEXT_SUFFIXES, read_suffix
from alpro.shards.sources.rows import Rows
from alpro.shards.sources.scan import Source
from alpro.shards.sources.tables import TABLES
from alpro.shards.storage import Location, identities, join

ROW_GROUP = 8192  # rows of a manifest that are written and read together
# Files whose contents the rows depend on.
STATE = {".tar", ".gz", *TABLES, *TEXT_SUFFIXES}
Annotations = Mapping[str, Sequence[Path]]  # tables by split


@dataclass(frozen=True)
class Manifest:
    """An imported source: a folder with manifest.parquet, rejects.parquet and about.json."""

    folder: Path

    @cached_property
    def about(self) -> Record:
        """The description of a source.

        `source` and `form`; `rows` and `rejects`, how many there are, and the `digest` of both;
        `splits`, those that the rows name ("" for none); `has_questions`; `notes` on what is left
        out; `names`, the digest of the files' names if a row depends on them.
        """
        return read_json(self.folder / "about.json")

    @property
    def file(self) -> Path:
        return self.folder / "manifest.parquet"

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.file) as file:
            yield from file.iter_batches(ROW_GROUP, columns=columns)

    def rows(self) -> Iterator[Row]:
        """Yield the rows as they were imported, before the splits are drawn."""
        for batch in self.batches(MANIFEST.names):
            yield from read_rows(batch)

    def rejects(self) -> pa.Table:
        """Return the rejects of the import. Those without a file have what decides their split."""
        return pq.read_table(self.folder / "rejects.parquet", schema=IMPORT_REJECTS)


def table_checksums(folder: Path) -> list[str]:
    """Return the SHA-256 of each table of a manifest."""
    return [*map(checksum, sorted(folder.glob("*.parquet")))]


def read_rows(table: pa.Table | pa.RecordBatch) -> Iterator[Row]:
    """Yield the rows of a part of a manifest."""
    for values in table.to_pylist():
        values["meta"] = json.loads(values["meta"])
        yield Row.model_validate(values)


def import_source(
    data: Location,
    cache: Path,
    annotations: Annotations | None = None,
    root: Path | None = None,
    columns: Columns | None = None,
) -> Manifest:
    """Return the manifest of a source, in the folder `cache`, imported unless no file that it
    depends on has changed.

    Raises InputError if the source as a whole is unusable, as `Source.scan`.
    """
    if isinstance(data, Path):
        data = Path(os.path.normpath(data.absolute()))
    source = Source(data, annotations, root, columns=columns)

    column_keys = columns.model_dump(mode="json", exclude_unset=True) if columns else {}
    tables = {split: [*map(str, files)] for split, files in source.annotations.items()}
    source_digest = digest([str(data), tables, str(root), column_keys])[:16]
    state = digest([VERSION, *state_of(source)])[:16]
    # A run may read the manifest of an earlier state, so each state has a folder of its own.
    name = f"{source_digest}-{state}"
    target = cache / f"{name}-{uuid4().hex[:8]}"
    lock = file_lock(cache / f".{name}.lock")
    try:
        make_folder(cache)
        # A second process waits, and finds what the first one has imported.
        acquire(lock)
        for imported in map(Manifest, cache.glob(f"{name}-*")):
            # A damaged one, or one of a version that wrote no checksums, is imported again.
            with suppress(FileNotFoundError, ValueError, TypeError, LookupError):
                names = imported.about["names"]
                is_intact = imported.about["sha256"] == table_checksums(imported.folder)
                # The names of all files count if one was looked up among them.
                is_same = not names or (
                    source.folder and names == source.folder.names_digest
                )
                if is_intact and is_same:
                    return imported

        with atomic_write(target) as folder:
            folder.mkdir()
            form, rows = source.scan()
            about = write_manifest(
                rows, folder, source.folder.path if source.folder else data
            )
            names = ""
            if source.folder and source.folder.is_listed:
                names = source.folder.names_digest
            about |= {
                "source": str(data),
                "form": form,
                "notes": source.notes.lines(),
                "names": names,
                "sha256": table_checksums(folder),
            }
            (folder / "about.json").write_text(json.dumps(about, indent=1), "utf-8")
    finally:
        lock.release()
    return Manifest(target)


def find_outdated(cache: Path) -> list[Path]:
    """Return the folders of all manifests but the newest of each source."""
    folders = sorted(cache.glob("[!.]*-*"), key=os.path.getmtime)
    newest = {folder.name.partition("-")[0]: folder for folder in folders}
    return [folder for folder in folders if folder not in newest.values()]


def state_of(source: Source) -> Iterator[list[Any]]:
    """Yield the sizes and times of the files that the rows of a source depend on, and of a folder
    the names of its media: their contents count when they are decoded."""
    for table in chain.from_iterable(source.annotations.values()):
        yield [str(table), file_state(table)]
    if not source.folder:
        shards = tars(source.data)
        beside = [join(source.data, f"{Path(shard).stem}.parquet") for shard in shards]
        files = [*shards, *beside] or [source.data]
        for file, identity in zip(files, identities(files), strict=True):
            yield [str(file), identity]
    elif not source.is_folder:
        yield [str(source.data), file_state(Path(source.data))]
    elif not source.annotations:
        yield [source.folder.names_digest, None]
        for name in source.folder.others:
            if read_suffix(name) in STATE:
                yield [name, file_state(source.folder.path / name)]


def write_manifest(records: Rows, out: Path, base: Location) -> Record:
    """Write the rows and the rejects of a source to a folder, and return what is known of them.

    Args:
        base: The folder that paths are relative to in the digest.
    """
    splits: set[str] = set()
    has_questions = False
    content = hashlib.sha256()
    counts = {"rows": 0, "rejects": 0}
    pending: dict[str, list[Record]] = {"rows": [], "rejects": []}
    with (
        progress(f"importing {base}", None, "rows") as advance,
        pq.ParquetWriter(out / "manifest.parquet", MANIFEST) as row_file,
        pq.ParquetWriter(out / "rejects.parquet", IMPORT_REJECTS) as reject_file,
    ):
        files = {"rows": row_file, "rejects": reject_file}
        for record in chain(records, [None]):
            # Readers find a row by its number: every group but the last has ROW_GROUP rows.
            for name, values in pending.items():
                if len(values) == ROW_GROUP or (values and record is None):
                    table = pa.Table.from_pylist(values, schema=files[name].schema)
                    files[name].write_table(table, ROW_GROUP)
                    counts[name] += len(values)
                    advance(len(values))
                    values.clear()
            if record is None:
                break

            fields = record.model_dump(mode="json")
            # Relative: a folder that was moved has the same digest.
            inside = fields["path"].removeprefix(f"{base}/")
            text = json.dumps(fields | {"path": inside}, sort_keys=True)
            content.update(text.encode())
            if isinstance(record, Row | MissingItem):
                # Also those of which no item has a file.
                splits.add(record.split)
            if isinstance(record, Reject):
                pending["rejects"].append(fields)
                continue

            # Only the id is hashed: another row does not move this cut.
            id_hash = hashlib.blake2b(record.id.encode(), digest_size=4).digest()
            fields["cut"] = int.from_bytes(id_hash, "big")
            fields["meta"] = json.dumps(record.meta)
            pending["rows"].append(fields)
            has_questions |= bool(record.questions)

    return {
        **counts,
        "digest": content.hexdigest(),
        "splits": sorted(splits),
        "has_questions": has_questions,
    }
