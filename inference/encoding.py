"""Encoding of texts and videos, each once, and scores of many pairs: what a head makes of their fused [CLS].

Of pairs, what two have in common is computed once: the encoders before, and here the queries, keys and values of the
first fusion layer. Pairs of texts of one length form a batch, so that no padding is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.files import read_json
from alpro.log import progress
from alpro.models.alpro import Alpro, DualEncoder
from alpro.models.clip_prompter import is_clip, is_hub_name, load_clip, wrap_tokenizer
from alpro.models.folder import ModelBundle
from alpro.models.frames import NormalizedModel
from alpro.models.precision import WIDE
from alpro.models.ranks import all_reduce_, belongs_to_this_rank
from alpro.models.timesformer import VideoConfig
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.sampling import segment_starts
from alpro.shards.transforms import squash
from alpro.threads import map_ahead

Reorder = Callable[[list[int]], list[int]]  # a control's permutation of frame indices


@dataclass
class Texts:
    """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E). A CLIP has one token, its embedding."""

    tokens: Tensor
    mask: Tensor
    features: Tensor


@dataclass
class Videos:
    """Encoded videos: tokens (N, 1 + patches, D), features (N, E)."""

    tokens: Tensor
    features: Tensor


def load_model(folder: Path, device: torch.device) -> ModelBundle:
    """Loads a model folder, or the folder model/ of an artifact. Raises InputError if it is not valid."""
    try:
        return ModelBundle.from_pretrained(model_folder(folder), device)
    except ValueError as error:
        raise InputError(str(error)) from error


def load_prompter(folder: Path, device: torch.device) -> ModelBundle:
    """Loads a model as `load_model`, or a CLIP or SigLIP, such as that in an artifact of cache_prompts, or by its name
    on the hub. Raises InputError if it is not valid."""
    inside = model_folder(folder)
    clip = is_clip(inside) or is_hub_name(str(folder))
    return load_clip(str(inside), device, "model") if clip else load_model(inside, device)


def model_folder(folder: Path) -> Path:
    """The folder model/ of an artifact, or the folder itself."""
    inside = folder / "model"
    return inside if inside.is_dir() else folder


def width_of(folder: Path) -> int:
    """The width of the model in an input of a stage, 0 if it has no model. A CLIP or SigLIP counts as wide."""
    file = model_folder(folder) / "config.json"
    return (
        read_json(file).get("model", {}).get("video", {}).get("width", WIDE)
        if file.is_file()
        else 0
    )


def float32(device: torch.device) -> AbstractContextManager:
    """No autocast."""
    return torch.autocast(device.type, enabled=False)


def similarities(texts: Tensor, videos: Tensor) -> Tensor:
    """Dot products (N, M) of features (N, E) and (M, E), in float32 also under autocast."""
    with float32(texts.device):
        return texts @ videos.T


@torch.no_grad()
def encode_texts(
    model: DualEncoder, tokenizer: Tokenizer, texts: list[str], length: int, batch: int = 256
) -> Texts:
    """Encodes texts of at most `length` tokens. Their tokens stay on the model's device; for many texts use
    `embed_texts`."""
    device = next(model.parameters()).device
    ids, mask = wrap_tokenizer(tokenizer).batch(texts, model.text_length(length))
    mask, tokens = mask.to(device), torch.empty(0)
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        encoded = model.encode_text(ids[part].to(device), mask[part])
        if not start:  # filled in place to avoid a second copy
            tokens = torch.empty(len(ids), *encoded.shape[1:], device=device)
        tokens[part] = encoded
    with float32(device):
        return Texts(tokens, mask, model.project_text(tokens).float())


@torch.no_grad()
def embed_texts(
    model: DualEncoder, tokenizer: Tokenizer, texts: list[str], length: int, batch: int = 256
) -> Tensor:
    """The features (N, E) of texts, without their tokens. A CLIP truncates texts at its own length."""
    parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    return torch.cat(
        [encode_texts(model, tokenizer, part, length, batch).features for part in parts]
    )


@torch.no_grad()
def encode_videos(
    encoder: NormalizedModel,
    reader: ShardReader,
    numbers: list[int],
    batch: int = 32,
    reorder: Reorder | None = None,
) -> Videos:
    """Encodes samples: uniformly sampled frames, resized to the encoder's size without a crop.

    reorder: permutation of the frames of a clip, for the controls. In several processes, each encodes a part, and all
    have the result. Each calls `reorder` for every clip in order, so that a random permutation does not depend on the
    number of processes.
    """
    config, device = encoder.model.config.video, encoder.mean.device
    chosen = [segment_starts(reader.frame_count(n), config.frames) for n in numbers]
    if reorder:
        chosen = [reorder(frames) for frames in chosen]
    tokens = torch.zeros(len(numbers), 1, config.width, device=device)
    own = [
        slice(start, start + batch)
        for i, start in enumerate(range(0, len(numbers), batch))
        if belongs_to_this_rank(i)
    ]
    parts = own or [slice(1)] * bool(numbers)  # without a part of its own: for the shape
    samples = (
        (n, some) for part in parts for n, some in zip(numbers[part], chosen[part], strict=True)
    )
    decoded = map_ahead(lambda sample: sample_frames(reader[sample[0]], config, sample[1]), samples)
    for part in parts:
        encoded = encoder.model.encode_video(encoder.pixels_of(islice(decoded, len(numbers[part]))))
        if encoded.shape[1:] != tokens.shape[1:]:  # filled in place to avoid a second copy
            tokens = torch.zeros(len(numbers), *encoded.shape[1:], device=device)
        if own:
            tokens[part] = encoded
    all_reduce_(tokens)
    with float32(device):
        return Videos(tokens, encoder.model.project_video(tokens).float())


def sample_frames(
    sample: Sample, config: VideoConfig, chosen: list[int] | None = None
) -> np.ndarray:
    """The chosen frames of a sample: (T, 3, H, W) uint8; by default, the first of each of `config.frames` segments.

    Images, which are stored with their aspect ratio, are resized to the encoder's size; video frames are stored at one
    size.
    """
    frames = sample.frames(segment_starts(len(sample), config.frames) if chosen is None else chosen)
    if sample.metadata["kind"] == "image":
        frames = squash(frames, config.image_size)
    return frames.transpose(0, 3, 1, 2)


VIDEOS = 64  # number of videos whose queries, keys and values are on the device at a time
PAIRS = 512  # in a batch on a GPU
CPU_VALUES = 2**19  # in the activations of a batch on a CPU, about what its cache holds


@torch.no_grad()
def score(
    model: Alpro,
    head: Callable[[Tensor], Tensor],
    texts: Texts,
    videos: Videos,
    pairs: np.ndarray,
    batch: int = 0,
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
            size = batch or (PAIRS if tokens.is_cuda else max(1, CPU_VALUES // tokens[0].numel()))
            for chosen in batches(pairs[part, 0], lengths, size):
                advance(len(chosen))
                if not (own := belongs_to_this_rank(next(number))) and scores is not None:
                    continue
                rows = part[chosen]
                few, place = np.unique(pairs[rows, 0], return_inverse=True)
                text = texts.tokens[torch.from_numpy(few).to(device), : int(lengths[few[0]])]
                of_text, of_video = (
                    torch.from_numpy(a).to(device) for a in (place, pairs[rows, 1] - start)
                )
                fused = model.multimodal_encoder.pairs(text, of_text, tokens, qkv, of_video)
                with float32(device):
                    output = head(fused.float())
                if scores is None:
                    scores = output.new_zeros(len(pairs), *output.shape[1:])
                if own:
                    scores[torch.from_numpy(rows).to(device)] = output
    assert scores is not None
    return all_reduce_(scores)


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
        pairs.scatter_(
            axis, similarity.topk(min(k, similarity.shape[axis]), dim=axis).indices, True
        )
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
