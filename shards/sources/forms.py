"""The forms of annotation files: what a record of each data set's own files says of a video.

    MSR-VTT            videodatainfo.json: {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}
    ActivityNet        {"v_<id>": {"duration", "timestamps", "sentences"}}; the sentences are one paragraph
    DiDeMo             a list of {"video", "description", "times"}; the descriptions of a video are one paragraph
    VATEX              a list of {"videoID", "enCap"}
    WebVid             a table with videoid, name (the caption), and optionally page_dir and contentUrl
    ALPRO's own lists  {"caption", "clip_name"}; a list of captions is one paragraph
    questions          {"question", "answer", "video_id", "answer_type"}
    a table            a column that names a file, such as video or file_name, and caption, sentence or text
    a list of videos   such a column alone; the texts come from another file

The columns of a record determine its form.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.sources.records import Record, plain

# Columns that contain the name of a video or image, and columns that contain captions; the first that a record has.
NAME_COLUMNS: tuple[str, ...] = ("clip_name", "video_id", "videoid", "videoID", "gif_name", "image", "video")
NAME_COLUMNS += ("file_name", "filename", "video_name", "video_path", "image_path", "path")
TEXT_COLUMNS = ("caption", "captions", "sentence", "name", "text", "description", "enCap")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validate": "validation", "validation": "validation", "test": "test", "testing": "test", "": ""}


@dataclass(frozen=True)
class Entry:
    """What a record says of a video or image, without texts if `problem` says why. Sentences are joined with those of
    the other records of the video."""

    name: str
    kind: str  # of its texts: caption, sentence or question
    texts: tuple[Any, ...]
    problem: str = ""
    other_names: tuple[str, ...] = ()  # of the file, if no file has this name
    url: str = ""


@dataclass(frozen=True)
class Form:
    """A form of records: the columns that only it has together, and how an entry is read. named: it has any column of
    NAME_COLUMNS; texts: and any of TEXT_COLUMNS."""

    title: str
    columns: frozenset[str]
    read: Callable[[Record], Entry]
    named: bool = False
    texts: bool = False

    def fits(self, record: Record) -> bool:
        return (
            record.keys() >= self.columns
            and (not self.named or any(key in record for key in NAME_COLUMNS))
            and (not self.texts or any(key in record for key in TEXT_COLUMNS))
        )


def form_of(record: Record) -> Form | None:
    """The form of a record, or None if its columns are unknown."""
    return next((form for form in FORMS if form.fits(record)), None)


def read_entry(record: Record, file: Path, lists: bool = False) -> tuple[Form, Entry]:
    """The form of a record, and what it says. Raises InputError for unknown columns, ValueError for an invalid record.

    lists: a record may have a name alone, because another file has the texts.
    """
    form, columns = form_of(record), ", ".join(sorted(record))
    if form is NAMES and not lists:
        raise InputError(
            f"{file}: names videos in a column, but no column has texts (columns {columns}); name the column of the "
            "texts `caption`, or set `annotations.texts` to the file that has them"
        )
    if form is None:
        raise InputError(
            f"{file}: unknown annotation format with columns {columns}; supported are caption with clip_name, question "
            f"and answer with video_id, name with videoid, caption with image{hint(set(record))}"
        )
    if form is DOWNLOADS:
        raise InputError(
            f"{file}: this is the metadata of video2dataset or img2dataset; use the folder of its shards, {file.parent}"
        )
    return form, form.read(plain(record, (*NAME_COLUMNS, *TEXT_COLUMNS, "question", "answer", "sentences")))


def hint(columns: set[str]) -> str:
    """A hint for unknown columns: the form that has most of them, and what it needs; or an empty string."""
    if len(columns) == 1 and (found := [mark for mark in ";|" if mark in next(iter(columns))]):
        return f" (columns of a .csv are separated by commas, not by {found[0]!r})"
    shared = {form: len(form.columns & columns) for form in FORMS if len(form.columns) > 1}
    best = max(shared, key=lambda form: shared[form] / len(form.columns))
    if 2 * shared[best] < len(best.columns):
        return ""
    missing = " and ".join(sorted(best.columns - columns))
    return f" (this looks like {best.title} without the column {missing})" if missing else f" (this is {best.title})"


def split_name(text: Any) -> str:
    """The name of a split, or an empty string for none. Raises ValueError for an unknown one."""
    split = str(text or "").strip().lower()
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; use train, validation, test")
    return SPLIT_NAMES[split]


def question_type(text: str) -> str:
    """Normalises a question type for the name of a metric: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"


