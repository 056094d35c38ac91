"""What `alpro serve` serves: an index, which is opened again when it changes, and the models."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import file_state
from alpro.inference.clips import DEFAULT_LIMITS, Source
from alpro.inference.index import Index, Item, clip_key, read_about, source_of
from alpro.inference.model import Model
from alpro.log import log
from alpro.shards.clip import Limits
from alpro.shards.file_type import content_kind, read_head
from alpro.shards.schema import Row
from alpro.shards.storage import identities, located

# Anybody may upload: a file that is made to take long must not hold a decoding thread for a minute.
UPLOAD_LIMITS = Limits(timeout=10.0)


@dataclass
class ServedModels:
    """The models; None where the server cannot search, answer or name entities."""

    index: Index | None = None
    search: Model | None = None
    ask: Model | None = None
    entities: Model | None = None
    # Of index.json when the index was opened.
    state: Any = field(default=None, init=False, compare=False)
    refreshing: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False)

    def refresh(self) -> None:
        """Opens the index again if it has changed. If that fails, such as while its folder is
        replaced, the server goes on with what it has, and logs the reason."""
        # Of requests side by side, one opens the index; the others use the one that is there.
        if self.index is None or not self.refreshing.acquire(blocking=False):
            return
        try:
            folder = self.index.folder
            state = file_state(folder / "index.json")
            if state == self.state:
                return

            # Before it is opened: a version that cannot be opened is not tried again by each request.
            self.state = state
            if read_about(folder) == self.index.about:
                return

            index = Index.open(folder)
            # The model that embeds the texts of searches is loaded once.
            if index.about.digest != self.index.about.digest:
                raise InputError(f"{folder}: is of another model now; start the server again")

            log.info(f"{folder}: has changed: {len(index):,} clips")
            self.index = index
        except InputError as error:
            log.warning(f"{error} (the server goes on with the index as it was)")
        finally:
            self.refreshing.release()

    def require(self, what: str, option: str) -> Any:
        """Raises 404 if the server does not do it."""
        model = getattr(self, what)
        if model is None:
            raise HTTPException(404, f"this server was started without {option}")
        return model

    def item(self, clip: int, key: str = "") -> Item:
        """A clip of the index. Raises 404 if there is none, or if it is not that of the key."""
        if self.index is None or clip >= len(self.index):
            raise HTTPException(404, "there is no such clip")

        item = self.index.item(clip)
        if key and key != clip_key(item):
            raise HTTPException(404, "the index has changed: search again")
        return item

    def current_item(self, clip: int, key: str = "") -> Item:
        """A clip whose file is that which was indexed. Raises 404: a file that took its place may
        be a link to anything."""
        item = self.item(clip, key)
        location = located(item["path"])
        if isinstance(location, Path):
            (identity,) = identities([location])
            if identity == "missing":
                raise HTTPException(404, "this file is missing")
            if identity != item["identity"]:
                raise HTTPException(
                    404,
                    "this file has changed since it was indexed; `alpro index add` embeds it again",
                )

        return item

    def frames(self, model: Model, clip: int | None, key: str, file: Path | None) -> Any:
        """The frames of the clip that a request names, or of its body, as `model` takes them.
        Raises 400 for both or none, 404, and DecodeError."""
        if (clip is None) == (file is None):
            raise HTTPException(400, "name a clip by its number, or send a file")

        if file:
            return model.frames(upload_source(file), UPLOAD_LIMITS)
        assert clip is not None
        return model.frames(source_of(self.current_item(clip, key)), DEFAULT_LIMITS)

    def source(self, clip: int | None, file: Path | None) -> Source:
        """The clip that a request names, or its body."""
        if file:
            return upload_source(file)
        assert clip is not None
        # `frames` has compared the clip's file with the index.
        return source_of(self.item(clip))


def upload_source(file: Path) -> Row:
    """Return the row of an uploaded file, whose name says nothing."""
    return Row(id="upload", path=file, kind=content_kind(read_head(file)))


def model_name(folder: str) -> str:
    """The name of a model for people: its stage and fingerprint, or its folder."""
    record = read_record(Path(folder))
    if record:
        return f"{record.name} {record.fingerprint[:8]}"
    return Path(folder).name
