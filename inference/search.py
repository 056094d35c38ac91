"""Searches an index: clips are ranked by similarity (VTC); on request, the best of them again by matching (VTM)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from alpro.errors import InputError
from alpro.inference.encoding import Texts, match
from alpro.inference.index import Index, Item, source_of
from alpro.inference.model import BATCH, Model
from alpro.models.alpro import Alpro
from alpro.shards.storage import identities, located

RERANKED = 20  # clips that are matched if the model ranks by matching
TEXTS, SECONDS = ("id", "path", "kind", "caption"), ("start", "end")
COMPARE = {
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "!=": pc.not_equal,
    "<": pc.less,
    ">": pc.greater,
}
COMPARE |= {"=": pc.equal}
FORM = re.compile(r"\s*([^<>=!~]*?)\s*(<=|>=|!=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


@dataclass(frozen=True)
class Hit:
    """A clip of an index, its number there, and its scores: the similarity of the embeddings (-1 to 1; None: the clips
    are only listed), and the probability that text and clip match, None if it was not matched. `note`: whether its file
    is missing, changed or unreadable. `span`: of a window with the less similar neighbors that it stands for, from and
    to, in seconds."""

    item: Item
    number: int
    similarity: float | None
    match: float | None = None
    note: str = ""
    span: tuple[float, float] | None = None

    @property
    def place(self) -> str:
        return place_of(self.item)

    @property
    def remarks(self) -> list[str]:
        """The note, and the time that a window and its neighbors cover."""
        remarks = [self.note] if self.note else []
        if self.span not in (None, (self.item["start"], self.item["end"])):
            start, end = self.span
            remarks.append(f"neighbors fit too: {start:g}-{end:g} s")
        return remarks

    def json(self) -> dict[str, Any]:
        about = {name: self.item[name] for name in (*TEXTS, *SECONDS)} | {
            "columns": dict(self.item["columns"] or ())
        }
        scores = {
            "similarity": self.similarity,
            "match": self.match,
            "note": self.note,
            "span": self.span,
        }
        return {"clip": self.number, **about, **scores}


@dataclass
class Found:
    """The hits of a search, best first; the number of clips that fit its filters, and how many of them were matched; a
    note if the model does not know words of the text, or if nothing fits it."""

    hits: list[Hit]
    clips: int
    matched: int = 0
    note: str = ""
    nothing_fits: bool | None = None  # None without a threshold

    def json(self) -> dict[str, Any]:
        return vars(self) | {"hits": [hit.json() for hit in self.hits]}


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
) -> Found:
    """The `k` best clips for a text after the first `offset`, of those that fit the filters (`fitting`).

    The `rerank` most similar ones are decoded and ordered by the sum of the logit margin of the matching head and the
    similarity, as in the evaluation with `top_k`; a prompter has no such head. None: RERANKED if that was better when
    the model was validated, else 0. nothing_below: nothing fits if all similarities are lower. Raises InputError for an
    invalid filter.
    """
    if rerank is None:
        rerank = RERANKED if model.folder.ranking == "matching" else 0
    matched = (
        rerank if isinstance(model.folder.model, Alpro) and offset < rerank else 0
    )  # a later page shows none
    encoded, kept = model.texts([text]), fitting(index, filters)
    hits = similar_hits(index, encoded.features[0].cpu().numpy(), max(offset + k, matched), kept)
    first = match_hits(model, noted(hits[:matched]), encoded) if matched else []
    shown = [*first[offset : offset + k], *noted(hits[max(offset, len(first)) : offset + k])]
    found = Found(shown, int(kept.sum()), sum(hit.match is not None for hit in first))
    found.note = model.note(text)
    if nothing_below is not None:
        best = hits[0].similarity or 0.0 if hits else -1.0
        found.nothing_fits = best < nothing_below
        if found.nothing_fits:
            note = f"nothing fits: the highest similarity is {best:.3f}, below {nothing_below:g}"
            found.note = "; ".join(filter(None, (found.note, note)))
    return found


def similar(
    index: Index,
    query: np.ndarray,
    k: int = 10,
    offset: int = 0,
    filters: Sequence[str] = (),
    without: int = -1,
) -> Found:
    """The `k` clips whose embeddings are most similar to that of a video or an image (E,) after the first `offset`, of
    those that fit the filters. without: the number of a clip to leave out. Raises InputError for an invalid filter."""
    kept = fitting(index, filters)
    hits = [
        hit for hit in similar_hits(index, query, offset + k + 1, kept) if hit.number != without
    ]
    return Found(noted(hits[offset : offset + k]), int(kept.sum()))


def listed(index: Index, k: int = 10, offset: int = 0, filters: Sequence[str] = ()) -> Found:
    """The clips of an index that fit the filters, in its order. Raises InputError for an invalid filter."""
    kept = fitting(index, filters)
    numbers = kept.nonzero()[0][offset : offset + k].tolist()
    return Found(
        noted([Hit(index.item(number), number, None) for number in numbers]), int(kept.sum())
    )


def fitting(index: Index, filters: Sequence[str]) -> np.ndarray:
    """Which clips (N,) of an index fit all filters, boolean. A filter is a column, an operator and a value, such as
    `kind=video`, `date>=2024-01-01` and `path~*/holidays/*`: `~` compares with a pattern, in which * stands for any
    characters and ? for one. Columns are those of TEXTS, which are compared as texts, SECONDS, and those that the index
    keeps, of which numbers are compared as numbers. A clip without a value fits no filter of it.

    Raises InputError for an invalid filter, or a column that the index does not have.
    """
    kept = np.ones(len(index), bool)
    for text in filters:
        form = FORM.fullmatch(text)
        if not form or not form[1] or text.encode(errors="replace").decode() != text:
            raise InputError(
                f"filter {text!r}: takes a column, one of = != < <= > >= ~ and a value, such as kind=video"
            )
        column, operator, value = form.groups()
        columns = (*TEXTS, *SECONDS, *index.about.columns)
        if column not in columns:
            raise InputError(
                f"no column {column!r}: this index has {', '.join(columns)}; `alpro index add --columns` adds others"
            )
        number = re.search(NUMBER, value)
        if column in SECONDS and (operator == "~" or not number):
            raise InputError(
                f"filter {text!r}: {column} is compared with a number of seconds, by = != < <= > or >="
            )
        own = column in (*TEXTS, *SECONDS)
        values = (
            index.items[column] if own else pc.map_lookup(index.items["columns"], column, "first")
        )
        if operator == "~":
            parts = (
                {"*": ".*", "?": "."}.get(part, re.escape(part))
                for part in re.split(r"([*?])", value)
            )
            fits = pc.match_substring_regex(values, f"(?s)^{''.join(parts)}$")
        elif column in TEXTS or not number:
            fits = COMPARE[operator](values, value)
        else:
            if not own:
                values = pc.cast(
                    pc.if_else(pc.match_substring_regex(values, NUMBER), values, None), pa.float64()
                )
            fits = COMPARE[operator](values, float(value))
        kept &= pc.fill_null(fits, False).to_numpy()
    return kept


def most_similar(
    embeddings: np.ndarray, query: np.ndarray, k: int, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (k,) of the embeddings (N, E) that are most similar to the query (E,), of those that are kept (N,),
    and their similarities (k,), in descending order; of equal ones the first. Plain products: exact."""
    rows = kept.nonzero()[0]
    scores = embeddings @ query if len(rows) else np.empty(len(embeddings), np.float32)
    if len(rows) > k:
        rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
    rows = rows[np.argsort(-scores[rows], kind="stable")[:k]]
    return rows, scores[rows]


