"""Frames and texts to the inputs of an exported model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file

from alpro.inputs import check_text
from alpro.models.frames import normalize_frames
from alpro.shards.sampling import segment_starts

FILE = "processor_config.json"
HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)  # options of a download


class AlproProcessor(ProcessorMixin):
    """A call with `videos` and `text` returns `pixel_values` (V, T, 3, S, S), `input_ids` and `attention_mask` (N, L).

    A video is a file, which needs PyAV, or a list or an array of its frames (F, H, W, 3) uint8, all of them or any
    number: the first of each of T equal segments is used, and resized to S x S. An image is a video of one frame.
    Raises ValueError for an empty text.
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
        self.tokenizer, self.chat_template = tokenizer, None
        self.image_size, self.frames, self.max_text_tokens = image_size, frames, max_text_tokens
        self.mean, self.std = list(mean), list(std)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *unused: Any, **options: Any
    ) -> "AlproProcessor":
        """Loads the processor of a folder or of a repository of the hub."""
        hub = {name: options[name] for name in HUB if name in options}
        file = cached_file(pretrained_model_name_or_path, FILE, **hub)
        values = json.loads(Path(str(file)).read_text("utf-8"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **hub)
        return cls(tokenizer, **{name: values[name] for name in cls.settings})

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **options: Any
    ) -> list[str]:
        """Writes the processor and its tokenizer. It does not push: `huggingface_hub.upload_folder` does."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "processor_class": type(self).__name__,
            **{name: getattr(self, name) for name in self.settings},
        }
        values["auto_map"] = {"AutoProcessor": f"processing_alpro.{type(self).__name__}"}
        (folder / FILE).write_text(json.dumps(values, indent=1) + "\n")
        if self._auto_class:  # loaded from an exported folder: with its code
            custom_object_save(self, folder)
        return [str(folder / FILE), *self.tokenizer.save_pretrained(folder)]

    def __call__(
        self,
        videos: Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        **unused: Any,
    ) -> BatchFeature:
        data: dict[str, Tensor] = {}
        if videos is not None:
            loaded = (
                self._read(video) if isinstance(video, str | Path) else np.asarray(video)
                for video in videos
            )
            data["pixel_values"] = torch.cat([self._pixels(frames) for frames in loaded])
        if text is not None:
            texts = [check_text(one) for one in ([text] if isinstance(text, str) else text)]
            encoded = self.tokenizer(
                texts,
                padding="longest",
                truncation=True,
                max_length=self.max_text_tokens,
                return_tensors="pt",
            )
            data |= {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return BatchFeature(data)

    def _read(self, file: str | Path) -> np.ndarray:
        """The frames (T, S, S, 3) of a video file that are used, upright."""
        try:  # transformers does not require what is imported here
            import av
            from av.video.reformatter import Interpolation
        except ImportError as error:
            raise ImportError("reading video files needs PyAV: pip install av") from error
        options: dict[str, Any] = {
            "width": self.image_size,
            "height": self.image_size,
            "format": "gbrp",
        }
        options["interpolation"] = Interpolation.BICUBIC + Interpolation.ACCURATE_RND
        with av.open(str(file)) as container:
            wanted = segment_starts(
                sum(packet.pts is not None for packet in container.demux(video=0)), self.frames
            )
            container.seek(0)
            decoded = (
                (i, frame) for i, frame in enumerate(container.decode(video=0)) if i in wanted
            )
            frames = {
                i: np.rot90(frame.to_ndarray(**options), frame.rotation // 90)
                for i, frame in decoded
            }
        return np.stack([frames[i] for i in wanted])

    def _pixels(self, frames: np.ndarray) -> Tensor:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"a video is frames (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}"
            )
        chosen = frames[segment_starts(len(frames), self.frames)].transpose(0, 3, 1, 2)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return normalize_frames(
            torch.from_numpy(np.ascontiguousarray(chosen))[None], self.image_size, mean, std
        )
