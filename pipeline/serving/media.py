"""The clips that the page plays: those of the index by their number, and uploaded videos by a random name.

A request names no path. Files that browsers do not play are converted once, into the page's temporary folder.
"""

import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from alpro.inference.clips import FETCH_SECONDS, MAX_FETCHED_BYTES, Source, file_name, is_image, load_frames
from alpro.inference.index import Index, source_of
from alpro.models.timesformer import VideoConfig
from alpro.pipeline.serving.preview import save_animation, save_frame, write_frame, write_webm
from alpro.shards.decoding import DecodeError
from alpro.shards.reader import Sample
from alpro.shards.schema import Row
from alpro.shards.storage import absolute, local_copy, suffix

CLIPS, UPLOADS = "clips", "uploads"
MAX_UPLOADS = 16  # the oldest is deleted
MAX_CONVERTED = 500  # files that are kept
# Of files that browsers may play as they are; whether they do depends on the codec.
PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}


class Unknown(Exception):
    """There is no such clip."""


@dataclass
class Media:
    """The sources of the page by key: `clips/NUMBER` and `uploads/NAME`. folder: temporary, for uploads and converted
    files. video: of the model, for the frames of decoded corpora."""

    index: Index | None
    folder: Path
    video: VideoConfig
    uploads: OrderedDict[str, Path] = field(default_factory=OrderedDict)
    converted: OrderedDict[str, Path] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def source(self, key: str) -> Source:
        """What decodes a clip. Raises Unknown."""
        kind, _, name = key.partition("/")
        if kind == CLIPS and self.index and name.isdecimal() and len(name) < 12 and int(name) < len(self.index):
            return source_of(self.index.item(int(name)))
        if kind == UPLOADS and name in self.uploads:
            return self.uploads[name]
        raise Unknown(key)

    def add_upload(self, file: Path) -> str:
        """Moves an uploaded file into the folder. Returns its key. Raises Unknown if it is not there any more."""
        name = token_hex(8)
        place = self.folder / name / f"upload{file.suffix.lower()}"
        place.parent.mkdir()
        try:
            shutil.move(file, place)
        except FileNotFoundError as error:  # others were uploaded since
            place.parent.rmdir()
            raise Unknown(file.name) from error
        with self.lock:
            self.uploads[name] = place
            while len(self.uploads) > MAX_UPLOADS:
                _, old = self.uploads.popitem(last=False)
                shutil.rmtree(old.parent, ignore_errors=True)
        return f"{UPLOADS}/{name}"

    def original(self, key: str) -> tuple[Path, str] | None:
        """The file of a clip and its media type, if a browser may play it."""
        path = local_path(self.source(key))
        return (path, PLAYABLE[suffix(path)]) if path and suffix(path) in PLAYABLE and path.is_file() else None

    def preview(self, key: str) -> Path:
        """A file that every browser plays: .webm, .webp of the frames of a decoded corpus, .jpg of an image.

        Raises Unknown, and DecodeError if the file cannot be decoded."""
        source = self.source(key)
        if is_image(source):
            return self.frame(key)
        if isinstance(source, Sample):
            return self._convert(key, ".webp", lambda out: save_animation(frames_of(source, self.video), out))
        part = window(source)
        return self._convert(key, ".webm", lambda out: with_file(source, lambda path: write_webm(path, out, *part)))

    def frame(self, key: str) -> Path:
        """The middle frame of a clip as .jpg. Raises Unknown, and DecodeError if the file cannot be decoded."""
        source = self.source(key)
        if isinstance(source, Sample):
            frames = frames_of(source, self.video)
            return self._convert(key, ".jpg", lambda out: save_frame(frames[len(frames) // 2], out))
        image, part = is_image(source), window(source)
        return self._convert(
            key, ".jpg", lambda out: with_file(source, lambda path: write_frame(path, out, image, *part))
        )

    def _convert(self, key: str, extension: str, write: Any) -> Path:
        """A converted file, written when it is first wanted."""
        name = f"{key.replace('/', '-')}{extension}"
        with self.lock:
            if name not in self.converted:
                out = self.folder / name
                try:
                    write(out)
                except BaseException:
                    out.unlink(missing_ok=True)
                    raise
                self.converted[name] = out
                while len(self.converted) > MAX_CONVERTED:
                    self.converted.popitem(last=False)[1].unlink(missing_ok=True)
            self.converted.move_to_end(name)
            return self.converted[name]

    def plays(self, key: str) -> bool:
        """Whether a clip is shown as a video: not an image, nor a sample of a decoded corpus. Raises Unknown."""
        source = self.source(key)
        return not isinstance(source, Sample) and not is_image(source)

    def fragment(self, key: str) -> str:
        """The part of a file that a clip is, as the end of an address."""
        start, end = window(self.source(key))
        if (start, end) == (None, None):
            return ""
        return f"#t={start or 0:g}{'' if end is None else f',{end:g}'}"

    def name(self, key: str) -> str:
        """What the page calls a clip: the name of its file, and which part of it or which sample in it."""
        source = self.source(key)
        if isinstance(source, Sample):
            return str(source.about["id"])
        name, (start, end) = file_name(source).rpartition("/")[2], window(source)
        if (start, end) == (None, None):
            return name
        return f"{name} {start or 0:g}-{'' if end is None else f'{end:g}'} s"


def window(source: Source) -> tuple[float | None, float | None]:
    """The start and the end of the part of a file that a source is, in seconds."""
    return (source.start, source.end) if isinstance(source, Row) else (None, None)


def local_path(source: Source) -> Path | None:
    """The file of a source on this machine; None for a sample of a decoded corpus, or a URL."""
    if isinstance(source, Sample):
        return None
    place = absolute(source.path if isinstance(source, Row) else source)
    return place if isinstance(place, Path) else None


def with_file(source: Any, use: Any) -> None:
    """Calls a function with the local file of a source. Raises DecodeError if the file is missing or cannot be
    fetched."""
    place = absolute(source.path if isinstance(source, Row) else source)
    try:
        with local_copy(place, MAX_FETCHED_BYTES, seconds=FETCH_SECONDS) as path:
            use(path)
    except FileNotFoundError as error:
        raise DecodeError("missing") from error
    except OSError as error:
        raise DecodeError("not fetched", str(error)) from error


def frames_of(source: Source, video: VideoConfig) -> Any:
    """The frames of a sample (T, H, W, 3) uint8."""
    return load_frames(source, video).transpose(0, 2, 3, 1)
