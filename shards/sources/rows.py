"""The rows of a manifest: a file with a row for each item, which the user has written."""

import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.shards.schema import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, Reject, Row
from alpro.shards.sources.annotations import first_problem_of, split_name, texts_of
from alpro.shards.sources.answers import first_option, question_of, text_of
from alpro.shards.sources.cells import json_list
from alpro.shards.sources.columns import COLUMNS, TEXTS
from alpro.shards.sources.media_files import MediaFiles, is_file
from alpro.shards.sources.records import named_records, plain
from alpro.shards.sources.unknown import missing_columns
from alpro.shards.sources.windows import (
    MAX_LOOKED_AT,
    START_AND_END,
    WindowColumns,
    has_other_times,
    window_columns,
)
from alpro.shards.storage import Location, exists, is_url, parent, resolve, suffix


def scan_manifest(
    source: Location,
    require_texts: bool = True,
    notes: list[str] | None = None,
    folder: Path | None = None,
) -> Iterator[Row | Reject]:
    """Yields the rows of a manifest, and a reject for each invalid row, in order.

    A manifest (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions`
    or `questions`; optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image),
    `group` (items of the same source). require_texts: whether a column of texts is required. notes:
    gets a line for each thing that a user should know. folder: which paths are relative to, if it
    is not that of the manifest.

    Raises InputError if the whole manifest is unusable: it is missing or unreadable, lacks a
    required column, repeats an id or has a path outside its folder.
    """
    source = source.absolute() if isinstance(source, Path) else source
    try:
        is_missing = not exists(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error}") from error
    if is_missing:
        raise InputError(
            f"{source}: no such file or folder; use a manifest (.jsonl, .csv, .parquet) or a "
            "folder of videos"
        )

    if suffix(source) in MEDIA_EXTENSIONS:
        raise InputError(f"{source}: a single file; name its folder")

    records = named_records(source)
    head = list(islice(records, MAX_LOOKED_AT))
    # Only a table with such columns is read twice: it may be at a URL.
    times = window_columns(named_records(source)) if has_other_times(head) else START_AND_END
    notes = [] if notes is None else notes
    if times.note:
        notes.append(f"{PurePosixPath(str(source)).name}: {times.note}")

    columns = set[str]()
    root = folder or parent(source)
    media = MediaFiles(root, tables=[source]) if isinstance(root, Path) else None
    ids: dict[str, str] = {}
    empty = True
    for where, record in chain(head, records):
        empty = False
        if isinstance(record, str):  # the reason why the record cannot be read
            yield Reject(id=where, path="", reason="bad row", detail=record)
            continue

        columns |= record.keys()
        row = row_of(where, record, root, media, times)
        if isinstance(row, Row):
            other = ids.setdefault(row.id, where)
            if other is not where:
                raise InputError(
                    f"{source}: {where}: id {row.id!r} is also used in {other}; ids must be unique "
                    "(put the captions of one file into one row, or name it in a column `video`)"
                )
        yield row

    if empty:
        raise InputError(f"{source}: no rows")
    if columns == {"video_id"} and suffix(source) in (".txt", ".json"):
        raise InputError(
            f"{source}: read as a list of names, which has no texts; a table with the columns "
            "`video` and `caption` (.csv, .tsv) has both"
        )
    has_texts = not require_texts or bool(columns & TEXTS)
    if columns and not ("path" in columns and has_texts):
        present = ", ".join(sorted(columns)[:20])
        missing, what_to_do = missing_columns(columns, head, media)
        raise InputError(f"{source}: no column {missing} (it has {present}); {what_to_do}")
    if media:
        notes += media.notes()


def file_of(path: Location, root: Location, media: MediaFiles) -> Location:
    """The file that a path of a manifest in the folder `root` means (`MediaFiles.match`), or the
    path itself. Raises ValueError if it means several files, or one that another path means."""
    if not isinstance(path, Path) or path == root or is_file(path):
        return path
    try:
        name = media.relative(str(path))
        found = media.match(name)
    except InputError:  # a folder cannot be listed; that the file is missing is reported
        return path
    if found is None:
        media.missing[name] = None
    return found or path


def row_of(
    where: str,
    record: dict[str, Any],
    root: Location,
    media: MediaFiles | None = None,
    times: WindowColumns = START_AND_END,
) -> Row | Reject:
    """The row of a manifest record in the folder `root`, or a reject if the record is invalid.
    Raises InputError for a path that is not allowed.

    media: the files of the folder, if a path may be that of a file with another spelling. times:
    the columns of windows.
    """
    name = where
    file = ""
    try:
        cells = plain(record)
        record = {}
        for key, value in cells.items():
            is_nan = value != value
            if value is not None and value != "" and not is_nan:
                record[key] = value

        # All columns are stored. In a text, an address is only mentioned.
        for key in record.keys() - TEXTS:
            refuse_credentials(key, record[key])

        name = text_of(record.get("id", where))
        cell = record.get("path")
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            raise ValueError("no path")

        file = text_of(cell)
        is_local = isinstance(root, Path) and not is_url(file)
        # A name may begin with a space; most often, it is that of a table's cell.
        if file != file.strip() and not (is_local and is_file(Path(root, file))):
            file = file.strip()
        if "\\" in file and is_local and not Path(root, file).exists():
            file = file.replace("\\", "/")  # as Windows writes it

        path = resolve(root, file)
        default_id = _without_suffix(file)
        if media:
            expected = path
            path = file_of(path, root, media)
            if path != expected and PurePosixPath(file).suffix.lower() not in MEDIA_EXTENSIONS:
                default_id = file  # a name without an extension may have a dot
        window = times.window(record)

        kind_of_file = "image" if suffix(path) in IMAGE_EXTENSIONS else "video"
        kind = record.get("kind", kind_of_file)
        texts = [*texts_of(record.get("captions")), *texts_of(record.get("caption"))]
        row_id = name if "id" in record else f"{default_id}{window.suffix}"
        values = {
            "id": row_id,
            "path": path,
            "kind": str(kind).strip().lower(),
            "captions": tuple(dict.fromkeys(texts)),
            "questions": tuple(_questions(record.get("questions", []))),
            "start": window.start,
            "end": window.end,
            "split": split_name(record.get("split", "")),
            "group": str(record.get("group", "")),
            "name": _file_key(path, root),
            "meta": {key: value for key, value in record.items() if key not in COLUMNS},
        }
        return Row.model_validate(values)
    except InputError as error:
        raise InputError(f"{where} of the manifest: {error}") from None
    except ValidationError as error:
        return Reject(id=name, path=file, reason="bad row", detail=first_problem_of(error))
    except (ValueError, TypeError, OverflowError) as error:
        return Reject(id=name, path=file, reason="bad row", detail=str(error))


def _without_suffix(path: str) -> str:
    """A path, or a URL without its protocol, without the extension. Raises ValueError if it is not
    a file name."""
    if not is_url(path):
        return str(Path(path).with_suffix(""))
    address = re.split("[?#]", path)[0]
    name = address.partition("://")[2]
    extension = suffix(path)
    return name[: len(name) - len(extension)]


def _file_key(path: Location, root: Location) -> str:
    """A key that is equal for all rows of a file, however they spell its path."""
    text = str(path)
    folder = f"{root}/"
    if not isinstance(path, Path) or not isinstance(root, Path):
        return text
    if text.startswith(folder):
        return text.removeprefix(folder)
    return os.path.relpath(path, root)


def _questions(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, str):
        value = json_list(value)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("questions are not a list of {question, answer}")

    first = first_option(value)
    return (question_of(item, "type", first) for item in value)
