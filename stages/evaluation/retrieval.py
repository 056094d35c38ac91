"""Text-video retrieval: every pair by the matching head, or the k most similar pairs of a query."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.encode import Reorder, Texts, Videos, encode_texts, encode_videos
from alpro.stages.training.config import Protocol
from alpro.stages.training.objective import Objective


@dataclass
class Gallery:
    """The videos of a split that have captions, and the captions as queries."""

    reader: ShardReader
    numbers: list[int]  # sample numbers of the videos
    ids: list[str]
    texts: list[str]
    video_of_text: np.ndarray  # (texts,) place of each text's video among `numbers`

    @classmethod
    def of(cls, folder: Path, split: str, exclude: Collection[str] = ()) -> "Gallery":
        """`exclude`: ids of videos to leave out."""
        reader = ShardReader(folder, split, exclude=exclude)
        captions = reader.column("captions").to_pylist()
        numbers = [n for n, said in enumerate(captions) if said]
        ids = reader.column("id").to_pylist()
        texts = [(place, text) for place, n in enumerate(numbers) for text in captions[n]]
        return cls(
            reader, numbers, [ids[n] for n in numbers], [t for _, t in texts], np.array([p for p, _ in texts], np.int64)
        )

    def first(self, videos: int, captions: int) -> "Gallery":
        """The first videos, each with its first captions; 0: all."""
        of_video = np.arange(len(self.texts)) - np.searchsorted(self.video_of_text, self.video_of_text)
        kept = (of_video < (captions or len(self.texts))) & (self.video_of_text < (videos or len(self.ids)))
        texts = [self.texts[i] for i in np.flatnonzero(kept)]
        some = slice(videos or None)
        return Gallery(self.reader, self.numbers[some], self.ids[some], texts, self.video_of_text[kept])


def encode_gallery(
    objective: Objective,
    gallery: Gallery,
    tokenizer: Tokenizer,
    length: int,
    device: torch.device,
    reorder: Reorder | None = None,
) -> tuple[Texts, Videos]:
    texts = encode_texts(objective.model, tokenizer, gallery.texts, length, device)
    return texts, encode_videos(objective, gallery.reader, gallery.numbers, device, reorder=reorder)


def match_pairs(model: Alpro, texts: Texts, videos: Videos, protocol: Protocol, k: int) -> np.ndarray:
    """Scores (texts, videos) by a protocol: all pairs matched, or the k most similar of each query."""
    return match_all(model, texts, videos) if protocol == "all" else match_top_k(model, texts, videos, k)


@torch.no_grad()
def match_all(model: Alpro, texts: Texts, videos: Videos, batch: int = 512) -> np.ndarray:
    """The matching head's margin (match minus no match) of every pair: (texts, videos).

    The margin orders pairs as the probability does, without its rounding near 0 and 1.
    """
    scores = np.empty((len(texts.tokens), len(videos.tokens)), np.float32)
    pairs = torch.cartesian_prod(torch.arange(len(texts.tokens)), torch.arange(len(videos.tokens)))
    for part in pairs.split(batch):
        scores[part[:, 0].numpy(), part[:, 1].numpy()] = match(model, texts, videos, part).cpu().numpy()
    return scores


def match(model: Alpro, texts: Texts, videos: Videos, pairs: Tensor) -> Tensor:
    """The margin of pairs (P, 2) of text and video numbers: (P,)."""
    text, video = pairs[:, 0].to(texts.tokens.device), pairs[:, 1].to(videos.tokens.device)
    logits = model.match(texts.tokens[text], texts.mask[text], videos.tokens[video]).float()
    return logits[:, 1] - logits[:, 0]


@torch.no_grad()
def match_top_k(model: Alpro, texts: Texts, videos: Videos, k: int, batch: int = 512) -> np.ndarray:
    """The k best videos of each text, and the k best texts of each video, by similarity, scored again by match
    margin + similarity; every other pair keeps its similarity below all of them: (texts, videos)."""
    similarity = (texts.features @ videos.features.T).cpu()
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    chosen.scatter_(1, similarity.topk(min(k, similarity.shape[1]), dim=1).indices, True)
    chosen.T.scatter_(1, similarity.T.topk(min(k, similarity.shape[0]), dim=1).indices, True)
    pairs = chosen.nonzero()
    margins = torch.cat([match(model, texts, videos, part).cpu() for part in pairs.split(batch)])
    scores = similarity - similarity.max() + (margins.min() - 10)
    scores[pairs[:, 0], pairs[:, 1]] = margins + similarity[pairs[:, 0], pairs[:, 1]]
    return scores.numpy()
