"""Lists the files of a folder of videos, without what is not data.

Left out are hidden files and folders, links to folders, the previews and recycle bins of NAS
systems, cameras and operating systems, and what this project writes: a workspace, an artifact. They
are counted (`left_out`). A folder that cannot be listed is an error: what is missing from the list
would be missing from the data, in silence.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from alpro.errors import InputError
from alpro.shards.schema import MEDIA_EXTENSIONS

# Folders of previews, deleted files and snapshots, in lower case.
NOT_DATA = {
    *("@eadir", "#recycle", "@recycle", "@recycle_bin", "@recently-snapshot", "#snapshot"),
    *("~snapshot", "@__thumb", "@synoeadir", "@tmp", "@sharesnap", "@snapshots", "$recycle.bin"),
    *("recycler", "recycled", "recycle bin", "trash", "network trash folder", "temporary items"),
    *("lost+found", "lost.dir", "system volume information", "thumbnails", "thumbnail"),
    *("thumbs", "thumb", "_thumbs", "__macosx", "_gsdata_", "@recycle bin", "recycle.bin"),
    *("@appstore", "@transcode", "deleted items", "recently deleted", "files_trashbin"),
    *("files_versions", "ipod photo cache", "onedrivetemp", "temporaryitems"),
    *("thmbnl", "trickplay", "extrafanart", "encoded-video", "extrathumbs", "plex versions"),
    # Of Buffalo, Thecus, and shares of Windows.
    *("trashbox", "_nas_recycle_", "recyclebin", "recycle_bin", "network recycle bin"),
    *("#trash", "@trash", "_trash", "trashcan", "trash.recycle", "wastebasket"),
}
NOT_DATA_ENDINGS = (".trickplay", ".lrdata", ".photoslibrary/resources", "misc/thm")
NOT_DATA_STARTS = (".trash", ".recycle", "appdata_oc")
FOUND = re.compile(r"(?i)found\.\d{3}")  # of a check of a disk on Windows
UNFINISHED = {
    *(".part", ".partial", ".crdownload", ".download", ".ytdl", ".!qb", ".!ut", ".aria2"),
    *(".filepart", ".tmp", ".temp", ".opdownload", ".bak", ".old", ".orig", ".swp"),
}
CAMERA_PREVIEWS = {".thm", ".lrv", ".lrf"}  # of GoPro, DJI, Canon
# What a workspace consists of, from its first moment on.
WORKSPACE = {"artifacts", "digests.sqlite", "logs", "manifests", "mlflow", "prefect", "reports"}
MARKERS = {"mlflow.db", "artifact.json"}  # each is enough
# Media that no decoder of this project reads: they are named if they have a text, or nothing else
# is there.
OTHER_MEDIA = {
    *(".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tif", ".tiff"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw"),
    *(".mxf", ".gxf", ".rm", ".rmvb", ".wtv", ".dv", ".y4m", ".yuv", ".ivf", ".nut", ".braw"),
    *(".r3d", ".swf", ".amv", ".dav", ".mjpeg", ".mjpg", ".av1", ".obu", ".vc1", ".vvc", ".h266"),
    *(".bik", ".smk", ".roq", ".fli", ".flc", ".nsv", ".nuv", ".pva", ".pmp"),
    *(".m4s", ".cmfv", ".m3u8", ".mpd", ".crm", ".ari", ".cine", ".mve", ".thp", ".kux", ".qlv"),
    *(".apng", ".mng", ".orf", ".rw2", ".raf", ".gpr", ".insp", ".exr", ".tga"),
    *(".trec", ".camrec", ".arf", ".wrf", ".ifo"),
}
MAX_NAMED = 3  # names that are shown as examples


@dataclass
class Listing:
    """The files of a folder by their paths relative to it, in the order of their parts."""

    folder: Path
    media: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def notes(self) -> list[str]:
        """A line with what is left out, by reason; none if nothing is."""
        reasons = []
        for reason, names in self.left_out.items():
            kinds = Counter(PurePosixPath(name).name for name in names)
            shown = ", ".join(name for name, _ in kinds.most_common(MAX_NAMED))
            more = ", ..." if len(kinds) > MAX_NAMED else ""
            reasons.append(f"{reason}: {len(names)} ({shown}{more})")
        if not reasons:
            return []
        return [f"left out of {self.folder}: {'; '.join(reasons)}"]


def list_folder(folder: Path, advance: Callable[[], None] = lambda: None) -> Listing:
    """The files in a folder and below. advance: called for each media file.

    Raises InputError if a folder cannot be listed, with its name.
    """
    listing = Listing(folder)
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            with os.scandir(folder / inside) as entries:
                # A folder is known without a request to the disk; a link is looked at below.
                children = [(entry, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            may_not = isinstance(error, PermissionError)
            what_to_do = (
                "make it readable, or move it out of the data"
                if may_not
                else "check its disk, and run the command again"
            )
            raise InputError(
                f"{folder / inside}: this folder cannot be listed ({error.strerror or error}); "
                f"{what_to_do}"
            ) from error

        for entry, is_folder in children:
            name = entry.name
            path = f"{inside}/{name}" if inside else name
            is_media = media_suffix(name) in MEDIA_EXTENSIONS
            if is_folder:
                reason = why_not_data(folder / path, name)
                if reason:
                    listing.left_out[reason].append(path)
                else:
                    pending.append(path)
            elif name.startswith("."):
                if is_media:
                    listing.left_out["hidden files"].append(path)
            elif media_suffix(name) in UNFINISHED and is_media_name(media_stem(name)):
                listing.left_out["unfinished downloads and copies"].append(path)
            elif media_suffix(name) in CAMERA_PREVIEWS:
                listing.left_out["previews of cameras"].append(path)
            elif is_media:
                advance()
                listing.media.append(path)
            elif entry.is_symlink() and (reason := why_not_followed(entry)):
                listing.left_out[reason].append(path)
            else:
                listing.others.append(path)

    # `scandir` has no order, and a source must give the same rows on any disk.
    listing.media.sort(key=in_order)
    listing.others.sort(key=in_order)
    for names in listing.left_out.values():
        names.sort()
    return listing


def why_not_followed(link: os.DirEntry[str]) -> str:
    """Why a link is not a part of the data; empty for a link to a file, or to none."""
    try:
        is_folder = link.is_dir()
    except OSError:  # it leads to itself, or through a folder that cannot be read
        return "links that cannot be followed"
    # It may lead to a folder above, and the walk would have no end.
    return "links to folders" if is_folder else ""


def in_order(path: str) -> list[str]:
    return path.split("/")


def why_not_data(folder: Path, name: str) -> str:
    """Why a folder inside of the data is not a part of it; empty if it is."""
    folded_name = name.lower()
    is_known = folded_name in NOT_DATA or FOUND.fullmatch(name) is not None
    has_start = folded_name.startswith(NOT_DATA_STARTS)
    if is_known or has_start or folder.as_posix().lower().endswith(NOT_DATA_ENDINGS):
        return "folders of previews or deleted files"
    if name.startswith("."):
        return "hidden folders"
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
    except OSError:
        return ""  # `list_folder` names it

    visible = {name for name in names if not name.startswith(".")}
    is_workspace = bool(visible) and visible <= WORKSPACE and "prefect" in visible
    if is_workspace or names & MARKERS:
        return "folders that alpro writes"
    return ""


def is_media_name(name: str) -> bool:
    return media_suffix(name) in MEDIA_EXTENSIONS


def media_stem(name: str) -> str:
    """A file name without its extension, as pathlib's `stem`.

    >>> [media_stem(name) for name in ("a.mp4", "a.b.mp4", ".mp4", "a.", "a")]
    ['a', 'a.b', '.mp4', 'a.', 'a']
    """
    dot = name.rfind(".")
    last = len(name) - 1
    return name[:dot] if 0 < dot < last else name


def media_suffix(name: str) -> str:
    """The extension of a file name, in lower case."""
    stem = media_stem(name)
    return name[len(stem) :].lower()


def spelled(path: str) -> str:
    """A path as names are compared: a disk may decompose accents (NFD), as macOS does, and tables
    compose them."""
    return path if path.isascii() else normalize("NFC", path)
