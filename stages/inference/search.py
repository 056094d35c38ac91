"""Searches an index: all clips are ranked by similarity (VTC), and the best of them again by matching (VTM)."""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from alpro.models.alpro import Alpro
from alpro.shards.sources.identity import identities
from alpro.shards.storage import located
from alpro.stages.encoding.encode import Texts
from alpro.stages.evaluation.retrieval import match
from alpro.stages.inference.index import Index, Item, source_of
from alpro.stages.inference.model import UNKNOWN, Model

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
    """The hits of a search, best first, the seconds that its parts took, and a note if the text is none that the model
    knows."""

    hits: list[Hit]
    clips: int
    matched: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""


def most_similar(matrices: list[np.ndarray], query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (k,) of the rows of the matrices (N, E), counted through all of them, that are most similar to the
    query (E,), and their similarity (k,), in descending order; of equal ones the first. Plain products: exact."""
    best, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for matrix in matrices:
        for start in range(0, len(matrix), CHUNK):
            part = matrix[start : start + CHUNK] @ query
            rows = np.arange(len(part)) if len(part) <= k else np.sort(np.argpartition(-part, k - 1)[:k])
            best, scores = np.append(best, rows + first + start), np.append(scores, part[rows])
        first += len(matrix)
    order = np.lexsort((best, -scores))[:k]
    return best[order], scores[order]


def most_similar_hits(index: Index, query: np.ndarray, k: int) -> list[Hit]:
    """The best `k` hits by similarity. If the index cuts videos into windows, those that overlap or touch a better one
    of the same file belong to its hit."""
    count = k
    while True:
        rows, scores = most_similar(index.embeddings, query, count)
        hits = [Hit(index.item(row), row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        if index.about.window:
            hits = group_windows(hits)
        if len(hits) >= k or count >= len(index):
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
def search(index: Index, model: Model, text: str, k: int = 10, rerank: int = 20) -> Found:
    """The best `k` clips for a text. The `rerank` most similar ones are decoded and ordered by the sum of the logit
    margin of the matching head and the similarity, as in the evaluation with `protocol = "top_k"`; a prompter has no
    such head, and 0 matches none. Of the clips, only the files of those that are matched are opened."""
    clock = [time.perf_counter()]
    alpro = model.folder.model if isinstance(model.folder.model, Alpro) else None
    encoded = model.texts([text]) if alpro else None
    features = encoded.features if encoded else model.embed_texts([text])
    clock.append(time.perf_counter())
    matched = rerank if alpro else 0
    hits = noted(most_similar_hits(index, features[0].cpu().numpy(), max(k, matched)))
    clock.append(time.perf_counter())
    if matched and hits:
        assert encoded is not None
        hits = [*match_hits(model, hits[:matched], encoded), *hits[matched:]]
    clock.append(time.perf_counter())
    seconds = dict(zip(("text", "similarity", "matching"), np.diff(clock).tolist(), strict=True))
    note = "" if model.knows(text) else UNKNOWN
    return Found(hits[:k], len(index), sum(hit.match is not None for hit in hits), seconds, note)


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


def hit_path(item: Item) -> str:
    """The file of an item, and which part of it or which sample in it."""
    if item["frame_offsets"] is not None:
        return f"{item['path']}: {item['id']}"
    if item["start"] is None and item["end"] is None:
        return str(item["path"])
    return f"{item['path']} {item['start'] or 0:g}-{'' if item['end'] is None else format(item['end'], 'g')} s"