def question_of(record: Record, kind: str) -> dict[str, str]:
    """The question of a record, its answer, and its type: the column `kind`, or its first word. Raises ValueError."""
    question, answer = (" ".join(str(record.get(column) or "").split()) for column in ("question", "answer"))
    if not question or not answer:
        raise ValueError("empty question or answer")
    return {"question": question, "answer": answer, "type": question_type(str(record.get(kind) or question.split()[0]))}


def unused(record: Record, form: Form) -> str:
    """A note on the columns that are not used, of a table that is not of a known data set; empty if all are used."""
    if not form.texts:
        return ""
    name, text = (next(key for key in keys if key in record) for keys in (NAME_COLUMNS, TEXT_COLUMNS))
    others = [key for key in record if key not in (name, text, "split")]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return f" without its columns {shown}, which only a manifest with `path` may have" if others else ""


def _name(record: Record) -> str:
    value = next(record[key] for key in NAME_COLUMNS if key in record)
    return "" if value is None else str(value)


def _clean(value: Any) -> tuple[str, ...]:
    """The texts of a cell, without blank ones and with single spaces. A list in a CSV cell is JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    items = value if isinstance(value, list) else [value]
    return tuple(" ".join(str(item).split()) for item in items if item and str(item).strip())


def _entry(record: Record, kind: str, column: str, **more: Any) -> Entry:
    texts = _clean(record[column])
    return Entry(_name(record), kind, texts, "" if texts else "no caption", **more)


def _webvid(record: Record) -> Entry:
    folder = str(record.get("page_dir") or "")
    others = (f"{folder}/{_name(record)}",) if folder else ()
    return _entry(record, "caption", "name", other_names=others, url=str(record.get("contentUrl") or ""))


def _activitynet(record: Record) -> Entry:
    name = _name(record)
    return _entry(record, "sentence", "sentences", other_names=(name[2:],) if name.startswith("v_") else ())


def _question(record: Record) -> Entry:
    name = _name(record)
    others = (f"video{name}", f"vid{name}") if name.isdecimal() else ()  # of MSRVTT-QA and MSVD-QA
    try:
        return Entry(name, "question", (question_of(record, "answer_type"),), other_names=others)
    except ValueError as error:
        return Entry(name, "question", (), str(error), others)


def _table(record: Record) -> Entry:
    """Captions of a video. In ALPRO's own files, which have `clip_name`, a list is one paragraph (DiDeMo)."""
    column = next(key for key in TEXT_COLUMNS if key in record)
    texts = _clean(record[column])
    if texts and column != "captions" and "clip_name" in record:
        texts = (" ".join(texts),)
    return Entry(_name(record), "caption", texts, "" if texts else "no caption")


def _name_alone(record: Record) -> Entry:
    return Entry(_name(record), "caption", ())


def _form(title: str, columns: str, read: Callable[[Record], Entry], **about: bool) -> Form:
    return Form(title, frozenset(columns.split()), read, **about)


DOWNLOADS = _form("metadata of video2dataset or img2dataset", "key status error_message", _name_alone)
MSRVTT = _form("MSR-VTT (videodatainfo)", "video_id sen_ids", lambda record: _entry(record, "caption", "sen_ids"))
NAMES = _form("a list of videos", "", _name_alone, named=True)
FORMS = (
    DOWNLOADS,
    _form("questions", "question answer", _question, named=True),
    MSRVTT,
    _form("ActivityNet Captions", "video sentences timestamps", _activitynet),
    _form("DiDeMo", "video description times", lambda record: _entry(record, "sentence", "description")),
    _form("VATEX", "videoID enCap", lambda record: _entry(record, "caption", "enCap")),
    _form("WebVid", "videoid name", _webvid),
    _form("captions", "", _table, named=True, texts=True),
    NAMES,
)
