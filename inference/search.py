"""Searches an index: clips are ranked by similarity (VTC); on request, the best of them again by
matching (VTM)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from alpro.errors import InputError
from alpro.inference.encoding import Texts, match
from alpro.inference.filters import conditions_of, filter_mask
from alpro.inference.index import Index, Item, clip_key, source_of
from alpro.inference.model import BATCH, Model
from alpro.models.alpro import Alpro
from alpro.shards.storage import identities, located

RERANKED = 20  # clips that are matched if the model ranks by matching
SHOWN_COLUMNS = ("id", "path", "kind", "caption", "start", "end", "duration")  # of an item


@dataclass(frozen=True)
class Hit:
    """A clip of an index and its scores.

    `number`: its row in the index. `similarity` of the embeddings, -1 to 1; None if the clips are
    only listed. `match`: the probability that text and clip belong together; None if it was not
    matched. `note`: whether its file is missing, changed or unreadable. `span`: of a window with
    the less similar neighbors that it stands for, from and to, in seconds.
    """

    item: Item
    number: int
    similarity: float | None
    match: float | None = None
    note: str = ""
    span: tuple[float, float] | None = None

    def __repr__(self) -> str:
        score = "" if self.similarity is None else f", similarity {self.similarity:.3f}"
        matched = "" if self.match is None else f", match {self.match:.3f}"
        return f"<Hit {self.location}{score}{matched}>"

    @property
    def location(self) -> str:
        """The file, and which part of it."""
        return item_location(self.item)

    @property
    def caption(self) -> str | None:
        return self.item["caption"]

    @property
    def remarks(self) -> list[str]:
        """The note, and the time that a window and its neighbors cover."""
        remarks = [self.note] if self.note else []
        if self.span not in (None, (self.item["start"], self.item["end"])):
            start, end = self.span
            remarks.append(f"neighbors fit too: {start:g}-{end:g} s")
        return remarks

    def json(self) -> dict[str, Any]:
        """What `alpro search --json` and the server's API tell about it."""
        shown = {name: self.item[name] for name in SHOWN_COLUMNS}
        return {
            "clip": self.number,
            "key": clip_key(self.item),
            **shown,
            "columns": dict(self.item["columns"] or ()),
            "similarity": self.similarity,
            "match": self.match,
            "note": self.note,
            "span": self.span,
        }


@dataclass
class SearchResult:
    """The hits of a search, best first; iterating yields them.

    `clips`: how many clips fit the filters, of `total` in the index. `matched`: how many of them
    were matched. `conditions`: the filters as they were understood. `note`: of a text with words
    that the model does not know, or that nothing fits. `nothing_fits`: None without a threshold.
    """

    hits: list[Hit]
    clips: int
    total: int
    matched: int = 0
    conditions: tuple[str, ...] = ()
    note: str = ""
    nothing_fits: bool | None = None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def summary(self) -> str:
        """A line on what was searched."""
        conditions = " ".join(self.conditions)
        if not self.clips and conditions:
            return f"no clip fits {conditions}"
        searched = f"{self.clips:,} clip{'s' * (self.clips != 1)} searched"
        if conditions:
            searched = f"{searched}, of {self.total:,}: {conditions}"
        if self.matched:
            searched = f"{searched}; the best {self.matched} ranked by matching"
        return searched

    def json(self) -> dict[str, Any]:
        """As `Hit.json`, with the hits."""
        hits = [hit.json() for hit in self.hits]
        return vars(self) | {"hits": hits, "conditions": list(self.conditions)}


