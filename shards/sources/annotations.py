"""Reads the annotation files of data sets into rows: one row per video and split, with all its
texts.

    MSR-VTT            videodatainfo.json: {"videos": [{"video_id", "split"}],
                       "sentences": [{"video_id", "caption"}]}
    ActivityNet        {"v_<id>": {"duration", "timestamps", "sentences"}}; the sentences are one
                       paragraph
    DiDeMo             a list of {"video", "description", "times"}; the descriptions of a video are
                       one paragraph
    VATEX              a list of {"videoID", "enCap"}
    WebVid             a table with videoid, name (the caption), and optionally page_dir and
                       contentUrl
    ALPRO's own lists  {"caption", "clip_name"}; a list of captions is one paragraph
    questions          {"question", "answer", "video_id", "answer_type"}
    ActivityNet-QA     {"question", "question_id", "video_name"}, and {"answer", "question_id"} in
                       another file of the same split
    a table            a column that names a file, such as video or file_name, and caption, sentence
                       or text
    a list of videos   such a column alone; the texts come from another file

The columns of a record determine its form. Each name is looked up in the folder of videos and
its subfolders, with or without an extension. Absolute paths, and paths that start in a parent
folder, are relative to `root`. WebVid's videos are fetched from their `contentUrl` if the folder
has no media. With the columns `start` and `end`, a row is a part of a file.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import ValidationError

from alpro.errors import InputError
from alpro.log import log, progress
from alpro.shards.schema import IMAGE_EXTENSIONS, SPLITS, Question, Reject, Row
from alpro.shards.sources.answer_files import Answers, answered, without_answer_files
from alpro.shards.sources.answers import first_option, question_of, text_of
from alpro.shards.sources.cells import json_list
from alpro.shards.sources.columns import NAME_COLUMNS, TEXT_COLUMNS, Split, split_in
from alpro.shards.sources.folders import media_stem
from alpro.shards.sources.languages import Languages, english_texts, languages_of
from alpro.shards.sources.media_files import MediaFiles
from alpro.shards.sources.records import Record, named_records, plain
from alpro.shards.sources.windows import (
    MAX_LOOKED_AT,
    START_AND_END,
    WHOLE,
    Window,
    WindowColumns,
    window_columns,
)
from alpro.shards.storage import Location
from alpro.shards.storage import suffix as extension_of

# Columns of which one may be a number, and another one the name of the file.
VIDEO_IDS = ("video_id", "videoid", "videoID", "youtube_id", "vid", "video_uid")
# Of the objects in a list of captions: `raw` of Karpathy's sentences.
CAPTION_KEYS = ("caption", "text", "sentence", "raw", "description", "content")
# Marks of the writing direction and characters without a width.
INVISIBLE = " \u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
# How Label Studio names an uploaded file, and one of a folder that it serves.
TAG = re.compile(r"<[^>]*\ssrc=['\"]([^'\"]+)")  # in a field of hypertext
UPLOADED = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-(.+)|/data/local-files/\?d=(.+)")
NO_CAPTION = {"nan", "none", "null", "n/a", "#n/a", "<na>"}  # as programs write an empty cell


@dataclass(frozen=True)
class Form:
    """A form of records: the columns that only it has together (of a tuple, one is enough), the
    columns of its texts, of which the first that a record has counts, and which texts are one
    caption: those of a record, or of a video."""

    title: str
    columns: tuple[str | tuple[str, ...], ...]
    texts: tuple[str, ...] = ()
    joined: Literal["", "record", "video"] = ""

    def fits(self, record: Record) -> bool:
        for column in self.columns:
            names = (column,) if isinstance(column, str) else column
            if not any(name in record for name in names):
                return False
        return True


DOWNLOADS = Form("metadata of video2dataset or img2dataset", ("key", "status", "error_message"))
QUESTIONS = Form("questions", ("question", "answer", NAME_COLUMNS), ("caption",))
MSRVTT = Form("MSR-VTT (videodatainfo)", ("video_id", "sen_ids"), ("sen_ids",))
ALPRO = Form("ALPRO's own lists", ("clip_name", "caption"), ("caption",), "record")
CAPTIONS = Form("captions", (NAME_COLUMNS, TEXT_COLUMNS), TEXT_COLUMNS)
NAMES = Form("a list of videos", (NAME_COLUMNS,))
FORMS = (
    DOWNLOADS,
    QUESTIONS,
    MSRVTT,
    Form("ActivityNet Captions", ("video", "sentences", "timestamps"), ("sentences",), "video"),
    Form("DiDeMo", ("video", "description", "times"), ("description",), "video"),
    Form("VATEX", ("videoID", "enCap"), ("enCap",)),
    Form("WebVid", ("videoid", "name"), ("name",)),
    ALPRO,
    CAPTIONS,
    NAMES,
)
# A row may be a part of a file. The times of other forms are known not to be windows.
WITH_WINDOWS = (QUESTIONS, ALPRO, CAPTIONS)


@dataclass(frozen=True)
class Entry:
    """What a record says of a video or image."""

    form: Form
    name: str
    texts: tuple[Any, ...]  # captions or questions
    other_names: tuple[str, ...]  # of the file, if no file has this name
    url: str
    window: Window


class NoTextsError(InputError):
    """A record has only a name: the file is a list of names, unless other records have texts."""


def form_of(record: Record) -> Form | None:
    """The form of a record, or None if its columns are unknown."""
    return next((form for form in FORMS if form.fits(record)), None)


def read_entry(
    record: Record,
    file: Path,
    lists: bool = False,
    first: int | None = None,
    times: WindowColumns = START_AND_END,
) -> Entry:
    """What a record says. Raises InputError for unknown columns, ValueError for an invalid record.

    lists: a record may have a name alone, because another file has the texts. first: the number of
    the first option of a question. times: the columns of windows.
    """
    form = form_of(record)
    if form is DOWNLOADS:
        raise InputError(f"{file}: {DOWNLOADS.title}; use the folder of its shards, {file.parent}")
    if form is NAMES and "question" in record:
        raise ValueError("the question has no answer")
    if form is None or (form is NAMES and not lists):
        error = InputError if form is None else NoTextsError
        columns = ", ".join(sorted(record)[:20])
        raise error(
            f"{file}: no form of annotations (docs/prepare_data.md) has the columns {columns}; "
            "name the column of the files `video`, and that of the texts `caption`, or set "
            "`annotations.texts` to the file that has them"
        )
    if form is CAPTIONS and record.get("group") not in (None, ""):
        # Read as annotations, it would lose this column in silence.
        raise InputError(
            f"{file}: a table with the column group is a manifest: name the column of the files "
            "`path`"
        )

    record = plain(record)

    name_cell = next(record[key] for key in NAME_COLUMNS if key in record)
    if isinstance(name_cell, dict):  # of Hugging Face's datasets
        if name_cell.get("bytes"):
            raise ValueError("the media are in the table; write them into files")
        name_cell = name_cell.get("path")
    written = text_of(name_cell)
    name = written.strip()
    tag = TAG.search(name)
    uploaded = UPLOADED.fullmatch(tag[1] if tag else name)
    if uploaded:
        name = unquote(uploaded[1] or uploaded[2])

    text_cell = next((record[column] for column in form.texts if column in record), None)
    texts: list[Any] = texts_of(text_cell)
    if texts and form.joined:
        # Retrieval is by the whole paragraph, as in the paper.
        texts = [" ".join(texts)]
    if form is QUESTIONS:
        texts = [question_of(record, "answer_type", first), *texts]
    elif form.texts and not texts:
        raise ValueError("no caption")

    window = times.window(record) if form in WITH_WINDOWS else WHOLE
    other_names = window.names_of_cut(name)
    if written != name and not uploaded:  # a file may have the spaces of its name
        other_names.append(written)
    # Of Video-MME, `video_id` is a number, and `videoID` the name of the file.
    ids = [text_of(record[key]) for key in VIDEO_IDS if key in record]
    other_names += [video_id for video_id in ids if video_id not in ("", name)]
    if record.get("page_dir"):  # of WebVid
        other_names.append(f"{record['page_dir']}/{name}")
    if name.startswith("v_"):  # of ActivityNet
        other_names.append(name[2:])
    if str(record.get("question_id", "")).startswith(f"v_{name}_"):  # of ActivityNet-QA
        other_names.append(f"v_{name}")
    if re.fullmatch(r"\d+\.0", name):  # of a column of numbers with gaps
        other_names.append(name[:-2])
    if name.isdecimal():  # of MSRVTT-QA and MSVD-QA
        other_names += [f"video{name}", f"vid{name}"]

    url = str(record.get("contentUrl") or "")
    return Entry(
        form=form,
        name=name,
        texts=tuple(texts),
        other_names=tuple(other_names),
        url=url,
        window=window,
    )


def first_problem_of(error: ValidationError) -> str:
    """The first problem of an invalid row, with its column."""
    first = error.errors()[0]
    column = ".".join(map(str, first["loc"]))
    return f"{column}: {first['msg']}"


def split_name(text: Any) -> Split:
    """The name of a split, or an empty string. Raises ValueError if it is unknown."""
    split = split_in("" if text is None or text != text else str(text))  # NaN
    if split is None:
        raise ValueError(f"unknown split {str(text).strip()!r}; use train, validation, test")
    return split


def texts_of(value: Any) -> list[str]:
    """The texts of a cell, a text or a list of texts, in CSV as JSON or Python, or of objects with a
    caption: with single spaces, without blank ones.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        listed = json_list(value)
        value = [value] if listed is None else listed

    value = english_texts(value)
    if isinstance(value, list):
        # ShareGPT4Video: after the captions of frames that of the whole video, as number -1.
        whole = [each for each in value if isinstance(each, dict) and str(each.get("idx")) == "-1"]
        value = whole or value

    texts = []
    for each in value if isinstance(value, list) else [value]:
        cell = each
        if isinstance(each, dict):
            cell = next((each[key] for key in CAPTION_KEYS if key in each), each)
        if cell is None or cell != cell:  # NaN
            continue
        if not isinstance(cell, str):
            raise ValueError("captions are not a list of strings")
        text = " ".join(cell.split())
        if text.strip(INVISIBLE) and text.lower() not in NO_CAPTION:
            texts.append(text)
    return texts


