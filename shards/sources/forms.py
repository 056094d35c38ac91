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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpro.errors import InputError
from alpro.shards.sources.records import Record, plain

# Columns that contain the name of a video or image, and columns that contain captions; the first that a record has.
NAME_COLUMNS: tuple[str, ...] = ("clip_name", "video_id", "videoid", "videoID", "gif_name", "image", "video")
NAME_COLUMNS += ("file_name", "filename", "video_name", "video_path", "image_path", "path")
TEXT_COLUMNS = ("caption", "captions", "sentence", "name", "text", "description", "enCap")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_NAMES |= {"validate": "validation", "validation": "validation", "test": "test", "testing": "test", "": ""}


@dataclass(frozen=True)
class Form:
    """A form of records: the columns that only it has together (of a tuple, one is enough), the columns of its texts,
    of which the first that a record has counts, and which texts are one caption: those of a record, or of a video."""

    title: str
    columns: tuple[str | tuple[str, ...], ...]
    texts: tuple[str, ...] = ()
    joined: Literal["", "record", "video"] = ""

    def fits(self, record: Record) -> bool:
        return all(any(name in record for name in ((one,) if isinstance(one, str) else one)) for one in self.columns)


DOWNLOADS = Form("metadata of video2dataset or img2dataset", ("key", "status", "error_message"))
QUESTIONS = Form("questions", ("question", "answer", NAME_COLUMNS))
MSRVTT = Form("MSR-VTT (videodatainfo)", ("video_id", "sen_ids"), ("sen_ids",))
NAMES = Form("a list of videos", (NAME_COLUMNS,))
FORMS = (
    DOWNLOADS,
    QUESTIONS,
    MSRVTT,
    Form("ActivityNet Captions", ("video", "sentences", "timestamps"), ("sentences",), "video"),
    Form("DiDeMo", ("video", "description", "times"), ("description",), "video"),
    Form("VATEX", ("videoID", "enCap"), ("enCap",)),
    Form("WebVid", ("videoid", "name"), ("name",)),
    Form("ALPRO's own lists", ("clip_name", "caption"), ("caption",), "record"),
    Form("captions", (NAME_COLUMNS, TEXT_COLUMNS), TEXT_COLUMNS),
    NAMES,
)


@dataclass(frozen=True)
class Entry:
    """What a record says of a video or image."""

    form: Form
    name: str
    texts: tuple[Any, ...]  # captions or questions
    other_names: tuple[str, ...]  # of the file, if no file has this name
    url: str


def form_of(record: Record) -> Form | None:
    """The form of a record, or None if its columns are unknown."""
    return next((form for form in FORMS if form.fits(record)), None)


def read_entry(record: Record, file: Path, lists: bool = False) -> Entry:
    """What a record says. Raises InputError for unknown columns, ValueError for an invalid record.

    lists: a record may have a name alone, because another file has the texts.
    """
    form = form_of(record)
    if form is DOWNLOADS:
        raise InputError(f"{file}: {form.title}; use the folder of its shards, {file.parent}")
    if form is None or (form is NAMES and not lists):
        raise InputError(
            f"{file}: no form of annotations (docs/formats.md) has the columns {', '.join(sorted(record)[:20])}; name "
            "the column of the files `video`, and that of the texts `caption`, or set `annotations.texts` to the file "
            "that has them"
        )
    record = plain(record)
    value = next(record[key] for key in NAME_COLUMNS if key in record)
    name = "" if value is None else str(value)
    texts: list[Any] = [question_of(record, "answer_type")] if form is QUESTIONS else []
    if form.texts:
        texts = texts_of(next(record[column] for column in form.texts if column in record))
        texts = [" ".join(texts)] if texts and form.joined else texts
        if not texts:
            raise ValueError("no caption")
    others = [f"{record['page_dir']}/{name}"] if record.get("page_dir") else []  # of WebVid
    others += [name[2:]] if name.startswith("v_") else []  # of ActivityNet
    others += [f"video{name}", f"vid{name}"] if name.isdecimal() else []  # of MSRVTT-QA and MSVD-QA
    return Entry(form, name, tuple(texts), tuple(others), str(record.get("contentUrl") or ""))


def split_name(text: Any) -> str:
    """The name of a split, or an empty string for none. Raises ValueError for an unknown one."""
    split = str(text or "").strip().lower()
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; use train, validation, test")
    return SPLIT_NAMES[split]


def texts_of(value: Any) -> list[str]:
    """The texts of a cell, a text or a list of texts, which in CSV is JSON: with single spaces, without blank ones.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        value = [value] if (found := json_list(value)) is None else found
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("captions are not a list of strings")
    return [" ".join(text.split()) for text in value if text.strip()]


def json_list(text: str) -> list[Any] | None:
    """Parses a JSON list, as in a CSV cell; None if the text is not a JSON list."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def question_of(record: Record, kind: str) -> dict[str, str]:
    """The question of a record, its answer, and its type: the column `kind`, or its first word. Raises ValueError."""
    question, answer = (" ".join(str(record.get(column) or "").split()) for column in ("question", "answer"))
    if not question or not answer:
        raise ValueError("empty question or answer")
    return {"question": question, "answer": answer, "type": question_type(str(record.get(kind) or question.split()[0]))}


def question_type(text: str) -> str:
    """Normalises a question type for the name of a metric: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"