@torch.inference_mode()
def search(  # noqa: PLR0913 - a query and its options, each with a default
    index: Index,
    model: Model,
    text: str,
    k: int = 10,
    offset: int = 0,
    filters: Sequence[str] = (),
    rerank: int | None = None,
    nothing_below: float | None = None,
) -> SearchResult:
    """The `k` best clips for a text after the first `offset`, of those that fit the filters.

    The `rerank` most similar ones are decoded and ordered by the sum of the logit margin of the
    matching head and the similarity, as in the evaluation with `top_k`; a prompter has no such
    head. None: RERANKED if that was better when the model was validated, else 0. nothing_below:
    nothing fits if all similarities are lower. Raises InputError for an invalid filter
    (`filters.py`).
    """
    if rerank is None:
        # "matching" if it was better than similarity when the model was validated.
        rerank = RERANKED if model.folder.ranking == "matching" else 0
    # A page after the reranked clips shows none of them.
    can_match = isinstance(model.folder.model, Alpro) and offset < rerank
    matched = rerank if can_match else 0

    encoded = model.texts([text])
    query = encoded.features[0].cpu().numpy()
    mask = filter_mask(index, filters)
    # All that are matched, also if the page shows fewer: matching may bring up any of them.
    hits = similar_hits(index, query, max(offset + k, matched), mask)

    reranked: list[Hit] = []
    if matched:
        best_hits = flag_changed_files(hits[:matched])
        reranked = match_hits(model, best_hits, encoded)

    page_end = offset + k
    by_similarity = hits[max(offset, len(reranked)) : page_end]
    shown = reranked[offset:page_end] + flag_changed_files(by_similarity)
    result = _result(index, shown, mask, filters)
    result.matched = sum(hit.match is not None for hit in reranked)
    result.note = model.note(text)

    if nothing_below is not None:
        best = -1.0
        # Of `hits`, which matching has not reordered.
        if hits:
            best = hits[0].similarity or 0.0
        result.nothing_fits = best < nothing_below
        if result.nothing_fits:
            note = f"nothing fits: the highest similarity is {best:.3f}, below {nothing_below:g}"
            result.note = "; ".join(filter(None, (result.note, note)))
    return result


def similar(
    index: Index,
    query: np.ndarray,
    k: int = 10,
    offset: int = 0,
    filters: Sequence[str] = (),
    without: int = -1,
) -> SearchResult:
    """The `k` clips whose embeddings are most similar to that of a video or an image (E,), after
    the first `offset`, of those that fit the filters.

    without: the number of a clip to leave out. Raises InputError for an invalid filter.
    """
    mask = filter_mask(index, filters)
    # One more, since `without` may be among them.
    hits = similar_hits(index, query, offset + k + 1, mask)

    others = [hit for hit in hits if hit.number != without]
    # Of the shown ones only: it asks the disk or the store about each file.
    shown = flag_changed_files(others[offset : offset + k])
    return _result(index, shown, mask, filters)


def list_clips(
    index: Index,
    k: int = 10,
    offset: int = 0,
    filters: Sequence[str] = (),
) -> SearchResult:
    """The clips of an index that fit the filters, in its order. Raises InputError for an invalid
    filter."""
    mask = filter_mask(index, filters)
    rows = mask.nonzero()[0]
    hits = []
    for row in rows[offset : offset + k].tolist():
        hits.append(Hit(index.item(row), row, similarity=None))
    return _result(index, flag_changed_files(hits), mask, filters)


def _result(
    index: Index,
    hits: list[Hit],
    mask: np.ndarray,
    filters: Sequence[str],
) -> SearchResult:
    conditions = tuple(map(str, conditions_of(index, filters)))
    return SearchResult(
        hits=hits,
        clips=int(mask.sum()),
        total=len(index),
        conditions=conditions,
    )


