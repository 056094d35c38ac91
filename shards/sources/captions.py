"""Finds the captions of the videos of a folder: in a text beside each of them, or in the tables of
the folder.

    a.mp4, a.txt                      also .caption, .captions, .cap and a.mp4.txt, in any case; one
                                      caption a line
    a.mp4, a.json                     an object with `caption`, `captions`, `text` or `prompt`
    videos/a.mp4, labels/a.txt        a folder of texts (TEXT_FOLDERS) with the names of the videos
    videos.txt, prompts.txt           the names and the captions, line by line
    data.csv                          the only table
    train.csv, test.jsonl             a table for each split
    train.txt, test.txt               a list of moments for each split (Charades-STA)
    train_q.json, train_a.json        questions, and their answers by `question_id`, for each split
    train/metadata.csv                a table for each folder

What is none of these is named in a note, with how to name it.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path, PurePosixPath

from alpro.errors import InputError
from alpro.files import read_text
from alpro.shards.schema import MAX_JSON_BYTES, SPLITS
from alpro.shards.sources.annotations import texts_of
from alpro.shards.sources.cells import folded
from alpro.shards.sources.columns import SPLIT_NAMES, split_in, with_usual_names
from alpro.shards.sources.folders import (
    MAX_NAMED,
    OTHER_MEDIA,
    Listing,
    media_stem,
    media_suffix,
    spelled,
)
from alpro.shards.tar import GZIP

TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
SIDECARS = (".txt", ".caption", ".captions", ".cap")  # the first that is there counts
JSON_KEYS = (
    *("captions", "caption", "text", "prompt", "description", "sentences", "sentence", "enCap"),
    *("cap", "texts", "prompts"),
)
TEXT_FOLDERS = {
    *("labels", "label", "captions", "caption", "texts", "text", "txt", "prompts", "prompt"),
    *("annotations", "descriptions", "metas"),
}
NAME_LISTS = {
    *("videos.txt", "video.txt", "images.txt", "files.txt", "filenames.txt", "file_names.txt"),
}
TEXT_LISTS = {"prompts.txt", "prompt.txt", "captions.txt", "caption.txt", "texts.txt", "labels.txt"}
# Files that may have captions, and are not read as they are.
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
LOOKS_LIKE_TEXT = {
    *(".srt", ".vtt", ".ass", ".sub", ".xlsx", ".xls", ".ods", ".md", ".xml", ".pkl", ".pickle"),
    *(".tags", ".tag", ".prompt", ".text", ".desc", ".description", ".nfo", ".lrc", ".rtf"),
    *(".ssa", ".sbv", ".smi", ".ttml", ".dfxp", ".pdf", ".doc", ".log", ".token", ".eaf"),
    *(".textgrid", ".lab", ".stm", ".ctm", ".srv3", ".itt"),
    *(".yaml", ".yml", ".docx", ".html", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"),
    *SIDECARS,
}
NOT_CAPTIONS = re.compile(
    r"(?i)(readme|licen[cs]e|requirements|changelog|notice|classes|\.?_?stats)\b.*"
)
HOW = (
    "name each text like its video (a.mp4, a.txt), or pass a table with the columns `video` and "
    "`caption`"
)


def without_suffix(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + media_stem(name)


def lines_of(text: str) -> list[str]:
    """The lines of a text. `splitlines` would also cut at characters inside of a caption, such as
    U+2028."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


class Sidecars:
    """The texts beside the videos of a folder."""

    def __init__(self, listing: Listing):
        self.folder = listing.folder
        self.exact: dict[str, str] = {}  # paths by their names, whose extension is in lower case
        self.folded: defaultdict[str, list[str]] = defaultdict(list)  # the same in any case
        text_folders: set[str] = set()
        for path in listing.others:
            suffix = media_suffix(path.rpartition("/")[2])
            if suffix not in (*SIDECARS, ".json"):
                continue

            key = spelled(without_suffix(path)) + suffix
            self.exact.setdefault(key, path)
            self.folded[key.casefold()].append(path)

            folders = path.split("/")[:-1]
            text_folders.update(name for name in folders if name.lower() in TEXT_FOLDERS)

        self.text_folders = sorted(text_folders)

    def of(self, media: str) -> str | None:
        """The path of the text of a video, or None."""
        media = spelled(media)
        paths = (media, *self._in_text_folders(media))
        for path, suffix in product(paths, (*SIDECARS, ".json")):
            for name in (f"{path}{suffix}", f"{without_suffix(path)}{suffix}"):
                text = self._find(name)
                if text and (suffix != ".json" or self._has_captions(text)):
                    return text
        return None

    def _find(self, name: str) -> str | None:
        if name in self.exact:
            return self.exact[name]
        # Of several that differ in case alone, none is clearly meant.
        others = self.folded.get(name.casefold(), ())
        return others[0] if len(others) == 1 else None

    def _in_text_folders(self, media: str) -> Iterator[str]:
        """The path of a video with a folder of texts in place of one of its folders, or below the
        last one."""
        *folders, name = media.split("/")
        for text_folder in self.text_folders:
            for i in range(len(folders)):
                replaced = [*folders[:i], text_folder, *folders[i + 1 :]]
                yield "/".join([*replaced, name])
            yield "/".join([*folders, text_folder, name])

    def _has_captions(self, path: str) -> bool:
        try:
            return bool(self.read(path))
        except (ValueError, OSError):
            return False

    def read(self, path: str) -> list[str]:
        """The captions in a text. Raises ValueError if it is not one, and OSError if it cannot be
        read."""
        file = self.folder / path
        size = file.stat().st_size
        # A sample with a text of that size could not be written.
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{path}: {size:,} bytes; a text has one caption a line")
        try:
            text = read_text(file)
        except UnicodeDecodeError:
            raise ValueError(f"{file.name}: not UTF-8; save it as UTF-8") from None
        if media_suffix(file.name) != ".json":
            return lines_of(text)

        try:
            value = json.loads(text)
        except RecursionError:
            raise ValueError(f"{file.name}: nested too deeply") from None
        if not isinstance(value, dict):
            return texts_of(value)
        # `Caption` and `blip_caption` as in tables, where `video` names the file.
        named = with_usual_names({"video": file.name} | value)
        key = next((key for key in JSON_KEYS if named.get(key)), "")
        return texts_of(named[key]) if key else []


