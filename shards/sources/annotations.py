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
    a table            a column that names a file, such as video or file_name, and caption, sentence
                       or text
    a list of videos   such a column alone; the texts come from another file

The columns of a record determine its form. Each name is looked up in the folder of videos, with or
without an extension; a name without a folder is also looked up in subfolders. Absolute paths, and
paths that start in a parent folder, are relative to `root`. WebVid's videos are fetched from their
`contentUrl` if the folder has no media.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from alpro.errors import InputError
from alpro.log import log, progress
from alpro.shards.schema import (
    IMAGE_EXTENSIONS,
    MEDIA_EXTENSIONS,
    SPLITS,
    VIDEO_EXTENSIONS,
    Question,
    Reject,
    Row,
)
from alpro.shards.sources.answers import first_option, question_of
from alpro.shards.sources.cells import json_list
from alpro.shards.sources.columns import NAME_COLUMNS, SPLIT_NAMES, TEXT_COLUMNS, TIMES, Split
from alpro.shards.sources.folders import list_folder, media_stem, spelled
from alpro.shards.sources.records import Record, named_records, plain
from alpro.shards.storage import Location, resolve
from alpro.shards.storage import suffix as extension_of


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
    Form("ALPRO's own lists", ("clip_name", "caption"), ("caption",), "record"),
    CAPTIONS,
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


def read_entry(record: Record, file: Path, lists: bool = False, first: int | None = None) -> Entry:
    """What a record says. Raises InputError for unknown columns, ValueError for an invalid record.

    lists: a record may have a name alone, because another file has the texts. first: the number of
    the first option of a question.
    """
    form = form_of(record)
    if form is DOWNLOADS:
        raise InputError(f"{file}: {DOWNLOADS.title}; use the folder of its shards, {file.parent}")
    if form is None or (form is NAMES and not lists):
        columns = ", ".join(sorted(record)[:20])
        raise InputError(
            f"{file}: no form of annotations (docs/prepare_data.md) has the columns {columns}; "
            "name the column of the files `video`, and that of the texts `caption`, or set "
            "`annotations.texts` to the file that has them"
        )
    if form is CAPTIONS:
        # Read as annotations, it would lose these columns in silence.
        of_manifests = [k for k in ("start", "end", "group") if record.get(k) not in (None, "")]
        if of_manifests:
            raise InputError(
                f"{file}: a table with the column {of_manifests[0]} is a manifest: name the column "
                "of the files `path`"
            )

    record = plain(record)

    name_cell = next(record[key] for key in NAME_COLUMNS if key in record)
    name = "" if name_cell is None else str(name_cell)

    text_cell = next((record[column] for column in form.texts if column in record), None)
    texts: list[Any] = texts_of(text_cell)
    if texts and form.joined:
        # Retrieval is by the whole paragraph, as in the paper.
        texts = [" ".join(texts)]
    if form is QUESTIONS:
        texts = [question_of(record, "answer_type", first), *texts]
    elif form.texts and not texts:
        raise ValueError("no caption")

    other_names = []
    if record.get("page_dir"):  # of WebVid
        other_names.append(f"{record['page_dir']}/{name}")
    if name.startswith("v_"):  # of ActivityNet
        other_names.append(name[2:])
    if name.isdecimal():  # of MSRVTT-QA and MSVD-QA
        other_names += [f"video{name}", f"vid{name}"]
    url = str(record.get("contentUrl") or "")
    return Entry(form, name, tuple(texts), other_names=tuple(other_names), url=url)


def split_name(text: Any) -> Split:
    """The name of a split, or an empty string. Raises ValueError if it is unknown."""
    split = str(text or "").strip().lower()
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; use train, validation, test")
    return SPLIT_NAMES[split]


