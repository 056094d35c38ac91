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
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from alpro.credentials import refuse_credentials
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
from alpro.shards.schema import IMAGE_EXTENSIONS, MANIFEST, MEDIA_EXTENSIONS, REJECTS, Reject, Row
from alpro.shards.sources.annotations import (
    NAMES,
    Form,
    form_of,
    json_list,
    question_of,
    scan_annotations,
    split_name,
    texts_of,
    walk,
)
from alpro.shards.sources.downloads import is_downloads, scan_downloads, tars
from alpro.shards.sources.records import plain, read_records
from alpro.shards.storage import Location, exists, identities, is_url, join, parent, resolve, suffix

TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
TEXTS = {"caption", "captions", "questions"}
COLUMNS = {"id", "path", "kind", "start", "end", "split", "group", *TEXTS}
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
    data: Location,
    cache: Path,
    annotations: Mapping[str, Path] | None = None,
    root: Path | None = None,
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
        write_manifest(data, *scan_source(data, annotations, root), temporary)
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
        places = [*shards, *(join(data, f"{Path(shard).stem}.parquet") for shard in shards)] or [
            data
        ]
        yield from map(list, zip(map(str, places), identities(places), strict=True))
        return
    for path in annotations.values() if annotations else [table_of(data) or data]:
        yield [str(path), file_state(path)]
    if annotations or data.is_dir() or known_form(data):
        for name in sorted(walk(data if data.is_dir() else data.parent, MEDIA_EXTENSIONS | SMALL)):
            yield [name, file_state(name) if Path(name).suffix.lower() in SMALL else None]


def write_manifest(
    source: Location, form: str, records: Iterable[Row | Reject], folder: Path
) -> None:
    """Writes the rows and the rejects to a folder, and what there is to know of them, last."""
    base = source if not isinstance(source, Path) or source.is_dir() else source.parent
    counts, content = Counter[str](), hashlib.sha256()
    rows, rejects = list[dict[str, Any]](), list[dict[str, Any]]()
    with (
        pq.ParquetWriter(folder / "manifest.parquet", MANIFEST) as row_file,
        pq.ParquetWriter(folder / "rejects.parquet", REJECTS) as reject_file,
    ):

        def flush() -> None:
            row_file.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), ROW_GROUP)
            reject_file.write_table(pa.Table.from_pylist(rejects, schema=REJECTS))
            rows.clear()
            rejects.clear()

        for record in records:
            values = record.model_dump(mode="json")
            inside = values["path"].removeprefix(f"{base}/")
            content.update(json.dumps(values | {"path": inside}, sort_keys=True).encode())
            if isinstance(record, Row):
                cut = int.from_bytes(
                    hashlib.blake2b(record.id.encode(), digest_size=4).digest(), "big"
                )
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
    }
    has = {"questions": counts["questions"] > 0, "splits": counts["splits"] > 0}
    write_json(folder / "about.json", {**about, "digest": content.hexdigest(), **has})


def scan_source(
    data: Location, annotations: Mapping[str, Path] | None = None, root: Path | None = None
) -> tuple[str, Iterator[Row | Reject]]:
    """What a source is, and its rows, with a reject for each invalid one, in order.

    It is the annotation files (by split) if there are any, otherwise shards of video2dataset or img2dataset, a file in
    the form of a known data set, whose videos lie beside it or below, a manifest, or a folder of videos.
    """
    if annotations:
        return "annotation files", scan_annotations(Path(data), annotations, root)
    if is_downloads(data):
        return "shards of video2dataset or img2dataset", scan_downloads(data)
    file = table_of(data)
    if file and (form := known_form(file)):
        return f"{file.name}: {form.title}", scan_annotations(file.parent, {"": file}, root)
    if file is None and isinstance(data, Path):
        return "a folder of videos with texts", scan_manifest(data)
    return f"a manifest, {PurePosixPath(str(file or data)).name}", scan_manifest(file or data)


