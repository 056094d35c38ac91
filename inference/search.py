"""Searches an index: all clips are ranked by similarity (VTC), and the best of them again by matching (VTM)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from alpro.inference.filters import SECONDS, TEXTS, rows_that_fit
from alpro.inference.index import Index, Item, source_of
from alpro.inference.model import UNKNOWN, Model
from alpro.models.alpro import Alpro
from alpro.shards.sources.identity import identities
from alpro.shards.storage import located
from alpro.stages.encoding.encode import Texts
from alpro.stages.evaluation.retrieval import match

CHUNK = 1 << 16  # embeddings that are compared at a time


@dataclass(frozen=True)
class Hit:
    """A clip of an index, its number there, and its scores: the similarity of the embeddings (-1 to 1), and the
    probability that text and clip match, None if it was not matched. `note`: whether its file is gone, changed or
    unreadable. `span`: of a window with the less similar neighbors that it stands for, from and to, in seconds."""

    item: Item
    number: int
    similarity: float
    match: float | None = None
    note: str = ""
    span: tuple[float, float] | None = None


@dataclass
class Found:
    """The hits of a search, best first; the number of clips that fit its filters, and how many of them were matched;
    the seconds that its parts took; a note if the model knows no word of the text, or if nothing fits it."""

    hits: list[Hit]
    clips: int
    matched: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    nothing_fits: bool | None = None  # None: there is no threshold


def most_similar(
    matrices: list[np.ndarray], query: np.ndarray, k: int, kept: list[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (k,) of the rows of the matrices (N, E), counted through all of them, that are most similar to the
    query (E,), and their similarity (k,), in descending order; of equal ones the first. Plain products: exact.

    kept: which rows (N,) of each matrix to choose from, boolean (default: all).
    """
    best, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for number, matrix in enumerate(matrices):
        for start in range(0, len(matrix), CHUNK):
            part = matrix[start : start + CHUNK] @ query
            rows = np.arange(len(part)) if kept is None else kept[number][start : start + CHUNK].nonzero()[0]
            if len(rows) > k:
                rows = np.sort(rows[np.argpartition(-part[rows], k - 1)[:k]])
            best, scores = np.append(best, rows + first + start), np.append(scores, part[rows])
        first += len(matrix)
    order = np.lexsort((best, -scores))[:k]
    return best[order], scores[order]


