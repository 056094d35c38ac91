"""Text-video retrieval: every pair by the matching head, or the best k by similarity matched anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.alpro import Alpro
from shards.reader import ShardReader
from shards.schema import InputError
from stages.evaluation.encode import Reorder, Texts, Videos, check_readable, encode_texts, encode_videos
from stages.evaluation.metrics import retrieval_metrics
from stages.training.loop import Validate
from stages.training.objective import Objective


@dataclass
class Gallery:
    """The videos of a split that have captions, and the captions as queries."""

    reader: ShardReader
    numbers: list[int]  # sample numbers of the videos
    ids: list[str]
    texts: list[str]
    video_of_text: np.ndarray  # (texts,) place of each text's video among `numbers`

    @classmethod
    def of(cls, folder: Path, split: str) -> "Gallery":
        reader = ShardReader(folder, split)
        captions = reader.column("captions").to_pylist()
        numbers = [n for n, said in enumerate(captions) if said]
        ids = reader.column("id").to_pylist()
        texts = [(place, text) for place, n in enumerate(numbers) for text in captions[n]]
        return cls(
            reader, numbers, [ids[n] for n in numbers], [t for _, t in texts], np.array([p for p, _ in texts], np.int64)
        )


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


def validate_retrieval(
    objective: Objective, inputs: dict[str, Path], tokenizer: Tokenizer, length: int, most: int = 500
) -> tuple[Validate, str]:
    """A validation by matching the 16 most similar, on the first `most` videos; and the metric to select by."""
    gallery = validation_gallery(inputs, most)
    check_readable(gallery.reader, gallery.numbers)
    device = objective.mean.device

    def validate() -> dict[str, float]:
        texts, videos = encode_gallery(objective, gallery, tokenizer, length, device)
        assert isinstance(objective.model, Alpro)
        metrics, _, _ = retrieval_metrics(match_top_k(objective.model, texts, videos, 16), gallery.video_of_text)
        mean = np.mean([metrics[f"{way}/R{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)])
        return {f"validation/{name}": value for name, value in metrics.items()} | {
            "validation/mean_recall": float(mean)
        }

    return validate, "validation/mean_recall"


def validation_gallery(inputs: dict[str, Path], most: int) -> Gallery:
    """The validation videos of the first corpus that has some; InputError where none has."""
    for folder in inputs.values():
        if (folder / "index.parquet").is_file():
            gallery = Gallery.of(folder, "validation")
            if gallery.numbers:
                return first_of(gallery, most)
    raise InputError(
        "no corpus has validation videos with captions: mark some in the column split, or raise `validation`"
    )


def first_of(gallery: Gallery, most: int) -> Gallery:
    """The first `most` videos of a gallery, with the first caption of each."""
    _, first = np.unique(gallery.video_of_text, return_index=True)
    first = first[:most]
    texts = [gallery.texts[i] for i in first]
    return Gallery(gallery.reader, gallery.numbers[:most], gallery.ids[:most], texts, np.arange(len(texts)))