def known_form(data: Path) -> Form | None:
    """The form of a known data set that a file, or the only table of a folder, has. None for others: a manifest names
    its files in `path`."""
    file = table_of(data)
    with suppress(InputError):  # the caller reads the file again
        for _, record in read_records(file) if file else ():
            if isinstance(record, dict):
                form = form_of(record) if "path" not in record else None
                return None if form is NAMES else form
    return None


def table_of(data: Location) -> Path | None:
    """A file itself; for a folder without texts beside its videos, the only table in it, or None."""
    if not isinstance(data, Path) or not data.is_dir():
        return data if isinstance(data, Path) else None
    tables = [
        p
        for p in sorted(data.iterdir())
        if p.name.removesuffix(".gz").endswith(TABLES) and p.is_file()
    ]
    if len(tables) != 1 or any(
        Path(path).with_suffix(".txt").is_file() for path in walk(data, MEDIA_EXTENSIONS)
    ):
        return None
    return tables[0]


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
        is_missing = not exists(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    if is_missing:
        raise InputError(
            f"{source}: no such file or folder; use a manifest (.jsonl, .csv, .parquet) or a folder of videos"
        )
    folder = isinstance(source, Path) and source.is_dir()
    if not folder and suffix(source) in MEDIA_EXTENSIONS:
        raise InputError(f"{source}: a single file; name its folder")
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
        raise InputError(
            f"{source}: no video or image in this folder" if folder else f"{source}: no rows"
        )
    for names in ({"path"}, TEXTS) if require_texts else ({"path"},):
        if columns and not names & columns:
            raise InputError(
                f"{source}: no column {' or '.join(sorted(names))} (it has {', '.join(sorted(columns)[:20])}); name "
                "the column of the files path, or video, and that of the texts caption"
            )


def _folder(folder: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    media = sorted(map(Path, walk(folder, MEDIA_EXTENSIONS)))
    shared = Counter(path.with_suffix("") for path in media)
    for path in media:
        text = path.with_suffix(".txt")
        name = path.relative_to(folder)
        try:
            captions = text.read_text("utf-8-sig").splitlines() if text.is_file() else []
        except UnicodeDecodeError:
            yield str(name), f"{text.name}: not UTF-8; save it as UTF-8"
            continue
        unique = (
            shared[path.with_suffix("")] == 1
        )  # False for a video and an image of the same name
        yield (
            str(path),
            {
                "id": str(name.with_suffix("") if unique else name),
                "path": str(name),
                "captions": captions,
            },
        )


def _row(where: str, record: dict[str, Any], root: Location) -> Row | Reject:
    """The row of a manifest record in the folder `root`, or a reject if the record is invalid. Raises InputError for a
    path that is not allowed."""
    name, file = where, ""
    try:
        record = {
            key: value for key, value in plain(record).items() if value is not None and value != ""
        }
        for key in record.keys() - TEXTS:
            refuse_credentials(key, record[key])
        name = str(record.get("id", where))
        if not isinstance(record.get("path"), str):
            raise ValueError("no path")
        file = record["path"]
        path = resolve(root, file)
        start, end = (float(record[key]) if key in record else None for key in ("start", "end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")
        window = (
            ""
            if start is None and end is None
            else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
        )
        kind = record.get("kind", "image" if suffix(path) in IMAGE_EXTENSIONS else "video")
        texts = [*texts_of(record.get("captions")), *texts_of(record.get("caption"))]
        return Row(
            id=name if "id" in record else _without_suffix(file) + window,
            path=path,
            kind=str(kind).strip().lower(),
            captions=tuple(dict.fromkeys(texts)),
            questions=tuple(_questions(record.get("questions", []))),
            start=start,
            end=end,
            split=split_name(record.get("split", "")),
            group=str(record.get("group", "")),
            name=_file_key(path, root),
            meta={key: value for key, value in record.items() if key not in COLUMNS},
        )
    except InputError as error:
        raise InputError(f"{where} of the manifest: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return Reject(id=name, path=file, reason="bad row", detail=detail)
    except (ValueError, TypeError, OverflowError) as error:
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


def _questions(value: Any) -> Iterator[dict[str, str]]:
    value = json_list(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(q, dict) for q in value):
        raise ValueError("questions are not a list of {question, answer}")
    return (question_of(item, "type") for item in value)
