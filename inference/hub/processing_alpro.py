"""Frames and texts to the inputs of an exported model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from alpro.inference.inputs import check_texts
from alpro.models.frames import normalize_frames
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_video
from alpro.shards.sampling import segment_starts

# Options that transformers and sentence-transformers pass to every processor. This one always pads to
# the longest text, truncates, and returns tensors of PyTorch.
UNUSED_OPTIONS = {
    "return_tensors",
    "padding",
    "truncation",
    "device",
    "text_kwargs",
    "images_kwargs",
    "audio_kwargs",
    "videos_kwargs",
    "common_kwargs",
}


class AlproProcessor(ProcessorMixin):
    """Makes the inputs of an exported model.

    A call with `videos` and `text` returns `pixel_values` (V, T, 3, S, S), and `input_ids` and
    `attention_mask` (N, L).

    A video is a file, which needs PyAV, or a list or an array of its frames (F, H, W, 3) uint8, all
    of them or any number: the first of each of T equal segments is used, and resized to S x S. An
    image is a video of one frame. One video or text needs no list.

    Raises ValueError for an empty text and for other frames, and TypeError for an unknown argument.
    """

    # The class that transformers loads, in the exported folder.
    auto_map: dict[str, str]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_size: int,
        frames: int,
        mean: Sequence[float],
        std: Sequence[float],
        max_text_tokens: int,
    ):
        self.tokenizer = tokenizer
        self.chat_template = None
        self.image_size = image_size
        self.frames = frames
        self.max_text_tokens = max_text_tokens
        self.mean = list(mean)
        self.std = list(std)

    # The parameters differ from transformers' own processors, which pyright reports: videos come
    # first, as users of this model call it, and transformers calls processors with keywords.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        videos: Any = None,
        text: str | Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        unknown = options.keys() - UNUSED_OPTIONS
        if unknown:
            raise TypeError(
                f"unknown arguments {sorted(unknown)}: videos and text are known"
            )

        data: dict[str, Tensor] = {}
        if videos is not None:
            data["pixel_values"] = self._pixels(videos)
        if text is not None:
            encoded = self.tokenizer(
                check_texts(text),
                padding="longest",
                truncation=True,
                max_length=self.max_text_tokens,
                return_tensors="pt",
            )
            data["input_ids"] = encoded["input_ids"]
            data["attention_mask"] = encoded["attention_mask"]
        return BatchFeature(data)

    def _pixels(self, videos: Any) -> Tensor:
        """Return the pixel values (V, T, 3, S, S) of one or more videos."""
        batch: Any = videos
        if isinstance(videos, str | Path) or getattr(videos, "ndim", 0) == 4:
            batch = [videos]
        pixels = []
        for video in batch:
            frames = video
            if isinstance(video, str | Path):
                try:
                    clip = decode_video(Path(video), self.frames, self.image_size)
                except DecodeError as error:
                    raise ValueError(f"{video}: {error}") from error
                frames = clip.frames
            pixels.append(self._normalize(np.asarray(frames)))
        return torch.cat(pixels)

    def _normalize(self, frames: np.ndarray) -> Tensor:
        """Choose, scale and normalize frames (F, H, W, 3) uint8 -> (1, T, 3, S, S)."""
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"a video is frames (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}"
            )

        chosen = frames[segment_starts(len(frames), self.frames)].transpose(0, 3, 1, 2)

        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        # A flipped array has negative strides, which torch does not support.
        batch = torch.from_numpy(np.ascontiguousarray(chosen))[None]
        return normalize_frames(batch, self.image_size, mean, std)
