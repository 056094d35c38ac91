"""Search an index: rank clips by similarity (VTC) and, on request, the best of them by matching
(VTM)."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch

from alpro.inference.index import (
    SHOWN_COLUMNS,
    Index,
    Item,
    describe_location,
    get_source,
    make_condition,
    quoted,
)
from alpro.inference.loading import Found, PathLike, resolve
from alpro.inference.model import Model
from alpro.models.folder import Texts
from alpro.shards.clip import DecodeError
from alpro.shards.storage import Location, identities, located

RERANKED = 20  # clips that are matched if the model ranks by matching


@dataclass
class Hit:
    """A clip of an index and its scores.

    Attributes:
        item: The clip.
        similarity: Cosine similarity, -1 to 1; None if clips are only listed.
        match: Probability that text and clip belong together; None if it was not matched.
        note: Says whether the file is missing, changed or unreadable.
    """

    item: Item
    similarity: float | None = None
    match: float | None = None
    note: str = ""

    @property
    def location(self) -> str:
        """The file, and which part of it."""
        return describe_location(self.item)

    @property
    def caption(self) -> str | None:
        return self.item["caption"]

    def json(self) -> dict[str, Any]:
        """Return the values that `alpro search --json` and the server's API show."""
        shown = {
            name: self.item[name]
            for name in ("key", "identity", *SHOWN_COLUMNS, "columns")
        }
        return shown | {
            "similarity": self.similarity,
            "match": self.match,
            "note": self.note,
        }


@dataclass
class SearchResult:
    """The hits of a search, best first. Iterating yields them, and `len` counts them.

    Attributes:
        hits: The hits of one page.
        clips: Number of clips that fit the filter.
        total: Number of clips in the index.
        note: Remarks on the text, such as unknown words.
    """

    hits: list[Hit]
    clips: int
    total: int
    note: str = ""

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def json(self) -> dict[str, Any]:
        """Return the values as `Hit.json` does."""
        return vars(self) | {"hits": [hit.json() for hit in self.hits]}