log_once = lru_cache(maxsize=64)(log.info)  # a command may read a file several times
TEXTS = "texts"  # the file that has the texts of files that only list videos
ANNOTATION_FILES = (*SPLITS, TEXTS)


@dataclass
class Video:
    """What the annotation files say of a video in a split."""

    split: str
    name: str
    path: Location
    problem: str  # why there is no path
    window: Window = WHOLE
    is_cut: bool = False  # the file is already that part of a longer video
    captions: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # that together are one caption
    questions: list[dict[str, str]] = field(default_factory=list)

    @property
    def row_id(self) -> str:
        return f"{self.name}{self.window.suffix}"

    @property
    def key(self) -> str:
        """What the records of a row have in common."""
        return f"{self.path or self.name}{self.window.suffix}"

    def add(self, entry: Entry) -> None:
        texts = self.sentences if entry.form.joined == "video" else self.captions
        # Each record of a question has the captions of its video.
        known = texts if entry.form is QUESTIONS else ()
        self.questions += [text for text in entry.texts if isinstance(text, dict)]
        texts += [text for text in entry.texts if isinstance(text, str) and text not in known]

    def row(self, row_id: str, texts: "Video") -> Row | Reject:
        """texts: the video with the texts, itself or that of another file."""
        if self.problem:
            return Reject(id=row_id, path="", reason="bad row", detail=self.problem)

        captions = list(texts.captions)
        if texts.sentences:
            captions.append(" ".join(texts.sentences))
        is_image = extension_of(self.path) in IMAGE_EXTENSIONS
        try:
            return Row(
                id=row_id,
                path=self.path,
                kind="image" if is_image else "video",
                start=None if self.is_cut else self.window.start,
                end=None if self.is_cut else self.window.end,
                captions=tuple(captions),
                questions=tuple(Question(**question) for question in texts.questions),
                split=split_name(self.split),
                name=self.name,
            )
        except ValidationError as error:
            return Reject(
                id=row_id, path=str(self.path), reason="bad row", detail=first_problem_of(error)
            )


