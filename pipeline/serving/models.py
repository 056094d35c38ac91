"""What `alpro serve` serves: an index and models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException

from alpro.inference.clips import Source
from alpro.inference.index import Item, get_source, quoted
from alpro.inference.model import Model
from alpro.inference.search import Hit, Searcher, flag_changed_files
from alpro.shards.clip import Limits
from alpro.shards.file_type import content_kind, read_head
from alpro.shards.schema import Row

# A file that is made to take long must not hold a decoding thread for a minute.
UPLOAD_LIMITS = Limits(timeout=10.0)


@dataclass
class ServedModels:
    """The models. None where the server cannot search, answer or name entities."""

    search: Searcher | None = None
    ask: Model | None = None
    entities: Model | None = None

    def require(self, what: str, option: str) -> Any:
        """Return a model. Raise 404 if the server was started without it."""
        model = getattr(self, what)
        if model is None:
            raise HTTPException(404, f"this server was started without {option}")
        return model

    def item(self, key: str) -> Item:
        """Return a clip of the index. Raise 404 if there is none."""
        searcher: Searcher = self.require("search", "INDEX")
        items = searcher.index.rows(f"key = {quoted(key)}")
        if not items:
            raise HTTPException(404, "there is no such clip in the index")
        return items[0]

    def current_item(self, key: str) -> Item:
        """Return a clip whose file is the one that was indexed. Raise 404 for any other: a file that
        took its place may be a link to anything."""
        (hit,) = flag_changed_files([Hit(self.item(key))])
        if hit.note:
            raise HTTPException(
                404, f"this file: {hit.note}; run `alpro index add` again"
            )
        return hit.item

    def decode(
        self, model: Model, key: str, file: Path | None
    ) -> tuple[Source, np.ndarray]:
        """Decode the clip or the body of a request.

        Returns:
            What was decoded, and its frames (T, H, W, 3) uint8.

        Raises:
            HTTPException: If the request has both or none, or the clip's file is another one.
            DecodeError: If the file cannot be decoded.
        """
        if bool(key) == bool(file):
            raise HTTPException(400, "name a clip by its key, or send a file")
        if not file:
            clip = get_source(self.current_item(key))
            return clip, model.frames(clip)

        # The file has no name that would say what it is.
        upload = Row(id="upload", path=file, kind=content_kind(read_head(file)))
        return upload, model.frames(upload, UPLOAD_LIMITS)
