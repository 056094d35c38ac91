"""The files of a folder of videos, which of them a name in a table means, and the texts of the videos
that have a file each:

a.mp4, a.txt                also .caption, .captions, .cap and a.mp4.txt; one caption a line
a.mp4, a.json               an object with `caption`, `captions`, `text`, ..., or a list of texts
videos/a.mp4, labels/a.txt  a folder of texts with the names of the videos

A name is the path of a file, with or without its extension. Only a form with `anywhere` finds the
only file of that name in a subfolder. No file is found under another word.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, product
from pathlib import Path
from posixpath import splitext
from unicodedata import normalize

from alpro.errors import InputError
from alpro.files import digest
from alpro.shards.file_type import (
    IMAGE_EXTENSIONS,
    MEDIA_EXTENSIONS,
    find_placeholder,
    read_head,
)
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.sources.form import BESIDE, WORDS, Form, Record
from alpro.shards.sources.tables import SAVE_AS_UTF8

MARKERS = {"mlflow.db", "artifact.json"}  # files of a workspace and of an artifact
MAX_NAMED = 3  # names that are shown as examples
TEXT_SUFFIXES = tuple(WORDS["texts"]["suffixes"])
NOT_TEXTS = re.compile(
    r"(?i)(.*/)?(readme|licen[cs]e|requirements|changelog|notice|classes|total_\w+_question|flickr8k\.lemma|"
    r"vatex_public_test_chinese)[^/]*"
)

# Beside numbers, or in several lines; a single one is a slip of a person who writes a caption.
BETWEEN_CELLS = re.compile(r"(?s)\d\t+\S|\S\t+\d|\S\t+\S.*\n.*\S\t+\S")
# Names are compared with composed accents, which a disk may decompose, as macOS does.
compose = partial(normalize, "NFC")


@dataclass
class Notes:
    """What a user should know of a source: reasons, how often each applies, and examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= MAX_NAMED:
            self.examples[reason].append(show(example))

    def line(self, reason: str) -> str:
        return f"{reason} ({self.counts[reason]}): {', '.join(self.examples[reason])}"

    def lines(self) -> list[str]:
        return [*map(self.line, self.counts)]

    def error(self, problem: str) -> InputError:
        """Return the error of a source without rows, with what was left out."""
        return InputError("; ".join([problem, *self.lines()]))