def texts_of(value: Any) -> list[str]:
    """The texts of a cell, a text or a list of texts, in CSV as JSON or Python: with single spaces,
    without blank ones.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        listed = json_list(value)
        value = [value] if listed is None else listed

    if value is None:
        value = []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("captions are not a list of strings")
    return [" ".join(text.split()) for text in value if text.strip()]


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
    captions: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # that together are one caption
    questions: list[dict[str, str]] = field(default_factory=list)

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

        paragraph = [" ".join(texts.sentences)] if texts.sentences else []
        return Row(
            id=row_id,
            path=self.path,
            kind="image" if extension_of(self.path) in IMAGE_EXTENSIONS else "video",
            captions=(*texts.captions, *paragraph),
            questions=tuple(Question(**question) for question in texts.questions),
            split=split_name(self.split),
            name=self.name,
        )


def scan_annotations(
    videos: Path,
    files: Mapping[str, Path],
    root: Path | None = None,
) -> Iterator[Row | Reject]:
    """Yields a row per video and split, in the order of the files, and a reject for each invalid
    record.

    files: an annotation file for each split; with the key "", of all splits, as its records name
    them; with the key "texts", the texts of the videos that the others only list. Further files of
    a split, keyed as in `keyed`, add texts to its videos. root: the folder that the names in the
    files are relative to, here or on the machine where the files were written; default: `videos`. A
    missing video is also a row, so that it becomes a reject and is counted.

    Raises InputError if a file or the folder is missing or has an unknown format.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    media = MediaFiles(videos, root)
    joined: dict[tuple[str, str], Video] = {}
    first_problem = ""
    for key, file in files.items():
        split = key.partition(".")[0]
        lists = TEXTS in files and key != TEXTS
        with progress(f"reading {file.name}", None, "records") as advance:
            for reject in read_file(file, split, joined, media, lists, advance):
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
        row_id = video.name if split_count[path] == 1 else f"{split}/{video.name}"
        yield video.row(row_id, texts)


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
    media: "MediaFiles",
    lists: bool,
    advance: Callable[[], None],
) -> Iterator[Reject]:
    """Adds the texts of a file to the videos, calls `advance` for each record, and yields a reject
    for each invalid one. joined: the videos by split and path. lists: another file has the texts of
    the videos."""
    if not file.is_file():
        raise InputError(f"{file}: no such annotation file ({split})")
    # Which number the first option has shows in some of the records only: one more pass.
    first = first_option(record for _, record in named_records(file))
    other_splits: set[str] = set()  # of an MSR-VTT file, which are not read
    is_used = False
    for where, record in named_records(file):
        advance()
        try:
            if isinstance(record, str):
                raise ValueError(record)
            entry = read_entry(record, file, lists, first)

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
            times = [column for column in TIMES if record.get(column) not in (None, "")]
            if times and entry.form is CAPTIONS:
                log_once(
                    f"{file}: {', '.join(times)} are not used: each caption is that of its whole "
                    "file; a manifest (`path`, `start`, `end`) has parts of files"
                )

            name, path, problem = media.locate(entry)
            video_split = split or named_split
            video = Video(video_split, name, path, problem)
            joined.setdefault((video_split, str(path) or name), video).add(entry)
        except ValueError as error:
            yield Reject(id=f"{file.name} {where}", path="", reason="bad row", detail=str(error))

    if other_splits and not is_used:
        others = " and ".join(sorted(other_splits))
        raise InputError(f"{file}: no video of the split {split}; its videos are of {others}")