def similar_hits(index: Index, query: np.ndarray, k: int, kept: np.ndarray) -> list[Hit]:
    """The best `k` hits by similarity, of the clips that are kept. If the index cuts videos into windows, those that
    overlap or touch a better one of the same file belong to its hit."""
    count = k
    while True:
        rows, scores = most_similar(index.embeddings, query, count, kept)
        hits = [
            Hit(index.item(row), row, score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        if index.about.window:
            hits = group_windows(hits)
        if len(hits) >= k or len(rows) < count:
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
        near = (
            n for n in numbers if start <= groups[n].item["end"] and end >= groups[n].item["start"]
        )
        if (number := next(near, None)) is None:
            numbers.append(len(groups))
            groups.append(replace(hit, span=(start, end)))
        else:
            first, last = groups[number].span or (start, end)
            groups[number] = replace(groups[number], span=(min(start, first), max(end, last)))
    return groups


def noted(hits: list[Hit]) -> list[Hit]:
    """The hits, with a note on those whose file is missing or has changed."""
    current = identities(located(hit.item["path"]) for hit in hits)
    return [
        hit
        if identity == hit.item["identity"]
        else replace(
            hit, note=identity if identity in ("missing", "not fetched") else "changed since"
        )
        for hit, identity in zip(hits, current, strict=True)
    ]


def match_hits(model: Model, hits: list[Hit], text: Texts) -> list[Hit]:
    """The hits ordered by margin + similarity; those that cannot be decoded, or have changed, follow by similarity."""
    alpro = model.folder.model
    assert isinstance(alpro, Alpro)
    same, left = [hit for hit in hits if not hit.note], [hit for hit in hits if hit.note]
    ranked: list[tuple[float, Hit]] = []
    for batch in model.batches([source_of(hit.item) for hit in same], BATCH, total=len(same)):
        pairs = np.array([[0, i] for i in range(len(batch.decoded))])
        with model.precision():
            margins = (
                match(alpro, text, batch.videos, pairs).cpu() if batch.decoded else torch.empty(0)
            )
        for i, margin in zip(batch.decoded, margins, strict=True):
            score = margin.item() + (same[i].similarity or 0.0)
            ranked.append((score, replace(same[i], match=margin.sigmoid().item())))
        left += [replace(same[i], note=str(error)) for i, error in batch.errors.items()]
    ranked.sort(key=lambda pair: -pair[0])
    return [*(hit for _, hit in ranked), *sorted(left, key=lambda hit: -(hit.similarity or 0.0))]


def place_of(item: Item) -> str:
    """The file of an item, and which part of it or which sample in it."""
    if item["frame_offsets"] is not None:
        return f"{item['path']}: {item['id']}"
    if item["start"] is None and item["end"] is None:
        return str(item["path"])
    return f"{item['path']} {item['start'] or 0:g}-{'' if item['end'] is None else format(item['end'], 'g')} s"