@dataclass
class Folder:
    """A folder of videos and images. It is listed once, when its files are needed.

    Args:
        notes: Receives what is left out.
    """

    path: Path
    notes: Notes

    @property
    def is_listed(self) -> bool:
        return "files" in vars(self)

    @cached_property
    def files(self) -> list[str]:
        """The paths of the files, relative to the folder, in the order of their parts.

        Raises InputError if a folder cannot be listed: what is missing from the list would be missing
        from the data, in silence.
        """
        files = []
        pending = [""]
        while pending:
            inside = pending.pop()
            try:
                with os.scandir(self.path / inside) as entries:
                    children = {entry.name: entry for entry in entries}
            except OSError as error:
                raise InputError(
                    f"{self.path / inside}: this folder cannot be listed ({error.strerror}); make it "
                    "readable, or move it out of the data"
                ) from error
            if inside and children.keys() & MARKERS:
                self.notes.add("folders that alpro writes are left out", inside)
                continue
            for name, entry in children.items():
                reason = why_left_out(entry)
                if reason:
                    self.notes.add(f"{reason} are left out", f"{inside}{name}")
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(f"{inside}{name}/")
                # A broken link may be one of git-annex; a pipe would block who reads it.
                elif entry.is_file() or entry.is_symlink():
                    files.append(f"{inside}{name}")
        # `scandir` has no order, and a source must give the same rows on any disk.
        return sorted(files, key=lambda path: path.split("/"))

    @cached_property
    def media(self) -> dict[str, None]:
        """The paths of the videos and images."""
        names = (path for path in self.files if read_suffix(path) in MEDIA_EXTENSIONS)
        return dict.fromkeys(names)

    @cached_property
    def others(self) -> list[str]:
        """The paths of the other files."""
        return [path for path in self.files if path not in self.media]

    @cached_property
    def names_digest(self) -> str:
        """The digest of the names of the media."""
        return digest([*self.media])

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The paths of the media by the name of the file without its extension."""
        paths: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.media:
            paths[file_stem(path)].append(path)
        return paths

    def find(
        self,
        name: str,
        prefixes: Sequence[str] = (),
        anywhere: bool = False,
    ) -> str | None:
        """Return the path of the file that a name means, or None.

        It is the file of this path, also with one of the prefixes, and with another extension, or
        with one if the name has none.

        Args:
            anywhere: Whether it is otherwise the only file of this path in a subfolder.

        Raises:
            ValueError: If the name could mean several files.
        """
        # If the folder is listed, most names need no request to the disk.
        is_listed = self.is_listed and name in self.media
        if is_listed or os.path.isfile(f"{self.path}/{name}"):  # noqa: PTH113 - no error for an invalid name
            return name
        folder, slash, file = name.rpartition("/")
        names = [file]
        for prefix in prefixes:
            names += [f"{prefix}{file}", file.removeprefix(prefix)]
        # `talk.264` is rather the name of talk.264.mp4 than talk with the extension .264.
        for cut in (compose, cut_extension):
            keys = dict.fromkeys(map(cut, names))
            paths_by_key = (self._by_stem.get(key, ()) for key in keys)
            same_stem = [*chain.from_iterable(paths_by_key)]
            if same_stem:
                break
        stems = [f"{compose(folder)}{slash}{key}" for key in keys]
        if read_suffix(name) in MEDIA_EXTENSIONS:
            same_stem = [path for path in same_stem if is_image(path) == is_image(name)]

        paths = [path for path in same_stem if cut_extension(path) in stems]
        if anywhere and not paths:
            ends = tuple(f"/{stem}" for stem in stems)
            paths = [path for path in same_stem if cut_extension(path).endswith(ends)]
        # The file with this extension comes first, then a video rather than its picture, then the one of
        # this very name rather than one with a prefix.
        for is_meant in (
            lambda path: f"/{path}".endswith(f"/{name}"),
            lambda path: not is_image(path),
            lambda path: f"/{cut_extension(path)}".endswith(f"/{stems[0]}"),
        ):
            paths = [*filter(is_meant, paths)] or paths
        if len(paths) > 1:
            raise ValueError(f"the name {name!r} could mean {paths[0]} or {paths[1]}")
        return next(iter(paths), None)

    def similar(self, name: str) -> list[str]:
        """Return a few files of a similar name: in another folder or case, with other leading zeros,
        or with this name as a part of theirs."""
        stem = re.escape(file_stem(name).lstrip("0"))
        part = re.compile(rf"(?i)(?<![0-9])0*{stem}(?![0-9])")
        return [path for path in self.media if part.search(path)][:MAX_NAMED]


class Sidecars:
    """The texts of the media of a folder.

    Attributes:
        texts: The paths of the texts of the videos and images that have one. A text that fits files
            of several names is of none; one that fits a video and its picture is of the video.
    """

    def __init__(self, folder: Folder, user_form: Form):
        self.folder = folder
        self.form = BESIDE.override(user_form)
        self.texts: dict[str, str] = {}
        self._by_name: dict[str, str] = {}  # The extension is in lower case.
        for path in folder.others:
            stem, suffix = splitext(compose(path))
            if suffix.lower() in TEXT_SUFFIXES:
                self._by_name[f"{stem}{suffix.lower()}"] = path
        # A name may lead through folders: captions/en.
        listed = "/".join(["", *self._by_name])
        known = sorted(user_form.texts or WORDS["texts"]["folders"])
        self._text_folders = [name for name in known if f"/{name}/" in listed]
        if user_form.texts and not self._text_folders:
            raise InputError(
                f"{folder.path}: columns.texts = {', '.join(known)}: no folder with texts has "
                "this name"
            )

        owners: defaultdict[str, list[str]] = defaultdict(list)
        for path in folder.media if self._by_name else ():
            owners[self.find(path)].append(path)
        owners.pop("", None)
        for text, paths in owners.items():
            videos = [path for path in paths if not is_image(path)] or paths
            if len({splitext(path)[0] for path in videos}) == 1:
                self.texts |= dict.fromkeys(videos, text)

    def find(self, media: str) -> str:
        """Return the path of the text of a video or image, or an empty one."""
        media = compose(media)
        *folders, name = media.split("/")
        paths = [media]
        # The text folder is below its own folder, or replaces the nearest that it can.
        depths = range(len(folders), -1, -1)
        for index, text_folder in product(depths, self._text_folders):
            inside = [*folders[:index], text_folder, *folders[index + 1 :]]
            paths.append("/".join([*inside, name]))

        for path, suffix in product(paths, TEXT_SUFFIXES):
            for stem in (path, splitext(path)[0]):
                text = self._by_name.get(f"{stem}{suffix}")
                if text and self.has_texts(text):
                    return text
        return ""

    def has_texts(self, path: str) -> bool:
        """Return whether a text has captions: of an object, that it has a column of them."""
        if read_suffix(path) != ".json":
            return True
        record = self.read(path)
        return "$value" in record or self.form.bind(record).has_texts(record)

    def read(self, path: str) -> Record:
        """Return the record in a text: lines or a list as `$value`, an empty one of a placeholder, and the
        reason as `$reason` if it cannot be read."""
        file = self.folder.path / path
        try:
            placeholder = find_placeholder(read_head(file))
            if placeholder:
                reason = f"texts are {placeholder.kind}s and no captions ({placeholder.remedy})"
                self.folder.notes.add(reason, path)
                return {}
            # A sample with a text of that size could not be written.
            if file.stat().st_size > MAX_JSON_BYTES:
                raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
            text = file.read_text("utf-8-sig")
            if read_suffix(path) != ".json":
                if BETWEEN_CELLS.search(text):
                    raise ValueError("a tab between words, as in a table")
                return {"$value": text.split("\n")}
            value = json.loads(text)
        except UnicodeDecodeError:
            return {"$reason": f"{path}: {SAVE_AS_UTF8}"}
        except (OSError, ValueError, RecursionError) as error:
            return {"$reason": f"{path}: {error}"}
        return value if isinstance(value, dict) else {"$value": value}

    def find_alone(self, tables: set[str]) -> Iterator[str]:
        """Yield the texts whose videos are missing, in the folders of the other texts. Note what else is in
        the folder and not read, neither as a text nor as one of the tables."""
        used = {*self.texts.values()} | tables
        folders = {text.rpartition("/")[0] for text in self.texts.values()}
        stems = {compose(splitext(path)[0]) for path in self.folder.media}
        for path in self.folder.others:
            suffix = read_suffix(path)
            known = WORDS["not_read"]
            remedy = next((text for text in known if suffix in known[text]), "")
            if not remedy or path in used or NOT_TEXTS.fullmatch(path):
                continue
            # JSON in the folder of the texts may be a table or settings; a.de.txt is another text of a.
            is_text = suffix in TEXT_SUFFIXES and suffix != ".json"
            stem = compose(path).partition(".")[0]
            is_alone = stems.isdisjoint((stem, compose(splitext(path)[0])))
            if is_text and is_alone and path.rpartition("/")[0] in folders:
                yield path
                continue
            head = read_head(self.folder.path / path)
            self.folder.notes.add(
                f"{suffix} files are not read ({find_placeholder(head) or remedy})",
                path,
            )


def show(text: str) -> str:
    """Return a text in UTF-8: names of files may have other bytes."""
    return text.encode("utf-8", "replace").decode()


def why_left_out(entry: os.DirEntry[str]) -> str:
    """Return what a file or folder is, if it is not data."""
    name = entry.name.lower()
    for reason, words in WORDS["left_out"].items():
        if name in words or read_suffix(name) in words:
            return reason
    if name.startswith("."):
        return "hidden files and folders"
    try:
        # It may lead to a folder above, and the walk would have no end.
        return "links to folders" if entry.is_symlink() and entry.is_dir() else ""
    except OSError:
        return "links that lead nowhere"


def read_suffix(path: str) -> str:
    """Return the extension of a path in lower case."""
    return splitext(path)[1].lower()


def cut_extension(path: str) -> str:
    """Return a path as names are compared, without the extension of a video or image, or a dot alone,
    as names of DiDeMo have it."""
    stem, suffix = splitext(compose(path).removesuffix("."))
    return stem if suffix.lower() in MEDIA_EXTENSIONS else stem + suffix


def file_stem(path: str) -> str:
    return cut_extension(path).rpartition("/")[2]


def is_image(path: str) -> bool:
    return read_suffix(path) in IMAGE_EXTENSIONS
