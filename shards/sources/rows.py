"""The rows of a manifest: a file with a row for each item, which the user has written."""

import os
import re
from collections.abc import Iterator, Set
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.shards.schema import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, Reject, Row
from alpro.shards.sources.annotations import split_name, texts_of
from alpro.shards.sources.answers import first_option, question_of
from alpro.shards.sources.cells import json_list
from alpro.shards.sources.columns import COLUMNS, TEXTS
from alpro.shards.sources.folders import spelled
from alpro.shards.sources.records import named_records, plain
from alpro.shards.storage import Location, exists, is_url, parent, resolve, suffix

MAX_FOLDERS = 256  # whose names are kept at a time


def scan_manifest(source: Location, require_texts: bool = True) -> Iterator[Row | Reject]:
    """Yields the rows of a manifest, and a reject for each invalid row, in order.

    A manifest (a path or a URL) has the columns `path` (relative to it) and `caption` or `captions`
    or `questions`; optionally `id`, `start` and `end` (seconds), `split`, `kind` (video, image),
    `group` (items of the same source). require_texts: whether a column of texts is required.

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

    folder = parent(source)
    columns = set[str]()
    files = FileNames()
    ids: dict[str, str] = {}
    empty = True
    for where, record in named_records(source):
        empty = False
        if isinstance(record, str):  # the reason why the record cannot be read
            yield Reject(id=where, path="", reason="bad row", detail=record)
            continue

        columns |= record.keys()
        row = row_of(where, record, folder, files)
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
    if columns == {"video_id"} and suffix(source) == ".txt":
        raise InputError(
            f"{source}: read as a list of names, which has no texts; a table with the columns "
            "`video` and `caption` (.csv, .tsv) has both"
        )
    required: list[Set[str]] = [{"path"}]
    if require_texts:
        required.append(TEXTS)
    for names in required:
        if columns and not names & columns:
            missing = " or ".join(sorted(names))
            present = ", ".join(sorted(columns)[:20])
            raise InputError(
                f"{source}: no column {missing} (it has {present}); name the column of the files "
                "path, or video, and that of the texts caption"
            )


class FileNames:
    """The names of the files in folders, to find a file whose name differs in case from a path.
    A folder is listed once."""

    def __init__(self) -> None:
        self.names = lru_cache(maxsize=MAX_FOLDERS)(names_in)
        # Files of names in another case, with the paths that found them.
        self.found: dict[Path, str] = {}

    def actual(self, path: Location, text: str) -> Location:
        """The file of a path: one whose name differs in case, if it is the only one.

        text: the path as the manifest has it.

        Raises ValueError if another path has found it.
        """
        if not isinstance(path, Path):
            return path

        names = self.names(path.parent)
        same = names.get(spelled(path.name).casefold(), ())
        if path.name in same or len(same) != 1:
            return path

        file = path.with_name(same[0])
        other = self.found.setdefault(file, text)
        if other != text:
            raise ValueError(f"{other!r} and {text!r} differ only in case, and there is one file")
        return file


def names_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """The names in a folder by their spelling in one case; none if it cannot be listed, which
    decoding reports."""
    names: dict[str, tuple[str, ...]] = {}
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 (half the time of Path.iterdir)
            key = spelled(name).casefold()
            names[key] = (*names.get(key, ()), name)
    return names


def row_of(
    where: str,
    record: dict[str, Any],
    root: Location,
    files: FileNames | None = None,
) -> Row | Reject:
    """The row of a manifest record in the folder `root`, or a reject if the record is invalid.
    Raises InputError for a path that is not allowed.

    files: the names in the folders, if the case of a path does not count.
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

        name = str(record.get("id", where))
        if not isinstance(record.get("path"), str):
            raise ValueError("no path")

        file = record["path"].strip()
        is_local = isinstance(root, Path) and not is_url(file)
        if "\\" in file and is_local and not Path(root, file).exists():
            file = file.replace("\\", "/")  # as Windows writes it

        path = resolve(root, file)
        path = files.actual(path, file) if files else path

        start = seconds_of(record.get("start"))
        end = seconds_of(record.get("end"))
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start {start} is not before end {end}")

        # Part of the default id: the rows of a file have different ones.
        window = ""
        if start is not None or end is not None:
            end_text = "" if end is None else f"{end:g}"
            window = f"@{start or 0:g}-{end_text}"

        kind_of_file = "image" if suffix(path) in IMAGE_EXTENSIONS else "video"
        kind = record.get("kind", kind_of_file)
        texts = [*texts_of(record.get("captions")), *texts_of(record.get("caption"))]
        row_id = name if "id" in record else _without_suffix(file) + window
        values = {
            "id": row_id,
            "path": path,
            "kind": str(kind).strip().lower(),
            "captions": tuple(dict.fromkeys(texts)),
            "questions": tuple(_questions(record.get("questions", []))),
            "start": start,
            "end": end,
            "split": split_name(record.get("split", "")),
            "group": str(record.get("group", "")),
            "name": _file_key(path, root),
            "meta": {key: value for key, value in record.items() if key not in COLUMNS},
        }
        return Row.model_validate(values)
    except InputError as error:
        raise InputError(f"{where} of the manifest: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"]))
        detail = f"{column}: {first['msg']}"
        return Reject(id=name, path=file, reason="bad row", detail=detail)
    except (ValueError, TypeError, OverflowError) as error:
        return Reject(id=name, path=file, reason="bad row", detail=str(error))


def seconds_of(value: Any) -> float | None:
    """A time in seconds, which may be hours, minutes and seconds, such as 01:02:03.5; None if there
    is none.

    Raises ValueError for anything else.
    """
    if value is None or str(value).strip().lower() in ("", "nan", "none", "null"):
        return None
    if isinstance(value, str) and ":" in value:
        digits = value.strip().replace(",", ".")
        parts = [float(part) for part in digits.split(":")]
        if len(parts) > 3 or any(part < 0 for part in parts):
            raise ValueError(f"{value!r} is not a time, such as 01:02:03.5")

        seconds = 0.0
        for place, part in enumerate(reversed(parts)):
            seconds += part * 60**place
        return seconds
    return float(value)


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