class MediaFiles:
    """The media files of a folder, looked up by the names in annotation files.

    root: the folder that the names are relative to, here or on another machine.
    """

    def __init__(self, folder: Path, root: Path | None = None):
        self.folder = folder
        self.root = Path(os.path.normpath(root.absolute())) if root else folder
        self.located: dict[str, tuple[str, Location, str]] = {}
        # Paths by their names without the extension, in any case.
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.named: dict[Path, str] = {}  # the name by which a file was found
        with progress("listing media", None, "files") as advance:
            listing = list_folder(folder, advance)

        for path in listing.media:
            stem = spelled(media_stem(path.rpartition("/")[2])).casefold()
            self.by_stem[stem].append(f"{folder}/{path}")
        self.notes = list(listing.notes())

    def locate(self, entry: Entry) -> tuple[str, Location, str]:
        """The name of a video relative to the folder, and its path: that of one of its names, its
        URL if the folder has no media, or where it is expected. Instead of the path a reason if the
        names mean several files.

        Raises ValueError if no file of the folder has the name.
        """
        if entry.name not in self.located:
            name = self.relative(entry.name)
            path: Location = ""
            problem = ""
            try:
                path = self._path(name, entry)
                str(path).encode()  # a folder name may not be valid UTF-8
            except (ValueError, InputError) as error:
                path = ""
                problem = str(error)
            self.located[entry.name] = (name, path, problem)
        return self.located[entry.name]

    def _path(self, name: str, entry: Entry) -> Location:
        if entry.url and not self.by_stem:
            return resolve(self.folder, entry.url)
        for index, other in enumerate((name, *entry.other_names)):
            # A name that is outside or ambiguous: another of its names may not be.
            with suppress(ValueError):
                path = self.find(self.relative(other) if index else other)
                if is_file(path):
                    return path
        return self.find(name)

    def relative(self, name: str) -> str:
        """The path of a name relative to the folder of videos. Raises ValueError outside of it."""
        if "\\" in name and not is_file(self.folder / name):  # as Windows writes it
            name = name.replace("\\", "/")
        path = os.path.normpath(os.path.join(self.root, name))  # noqa: PTH118 - much faster
        for folder in (f"{self.folder}/", f"{self.root}/") if Path(name).name else ():
            if path.startswith(folder):
                return path.removeprefix(folder)

        if name.startswith("/"):
            raise ValueError(
                f"name {name!r} is an absolute path outside {self.root}; set `root` of the corpus "
                f"to the folder in it that corresponds to {self.folder}"
            )
        raise ValueError(f"name {name!r} names no file in the folder of videos")

    def find(self, name: str) -> Path:
        """The file that a name refers to, or the path where it is expected.

        The file with exactly this name comes first, then one in the same folder with another
        extension, or with an extension if the name lacks one, then one whose name differs in case.
        A name without a folder also matches files in subfolders. A name with a video extension
        never matches an image, nor the reverse; a name without an extension prefers the video.
        Raises ValueError if it matches several files, or a file that a name in another case has
        already found.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        # A disk may spell accents otherwise than a table.
        exact = Path(normalize("NFC", str(exact)))
        matches = self._matches(exact, is_anywhere="/" not in name)
        if not matches:
            has_extension = exact.suffix.lower() in MEDIA_EXTENSIONS
            return exact if has_extension else exact.with_name(f"{exact.name}.mp4")

        closest = sorted(matches[min(matches)])
        file = closest[0]
        # Equally close in two folders: which one is meant cannot be known.
        if file.parent != closest[-1].parent:
            shown = " or ".join(str(path.relative_to(self.folder)) for path in closest[:2])
            raise ValueError(f"the name could mean {shown}")

        other = self.named.setdefault(file, name)
        if other != name and other.casefold() == name.casefold():
            raise ValueError(
                f"the names {other!r} and {name!r} differ only in case, and there is one file"
            )
        return file

    def _matches(self, exact: Path, is_anywhere: bool) -> dict[tuple[bool, ...], list[Path]]:
        """The files that a path may mean, by how far they are from it: the least is the best.

        is_anywhere: also those in other folders.
        """
        extension = exact.suffix.lower()
        has_extension = extension in MEDIA_EXTENSIONS
        other_kind = IMAGE_EXTENSIONS if extension in VIDEO_EXTENSIONS else VIDEO_EXTENSIONS

        matches: defaultdict[tuple[bool, ...], list[Path]] = defaultdict(list)
        for stem in {exact.name, exact.stem} if has_extension else {exact.name}:
            for path in self.by_stem.get(stem.casefold(), []):
                file = Path(normalize("NFC", path))
                file_extension = file.suffix.lower()
                is_beside = file.parent == exact.parent
                if not (is_beside or is_anywhere):
                    continue
                if has_extension and file_extension in other_kind:
                    continue
                # By importance: the folder, the case of the name, the extension, the kind.
                distance = (
                    not is_beside,
                    media_stem(file.name) not in (exact.name, exact.stem),
                    file.name != exact.name,
                    stem != exact.name,
                    file_extension in IMAGE_EXTENSIONS,
                )
                matches[distance].append(Path(path))
        return matches


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an invalid file name
        return False