@dataclass(frozen=True)
class AboutTable:
    """What has to be known of a file before its records can be read. answers: those of its split
    that have a file of their own. lists: another file has the texts of its videos."""

    times: WindowColumns
    languages: Languages
    answers: Answers
    lists: bool


def scan_annotations(
    videos: Path,
    files: Mapping[str, Path],
    root: Path | None = None,
    notes: list[str] | None = None,
) -> Iterator[Row | Reject]:
    """Yields a row per video, or part of one, and split, in the order of the files, and a reject
    for each invalid record.

    files: an annotation file for each split; with the key "", of all splits, as its records name
    them; with the key "texts", the texts of the videos that the others only list. Further files of
    a split, keyed as in `keyed`, add texts to its videos. root: the folder that the names in the
    files are relative to, here or on the machine where the files were written; default: `videos`. A
    missing video is also a row, so that it becomes a reject and is counted. notes: gets a line for
    each thing that a user should know.

    Raises InputError if a file or the folder is missing or has an unknown format.
    """
    notes = [] if notes is None else notes
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    media = MediaFiles(videos, root, list(files.values()))
    # Here, once: a folder that cannot be listed is an error, not one of each record.
    _ = media.by_stem

    joined: dict[tuple[str, str], Video] = {}
    first_problem = ""
    has_texts_apart = TEXTS in files
    files, answers = without_answer_files(files)
    for key, file in files.items():
        split = key.partition(".")[0]
        of_split = answers.get(split, {})
        lists = has_texts_apart and split != TEXTS
        times, languages = columns_of_table(file, split, of_split)
        for note in (times.note, languages.note):
            if note:
                notes.append(f"{file.name}: {note}")

        about = AboutTable(times, languages, of_split, lists)
        with progress(f"reading {file.name}", None, "records") as advance:
            for reject in read_file(file, split, joined, media, about, advance):
                # If no record is valid, the first one says why.
                first_problem = first_problem or f"; {reject.id}: {reject.detail}"
                yield reject

    split_count = Counter(path for split, path in joined if split != TEXTS)
    if not split_count:
        names = ", ".join(str(file) for file in files.values())
        raise InputError(f"{names}: no annotations{first_problem}")

    for (split, path), video in joined.items():
        if split == TEXTS:
            continue
        has_texts = video.captions or video.sentences or video.questions
        texts = video if has_texts else joined.get((TEXTS, path), video)
        # A video in two splits is a row in each, with an id of its own.
        row_id = video.row_id if split_count[path] == 1 else f"{split}/{video.row_id}"
        yield video.row(row_id, texts)
    notes += media.notes()