@dataclass(frozen=True)
class Table:
    """A table of a folder, with the folder that its names are relative to, and the split of its
    rows. half: `questions` or `answers`, if it has these alone."""

    file: Path
    split: str = ""
    half: str = ""

    @property
    def folder(self) -> Path:
        return self.file.parent


def tables_in(listing: Listing) -> list[str]:
    """The tables of a folder: files with rows, which are not the metadata of one video (a.json,
    a.info.json)."""
    media_stems = {spelled(without_suffix(path)).casefold() for path in listing.media}
    tables = []
    for path in listing.others:
        uncompressed = path[:-3] if path.lower().endswith(".gz") else path
        name = uncompressed.rpartition("/")[2]
        stem = spelled(without_suffix(uncompressed)).casefold()
        is_beside = stem in media_stems or without_suffix(stem) in media_stems
        if media_suffix(name) in TABLES and not is_beside:
            tables.append(path)
    return tables


def tables_of_splits(listing: Listing) -> list[Table]:
    """The tables of a folder if each is for one split, by its name or by its folder; otherwise an
    empty list."""
    paths = []
    for path in tables_in(listing):
        if not NOT_CAPTIONS.match(PurePosixPath(path).name):
            paths.append(path)

    at_root = [path for path in paths if "/" not in path]
    if at_root:
        named = [Table(listing.folder / path, split_in(media_stem(path)) or "") for path in at_root]
        named = [table for table in named if table.split]
        splits = {table.split for table in named}
        return named if len(splits) > 1 else []

    tables = []
    for path in paths:
        split = split_of_path(path) or split_in(stem_of(path)) or ""
        tables.append(Table(listing.folder / path, split))

    folders = Counter(path.rpartition("/")[0] for path in paths)
    splits = {table.split for table in tables}
    if len(folders) == 1 and len(splits) > 1:  # a folder of annotations
        return [] if "" in splits else tables
    return tables if folders and max(folders.values()) == 1 else []


def stem_of(path: str) -> str:
    return media_stem(path.rpartition("/")[2])


def split_of_path(path: str) -> str:
    """The split that the first folder of a path with a split's name names, or an empty string."""
    for folder in path.split("/")[:-1]:
        split = SPLIT_NAMES.get(folded(folder), "")
        if split:
            return split
    return ""


def splits_of_folders(paths: Iterable[str]) -> tuple[bool, str]:
    """Whether folders are splits, and a note about them, or an empty string. They are if there is
    one of training, and another: a single folder `test` may be a trial."""
    paths = list(paths)
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    counts = Counter(map(split_of_path, paths))
    named = [split for split in SPLITS if counts[split]]
    if not named:
        return False, folders_like_splits(folders)
    if "train" not in named or len(named) == 1:
        return False, (
            f"the folders named as the split {' and '.join(named)} are not taken for it, because "
            "there are none of train and of another split; a column `split` names them"
        )

    shown = ", ".join(f"{split} ({counts[split]})" for split in named)
    outside = ""
    if counts[""]:
        outside = f"; {counts['']} files in no such folder are for training"
    return True, f"splits are those of the folders: {shown}{outside}"


def folders_like_splits(folders: Iterable[str]) -> str:
    """A note on folders whose names contain that of a split (videos_train), or an empty string."""
    named = {split_in(folder) or "": folder for folder in sorted(folders)}
    named.pop("", None)
    if not named:
        return ""
    shown = ", ".join(named.values())
    return (
        f"the folders named as a split ({shown}) are not taken for one; "
        "name them train, validation and test, or name the splits in a column `split`"
    )


