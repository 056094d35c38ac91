"""The texts of the videos of a folder that have a file each, and what else lies in the folder.

a.mp4, a.txt                also .caption, .captions, .cap and a.mp4.txt; one caption a line
a.mp4, a.json               an object with `caption`, `captions`, `text`, ..., or a list of texts
videos/a.mp4, labels/a.txt  a folder of texts with the names of the videos
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from posixpath import splitext

from alpro.errors import InputError
from alpro.files import read_text
from alpro.shards.file_type import find_placeholder, read_head
from alpro.shards.schema import MAX_JSON_BYTES, Reject
from alpro.shards.sources.form import BESIDE, TABLE, WORDS, Record
from alpro.shards.sources.media import (
    Folder,
    compose,
    is_image,
    read_suffix,
)
from alpro.shards.sources.rows import Items, Rows

TEXT_SUFFIXES = tuple(WORDS["texts"]["suffixes"])
NOT_TEXTS = re.compile(
    r"(?i)(.*/)?(readme|licen[cs]e|requirements|changelog|notice|classes|total_)"
)


class Sidecars:
    """The texts of the media of a folder."""

    def __init__(self, folder: Folder, text_folders: Sequence[str]):
        self.folder = folder
        self._by_name: dict[str, str] = {}  # The extension is in lower case.
        names: set[str] = set()
        for path in folder.others:
            stem, suffix = splitext(compose(path))
            if suffix.lower() in TEXT_SUFFIXES:
                self._by_name[f"{stem}{suffix.lower()}"] = path
                names.update(path.split("/")[:-1])
        self._text_folders = sorted(
            names.intersection(text_folders or WORDS["texts"]["folders"])
        )
        if text_folders and not self._text_folders:
            raise InputError(
                f"{folder.path}: columns.texts = {', '.join(text_folders)}: no folder with texts has "
                "this name"
            )

    @cached_property
    def texts(self) -> dict[str, str]:
        """The paths of the texts of the videos and images that have one.

        A text that fits files of several names is of none; one that fits a video and its picture is
        of the video.
        """
        owners: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.folder.media if self._by_name else ():
            text = self.find(path)
            if text:
                owners[text].append(path)

        texts: dict[str, str] = {}
        for text, paths in owners.items():
            paths = [path for path in paths if not is_image(path)] or paths
            if len({splitext(path)[0] for path in paths}) > 1:
                reason = "texts fit several files, and are of none (give each its own, beside it)"
                self.folder.notes.add(reason, f"{text} ({', '.join(paths[:2])})")
                continue
            texts |= dict.fromkeys(paths, text)
        return texts

    def find(self, media: str) -> str | None:
        """Return the path of the text of a video or image, or None."""
        media = compose(media)
        *folders, name = media.split("/")
        paths = [media]
        # The text folder is below its own folder, or replaces the nearest that it can.
        depths = range(len(folders), -1, -1)
        for index, text_folder in product(depths, self._text_folders):
            above = folders[:index]
            below = folders[index + 1 :]
            paths.append("/".join([*above, text_folder, *below, name]))

        for path, suffix in product(paths, TEXT_SUFFIXES):
            for stem in (path, splitext(path)[0]):
                text = self._by_name.get(f"{stem}{suffix}")
                if text and self.has_texts(text):
                    return text
        return None

    def has_texts(self, path: str) -> bool:
        """Return whether a text has captions: of an object, that it has a column of them."""
        is_json = read_suffix(path) == ".json"
        return not is_json or bool(BESIDE.bind(self.read(path)).text_columns)

    def read(self, path: str) -> Record:
        """Return the record in a text: an empty one of a placeholder, and the reason as `$reason` if
        it cannot be read."""
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
            text = read_text(file)
            if read_suffix(path) != ".json":
                return {"captions": text.split("\n")}
            value = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            return {"$reason": f"{path}: {error}"}
        listed = value if isinstance(value, list) else []
        objects = [each for each in listed if isinstance(each, dict)]
        if any(TABLE.bind(each).file for each in objects):
            return {}  # A table: train.json is no text of train.mp4.
        return value if isinstance(value, dict) else {"captions": value}

    def scan(self, items: Items) -> Rows:
        """Yield a row for each video or image, with the captions in its text, and a reject for each
        text whose video is missing.

        Raises:
            InputError: If there is no video or image.
        """
        folder = self.folder
        for path in folder.media:
            text = self.texts.get(path)
            record = self.read(text) if text else {}
            yield from items.add_file(text or path, path, record)
            if not text:
                reason = "videos and images have no caption; name each text like it (a.mp4, a.txt)"
                folder.notes.add(reason, path)
        for path in self.find_alone():
            yield Reject(
                id=path,
                path=path,
                reason="missing",
                detail="a text without its video",
            )
        yield from items.rows()
        self.note_others()
        if not folder.media:
            lines = [
                f"{folder.path}: no video or image in this folder",
                *folder.notes.lines(),
            ]
            raise InputError("; ".join(lines))

    def find_alone(self) -> Iterator[str]:
        """Yield the texts whose videos are missing, in the folders of the other texts."""
        stems = {compose(splitext(path)[0]) for path in self.folder.media}
        used = {*self.texts.values()}
        folders = {text.rpartition("/")[0] for text in used}
        for path in self.folder.others:
            stem, suffix = splitext(path)
            is_text = suffix.lower() in TEXT_SUFFIXES and not NOT_TEXTS.match(path)
            is_alone = path not in used and compose(stem) not in stems
            is_among_texts = path.rpartition("/")[0] in folders
            if is_text and is_alone and is_among_texts and self.has_texts(path):
                yield path

    def note_others(self) -> None:
        """Note what is in the folder and not read."""
        used = {*self.texts.values()}
        remedies: dict[str, str] = {}
        for remedy, suffixes in WORDS["not_read"].items():
            remedies |= dict.fromkeys(suffixes, remedy)
        for path in self.folder.others:
            suffix = read_suffix(path)
            if suffix not in remedies or path in used or NOT_TEXTS.match(path):
                continue
            placeholder = find_placeholder(read_head(self.folder.path / path))
            remedy = remedies[suffix]
            if placeholder:
                remedy = f"{placeholder.kind}s: {placeholder.remedy}"
            self.folder.notes.add(f"{suffix} files are not read ({remedy})", path)
