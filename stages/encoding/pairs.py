"""Scores of many pairs of encoded texts and videos: what a head makes of their fused [CLS].

Each part that two pairs have in common is computed once: encoders before, and here the queries, keys and values of the
first fusion layer. Pairs of texts of one length form a batch, so that no padding is computed.
"""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.progress import progress
from alpro.stages.encoding.encode import Texts, Videos, float32, similarities
from alpro.stages.training.distributed import is_own, merge

VIDEOS = 64  # number of videos whose queries, keys and values are on the device at a time
PAIRS = 512  # in a batch on a GPU
CPU_VALUES = 2**19  # in the activations of a batch on a CPU, about what its cache holds


@torch.no_grad()
def score(
    model: Alpro, head: Callable[[Tensor], Tensor], texts: Texts, videos: Videos, pairs: np.ndarray, batch: int = 0
) -> Tensor:
    """The outputs of a head (P, ...), in float32 on the device, for pairs (P, 2) of text and video indices.

    head: of fused [CLS] tokens (B, D). batch: pairs at a time; 0: as suits the device. In several processes, each
    scores a part of the batches, and all have the result.
    """
    device = videos.tokens.device
    lengths = texts.mask.sum(dim=1).cpu().numpy()
    scores: Tensor | None = None
    if not len(pairs):
        return head(texts.tokens.new_empty(0, texts.tokens.shape[-1])).float()
    number = count()
    with progress("matching", len(pairs), "pairs") as advance:
        for start, part in by_video(pairs):
            some = slice(start, start + VIDEOS)
            tokens, qkv = videos.tokens[some], model.multimodal_encoder.project(videos.tokens[some])
            for chosen in batches(pairs[part, 0], lengths, batch or batch_size(tokens)):
                advance(len(chosen))
                if not (own := is_own(next(number))) and scores is not None:
                    continue
                rows = part[chosen]
                few, place = np.unique(pairs[rows, 0], return_inverse=True)
                text = texts.tokens[torch.from_numpy(few).to(device), : int(lengths[few[0]])]
                of_text, of_video = (torch.from_numpy(a).to(device) for a in (place, pairs[rows, 1] - start))
                fused = model.multimodal_encoder.pairs(text, of_text, tokens, qkv, of_video)
                with float32(device):
                    output = head(fused.float())
                if scores is None:
                    scores = output.new_zeros(len(pairs), *output.shape[1:])
                if own:
                    scores[torch.from_numpy(rows).to(device)] = output
    assert scores is not None
    return merge(scores)


def match(model: Alpro, texts: Texts, videos: Videos, pairs: np.ndarray, batch: int = 0) -> Tensor:
    """The logit margin (match minus no match) of pairs (P, 2) of text and video indices: (P,). It has the order of the
    probability, without its rounding near 0 and 1."""
    logits = score(model, model.vtm_head, texts, videos, pairs, batch)
    return logits[:, 1] - logits[:, 0]


def match_all(model: Alpro, texts: Texts, videos: Videos) -> np.ndarray:
    """The logit margin of every pair: (texts, videos)."""
    shape = len(texts.tokens), len(videos.tokens)
    return match(model, texts, videos, np.argwhere(np.ones(shape, bool))).view(shape).cpu().numpy()


def match_top_k(
    model: Alpro, texts: Texts, videos: Videos, k: int, directions: tuple[str, ...] = ("t2v", "v2t")
) -> np.ndarray:
    """Scores (directions, texts, videos): logit margin + similarity for the k most similar videos of each text (t2v),
    or texts of each video (v2t); the other pairs of a direction are ranked by similarity below them."""
    similarity = similarities(texts.features, videos.features).cpu()
    chosen = torch.zeros(len(directions), *similarity.shape, dtype=torch.bool)
    for direction, pairs in zip(directions, chosen, strict=True):
        axis = 1 if direction == "t2v" else 0
        pairs.scatter_(axis, similarity.topk(min(k, similarity.shape[axis]), dim=axis).indices, True)
    matched = chosen.any(0)
    margins = torch.zeros_like(similarity)
    margins[matched] = match(model, texts, videos, matched.nonzero().numpy()).cpu()
    lowest = margins[matched].min() - 10  # below margin + similarity, which is at least margin - 1
    others = similarity - similarity.max() + lowest
    return torch.where(chosen, margins + similarity, others).numpy()


def by_video(pairs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The first of each VIDEOS consecutive videos, and the indices of their pairs (P, 2)."""
    block = pairs[:, 1] // VIDEOS
    order = block.argsort(kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        yield int(block[part[0]]) * VIDEOS, part


def batches(texts: np.ndarray, lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Places of text indices (P,), at most `size` at a time, of texts of one length, and pairs of a text together.

    lengths (T,): number of tokens of each text.
    """
    order = np.lexsort((texts, lengths[texts]))
    for part in np.split(order, np.flatnonzero(np.diff(lengths[texts[order]])) + 1):
        yield from np.split(part, range(size, len(part), size))


def batch_size(tokens: Tensor) -> int:
    """Number of pairs in a batch for videos (V, N, D)."""
    return PAIRS if tokens.is_cuda else max(1, CPU_VALUES // tokens[0].numel())