def listed_captions(listing: Listing) -> tuple[str, list[tuple[str, str]]] | None:
    """The names and the captions of two lists in a folder, and what they are: videos.txt and
    prompts.txt.

    None if there are not exactly two. Raises InputError if their lengths differ.
    """
    names = [path for path in listing.others if path.lower() in NAME_LISTS]
    texts = [path for path in listing.others if path.lower() in TEXT_LISTS]
    if len(names) != 1 or len(texts) != 1:
        return None

    both = []
    for path in (names[0], texts[0]):
        file = listing.folder / path
        try:
            lines = lines_of(read_text(file))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8; save it as UTF-8"
            raise InputError(f"{file}: cannot be read: {reason}") from error
        # Editors leave blank lines at the end.
        while lines and not lines[-1].strip():
            lines.pop()
        both.append(lines)

    first, second = both
    if len(first) != len(second):
        raise InputError(
            f"{listing.folder}: {names[0]} has {len(first)} lines, and {texts[0]} {len(second)}: "
            "line by line, they are the videos and their captions"
        )
    pairs = []
    for line, text in zip(first, second, strict=True):
        name = line.strip()
        if name:
            pairs.append((name, text))
    return f"{names[0]} and {texts[0]}", pairs


def notes_on_files(listing: Listing, used: Mapping[str, str], without_text: int) -> Iterator[str]:
    """What is in a folder and not read, a line each: files with a text that are of no known kind,
    media that no decoder reads, and, if videos have no text, the files that look like captions.

    used: the texts that were read, by their paths.
    """
    yield from listing.notes()

    # What has a text beside it is probably a medium, of whatever kind.
    texts = set()
    for path in listing.others:
        if media_suffix(path) in SIDECARS and path not in used:
            texts.add(spelled(without_suffix(path)).casefold())

    unknown: Counter[str] = Counter()  # by their extensions
    unreadable: Counter[str] = Counter()
    candidates: defaultdict[str, list[str]] = defaultdict(list)
    for path in listing.others:
        name = path.rpartition("/")[2]
        suffix = media_suffix(name)
        looks_like_text = suffix in LOOKS_LIKE_TEXT
        has_text = spelled(without_suffix(path)).casefold() in texts
        if suffix in OTHER_MEDIA:
            unreadable[suffix] += 1
        elif has_text and not looks_like_text:
            unknown[suffix or "without extension"] += 1
        elif looks_like_text and path not in used and not NOT_CAPTIONS.match(name):
            candidates[suffix].append(path)

    archives = [path for path in listing.others if path.lower().endswith(ARCHIVES)]
    tars = [path for path in listing.others if media_suffix(path) == ".tar"]
    archives += [path for path in tars if is_compressed_tar(listing.folder / path)]
    plain_tars = [path for path in tars if path not in archives]
    if plain_tars:
        shown = ", ".join(plain_tars[:MAX_NAMED])
        yield (
            f"{len(plain_tars)} tars ({shown}) are not read: they are no shards of video2dataset or "
            "img2dataset; for decoded shards, set `shards` instead of `data`"
        )
    if archives:
        shown = ", ".join(archives[:MAX_NAMED])
        yield (
            f"{len(archives)} archives ({shown}) are not read: unpack them; "
            "shards are .tar files without compression (gunzip)"
        )
    if unreadable:
        yield f"{kinds_of(unreadable)} cannot be decoded; convert them to MP4 or JPEG"
    if unknown:
        yield f"{unknown.total()} files with a text are not of a known kind: {', '.join(unknown)}"
    if without_text and candidates:
        groups = []
        for paths in islice(candidates.values(), 2 * MAX_NAMED):
            group = ", ".join(paths[:2])
            if len(paths) > 2:
                group += f" and {len(paths) - 2} more"
            groups.append(group)
        shown = ", ".join(groups)
        yield f"{without_text} files have no caption; these look like captions: {shown}; {HOW}"
    elif without_text:
        yield f"{without_text} of {len(listing.media)} files have no caption; {HOW}"


def notes_on_lists(listing: Listing) -> Iterator[str]:
    """A line on lists of names that are named as splits, beside a table of all captions."""
    lists = []
    for path in listing.others:
        is_list = "/" not in path and media_suffix(path) in (".txt", ".lst", ".list")
        if is_list and split_in(media_stem(path)):
            lists.append(path)
    if len(lists) > 1:
        shown = ", ".join(lists[:MAX_NAMED])
        yield (
            f"{shown} are not read: if they list the videos of splits, name them in `annotations` "
            "of the configuration, with the table as its `texts`"
        )


def without_decoder(listing: Listing, sidecars: Sidecars, used: Mapping[str, str]) -> Iterator[str]:
    """The media of a folder that no decoder reads, and that have a text of their own."""
    for path in listing.others:
        if media_suffix(path) not in OTHER_MEDIA:
            continue
        text = sidecars.of(path)
        if text and text not in used:
            yield path


def is_compressed_tar(file: Path) -> bool:
    """Whether a tar is compressed with gzip."""
    try:
        with file.open("rb") as tar:
            return tar.read(len(GZIP)) == GZIP
    except OSError:
        return False


def kinds_of(counts: Counter[str]) -> str:
    kinds = []
    for suffix, count in counts.most_common():
        kinds.append(f"{count} {suffix} files")
    return ", ".join(kinds)
