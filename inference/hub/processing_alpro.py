"""Frames and texts to the inputs of an exported model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import cached_file

from alpro.inputs import check_text
from alpro.models.frames import normalize_frames
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.images import square_frame
from alpro.shards.sampling import segment_starts

FILE = "processor_config.json"
# Options of a download.
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Options that transformers and sentence-transformers pass to every processor, with the values that
# describe what this one does.
USUAL: dict[str, set[Any]] = {
    "return_tensors": {None, "pt"},
    "padding": {True, "longest"},
    "truncation": {True},
    "device": {None, "cpu"},
}
# Options of the parts of other processors.
GROUPS = {"text_kwargs", "images_kwargs", "audio_kwargs", "videos_kwargs", "common_kwargs"}


class AlproProcessor(ProcessorMixin):
    """Makes the inputs of an exported model.

    A call with `videos` or `images`, and `text` returns `pixel_values` (V, T, 3, S, S), and
    `input_ids` and `attention_mask` (N, L).

    A video is a file, which needs PyAV, or a list or an array of its frames (F, H, W, 3) uint8, all
    of them or any number: the first of each of T equal segments is used, and resized to S x S. An
    image is a file, an image of Pillow or an array (H, W, 3) uint8. One video, image or text needs
    no list.

    Raises ValueError for an empty text and for other frames, and TypeError for an unknown argument.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "PreTrainedTokenizerFast"
    settings = ("image_size", "frames", "mean", "std", "max_text_tokens")

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

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *unused: Any, **options: Any
    ) -> "AlproProcessor":
        """Load the processor of a folder or of a repository of the hub."""
        hub = {name: options[name] for name in HUB if name in options}
        file = cached_file(pretrained_model_name_or_path, FILE, **hub)
        values = json.loads(Path(str(file)).read_text("utf-8"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **hub)
        return cls(tokenizer, **{name: values[name] for name in cls.settings})

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **options: Any
    ) -> list[str]:
        """Write the processor and its tokenizer. To push them, use
        `huggingface_hub.upload_folder`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)

        name = type(self).__name__
        values: dict[str, Any] = {"processor_class": name}
        for setting in self.settings:
            values[setting] = getattr(self, setting)
        values["auto_map"] = {"AutoProcessor": f"processing_alpro.{name}"}
        (folder / FILE).write_text(json.dumps(values, indent=1) + "\n")
        if self._auto_class:  # loaded from an exported folder: with its code
            custom_object_save(self, folder)
        return [str(folder / FILE), *self.tokenizer.save_pretrained(folder)]

    # Other parameters than those of transformers' own processors, which pyright reports: videos come
    # first, as users of this model call it; transformers calls processors with keywords.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        videos: Any = None,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        **options: Any,
    ) -> BatchFeature:
        _check_options(options)
        if videos is not None and images is not None:
            raise ValueError("videos or images, not both: the model takes one of them")

        data: dict[str, Tensor] = {}
        if videos is not None:
            batch = [videos] if _is_single(videos, dimensions=4) else videos
            pixels = [self._pixels(self._read_video(video)) for video in batch]
            data["pixel_values"] = torch.cat(pixels)
        if images is not None:
            batch = [images] if _is_single(images, dimensions=3) else images
            pixels = [self._pixels(self._read_image(image)) for image in batch]
            data["pixel_values"] = torch.cat(pixels)

        if text is not None:
            texts = [text] if isinstance(text, str) else text
            encoded = self.tokenizer(
                [check_text(one) for one in texts],
                padding="longest",
                truncation=True,
                max_length=self.max_text_tokens,
                return_tensors="pt",
            )
            data["input_ids"] = encoded["input_ids"]
            data["attention_mask"] = encoded["attention_mask"]
        return BatchFeature(data)

    def _read_video(self, video: Any) -> np.ndarray:
        """Return the frames (F, H, W, 3) of an array, or of a file as the pipeline decodes it."""
        if not isinstance(video, str | Path):
            return np.asarray(video)
        try:
            return decode_video(Path(video), self.frames, self.image_size).frames
        except DecodeError as error:
            raise ValueError(f"{video}: {error}") from error

    def _read_image(self, image: Any) -> np.ndarray:
        """Return the frame (1, H, W, 3) uint8 of a file, an image of Pillow or an array
        (H, W, 3)."""
        try:
            if isinstance(image, str | Path):
                return decode_image(Path(image), self.image_size).frames
            if isinstance(image, Image.Image):
                return square_frame(image, self.image_size)[None]
        except DecodeError as error:
            raise ValueError(f"{image}: {error}") from error
        return np.asarray(image)[None]

    def _pixels(self, frames: np.ndarray) -> Tensor:
        """Choose, scale and normalize frames (F, H, W, 3) uint8 -> (1, T, 3, S, S)."""
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"a video is frames (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}"
            )

        chosen = frames[segment_starts(len(frames), self.frames)].transpose(0, 3, 1, 2)

        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        # torch takes no negative strides, such as those of a flipped array.
        batch = torch.from_numpy(np.ascontiguousarray(chosen))[None]
        return normalize_frames(batch, self.image_size, mean, std)


def _check_options(options: dict[str, Any]) -> None:
    """Raise TypeError for an unknown option, and ValueError for one with an unusual value."""
    for name in options.keys() - GROUPS:
        if name not in USUAL:
            raise TypeError(f"unknown argument {name!r}: videos, images and text are known")
        if options[name] not in USUAL[name]:
            raise ValueError(f"{name}={options[name]!r} is not supported")


def _is_single(value: Any, dimensions: int) -> bool:
    """Return whether this is one video or image, not several: a file, an image, an array of
    `dimensions`."""
    if isinstance(value, str | Path | Image.Image):
        return True
    return getattr(value, "ndim", None) == dimensions