def columns_of_table(file: Path, split: str, answers: Answers) -> tuple[WindowColumns, Languages]:
    """The columns of a file's windows, and the languages of its texts. Raises InputError if the
    file cannot be read."""
    if not file.is_file():
        raise InputError(f"{file}: no such annotation file ({split})")
    records = answered(file, answers)
    first = list(islice(records, MAX_LOOKED_AT))
    has_windows = any(
        isinstance(record, dict) and form_of(record) in WITH_WINDOWS for _, record in first
    )
    times = window_columns(chain(first, records)) if has_windows else START_AND_END
    return times, languages_of(first, lambda: named_records(file))


def keyed(files: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The annotation files, several for a split, each under a key of its own.

    >>> list(keyed({"train": ["a.json", "b.json"], "test": ["c.json"]}))
    ['train', 'train.2', 'test']
    """
    keys = {}
    for split, names in files.items():
        for number, file in enumerate(names, 1):
            keys[split if number == 1 else f"{split}.{number}"] = Path(file)
    return keys


def read_file(
    file: Path,
    split: str,
    joined: dict[tuple[str, str], Video],
    media: MediaFiles,
    about: AboutTable,
    advance: Callable[[], None],
) -> Iterator[Reject]:
    """Adds the texts of a file to the videos, calls `advance` for each record, and yields a reject
    for each invalid one. joined: the videos by split and path."""
    # Which number the first option has shows in some of the records only: one more pass.
    first = first_option(record for _, record in answered(file, about.answers))
    other_splits: set[str] = set()  # of an MSR-VTT file, which are not read
    without_texts: NoTextsError | None = None
    is_used = False
    for where, record in answered(file, about.answers):
        advance()
        try:
            if isinstance(record, str):
                raise ValueError(record)
            entry = read_entry(record, file, about.lists, first=first, times=about.times)
            if not about.languages.is_read(record):
                entry = replace(entry, texts=())

            has_split = entry.form is MSRVTT or not split
            named_split = split_name(record.get("split")) if has_split else ""
            if split in SPLITS and named_split not in ("", split):
                other_splits.add(named_split)
                continue

            if not is_used and not split:
                log_once(
                    f"{file}: read as {entry.form.title}; its videos are looked up in {file.parent}"
                )
            is_used = True
            name, path, problem = media.locate(entry.name, entry.other_names, entry.url)
            cuts = [cut.rpartition("/")[2] for cut in entry.window.names_of_cut(name)]
            is_cut = isinstance(path, Path) and media_stem(path.name) in cuts
            video = Video(split or named_split, name, path, problem, entry.window, is_cut)
            joined.setdefault((video.split, video.key), video).add(entry)
        except NoTextsError as error:
            without_texts = without_texts or error
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail="no caption")
        except ValueError as error:
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=str(error))

    if without_texts and not is_used:
        raise without_texts
    if other_splits and not is_used:
        others = " and ".join(sorted(other_splits))
        raise InputError(f"{file}: no video of the split {split}; its videos are of {others}")
