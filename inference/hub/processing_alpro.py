"""Frames and texts to the inputs of an exported model."""

from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from alpro.inference.inputs import check_texts
from alpro.models.frames import normalize_frames
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.file_type import MEDIA_EXTENSIONS, media_kind, read_head
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
    image is a file or a picture (H, W, 3) uint8, in a list of `videos`, or in `images`, which
    sentence-transformers sets instead. One video, image or text needs no list.

    Raises ValueError for an empty text, the name of a file as a text, other frames, and `videos` with
    `images`, and TypeError for an unknown argument.
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
        images: Any = None,
        **options: Any,
    ) -> BatchFeature:
        unknown = options.keys() - UNUSED_OPTIONS
        if unknown:
            raise TypeError(
                f"unknown arguments {sorted(unknown)}: videos, images and text are known"
            )

        data: dict[str, Tensor] = {}
        if videos is not None and images is not None:
            raise ValueError("set videos or images, not both: videos may list images")
        if images is not None:
            # An array of four dimensions is several images, not the frames of a video.
            is_batch = isinstance(images, list | tuple) or np.ndim(images) == 4
            data["pixel_values"] = self._pixels([*images] if is_batch else [images])
        if videos is not None:
            data["pixel_values"] = self._pixels(videos)
        if text is not None:
            texts = check_texts(text)
            for name in texts:
                # sentence-transformers passes a file that it does not know or find as a text. A sentence
                # may end with ".gif". Path.is_file raises an error for a long text.
                is_name = len(name.split()) == 1 or isfile(name)  # noqa: PTH113
                if is_name and Path(name).suffix.lower() in MEDIA_EXTENSIONS:
                    raise ValueError(
                        f"the text {name!r} is the name of a file: set videos, or in "
                        'sentence-transformers encode {"video": FILE}'
                    )
            encoded = self.tokenizer(
                texts,
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
        batch = videos
        if isinstance(videos, str | Path) or getattr(videos, "ndim", 0) == 4:
            batch = [videos]
        return torch.cat([self._normalize(self._read(video)) for video in batch])

    def _read(self, video: Any) -> np.ndarray:
        """Read the frames of a file: of a video (T, S, S, 3) uint8, of an image (1, S, S, 3)."""
        if not isinstance(video, str | Path):
            return np.asarray(video)
        path = Path(video)
        try:
            if path.is_file() and media_kind(path, read_head(path)) == "image":
                return decode_image(path, self.image_size).frames
            return decode_video(path, self.frames, self.image_size).frames
        except DecodeError as error:
            raise ValueError(f"{video}: {error}") from error

    def _normalize(self, frames: np.ndarray) -> Tensor:
        """Choose, scale and normalize frames (F, H, W, 3) uint8 -> (1, T, 3, S, S).

        A picture (H, W, 3) is a video of one frame.
        """
        if frames.ndim == 3:
            frames = frames[None]
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
