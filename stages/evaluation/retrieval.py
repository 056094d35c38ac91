"""Text-video retrieval: the matching head scores every pair, or the k most similar pairs of each query."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.encoding.encode import Reorder, Texts, Videos, encode_texts, encode_videos, similarities
from alpro.stages.encoding.pairs import score
from alpro.stages.evaluation.metrics import CAPTIONS, DIRECTIONS, Queries


@dataclass
class Gallery:
    """The videos of a split with captions, and the captions as queries."""

    reader: ShardReader
    numbers: list[int]  # sample indices of the videos
    ids: list[str]
    texts: list[str]
    video_of_text: np.ndarray  # (texts,) index of each text's video in `numbers`

    @classmethod
    def of(cls, folder: Path, split: str, exclude: Collection[str] = ()) -> "Gallery":
        """Reads the videos and captions of a split. exclude: ids of videos to skip."""
        reader = ShardReader(folder, split, exclude=exclude)
        captions = reader.column("captions").to_pylist()
        numbers = [n for n, texts in enumerate(captions) if texts]
        ids = reader.column("id").to_pylist()
        texts = [(place, text) for place, n in enumerate(numbers) for text in captions[n]]
        return cls(
            reader, numbers, [ids[n] for n in numbers], [t for _, t in texts], np.array([p for p, _ in texts], np.int64)
        )

    def queries(self, direction: str) -> Queries:
        """The queries of a direction: the texts, or the videos, which are identified by all their texts."""
        if direction == "t2v":
            return Queries.of([self.ids[video] for video in self.video_of_text], self.texts)
        texts: list[list[str]] = [[] for _ in self.ids]
        for video, text in zip(self.video_of_text, self.texts, strict=True):
            texts[video].append(text)
        return Queries.of(self.ids, [CAPTIONS.join(several) for several in texts])

    def first(self, videos: int, captions: int) -> "Gallery":
        """The first `videos` videos with the first `captions` captions of each; 0: all."""
        of_video = np.arange(len(self.texts)) - np.searchsorted(self.video_of_text, self.video_of_text)
        kept = (of_video < (captions or len(self.texts))) & (self.video_of_text < (videos or len(self.ids)))
        texts = [self.texts[i] for i in np.flatnonzero(kept)]
        some = slice(videos or None)
        return Gallery(self.reader, self.numbers[some], self.ids[some], texts, self.video_of_text[kept])


def encode_gallery(
    encoder: NormalizedModel,
    gallery: Gallery,
    tokenizer: Tokenizer,
    length: int,
    device: torch.device,
    reorder: Reorder | None = None,
) -> tuple[Texts, Videos]:
    """Encodes the texts and videos of a gallery; texts have at most `length` tokens."""
    texts = encode_texts(encoder.model, tokenizer, gallery.texts, length, device)
    return texts, encode_videos(encoder, gallery.reader, gallery.numbers, device, reorder=reorder)


def match_pairs(model: Alpro, texts: Texts, videos: Videos, top_k: int) -> np.ndarray:
    """Scores by a protocol, as of `retrieval_ranks`: VTM of all pairs (texts, videos), or of the k most similar pairs
    of each query (2, texts, videos)."""
    return match_top_k(model, texts, videos, top_k) if top_k else match_all(model, texts, videos)


def match_all(model: Alpro, texts: Texts, videos: Videos, batch: int = 0) -> np.ndarray:
    """The logit margin (match minus no match) of every pair: (texts, videos).

    The margin has the order of the probability, without its rounding near 0 and 1.
    """
    shape = len(texts.tokens), len(videos.tokens)
    return match(model, texts, videos, np.argwhere(np.ones(shape, bool)), batch).view(shape).cpu().numpy()


def match(model: Alpro, texts: Texts, videos: Videos, pairs: np.ndarray, batch: int = 0) -> Tensor:
    """The logit margin (P,) of pairs (P, 2) of text and video indices."""
    logits = score(model, model.vtm_head, texts, videos, pairs, batch)
    return logits[:, 1] - logits[:, 0]


def dual_softmax(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """Scores (texts, videos): the logarithm of the product of two softmaxes of similarity / temperature, over the
    videos of each text and over the texts of each video.

    A video that is similar to every text no longer ranks first for all of them (CAMoE, arXiv 2109.04290, multiplies the
    similarity itself by the softmax over the other axis; its softmax keeps the order of negative similarities). The
    ranks of a query depend on all queries of the test set.
    """
    logits = torch.from_numpy(similarity / temperature)
    return (logits.log_softmax(1) + logits.log_softmax(0)).numpy()


def match_top_k(
    model: Alpro, texts: Texts, videos: Videos, k: int, batch: int = 0, directions: tuple[str, ...] = DIRECTIONS
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
    margins[matched] = match(model, texts, videos, matched.nonzero().numpy(), batch).cpu()
    lowest = margins[matched].min() - 10  # below margin + similarity, which is at least margin - 1
    others = similarity - similarity.max() + lowest
    return torch.where(chosen, margins + similarity, others).numpy()
