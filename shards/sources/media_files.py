"""Looks up the media files that the names in a table mean."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from alpro.errors import InputError
from alpro.log import progress
from alpro.shards.schema import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, VIDEO_EXTENSIONS
from alpro.shards.sources.columns import NAME_COLUMNS
from alpro.shards.sources.folders import MAX_NAMED, list_folder, media_stem, spelled
from alpro.shards.sources.records import named_records
from alpro.shards.storage import Location, resolve

NO_FILE = "names without a file"  # what a note on them begins with
AMBIGUOUS = "the name could mean"  # two files
MAX_FOLDERS = 50  # beside the data, in which files of its names are looked for
MAX_LOOKED_AT = 50  # names without a file that are compared with those of the files


class MediaFiles:
    """The media files of a folder, looked up by the names in annotation files and manifests. The
    folder is listed when a name is not that of a file.

    root: the folder that the names are relative to, here or on another machine. tables: those that
    have the names.
    """

    def __init__(
        self,
        folder: Path,
        root: Path | None = None,
        tables: Sequence[Location] = (),
    ):
        self.folder = folder
        self.tables = tables
        self.root = Path(os.path.normpath(root.absolute())) if root else folder
        self.located: dict[tuple[str, ...], tuple[str, Location, str]] = {}
        self.named: dict[Path, str] = {}  # the name by which a file was found
        self.missing: dict[str, None] = {}  # names without a file, in their order

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths by their names without the extension, in any case. Raises InputError if a folder
        cannot be listed."""
        with progress("listing media", None, "files") as advance:
            listing = list_folder(self.folder, advance)

        paths: defaultdict[str, list[str]] = defaultdict(list)
        for path in listing.media:
            paths[stem_key(path)].append(f"{self.folder}/{path}")
        return paths

    @cached_property
    def names_with_folders(self) -> set[str]:
        """The names in the tables that have a folder, without extensions."""
        names = set()
        for _, record in chain.from_iterable(map(named_records, self.tables)):
            if isinstance(record, str):
                continue
            name = next((record[column] for column in NAME_COLUMNS if column in record), "")
            if isinstance(name, str) and ("/" in name or "\\" in name):
                with suppress(ValueError):  # a name outside
                    names.add(without_extension(self.relative(name)))
        return names

    def locate(
        self, name: str, other_names: Sequence[str] = (), url: str = ""
    ) -> tuple[str, Location, str]:
        """The name of a video relative to the folder, and its path: that of one of its names, its
        URL if the folder has no media, or where it is expected. Instead of the path a reason if the
        names mean several files.

        Raises ValueError if no file of the folder has the name.
        """
        key = (name, *other_names)
        if key not in self.located:
            relative = self.relative(name)
            path: Location = ""
            problem = ""
            try:
                path = self._path(relative, other_names, url)
                str(path).encode()  # a folder name may not be valid UTF-8
            except (ValueError, InputError) as error:
                path = ""
                problem = str(error)
            self.located[key] = (relative, path, problem)
        return self.located[key]

    def _path(self, name: str, other_names: Sequence[str], url: str) -> Location:
        if url and not self.by_stem:
            return resolve(self.folder, url)
        for index, other in enumerate((name, *other_names)):
            # A name that is outside or ambiguous: another of its names may not be.
            with suppress(ValueError):
                path = self.match(self.relative(other) if index else other)
                if path:
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
        outside = name.startswith("../")
        what_to_do = "; put the table into a folder above its files" if outside else ""
        raise ValueError(f"name {name!r} names no file in the folder of videos{what_to_do}")

    def find(self, name: str) -> Path:
        """The file that a name means (`match`), or the path where it is expected."""
        path = self.match(name)
        if path:
            return path

        self.missing[name] = None
        expected = Path(normalize("NFC", str(self.folder / name)))
        has_extension = expected.suffix.lower() in MEDIA_EXTENSIONS
        return expected if has_extension else expected.with_name(f"{expected.name}.mp4")

    def match(self, name: str) -> Path | None:
        """The file that a name means, or None.

        The file with exactly this name comes first, then one in the same folder with another
        extension, or with an extension if the name lacks one, then one whose name differs in case.
        A name also matches files in subfolders whose path ends with its folders, if it has any, and
        may begin with the name of the folder of videos itself. One without folders does not match a
        file that the tables name with its folder. A name with a video extension never
        matches an image, nor the reverse; a name without an extension prefers the video.

        Raises ValueError if it matches several files, or a file that a name in another case has
        already found.
        """
        if is_file(self.folder / name):
            return self.folder / name
        # A disk may spell accents otherwise than a table.
        path = PurePosixPath(normalize("NFC", name))
        matches = self._matches(path)
        for count in range(1, len(path.parts)):
            if not matches and self.folder.parts[-count:] == path.parts[:count]:
                matches = self._matches(PurePosixPath(*path.parts[count:]))
        if not matches:
            return None

        closest = sorted(matches[min(matches)])
        file = closest[0]
        # Equally close in two folders: which one is meant cannot be known.
        if file.parent != closest[-1].parent:
            shown = " or ".join(str(path.relative_to(self.folder)) for path in closest[:2])
            raise ValueError(f"{AMBIGUOUS} {shown}")

        # A file that another row names by its path: this name is that of another one, which is
        # missing.
        inside = file.relative_to(self.folder).as_posix()
        is_elsewhere = len(path.parts) == 1 and "/" in inside
        if is_elsewhere and without_extension(inside) in self.names_with_folders:
            return None

        other = self.named.setdefault(file, name)
        if other != name and other.casefold() == name.casefold():
            raise ValueError(
                f"the names {other!r} and {name!r} differ only in case, and there is one file"
            )
        return file

    def _matches(self, path: PurePosixPath) -> dict[tuple[bool, ...], list[Path]]:
        """The files that a path, relative to the folder, may mean, by how far they are from it: the
        least is the best."""
        exact = Path(normalize("NFC", str(self.folder)), path)
        end = "" if len(path.parts) == 1 else f"/{path.parent}"
        extension = exact.suffix.lower()
        has_extension = extension in MEDIA_EXTENSIONS
        other_kind = IMAGE_EXTENSIONS if extension in VIDEO_EXTENSIONS else VIDEO_EXTENSIONS

        matches: defaultdict[tuple[bool, ...], list[Path]] = defaultdict(list)
        for stem in {exact.name, exact.stem} if has_extension else {exact.name}:
            for candidate in self.by_stem.get(stem.casefold(), []):
                file = Path(normalize("NFC", candidate))
                file_extension = file.suffix.lower()
                if not str(file.parent).endswith(end):
                    continue
                if has_extension and file_extension in other_kind:
                    continue
                # By importance: the folder, the case of the name, the extension, the kind.
                distance = (
                    file.parent != exact.parent,
                    media_stem(file.name) not in (exact.name, exact.stem),
                    file.name != exact.name,
                    stem != exact.name,
                    file_extension in IMAGE_EXTENSIONS,
                )
                matches[distance].append(Path(candidate))
        return matches

    def notes(self) -> Iterator[str]:
        """A line on the names without a file: which files look like them, and what to do."""
        if not self.missing:
            return

        names = list(self.missing)
        line = f"{NO_FILE} in {self.folder}: {len(names)}"
        similar = {name: self._similar(name) for name in names[:MAX_LOOKED_AT]}
        pairs = [f"{name} ({file})" for name, file in similar.items() if file]
        if pairs:
            shown = ", ".join(pairs[:MAX_NAMED])
            yield f"{line}; files that look like them: {shown}; correct the names, or rename the files"
        elif self.by_stem:
            files = [paths[0] for paths in list(self.by_stem.values())[:MAX_NAMED]]
            shown = ", ".join(file.removeprefix(f"{self.folder}/") for file in files)
            yield f"{line}, such as {', '.join(names[:MAX_NAMED])}; files of it are {shown}"
        else:
            beside = self._beside(names[:MAX_NAMED])
            where = f"; {beside} has: use {beside.parent} as the data" if beside else ""
            yield f"{line}, such as {', '.join(names[:MAX_NAMED])}; it has no media{where}"

    def _similar(self, name: str) -> str:
        """A file that has a name in another folder, or of whose name it is a part; empty if none
        does."""
        stem = stem_key(name)
        stems = [stem] if stem in self.by_stem else []
        stems = stems or [other for other in self.by_stem if stem in other or other in stem]
        return self.by_stem[stems[0]][0].removeprefix(f"{self.folder}/") if stems else ""

    def _beside(self, names: list[str]) -> Path | None:
        """A folder beside this one that has a file of one of the names."""
        folders: list[Path] = []
        with suppress(OSError):
            folders = sorted(path for path in self.folder.parent.iterdir() if path.is_dir())
        for folder in folders[:MAX_FOLDERS]:
            for name in names:
                endings = ["", *sorted(VIDEO_EXTENSIONS)]
                if folder != self.folder and any(
                    is_file(folder / f"{name}{ending}") for ending in endings
                ):
                    return folder
        return None


def without_extension(path: str) -> str:
    """A path without the extension of a medium, as names are compared."""
    is_media = PurePosixPath(path).suffix.lower() in MEDIA_EXTENSIONS
    return spelled(str(PurePosixPath(path).with_suffix("")) if is_media else path)


def stem_key(path: str) -> str:
    """A file's name without its extension, as names are compared."""
    return spelled(media_stem(path.rpartition("/")[2])).casefold()


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an invalid file name
        return False
