"""Imports a source of items into one Parquet table, the manifest, which all later steps read.

A source is a manifest of the user's, a folder of videos with texts, annotation files of a data set, or shards of
video2dataset and img2dataset. Its rows are imported once: the table is kept under the digest of the sizes and times of
the source's files, so that an unchanged source is not parsed again.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import digest, file_state, make_folder, publish, read_json, temporary_name, write_json
from alpro.shards.schema import IMAGE_EXTENSIONS, MANIFEST, MAX_SECONDS, REJECTS, VIDEO_EXTENSIONS, Reject, Row
from alpro.shards.sources.annotations import MEDIA_EXTENSIONS, scan_annotations, walk
from alpro.shards.sources.downloads import is_downloads, scan_downloads, tars
from alpro.shards.sources.forms import NAMES, form_of, hint, question_of, split_name
from alpro.shards.sources.identity import identities
from alpro.shards.sources.records import plain, read_records
from alpro.shards.storage import Location, exists, is_url, join, parent, resolve, suffix

TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
TEXTS = {"caption", "captions", "questions"}
COLUMNS = {"id", "path", "kind", "start", "end", "split", "group", *TEXTS}
MAX_COLUMNS = 20  # that an error lists
ROW_GROUP = 8192  # rows of a manifest that are written and read together
SMALL = {".txt", ".tar", ".parquet", ".json"}  # files whose contents the rows depend on


@dataclass(frozen=True)
class Manifest:
    """An imported source: a folder with manifest.parquet, rejects.parquet and about.json."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """The source and its form, the numbers of rows and rejects, the digest of both, whether a row has questions,
        and whether one names a split."""
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
    data: Location, cache: Path, annotations: Mapping[str, Path] | None = None, root: Path | None = None
) -> Manifest:
    """The manifest of a source, in the folder `cache`, imported unless no file of the source has changed since.

    Raises InputError if the source as a whole is unusable, as `scan_source`.
    """
    data = Path(os.path.normpath(data.absolute())) if isinstance(data, Path) else data
    files = {key: os.path.normpath(file.absolute()) for key, file in (annotations or {}).items()}
    source = digest({"data": str(data), "annotations": files, "root": str(root)})[:16]
    code = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    state = digest({"code": code, "files": list(state_of(data, annotations))})[:16]
    folder = cache / f"{source}-{state}"
    if (folder / "about.json").is_file():
        return Manifest(folder)
    temporary = temporary_name(folder)
    try:
        make_folder(temporary)
        write_manifest(data, scan_source(data, annotations, root), temporary, form_name(data, annotations))
        with suppress(OSError):  # another process has imported it
            publish(temporary, folder)
    except PermissionError as error:
        raise InputError(f"{error.filename or data}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for earlier in cache.glob(f"{source}-*"):
        if earlier != folder:
            shutil.rmtree(earlier, ignore_errors=True)
    return Manifest(folder)


def has_questions(data: Location, cache: Path | None = None) -> bool:
    """Whether the data has a question; also if it cannot be read, which the plan reports. cache: the folder of imported
    manifests; by default, the manifest is not kept."""
    with suppress(InputError), tempfile.TemporaryDirectory(prefix="alpro-") as temporary:
        return import_source(data, cache or Path(temporary)).about["questions"]
    return True


def state_of(data: Location, annotations: Mapping[str, Path] | None) -> Iterator[list[Any]]:
    """The sizes and times of the files that the rows of a source depend on, and the names of its media."""
    if not isinstance(data, Path):
        shards = tars(data)
        beside = [join(data, f"{Path(shard).stem}{end}") for shard in shards for end in (".parquet", "_stats.json")]
        places = [*shards, *beside] or [data]
        yield from map(list, zip(map(str, places), identities(places), strict=True))
        return
    file = table_of(data)
    for path in [*annotations.values()] if annotations else [file or data]:
        yield [str(path), file_state(path)]
    if annotations or data.is_dir() or annotation_file(data):
        for name in sorted(walk(data if data.is_dir() else data.parent, MEDIA_EXTENSIONS | SMALL)):
            yield [name, file_state(name) if Path(name).suffix.lower() in SMALL else None]


def write_manifest(source: Location, records: Iterable[Row | Reject], folder: Path, form: str) -> None:
    """Writes the rows and the rejects to a folder, and what there is to know of them, last."""
    base = source if not isinstance(source, Path) or source.is_dir() else source.parent
    counts, content = Counter[str](), hashlib.sha256()
    remaining = iter(records)
    with (
        pq.ParquetWriter(folder / "manifest.parquet", MANIFEST) as rows,
        pq.ParquetWriter(folder / "rejects.parquet", REJECTS) as rejects,
    ):
        pending: list[dict[str, Any]] = []
        while batch := list(islice(remaining, ROW_GROUP)):
            for record in batch:
                values = record.model_dump(mode="json")
                inside = values["path"].removeprefix(f"{base}/")
                content.update(json.dumps(values | {"path": inside}, sort_keys=True).encode())
                if isinstance(record, Row):
                    cut = int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "big")
                    pending.append(values | {"cut": cut, "meta": json.dumps(record.meta)})
                    counts.update(rows=1, questions=len(record.questions), splits=bool(record.split))
            bad = [record.model_dump() for record in batch if isinstance(record, Reject)]
            rejects.write_table(pa.Table.from_pylist(bad, schema=REJECTS))
            counts["rejects"] += len(bad)
            while len(pending) >= ROW_GROUP:
                rows.write_table(pa.Table.from_pylist(pending[:ROW_GROUP], schema=MANIFEST), ROW_GROUP)
                del pending[:ROW_GROUP]
        rows.write_table(pa.Table.from_pylist(pending, schema=MANIFEST), ROW_GROUP)
    numbers = {"rows": counts["rows"], "rejects": counts["rejects"], "digest": content.hexdigest()}
    has = {"questions": counts["questions"] > 0, "splits": counts["splits"] > 0}
    write_json(folder / "about.json", {"source": str(source), "form": form, **numbers, **has})


def scan_source(
    data: Location, annotations: Mapping[str, Path] | None = None, root: Path | None = None
) -> Iterator[Row | Reject]:
    """Yields the rows of the annotation files (by split) if there are any, otherwise of the manifest, the folder, the
    shards of video2dataset or img2dataset in it, or the file in the form of a known data set, whose videos lie beside
    it or below; and a reject for each invalid row, in order."""
    if annotations:
        return scan_annotations(Path(data), annotations, root)
    if is_downloads(data):
        return scan_downloads(data)
    if isinstance(data, Path) and (file := annotation_file(data)):
        return scan_annotations(file.parent, {"": file}, root)
    return scan_manifest(table_of(data) or data)


def form_name(data: Location, annotations: Mapping[str, Path] | None) -> str:
    """What a source is: shards of another tool, an annotation file in the form of a data set, a manifest, a folder."""
    if annotations:
        return "annotation files"
    if is_downloads(data):
        return "shards of video2dataset or img2dataset"
    if isinstance(data, Path) and (file := annotation_file(data)):
        first = first_record(file)
        form = form_of(first) if first else None
        return f"{file.name}: {form.title if form else ''}"
    table = table_of(data)
    if isinstance(data, Path) and data.is_dir() and table is None:
        return "a folder of videos with texts"
    return f"a manifest, {Path(table or data).name}"


def annotation_file(data: Path) -> Path | None:
    """The file `data`, or the only table of that folder, if it is in the form of a known data set. None otherwise: a
    manifest names its files in `path`."""
    file = table_of(data)
    first = first_record(file) if file and file.is_file() else None
    form = form_of(first) if first and "path" not in first else None
    return None if form in (None, NAMES) else file


def first_record(file: Path) -> dict[str, Any] | None:
    """The first valid record; None without one. The caller reads the file again, and reports an error."""
    with suppress(InputError):
        return next((record for _, record in read_records(file) if isinstance(record, dict)), None)
    return None


def table_of(data: Location) -> Path | None:
    """A file itself; for a folder without texts beside its videos, the only table in it, or None."""
    if not isinstance(data, Path) or not data.is_dir():
        return data if isinstance(data, Path) else None
    tables = [p for p in sorted(data.iterdir()) if p.name.removesuffix(".gz").endswith(TABLES) and p.is_file()]
    tables = [p for p in tables if not is_download(p)]
    if len(tables) != 1 or any(Path(path).with_suffix(".txt").is_file() for path in walk(data, MEDIA_EXTENSIONS)):
        return None
    return tables[0]


def is_download(file: Path) -> bool:
    """Whether a file lies beside a shard, or a folder, that video2dataset or img2dataset has written."""
    stem = file.with_name(file.name.partition(".")[0].removesuffix("_stats"))
    return stem.is_dir() or stem.with_suffix(".tar").is_file()


def scan_manifest(source: Location, require_texts: bool = True) -> Iterator[Row | Reject]:
    """Yields the rows of a manifest or of a folder of videos, and a reject for each invalid row, in order.

    A file (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions` or `questions`;
    optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image), `group` (items of the same source). A
    folder has videos or images, each with its captions, one per line, in a .txt of the same name. require_texts:
    whether a column of texts is required.

    Raises InputError if the whole manifest is unusable: it is missing or unreadable, lacks a required column, repeats
    an id or has a path outside its folder.
    """
    source = source.absolute() if isinstance(source, Path) else source
    try:
        source_exists = exists(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    if not source_exists:
        raise InputError(
            f"{source}: no such file or folder; use a manifest (.jsonl, .csv, .parquet) or a folder of videos"
        )
    folder = isinstance(source, Path) and source.is_dir()
    root = source if folder else parent(source)
    columns, ids, empty = set[str](), dict[str, str](), True
    for where, record in _folder(Path(source)) if folder else read_records(source):
        empty = False
        if isinstance(record, str):  # the reason why the record cannot be read
            yield Reject(id=where, path="", reason="bad row", detail=record)
            continue
        columns |= record.keys()
        row = _row(where, record, root)
        if isinstance(row, Row) and (other := ids.setdefault(row.id, where)) is not where:
            raise InputError(
                f"{source}: {where}: id {row.id!r} is also used in {other}; ids must be unique (put the captions "
                "of one file into one row, or name it in a column `video`)"
            )
        yield row
    if empty:
        raise InputError(f"{source}: no video or image in this folder" if folder else f"{source}: no rows")
    shown = ", ".join(sorted(columns)[:MAX_COLUMNS]) + (", ..." if len(columns) > MAX_COLUMNS else "")
    if columns and "path" not in columns:
        advice = hint(columns) or "; name the column of the files path, or video, and that of the texts caption"
        raise InputError(f"{source}: no column 'path' (it has {shown}){advice}")
    if require_texts and columns and not columns & TEXTS:
        raise InputError(f"{source}: no column 'captions', 'caption' or 'questions' (it has {shown})")


def _folder(folder: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    media = sorted(map(Path, walk(folder, VIDEO_EXTENSIONS | IMAGE_EXTENSIONS)))
    shared = Counter(path.with_suffix("") for path in media)
    for path in media:
        text = path.with_suffix(".txt")
        name = path.relative_to(folder)
        try:
            captions = text.read_text("utf-8-sig").splitlines() if text.is_file() else []
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
            yield str(name), f"{text.name}: not UTF-8: {byte}; save it as UTF-8"
            continue
        unique = shared[path.with_suffix("")] == 1  # False for a video and an image of the same name
        yield str(path), {"id": str(name.with_suffix("") if unique else name), "path": str(name), "captions": captions}


def _row(where: str, record: dict[str, Any], root: Location) -> Row | Reject:
    """The row of a manifest record in the folder `root`, or a reject if the record is invalid."""
    name, file = where, ""
    try:
        record = plain(record, COLUMNS)
        record = {key: value for key, value in record.items() if value is not None and value != ""}
        for key in record.keys() - TEXTS:
            refuse_credentials(f"{where}: {key}", record[key])
        given, name, group = record.get("path"), str(record.get("id", where)), str(record.get("group", ""))
        if not isinstance(given, str):
            raise ValueError("no path")
        file, path = given, resolve(root, given)
        start, end = (_seconds(name, record.get(name)) for name in ("start", "end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        kind = record.get("kind", "image" if suffix(path) in IMAGE_EXTENSIONS else "video")
        return Row(
            id=name if "id" in record else _without_suffix(file) + window,
            path=path,
            kind=kind.strip().lower() if isinstance(kind, str) else kind,
            captions=tuple(_captions(record.get("captions", []), record.get("caption", []))),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=split_name(record.get("split", "")),
            group=group,
            name=_file_key(path, root),
            meta={k: value for k, value in record.items() if k not in COLUMNS},
        )
    except InputError as error:  # a path that is not allowed
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return Reject(id=name, path=file, reason="bad row", detail=detail)
    except ValueError as error:
        return Reject(id=name, path=file, reason="bad row", detail=str(error))


def _without_suffix(path: str) -> str:
    """A path, or a URL without its protocol, without the extension. Raises ValueError if it is not a file name."""
    if not is_url(path):
        return str(Path(path).with_suffix(""))
    name = re.split("[?#]", path)[0].partition("://")[2]
    return name[: len(name) - len(suffix(path))]


def _file_key(path: Location, root: Location) -> str:
    """A key that is equal for all rows of a file, however they spell its path."""
    text, folder = str(path), f"{root}/"
    if not isinstance(path, Path) or not isinstance(root, Path):
        return text
    return text.removeprefix(folder) if text.startswith(folder) else os.path.relpath(path, root)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a number with hundreds of digits
        raise ValueError(f"{name} {str(value)[:40]!r} is not a time in seconds") from None
    if not 0 <= seconds <= MAX_SECONDS:  # also true for NaN
        raise ValueError(f"{name} {seconds:g} is not a time in seconds between 0 and {MAX_SECONDS:,}")
    return seconds


def _captions(*values: Any) -> Iterable[str]:
    """The captions of one or more columns, with normalized whitespace, without blank captions and duplicates."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            items = _json_list(value)
            value = [value] if items is None else items
        if not isinstance(value, list) or not all(isinstance(c, str) for c in value):
            raise ValueError("captions are not a list of strings")
        captions += value
    return dict.fromkeys(" ".join(c.split()) for c in captions if c.strip())


def _json_list(text: str) -> list[Any] | None:
    """Parses a JSON list, as in a CSV cell; None if the text is not a JSON list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _questions(value: Any) -> Iterator[dict[str, str]]:
    value = _json_list(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(q, dict) for q in value):
        raise ValueError("questions are not a list of {question, answer}")
    return (question_of(item, "type") for item in value)