def most_similar_hits(index: Index, query: np.ndarray, k: int, kept: list[np.ndarray] | None = None) -> list[Hit]:
    """The best `k` hits by similarity, of the rows that are kept. If the index cuts videos into windows, those that
    overlap or touch a better one of the same file belong to its hit."""
    count = k
    while True:
        rows, scores = most_similar(index.embeddings, query, count, kept)
        hits = [Hit(index.item(row), row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        if index.about.window:
            hits = group_windows(hits)
        if len(hits) >= k or len(rows) < count or count >= len(index):
            return hits[:k]
        count *= 4


def group_windows(hits: list[Hit]) -> list[Hit]:
    """The hits, best first, without windows that overlap or touch a better one, which covers their time in `span`."""
    groups: list[Hit] = []
    of_file: dict[str, list[int]] = {}
    for hit in hits:
        start, end = hit.item["start"], hit.item["end"]
        numbers = of_file.setdefault(hit.item["path"], [])
        if start is None or end is None:
            groups.append(hit)
            continue
        near = (n for n in numbers if start <= groups[n].item["end"] and end >= groups[n].item["start"])
        if (number := next(near, None)) is None:
            numbers.append(len(groups))
            groups.append(replace(hit, span=(start, end)))
        else:
            first, last = groups[number].span or (start, end)
            groups[number] = replace(groups[number], span=(min(start, first), max(end, last)))
    return groups


@torch.inference_mode()
def search(
    index: Index,
    model: Model,
    text: str,
    k: int = 10,
    rerank: int = 20,
    offset: int = 0,
    filters: Sequence[str] = (),
    nothing_below: float | None = None,
) -> Found:
    """The `k` best clips for a text after the first `offset`, of those that fit the filters (filters.py).

    The `rerank` most similar ones are decoded and ordered by the sum of the logit margin of the matching head and the
    similarity, as in the evaluation with `protocol = "top_k"`; a prompter has no such head, and 0 matches none. Of the
    clips, only the files of the hits, and of those that are matched, are opened. nothing_below: nothing fits if all
    similarities are lower. Raises InputError for an invalid filter.
    """
    clock = [time.perf_counter()]
    alpro = model.folder.model if isinstance(model.folder.model, Alpro) else None
    encoded = model.texts([text]) if alpro else None
    features = encoded.features if encoded else model.embed_texts([text])
    clock.append(time.perf_counter())
    matched = rerank if alpro and offset < rerank else 0  # a later page shows none of them
    kept = rows_that_fit(index, filters)
    hits = most_similar_hits(index, features[0].cpu().numpy(), max(offset + k, matched), kept)
    best = hits[0].similarity if hits else -1.0
    clock.append(time.perf_counter())
    first = match_hits(model, noted(hits[:matched]), encoded) if encoded and matched else []
    clock.append(time.perf_counter())
    shown = [*first[offset : offset + k], *noted(hits[max(offset, len(first)) : offset + k])]
    seconds = dict(zip(("text", "similarity", "matching"), np.diff(clock).tolist(), strict=True))
    found = Found(shown, number_kept(index, kept), sum(hit.match is not None for hit in first), seconds)
    found.note = "" if model.knows(text) else UNKNOWN
    if nothing_below is not None:
        found.nothing_fits = best < nothing_below
    if found.nothing_fits:
        found.note = found.note or f"nothing fits: the highest similarity is {best:.3f}, below {nothing_below:g}"
    return found


def similar(
    index: Index, query: np.ndarray, k: int = 10, offset: int = 0, filters: Sequence[str] = (), without: int = -1
) -> Found:
    """The `k` clips whose embeddings are most similar to that of a video or an image (E,) after the first `offset`, of
    those that fit the filters. without: the number of a clip to leave out. Raises InputError for an invalid filter."""
    kept = rows_that_fit(index, filters)
    hits = [hit for hit in most_similar_hits(index, query, offset + k + 1, kept) if hit.number != without]
    return Found(noted(hits[offset : offset + k]), number_kept(index, kept))


def number_kept(index: Index, kept: list[np.ndarray] | None) -> int:
    return len(index) if kept is None else sum(int(rows.sum()) for rows in kept)


def noted(hits: list[Hit]) -> list[Hit]:
    """The hits, with a note on those whose file is gone or has changed."""
    current = identities(located(hit.item["path"]) for hit in hits)
    return [
        hit
        if identity == hit.item["identity"]
        else replace(hit, note=identity if identity in ("missing", "not fetched") else "changed since")
        for hit, identity in zip(hits, current, strict=True)
    ]


def match_hits(model: Model, hits: list[Hit], text: Texts) -> list[Hit]:
    """The hits ordered by margin + similarity; those that cannot be decoded, or have changed, follow by similarity."""
    alpro = model.folder.model
    assert isinstance(alpro, Alpro)
    same, left = [hit for hit in hits if not hit.note], [hit for hit in hits if hit.note]
    ranked: list[tuple[float, Hit]] = []
    start = 0
    for batch in model.encode([source_of(hit.item) for hit in same], total=len(same)):
        pairs = np.array([[0, i] for i in range(len(batch.decoded))])
        with model.precision():
            margins = match(alpro, text, batch.videos, pairs).cpu() if batch.decoded else torch.empty(0)
        for i, margin in zip(batch.decoded, margins, strict=True):
            hit = same[start + i]
            ranked.append((float(margin) + hit.similarity, replace(hit, match=float(margin.sigmoid()))))
        left += [replace(same[start + i], note=str(e)) for i, e in batch.errors.items()]
        start += len(batch.sources)
    ranked.sort(key=lambda pair: -pair[0])
    return [*(hit for _, hit in ranked), *sorted(left, key=lambda hit: -hit.similarity)]


def neighbors(hit: Hit) -> str:
    """A remark on the time that a window and its neighbors cover, if it has any."""
    if not hit.span or hit.span == (hit.item["start"], hit.item["end"]):
        return ""
    return f"neighbors fit too: {hit.span[0]:g}-{hit.span[1]:g} s"


def described(item: Item) -> dict[str, Any]:
    """The columns of an item that can be filtered by, for JSON."""
    return {name: item[name] for name in (*TEXTS, *SECONDS)} | {"columns": dict(item["columns"] or ())}


def hit_path(item: Item) -> str:
    """The file of an item, and which part of it or which sample in it."""
    if item["frame_offsets"] is not None:
        return f"{item['path']}: {item['id']}"
    if item["start"] is None and item["end"] is None:
        return str(item["path"])
    return f"{item['path']} {item['start'] or 0:g}-{'' if item['end'] is None else format(item['end'], 'g')} s"
