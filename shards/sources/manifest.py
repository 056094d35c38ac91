"""Imports a source of items into one Parquet table, the manifest, which all later steps read.

A source is a manifest of the user's, a folder of videos with texts, annotation files of a data set,
or shards of video2dataset and img2dataset. Its rows are imported once: the table is kept under the
digest of the sizes and times of the source's files, so that an unchanged source is not parsed
again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alpro.errors import InputError
from alpro.files import (
    digest,
    file_state,
    make_folder,
    publish,
    read_json,
    temporary_name,
    write_json,
)
from alpro.shards.schema import MANIFEST, REJECTS, Reject, Row
from alpro.shards.sources.captions import SIDECARS, TABLES
from alpro.shards.sources.downloads import tars
from alpro.shards.sources.folders import list_folder, media_suffix
from alpro.shards.sources.media_files import AMBIGUOUS, MediaFiles, is_file
from alpro.shards.sources.scan import is_folder, known_form, scan_source
from alpro.shards.storage import Location, identities, is_url, join

ROW_GROUP = 8192  # rows of a manifest that are written and read together
STATE = {".tar", ".gz", *TABLES, *SIDECARS}  # files whose contents the rows depend on


@dataclass(frozen=True)
class Manifest:
    """An imported source: a folder with manifest.parquet, rejects.parquet and about.json."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """The source and its form, the numbers of rows and rejects, the digest of both, whether a
        row has questions, whether one names a split, and notes on what is left out."""
        return read_json(self.folder / "about.json")

    @property
    def file(self) -> Path:
        return self.folder / "manifest.parquet"

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.file) as file:
            yield from file.iter_batches(ROW_GROUP, columns=columns)

    def rejects(self) -> pa.Table:
        return pq.read_table(self.folder / "rejects.parquet", schema=REJECTS)


def import_source(
    data: Location,
    cache: Path,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
) -> Manifest:
    """The manifest of a source, in the folder `cache`, imported unless no file of the source has
    changed since, and its names mean the same files.

    Raises InputError if the source as a whole is unusable, as `scan_source`.
    """
    if isinstance(data, Path):
        data = Path(os.path.normpath(data.absolute()))
        is_folder(data)  # raises InputError if a folder above may not be read
    files = {}
    for key, file in (annotations or {}).items():
        files[key] = os.path.normpath(file.absolute())

    source = digest({"data": str(data), "annotations": files, "root": str(root)})[:16]
    # Another version of this package may read other rows from the same files.
    code = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    state = digest({"code": code, "files": list(state_of(data, annotations))})[:16]
    folder = cache / f"{source}-{state}"
    known = Manifest(folder) if (folder / "about.json").is_file() else None
    if known and is_current(known, data):
        return known

    temporary = temporary_name(folder)
    try:
        make_folder(temporary)
        notes: list[str] = []
        form, records = scan_source(data, annotations, root, notes)
        write_manifest(data, form, records, temporary, notes)
        if known and Manifest(temporary).about == known.about:
            return known  # a stage may be reading it
        if known:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process has imported it
            publish(temporary, folder)
    except PermissionError as error:
        raise InputError(f"{error.filename or data}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    # Of earlier states of the source.
    for earlier in cache.glob(f"{source}-*"):
        if earlier != folder:
            shutil.rmtree(earlier, ignore_errors=True)
    return Manifest(folder)


def has_questions(data: Location, cache: Path | None = None) -> bool:
    """Whether the data has a question; also if it cannot be read, which the plan reports. cache:
    the folder of imported manifests; by default, the manifest is not kept."""
    with suppress(InputError), tempfile.TemporaryDirectory(prefix="alpro-") as temporary:
        return import_source(data, cache or Path(temporary)).about["questions"]
    return True


def is_current(manifest: Manifest, data: Location) -> bool:
    """Whether the names of an imported manifest mean the files that they did: one that had no file,
    or several, may have one now. The state of a manifest has no media, unlike that of others."""
    is_manifest = manifest.about["form"].startswith("a manifest")
    if not is_manifest or not isinstance(data, Path) or is_folder(data):
        return True

    media = MediaFiles(data.parent, tables=[data])
    missing: list[str] = []
    for batch in manifest.batches(["path"]):
        paths = batch["path"].to_pylist()
        missing += [path for path in paths if not is_url(path) and not is_file(Path(path))]
    for reject in manifest.rejects().to_pylist():
        if reject["detail"].startswith(AMBIGUOUS):
            missing.append(reject["path"])

    for path in missing:
        # Not a file of the folder, in a folder that cannot be listed, or still several files.
        with suppress(ValueError, InputError):
            if media.match(media.relative(path)):
                return False
    return True


def state_of(data: Location, annotations: Mapping[str, Path] | None) -> Iterator[list[Any]]:
    """The sizes and times of the files that the rows of a source depend on, and the names of its
    media."""
    if not isinstance(data, Path):
        shards = tars(data)
        tables = [join(data, f"{Path(shard).stem}.parquet") for shard in shards]
        files = [*shards, *tables] or [data]
        for file, identity in zip(files, identities(files), strict=True):
            yield [str(file), identity]
        return

    is_whole_folder = is_folder(data)
    if annotations:
        tables = list(annotations.values())
    else:
        tables = [] if is_whole_folder else [data]
    for path in tables:
        yield [str(path), file_state(path)]

    if annotations or is_whole_folder or known_form(data):
        folder = data if is_whole_folder else data.parent
        listing = list_folder(folder)
        for name in listing.media:
            # Of media only the names: their contents count when they are decoded.
            yield [name, None]

        for name in listing.others:
            if media_suffix(name) in STATE:
                yield [name, file_state(folder / name)]


def write_manifest(
    source: Location,
    form: str,
    records: Iterable[Row | Reject],
    folder: Path,
    notes: list[str],
) -> None:
    """Writes the rows and the rejects to a folder, and what there is to know of them, last.

    notes: what is left out, complete when all records are read.
    """
    base = source if not isinstance(source, Path) or source.is_dir() else source.parent
    counts: Counter[str] = Counter()
    content = hashlib.sha256()
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    with (
        pq.ParquetWriter(folder / "manifest.parquet", MANIFEST) as row_file,
        pq.ParquetWriter(folder / "rejects.parquet", REJECTS) as reject_file,
    ):

        def flush() -> None:
            row_table = pa.Table.from_pylist(rows, schema=MANIFEST)
            reject_table = pa.Table.from_pylist(rejects, schema=REJECTS)
            row_file.write_table(row_table, ROW_GROUP)
            reject_file.write_table(reject_table)
            rows.clear()
            rejects.clear()

        for record in records:
            values = record.model_dump(mode="json")
            # Relative: a folder that was moved has the same digest.
            inside = values["path"].removeprefix(f"{base}/")
            text = json.dumps(values | {"path": inside}, sort_keys=True)
            content.update(text.encode())

            if isinstance(record, Row):
                # Of the id alone: another row does not move this cut.
                id_hash = hashlib.blake2b(record.id.encode(), digest_size=4).digest()
                cut = int.from_bytes(id_hash, "big")
                rows.append(values | {"cut": cut, "meta": json.dumps(record.meta)})
                counts.update(rows=1, questions=len(record.questions), splits=bool(record.split))
            else:
                rejects.append(values)
                counts.update(rejects=1)

            if len(rows) == ROW_GROUP:
                flush()
        flush()

    about = {
        "source": str(source),
        "form": form,
        "rows": counts["rows"],
        "rejects": counts["rejects"],
        "digest": content.hexdigest(),
        "questions": counts["questions"] > 0,
        "splits": counts["splits"] > 0,
        # Names of files may have bytes that are not UTF-8.
        "notes": [note.encode("utf-8", "replace").decode() for note in notes],
    }
    write_json(folder / "about.json", about)
