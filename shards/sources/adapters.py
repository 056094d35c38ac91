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

import contextlib
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.shards.sources.records import Record, plain, read_records

# Columns that contain the name of a video or image, and columns that contain captions; the first that a record has.
NAME_COLUMNS: tuple[str, ...] = ("clip_name", "video_id", "videoid", "videoID", "gif_name", "image", "video")
NAME_COLUMNS += ("file_name", "filename", "video_name", "video_path", "image_path", "path")
TEXT_COLUMNS = ("caption", "captions", "sentence", "name", "text", "description", "enCap")
OTHER_TEXTS = ("question", "answer", "sentences")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validate": "validation", "validation": "validation", "test": "test", "testing": "test", "": ""}
MAX_OBJECT_BYTES = 1 << 30  # of a file that is one JSON object, which is read as a whole
NESTED = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(?:\{|\[\s*\{)')  # its first value


@dataclass(frozen=True)
class Entry:
    """What a record says of a video or image. Sentences are joined with those of the other records of the video."""

    name: str
    captions: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    question: dict[str, str] | None = None
    other_names: tuple[str, ...] = ()  # of the file, if there is none with this name
    url: str = ""
    split: str = ""
    problem: str = ""  # why the record has no text

    @property
    def kind(self) -> str:
        """The kind of its texts: caption, sentence or question; an empty string for an entry without texts."""
        return "question" if self.question else "sentence" if self.sentences else "caption" if self.captions else ""

    @property
    def texts(self) -> tuple[Any, ...]:
        return (self.question,) if self.question else self.sentences or self.captions


@dataclass(frozen=True)
class Form:
    """A form of records: its name, the columns that only it has together, and how an entry is read."""

    name: str
    columns: frozenset[str]
    read: Callable[[Record, "Form"], Entry]

    def fits(self, record: Record) -> bool:
        return record.keys() >= self.columns


def form_of(record: Record) -> Form | None:
    """The form of a record, or None if its columns are unknown."""
    return next((form for form in FORMS if form.fits(record)), None)


def read_entry(record: Record, file: Path, lists: bool = False) -> tuple[Form, Entry]:
    """The form of a record, and what it says. Raises InputError for unknown columns, ValueError for an invalid record.

    lists: a record may have a name alone, because another file has the texts.
    """
    form = form_of(record)
    if form is NAMES and not lists:
        raise InputError(
            f"{file}: names videos in a column, but no column has texts (columns {', '.join(sorted(record))}); name "
            "the column of the texts `caption`, or set `annotations.texts` to the file that has them"
        )
    if form is None:
        raise InputError(
            f"{file}: unknown annotation format with columns {', '.join(sorted(record))}; supported are caption with "
            f"clip_name, question and answer with video_id, name with videoid, caption with image{hint(set(record))}"
        )
    if form is DOWNLOADS:
        raise InputError(
            f"{file}: this is the metadata of video2dataset or img2dataset; use the folder of its shards, {file.parent}"
        )
    record = plain(record, (*NAME_COLUMNS, *TEXT_COLUMNS, *OTHER_TEXTS))
    return form, replace(form.read(record, form), split=str(record.get("split") or ""))


def hint(columns: set[str]) -> str:
    """A hint for unknown columns: the form that has most of them, and what it needs; or an empty string."""
    if len(columns) == 1 and (found := [mark for mark in ";|" if mark in next(iter(columns))]):
        return f" (columns of a .csv are separated by commas, not by {found[0]!r})"
    shared = {form: len(form.columns & columns) for form in FORMS if len(form.columns) > 1}
    best = max(shared, key=lambda form: shared[form] / len(form.columns))
    if 2 * shared[best] < len(best.columns):
        return ""
    missing = " and ".join(sorted(best.columns - columns))
    return f" (this looks like {best.name} without the column {missing})" if missing else f" (this is {best.name})"


def read_annotations(file: Path) -> Iterator[tuple[str, Record | str]]:
    """Yields the records of an annotation file with their places, as `read_records`, also of one JSON object."""
    if file.suffix == ".txt":
        yield from _list_of_names(file)
        return
    content = _json_object(file) if file.name.endswith((".json", ".json.gz")) else None
    yield from read_records(file) if content is None else _object_records(content)


def _list_of_names(file: Path) -> Iterator[tuple[str, Record | str]]:
    try:
        names = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    for number, name in enumerate(names, 1):
        if name.strip():
            yield f"line {number}", {"video_id": name.strip()}


def _json_object(file: Path) -> Record | None:
    """The object in a file, if it is one JSON object of objects or lists; None if it is a list or JSON Lines."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            head = stream.read(4096)
            if not NESTED.match(head):
                return None
            content = head + stream.read(MAX_OBJECT_BYTES)
    except (OSError, EOFError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    if len(content) > MAX_OBJECT_BYTES:
        raise InputError(f"{file}: one JSON object of more than {MAX_OBJECT_BYTES:,} bytes; write it as JSON Lines")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # several objects: JSON Lines
        return None
    return value if isinstance(value, dict) and all(isinstance(v, dict | list) for v in value.values()) else None


def _object_records(content: Record) -> Iterator[tuple[str, Record | str]]:
    """The records of an object: a video of MSR-VTT with its captions, or an entry with its key as `video`."""
    videos, sentences = content.get("videos"), content.get("sentences")
    if not isinstance(sentences, list):
        for key, value in content.items():
            yield f"entry {key!r}", {**value, "video": key} if isinstance(value, dict) else "not a JSON object"
        return
    captions: dict[str, list[Any]] = {}
    for sentence in sentences:
        if isinstance(sentence, dict):
            captions.setdefault(str(sentence.get("video_id")), []).append(sentence.get("caption"))
    about = {str(video.get("video_id")): video for video in videos or [] if isinstance(video, dict)}
    for name in {**about, **captions}:
        yield f"video {name!r}", {**about.get(name, {}), "video_id": name, "sen_ids": captions.get(name, [])}


def _name(record: Record) -> str:
    value = next(record[key] for key in NAME_COLUMNS if key in record)
    return "" if value is None else str(value)


def _clean(value: Any) -> tuple[str, ...]:
    """The texts of a cell, without blank ones and with single spaces. A list in a CSV cell is JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    items = value if isinstance(value, list) else [value]
    return tuple(" ".join(str(item).split()) for item in items if item and str(item).strip())


def split_name(text: Any) -> str:
    """The name of a split, or an empty string for none. Raises ValueError for an unknown one."""
    split = str(text or "").strip().lower()
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; use train, validation, test")
    return SPLIT_NAMES[split]


def _read_texts(record: Record, form: Form) -> Entry:
    """A record with several captions of a video, or for WebVid with one caption and the video's address."""
    column = next(key for key in (*TEXT_COLUMNS, "sen_ids") if key in form.columns)
    captions, name = _clean(record[column]), _name(record)
    folder, url = str(record.get("page_dir") or ""), str(record.get("contentUrl") or "")
    others = (f"{folder}/{name}",) if folder else ()
    problem = "" if captions else "no caption"
    return Entry(name, captions, other_names=others, url=url, problem=problem)


def _read_paragraph(record: Record, form: Form) -> Entry:
    """A record with sentences of the paragraph of a video."""
    name = _name(record)
    sentences = _clean(record["sentences"] if "sentences" in form.columns else record["description"])
    others = (name.removeprefix("v_"),) if name.startswith("v_") else ()
    problem = "" if sentences else "no caption"
    return Entry(name, sentences=sentences, other_names=others, problem=problem)


def _read_question(record: Record, form: Form) -> Entry:
    question, answer = (" ".join(str(record[column] or "").split()) for column in ("question", "answer"))
    name = _name(record)
    others = (f"video{name}", f"vid{name}") if name.isdecimal() else ()  # of MSRVTT-QA and MSVD-QA
    if not question or not answer:
        return Entry(name, other_names=others, problem="empty question or answer")
    kind = question_type(str(record.get("answer_type") or question.split()[0]))
    asked = {"question": question, "answer": answer, "type": kind}
    return Entry(name, question=asked, other_names=others)


def _read_table(record: Record, form: Form) -> Entry:
    """Captions of a video. In ALPRO's own files, which have `clip_name`, a list is one paragraph (DiDeMo)."""
    column = next(key for key in TEXT_COLUMNS if key in record)
    captions = _clean(record[column])
    several = column == "captions" or "clip_name" not in record
    problem = "" if captions else "no caption"
    captions = captions if several or not captions else (" ".join(captions),)
    return Entry(_name(record), captions, problem=problem)


def unused(record: Record, form: Form) -> str:
    """A note on the columns that are not used, of a table that is not of a known data set; empty if there are none."""
    if not isinstance(form, _Table):
        return ""
    name, text = (next(key for key in keys if key in record) for keys in (NAME_COLUMNS, TEXT_COLUMNS))
    others = [key for key in record if key not in (name, text, "split")]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return f" without its columns {shown}, which only a manifest with `path` may have" if others else ""


def _read_name(record: Record, form: Form) -> Entry:
    return Entry(_name(record))


def question_type(text: str) -> str:
    """Normalises a question type for the name of a metric: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"


class _Named(Form):
    """A form with a name in any of NAME_COLUMNS."""

    def fits(self, record: Record) -> bool:
        return super().fits(record) and any(key in record for key in NAME_COLUMNS)


class _Table(_Named):
    """A form with a text in any of TEXT_COLUMNS besides."""

    def fits(self, record: Record) -> bool:
        return super().fits(record) and any(key in record for key in TEXT_COLUMNS)


DOWNLOADS = Form("metadata of video2dataset or img2dataset", frozenset({"key", "status", "error_message"}), _read_name)
MSRVTT = Form("MSR-VTT (videodatainfo)", frozenset({"video_id", "sen_ids"}), _read_texts)
NAMES = _Named("a list of videos", frozenset(), _read_name)
FORMS = (
    DOWNLOADS,
    _Named("questions", frozenset({"question", "answer"}), _read_question),
    MSRVTT,
    Form("ActivityNet Captions", frozenset({"video", "sentences", "timestamps"}), _read_paragraph),
    Form("DiDeMo", frozenset({"video", "description", "times"}), _read_paragraph),
    Form("VATEX", frozenset({"videoID", "enCap"}), _read_texts),
    Form("WebVid", frozenset({"videoid", "name"}), _read_texts),
    _Table("captions", frozenset(), _read_table),
    NAMES,
)
