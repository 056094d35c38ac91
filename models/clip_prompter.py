"""A CLIP or SigLIP of transformers as the prompter, instead of one trained on the corpora: beyond the paper."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from alpro.errors import InputError
from alpro.files import read_small_json
from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.folder import ModelFolder, Preprocessing
from alpro.models.frames import resize
from alpro.models.official import first_line
from alpro.models.timesformer import VideoConfig

TYPES = ("clip", "siglip")  # SigLIP 2 of a fixed resolution is a siglip too


class ClipPrompter(Prompter):
    """A frozen CLIP or SigLIP with the interface of the trained prompter, and its pseudo-labels.

    It encodes the frames of a clip one by one; the embedding of a clip is the mean of theirs, normalized again. The
    temperature is the inverse of the model's logit scale. SigLIP adds a bias to its logits, which cancels in the
    softmax over the entities.

    model: a CLIPModel or SiglipModel. mean, std: its normalization, per channel, of pixels in [0, 1]; frames are given
    with it, until `accept` changes this.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]):
        nn.Module.__init__(self)  # not that of DualEncoder: the encoders are the model's
        self.clip = model.float().requires_grad_(False)
        self.mean, self.std = mean, std
        self.register_buffer("scale", torch.ones(3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.zeros(3, 1, 1), persistent=False)
        vision = model.config.vision_config
        self.image_size: int = vision.image_size
        # Boxes on whole frames: a 14-pixel patch does not divide every image size.
        patch = next(p for p in range(vision.patch_size, 0, -1) if self.image_size % p == 0)
        self.config = ModelConfig(video=VideoConfig(image_size=self.image_size, patch_size=patch))
        self.eval()

    def accept(self, video: VideoConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        """Accepts frames and boxes of another model: of its size and patches, normalized with its mean and std."""
        own_mean, own_std, mean_, std_ = (
            torch.tensor(v, device=self.scale.device).view(3, 1, 1) for v in (self.mean, self.std, mean, std)
        )
        self.scale, self.shift = std_ / own_std, (mean_ - own_mean) / own_std
        self.config = self.config.model_copy(update={"video": video})

    def encode_video(self, frames: Tensor, cls_only: bool = False, kept: Tensor | None = None) -> Tensor:
        """Normalized frames (B, T, 3, S, S) of any size S -> the mean of their unit-length embeddings (B, 1, E)."""
        pixels = resize((frames * self.scale + self.shift).flatten(0, 1), self.image_size)
        features = self.clip.get_image_features(pixel_values=pixels).pooler_output.float()
        return normalize(features, dim=-1).view(*frames.shape[:2], -1).mean(dim=1, keepdim=True)

    def project_video(self, tokens: Tensor) -> Tensor:
        """The result of `encode_video` (B, 1, E) -> L2-normalized embeddings (B, E)."""
        return normalize(tokens[:, 0], dim=-1)

    def clamped_temperature(self) -> Tensor:
        return (-self.clip.logit_scale.float()).exp().view(())

    @torch.no_grad()
    def embed_texts(self, tokenizer: Any, texts: list[str], batch: int = 256) -> Tensor:
        """Texts -> L2-normalized embeddings (N, E). tokenizer: that of transformers.

        SigLIP saw texts padded to its full length, without an attention mask. All of these models saw lower case,
        which not every version of their tokenizers applies.
        """
        siglip = self.clip.config.model_type == "siglip"
        length = self.clip.config.text_config.max_position_embeddings
        features = []
        for start in range(0, len(texts), batch):
            words = tokenizer(
                [text.lower() for text in texts[start : start + batch]],
                padding="max_length" if siglip else "longest",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).to(self.scale.device)
            inputs = {"input_ids": words["input_ids"]}
            if not siglip:
                inputs["attention_mask"] = words["attention_mask"]
            features.append(normalize(self.clip.get_text_features(**inputs).pooler_output.float(), dim=-1))
        return torch.cat(features)


@dataclass
class ClipFolder(ModelFolder):
    """A CLIP or SigLIP in the format of transformers."""

    model: ClipPrompter
    tokenizer: Any  # that of transformers

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model, its tokenizer and its normalization."""
        self.model.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        constants = {"image_mean": self.model.mean, "image_std": self.model.std}
        (folder / "preprocessor_config.json").write_text(json.dumps(constants) + "\n")


def is_clip(folder: Path) -> bool:
    """Whether a folder has a CLIP or SigLIP of transformers, by its config.json."""
    try:
        return read_small_json(folder / "config.json")["model_type"] in TYPES
    except (ValueError, KeyError, TypeError):
        return False


def load_clip(name: str, device: torch.device | str = "cpu", key: str = "cache_prompts.prompter") -> ClipFolder:
    """Loads a CLIP or SigLIP with its tokenizer and normalization, in float32 and eval mode.

    name: a hub name or a folder; key: of the configuration, for messages. Raises InputError if it is not available, not
    readable, or another kind of model.
    """
    where = f"{key.rpartition('.')[2]} = {name!r}"
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.image_processing_base import ImageProcessingMixin

        config: Any = AutoConfig.from_pretrained(name)
        if config.model_type not in TYPES:
            raise InputError(f"{where}: it is a {config.model_type}, not a {' or '.join(TYPES)}")
        model, report = AutoModel.from_pretrained(name, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise InputError(f"{where}: weights are missing, such as {missing[0]}")
        tokenizer, words = AutoTokenizer.from_pretrained(name), config.text_config.vocab_size
        if len(tokenizer) < words / 2:  # without its files, transformers makes one without words
            raise InputError(
                f"{where}: its tokenizer has {len(tokenizer)} tokens, and the model {words}; add the model's own "
                "tokenizer, such as tokenizer.json"
            )
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        mean, std = processor["image_mean"], processor["image_std"]
        length = config.text_config.max_position_embeddings
        preprocessing = Preprocessing(mean=mean, std=std, max_text_tokens=length)
    except InputError:
        raise
    except Exception as error:  # no folder, no network, no weights, no tokenizer: each library raises its own type
        cause = f"({type(error).__name__}: {first_line(error)})"
        if Path(name).is_dir():
            raise InputError(
                f"{where}: not readable as a CLIP or SigLIP of transformers {cause}; the folder needs its config.json, "
                "model.safetensors, tokenizer and preprocessor_config.json, as 'hf download' copies them"
            ) from error
        raise InputError(
            f"{where}: no such folder, and not available from the cache or the hub {cause}; on a machine with a "
            f"network run 'hf download {name} --local-dir FOLDER', copy the folder here, and set "
            f"{key} to its path"
        ) from error
    prompter = ClipPrompter(model, preprocessing.mean, preprocessing.std).to(device)
    return ClipFolder("prompter", prompter, tokenizer, preprocessing)
