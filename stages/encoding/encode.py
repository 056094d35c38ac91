"""Encoding of texts and videos, each once, for all evaluations."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from alpro.errors import InputError
from alpro.files import read_json
from alpro.models.alpro import DualEncoder
from alpro.models.clip_prompter import is_clip, load_clip, words_of
from alpro.models.folder import ModelFolder
from alpro.models.frames import NormalizedModel
from alpro.models.precision import WIDE
from alpro.models.timesformer import VideoConfig
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.sampling import segment_starts
from alpro.shards.transforms import squash
from alpro.stages.training.distributed import is_own, merge

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


def load_model(folder: Path, device: torch.device) -> ModelFolder:
    """Loads a model folder, or the folder model/ of an artifact. Raises InputError if it is not valid."""
    try:
        return ModelFolder.from_pretrained(model_folder(folder), device)
    except ValueError as error:
        raise InputError(str(error)) from error


def load_prompter(folder: Path, device: torch.device) -> ModelFolder:
    """Loads a model as `load_model`, or a CLIP or SigLIP, such as that in an artifact of cache_prompts. Raises
    InputError if it is not valid."""
    inside = model_folder(folder)
    return load_clip(str(inside), device) if is_clip(inside) else load_model(inside, device)


def model_folder(folder: Path) -> Path:
    """The folder model/ of an artifact, or the folder itself."""
    inside = folder / "model"
    return inside if inside.is_dir() else folder


def width_of(folder: Path) -> int:
    """The width of the model in an input of a stage, 0 if it has none. A CLIP or SigLIP counts as wide."""
    file = model_folder(folder) / "config.json"
    return read_json(file).get("model", {}).get("video", {}).get("width", WIDE) if file.is_file() else 0


def float32(device: torch.device) -> AbstractContextManager:
    """No autocast."""
    return torch.autocast(device.type, enabled=False)


def similarities(texts: Tensor, videos: Tensor) -> Tensor:
    """Dot products (N, M) of features (N, E) and (M, E), in float32 also under autocast."""
    with float32(texts.device):
        return texts @ videos.T


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def encode_texts(model: DualEncoder, tokenizer: Tokenizer, texts: list[str], length: int, batch: int = 256) -> Texts:
    """Encodes texts of at most `length` tokens. Their tokens stay on the model's device; for many texts use
    `embed_texts`."""
    device = device_of(model)
    ids, mask = words_of(tokenizer).batch(texts, model.text_length(length))
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
def embed_texts(model: DualEncoder, tokenizer: Tokenizer, texts: list[str], length: int, batch: int = 256) -> Tensor:
    """The features (N, E) of texts, without their tokens. A CLIP truncates texts at its own length."""
    parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    return torch.cat([encode_texts(model, tokenizer, part, length, batch).features for part in parts])


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
    own = [start for i, start in enumerate(range(0, len(numbers), batch)) if is_own(i)]
    for start in own or range(0, len(numbers), len(numbers) or 1):  # without a part of its own: for the shape
        part = slice(start, start + batch)
        samples = zip(numbers[part], chosen[part], strict=True)
        frames = np.stack([sample_frames(reader[number], config, some) for number, some in samples])
        encoded = encoder.model.encode_video(encoder.pixels(torch.from_numpy(frames).to(device)))
        if encoded.shape[1:] != tokens.shape[1:]:  # filled in place to avoid a second copy
            tokens = torch.zeros(len(numbers), *encoded.shape[1:], device=device)
        if own:
            tokens[part] = encoded
    merge(tokens)
    with float32(device):
        return Videos(tokens, encoder.model.project_video(tokens).float())


def sample_frames(sample: Sample, config: VideoConfig, chosen: list[int] | None = None) -> np.ndarray:
    """The chosen frames of a sample: (T, 3, H, W) uint8; by default, the first of each of `config.frames` segments.

    Images, which are stored with their aspect ratio, are resized to the encoder's size; video frames are stored at one
    size.
    """
    frames = sample.frames(segment_starts(len(sample), config.frames) if chosen is None else chosen)
    if sample.about["kind"] == "image":
        frames = squash(frames, config.image_size)
    return frames.transpose(0, 3, 1, 2)