@dataclass(eq=False)
class Searcher:
    """Search an index with the model that embedded its clips.

    Attributes:
        index: The index.
        model: The model, which embeds texts and files.
    """

    index: Index
    model: Model

    @classmethod
    def open(
        cls,
        index: Location,
        model: PathLike | Found | None = None,
        **options: Any,
    ) -> "Searcher":
        """Open an index and load its model.

        Args:
            index: Folder or address of the index.
            model: The model, named as in `Model.load`, if it has moved since the index was made.
            options: `workspace`, `device` and `dtype` of `Model.load`.

        Raises:
            InputError: If there is no index, its model is missing, or `model` is another one.
        """
        opened = Index.open(index)
        if isinstance(model, PathLike):
            model = resolve(model, options.get("workspace"))
        return cls(opened, Model.load(opened.find_model(model), **options))

    @torch.inference_mode()
    def search(
        self,
        text: str,
        k: int = 10,
        where: str = "",
        words: str = "",
        offset: int = 0,
        rerank: int | None = None,
        exact: bool = False,
    ) -> SearchResult:
        """Find the clips that fit a text best.

        Args:
            text: What the clips should show.
            k: Number of hits.
            where: A condition in SQL, such as `kind = 'video' AND duration < 10`.
            words: Words that must all be in the caption, the file name or the id.
            offset: Number of hits to skip.
            rerank: Number of the most similar clips that are decoded and ordered by the sum of the
                matching head's logit margin and the similarity, as in the evaluation with `top_k`.
                Default: 20 if that was better when the model was validated, else 0. A prompter has
                no such head, and the result a note.
            exact: Compare all clips, also in an index of more than a million.

        Raises:
            InputError: If the condition is invalid.
        """
        encoded = self.model.texts([text])
        vector = encoded.features[0].cpu().numpy()

        if rerank is None:
            # "matching" if it was better than similarity when the model was validated.
            rerank = RERANKED if self.model.folder.ranking == "matching" else 0
        note = self.model.note(text)
        if rerank and not self.model.can_match:
            note = f"this model cannot re-rank: ranked by similarity. {note}".strip()
            rerank = 0
        # A page after the reranked clips shows none of them.
        if offset >= rerank:
            rerank = 0

        condition = make_condition(where, words)
        # All that are matched, also if the page shows fewer: matching may bring up any of them.
        hits = self._nearest(vector, max(offset + k, rerank), condition, exact)
        if rerank:
            hits[:rerank] = match_hits(
                self.model, flag_changed_files(hits[:rerank]), encoded
            )

        return self._result(hits[offset : offset + k], condition, note)

    def similar(
        self,
        query: Any,
        k: int = 10,
        where: str = "",
        words: str = "",
        offset: int = 0,
        without: str = "",
        exact: bool = False,
    ) -> SearchResult:
        """Find the clips that are most similar to a video, an image or an embedding.

        Args:
            query: A file, or an embedding (E,).
            without: Key of a clip to leave out.

        The other arguments are as of `search`.

        Raises:
            DecodeError: If the file cannot be decoded.
        """
        if isinstance(query, PathLike):
            query = self.model.embed_frames(self.model.frames(query))

        condition = make_condition(where, words)
        others = f"{condition} AND key != {quoted(without)}"
        hits = self._nearest(np.asarray(query, np.float32), offset + k, others, exact)
        return self._result(hits[offset:], condition)

    def all(
        self, k: int = 10, where: str = "", words: str = "", offset: int = 0
    ) -> SearchResult:
        """List clips in the order of the index. The arguments are as of `search`."""
        condition = make_condition(where, words)
        items = self.index.rows(condition, k, offset)
        return self._result([Hit(item) for item in items], condition)

    def _result(self, hits: list[Hit], condition: str, note: str = "") -> SearchResult:
        # Done only for shown hits: each file is a request to the disk or the store.
        return SearchResult(
            flag_changed_files(hits),
            self.index.count(condition),
            self.index.count(),
            note,
        )

    def _nearest(
        self, vector: np.ndarray, k: int, condition: str, exact: bool
    ) -> list[Hit]:
        """Find the best `k` hits by similarity, without windows that overlap or touch a better one
        of the same file."""
        settings = self.index.settings
        # Fetch as many windows as may belong to the hits.
        fetched = k
        if settings.window:
            strides = ceil(settings.window / (settings.stride or settings.window))
            fetched *= 2 * strides + 1
        items = self.index.nearest(vector, fetched, condition, exact)
        if settings.window:
            items = drop_neighbors(items)[:k]
        return [Hit(item, item["similarity"]) for item in items]


def drop_neighbors(items: list[Item]) -> list[Item]:
    """Leave out windows that overlap or touch a better one of the same file.

    Args:
        items: Items in descending order.
    """
    best = []
    # A window that touches only a neighbor of a hit is a hit of its own.
    spans_of_hits: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in items:
        start = item["start"]
        end = item["end"]
        if None not in (start, end):
            spans = spans_of_hits[item["path"]]
            # Parts that a manifest names have lengths of their own.
            if any(start <= last and first <= end for first, last in spans):
                continue
            spans.append((start, end))
        best.append(item)
    return best


def flag_changed_files(hits: list[Hit]) -> list[Hit]:
    """Add a note to the hits whose file is missing or has changed."""
    current = identities(located(hit.item["path"]) for hit in hits)
    for hit, identity in zip(hits, current, strict=True):
        if identity != hit.item["identity"]:
            hit.note = (
                identity if identity in ("missing", "not fetched") else "changed since"
            )
    return hits


def match_hits(model: Model, hits: list[Hit], text: Texts) -> list[Hit]:
    """Order hits by margin + similarity. Those that cannot be decoded, or have changed, follow by
    similarity."""
    # A changed file is another clip than the one whose similarity the index has.
    unchanged = [hit for hit in hits if not hit.note]
    scores = {hit.item["key"]: hit.similarity or 0.0 for hit in hits}
    scored = model.match_margins(text, [get_source(hit.item) for hit in unchanged])
    for hit, (_, margin, clip) in zip(unchanged, scored, strict=True):
        if isinstance(clip, DecodeError):
            hit.note = str(clip)
        else:
            hit.match = torch.from_numpy(margin).sigmoid().item()
            scores[hit.item["key"]] += margin.item()
    return sorted(hits, key=lambda hit: (hit.match is None, -scores[hit.item["key"]]))
