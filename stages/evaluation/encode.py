"""Texts and videos through the encoders, each once; what every evaluation starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.alpro import DualEncoder
from models.folder import ModelFolder
from shards.reader import ShardReader
from shards.sampling import segment_starts
from shards.schema import InputError
from stages.training.objective import Objective
from stages.word_pieces import WordPieces

Reorder = Callable[[list[int]], list[int]]  # what a control does to the order of frames


@dataclass
class Texts:
    """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E)."""

    tokens: Tensor
    mask: Tensor
    features: Tensor


@dataclass
class Videos:
    """Encoded videos: tokens (N, 1 + patches, D), features (N, E)."""

    tokens: Tensor
    features: Tensor


def load_model(folder: Path, device: torch.device) -> ModelFolder:
    """A model folder, or the one in an artifact (model/); its mistakes told as a person's."""
    inside = folder / "model"
    try:
        return ModelFolder.from_pretrained(inside if inside.is_dir() else folder, device)
    except ValueError as error:
        raise InputError(str(error)) from error


@torch.no_grad()
def encode_texts(
    model: DualEncoder, tokenizer: Tokenizer, texts: list[str], length: int, device: torch.device, batch: int = 256
) -> Texts:
    """All texts through the text encoder."""
    ids, mask = WordPieces(tokenizer).batch(texts, length)
    parts = [
        model.encode_text(i.to(device), m.to(device)) for i, m in zip(ids.split(batch), mask.split(batch), strict=True)
    ]
    tokens = torch.cat(parts)
    return Texts(tokens, mask.to(device), model.project_text(tokens).float())


@torch.no_grad()
def encode_videos(
    objective: Objective,
    reader: ShardReader,
    numbers: list[int],
    device: torch.device,
    batch: int = 32,
    reorder: Reorder | None = None,
) -> Videos:
    """Samples through the video encoder: uniform frames, resized to the encoder's size without a crop.

    `reorder` permutes the frames of a clip, for the controls.
    """
    config = objective.model.config.video
    parts = []
    for start in range(0, len(numbers), batch):
        frames = np.stack([uniform_frames(reader, n, config.frames, reorder) for n in numbers[start : start + batch]])
        parts.append(objective.model.encode_video(objective.pixels(torch.from_numpy(frames).to(device))))
    tokens = torch.cat(parts)
    return Videos(tokens, objective.model.project_video(tokens).float())


def check_readable(reader: ShardReader, numbers: list[int]) -> None:
    """Reads samples that will be validated on. Raises Unreadable now rather than at the end of training."""
    for number in numbers:
        reader[number].frames()


def uniform_frames(reader: ShardReader, number: int, count: int, reorder: Reorder | None = None) -> np.ndarray:
    """The first frame of each of `count` equal segments of a sample: (T, 3, H, W) uint8."""
    sample = reader[number]
    chosen = segment_starts(len(sample), count)
    if reorder:
        chosen = reorder(chosen)
    return sample.frames(chosen).transpose(0, 3, 1, 2)


def evaluator(folder: ModelFolder, device: torch.device) -> Objective:
    """A loaded model with its normalisation, ready to encode."""
    return Objective(folder.model, list(folder.preprocessing.mean), list(folder.preprocessing.std)).to(device).eval()