def most_similar(
    embeddings: np.ndarray,
    query: np.ndarray,
    k: int,
    mask: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows (k,) of the embeddings (N, E) that are most similar to the query (E,), of those in
    the mask (N,), and their similarities (k,), in descending order; of equal ones the first.

    Plain products: exact. Raises InputError if the query has another length than the embeddings.
    """
    rows = mask.nonzero()[0]
    if len(rows) and embeddings.shape[1:] != query.shape:
        raise InputError(
            f"the index has embeddings of {embeddings.shape[1]} numbers, and the query has "
            f"{len(query)}: it is of another model, or corrupt"
        )

    if len(rows):
        scores = embeddings @ query
    else:
        scores = np.empty(len(embeddings), np.float32)
    if len(rows) > k:
        # All that are at least as good as the k-th, so that of equal ones the first are kept.
        threshold = np.partition(scores[rows], -k)[-k]
        rows = rows[scores[rows] >= threshold]

    order = np.argsort(-scores[rows], kind="stable")
    rows = rows[order[:k]]
    return rows, scores[rows]


def similar_hits(index: Index, query: np.ndarray, k: int, mask: np.ndarray) -> list[Hit]:
    """The best `k` hits by similarity, of the clips in the mask.

    If the index cuts videos into windows, those that overlap or touch a better one of the same file
    belong to its hit.
    """
    count = k
    while True:
        rows, scores = most_similar(index.embeddings, query, count, mask)
        hits = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            hits.append(Hit(index.item(row), row, similarity=score))

        if index.about.window:
            hits = group_windows(hits)

        if len(hits) >= k or len(rows) < count:
            return hits[:k]
        count *= 4  # many windows became one hit


def group_windows(hits: list[Hit]) -> list[Hit]:
    """The hits, best first, without windows that overlap or touch a better one, which covers their
    time in `span`."""
    groups: list[Hit] = []
    groups_of_file: dict[str, list[int]] = {}
    for hit in hits:
        start = hit.item["start"]
        end = hit.item["end"]
        if start is None or end is None:
            groups.append(hit)
            continue

        of_file = groups_of_file.setdefault(hit.item["path"], [])
        near = None
        for group in of_file:
            best = groups[group].item
            if start <= best["end"] and end >= best["start"]:
                near = group
                break

        # A window that touches only the neighbors of a hit is a hit of its own: spans do not chain.
        if near is None:
            of_file.append(len(groups))
            groups.append(replace(hit, span=(start, end)))
        else:
            first, last = groups[near].span or (start, end)
            span = (min(start, first), max(end, last))
            groups[near] = replace(groups[near], span=span)
    return groups


def flag_changed_files(hits: list[Hit]) -> list[Hit]:
    """The hits, with a note on those whose file is missing or has changed."""
    current = identities(located(hit.item["path"]) for hit in hits)
    flagged = []
    for hit, identity in zip(hits, current, strict=True):
        if identity != hit.item["identity"]:
            absent = identity in ("missing", "not fetched")
            hit = replace(hit, note=identity if absent else "changed since")
        flagged.append(hit)
    return flagged


def match_hits(model: Model, hits: list[Hit], text: Texts) -> list[Hit]:
    """The hits ordered by margin + similarity; those that cannot be decoded, or have changed,
    follow by similarity."""
    alpro = model.folder.model
    assert isinstance(alpro, Alpro)
    # A changed file is another clip than the one whose similarity the index has.
    unchanged = [hit for hit in hits if not hit.note]
    unmatched = [hit for hit in hits if hit.note]

    ranked: list[tuple[float, Hit]] = []
    sources = [source_of(hit.item) for hit in unchanged]
    for batch in model.batches(sources, BATCH, total=len(sources)):
        pairs = np.array([[0, i] for i in range(len(batch.decoded))])
        with model.precision():
            margins = torch.empty(0)
            if batch.decoded:
                margins = match(alpro, text, batch.videos, pairs).cpu()
        for i, margin in zip(batch.decoded, margins, strict=True):
            hit = unchanged[i]
            score = margin.item() + (hit.similarity or 0.0)
            probability = margin.sigmoid().item()
            ranked.append((score, replace(hit, match=probability)))
        for i, error in batch.errors.items():
            unmatched.append(replace(unchanged[i], note=str(error)))

    # By the score alone: of equal ones, Python would compare the hits, and fail.
    ranked.sort(key=lambda pair: -pair[0])
    unmatched.sort(key=lambda hit: -(hit.similarity or 0.0))
    return [hit for _, hit in ranked] + unmatched


def item_location(item: Item) -> str:
    """The file of an item, and which part of it or which sample in it."""
    path = item["path"]
    if item["frame_offsets"] is not None:
        return f"{path}: {item['id']}"
    start = item["start"]
    end = item["end"]
    if start is None and end is None:
        return str(path)
    end_text = "" if end is None else f"{end:g}"
    return f"{path} {start or 0:g}-{end_text} s"
