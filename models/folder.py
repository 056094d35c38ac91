"""Model folders as of Hugging Face: config.json, model.safetensors, tokenizer.json, label lists; also
folders of a CLIP or SigLIP."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    Field,
    FiniteFloat,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError, first_fault, one_line
from alpro.files import os_errors, read_small_json, use_default_mode
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.clip_prompter import TEMPORAL, ClipPrompter
from alpro.models.frames import NormalizedModel
from alpro.models.pretrained import load_pretrained, read_model_config
from alpro.models.timesformer import resize_positions, resize_times
from alpro.models.weights import (
    check_values,
    load_weights,
    meta_device,
    read_weights,
    select_prefix,
)
from alpro.models.word_pieces import (
    BertTokenizer,
    ClipTokenizer,
    check_tokens,
    read_tokenizer,
)

TEXTS = 256  # texts that are encoded together
Task = Literal["prompter", "pretrain", "retrieval", "qa"]
Ranking = Literal["similarity", "matching"]
CLIP_TYPES = ("clip", "siglip")  # SigLIP 2 of a fixed resolution is a siglip as well


class Preprocessing(BaseModel, frozen=True, extra="forbid"):
    """Preprocessing of frames and texts.

    Attributes:
        mean, std: Statistics of pixels in [0, 1] per channel.
        max_text_tokens: Length to which texts are truncated.
    """

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (
        0.48145466,
        0.4578275,
        0.40821073,
    )
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (
        0.26862954,
        0.26130258,
        0.27577711,
    )
    max_text_tokens: int = Field(default=30, ge=2)


class FolderConfig(BaseModel, frozen=True, extra="forbid"):
    """Values of config.json in a model folder."""

    model_type: Literal["alpro"] = "alpro"
    task: Task
    model: ModelConfig
    preprocessing: Preprocessing = Preprocessing()
    ranking: Ranking = "similarity"


def build_model(
    task: Task, config: ModelConfig, entities: int, answers: int
) -> DualEncoder:
    """Build the model of a task, with heads for so many entities and answers."""
    if task == "prompter":
        return Prompter(config)
    return Alpro(config, entities=entities, answers=answers)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raise OSError if that fails, for example if the disk is full."""
    with os_errors(path):
        save_file(tensors, path)
        use_default_mode(path)


@dataclass
class Texts:
    """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E). A CLIP has one token, its
    embedding."""

    tokens: Tensor
    mask: Tensor
    features: Tensor


@dataclass
class ModelBundle:
    """A model with its tokenizer, preprocessing and labels.

    Attributes:
        ranking: The score by which the model ranked clips better on validation.
        prompts: (M, E) embeddings of the prompts of a prompter's entities, by the kind of a sample.
            They are not in the folder.
    """

    task: Task
    model: DualEncoder
    tokenizer: Tokenizer
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    entities: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    ranking: Ranking = "similarity"
    prompts: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def words(self) -> BertTokenizer:
        """The tokenizer with the ids of its special tokens."""
        return BertTokenizer(self.tokenizer)

    @torch.no_grad()
    def encode_texts(self, texts: list[str], length: int = 0) -> Texts:
        """Encode texts. Their tokens stay on the model's device; for many texts use `embed_texts`.

        Args:
            length: Number of tokens to which texts are truncated; 0: as in training. A CLIP
                truncates them at its own length.
        """
        model = self.model
        limit = model.text_length(length or self.preprocessing.max_text_tokens)
        ids, mask = self.words.batch(texts, limit)
        device = next(model.parameters()).device
        mask = mask.to(device)

        tokens = torch.empty(0)
        for start in range(0, len(ids), TEXTS):
            rows = slice(start, start + TEXTS)
            encoded = model.encode_text(ids[rows].to(device), mask[rows])
            if start == 0:  # filled in place to avoid a second copy
                tokens = torch.empty(len(ids), *encoded.shape[1:], device=device)
            tokens[rows] = encoded

        with torch.autocast(device.type, enabled=False):
            features = model.project_text(tokens).float()
        return Texts(tokens, mask, features)

    def embed_texts(self, texts: list[str], length: int = 0) -> Tensor:
        """Return the features (N, E) of texts, without their tokens."""
        return torch.cat(
            [
                self.encode_texts(texts[at : at + TEXTS], length).features
                for at in range(0, len(texts), TEXTS)
            ]
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write the folder. model.safetensors has the state dict of the model."""
        folder.mkdir(parents=True, exist_ok=True)
        text = FolderConfig(
            task=self.task,
            model=self.model.config,
            preprocessing=self.preprocessing,
            ranking=self.ranking,
        ).model_dump_json(indent=1)
        (folder / "config.json").write_text(f"{text}\n")

        # safetensors refuses views of another memory layout.
        state = self.model.state_dict()
        weights = {key: value.contiguous() for key, value in state.items()}
        write_tensors(weights, folder / "model.safetensors")

        self.tokenizer.save(str(folder / "tokenizer.json"))
        for name, labels in (("entities", self.entities), ("answers", self.answers)):
            if labels:
                text = json.dumps(labels, ensure_ascii=False, indent=0)
                (folder / f"{name}.json").write_text(text + "\n")

    def normalized(self, device: torch.device) -> NormalizedModel:
        """Return the model with its frame normalization, on a device and in eval mode."""
        model = NormalizedModel(
            self.model, self.preprocessing.mean, self.preprocessing.std
        )
        return model.to(device).eval()

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: torch.device | str = "cpu"
    ) -> "ModelBundle":
        """Load a model in float32 and eval mode.

        Args:
            folder: A folder written by `save_pretrained`, the folder of a CLIP or SigLIP, or the
                artifact that has either.

        Raises:
            InputError: If a file is missing, corrupt or does not match the configuration.
        """
        folder = model_folder(folder)
        config_file = folder / "config.json"
        try:
            values = read_small_json(config_file)
            if isinstance(values, dict) and values.get("model_type") in CLIP_TYPES:
                return load_clip_model(str(folder), device, "model")
            config = FolderConfig.model_validate(values)
            entities = load_labels(folder / "entities.json")
            answers = load_labels(folder / "answers.json")
            with meta_device():
                model = build_model(
                    config.task, config.model, len(entities), len(answers)
                )
            mapped = read_weights(folder / "model.safetensors")
            # Copies are aligned, and do not change with the file, which is mapped into memory.
            weights = {
                name: value.to(device, copy=True) for name, value in mapped.items()
            }
            load_weights(model, weights, folder)

            file = folder / "tokenizer.json"
            tokenizer = read_tokenizer(file)
            check_tokens(tokenizer, config.model.text.vocab_size, file)
        except ValidationError as error:
            raise InputError(
                f"{config_file}: {first_fault(error)} (if `alpro model export` wrote this folder, load "
                "the artifact that it exported)"
            ) from error
        except ValueError as error:
            raise InputError(str(error)) from error

        return cls(
            config.task,
            model.float().eval(),
            tokenizer,
            config.preprocessing,
            entities=entities,
            answers=answers,
            ranking=config.ranking,
        )


@dataclass
class ClipBundle(ModelBundle):
    """A CLIP or SigLIP in the format of transformers."""

    model: ClipPrompter  # pyright: ignore[reportIncompatibleVariableOverride]
    tokenizer: Any  # a tokenizer of transformers

    @cached_property
    def words(self) -> ClipTokenizer:
        return ClipTokenizer(self.tokenizer)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and its normalization.

        Temporal attention is in the same file of weights. transformers ignores it, and reads a CLIP
        or SigLIP that encodes frames one by one.
        """
        temporal = self.model.temporal.state_dict(prefix=TEMPORAL)
        weights = self.model.clip.state_dict() | temporal
        self.model.clip.save_pretrained(folder, state_dict=weights)
        use_default_mode(folder / "model.safetensors")

        self.tokenizer.save_pretrained(folder)
        text = json.dumps(
            {
                "image_mean": self.preprocessing.mean,
                "image_std": self.preprocessing.std,
            }
        )
        (folder / "preprocessor_config.json").write_text(f"{text}\n")


def read_kind(folder: Path, key: str) -> str:
    """Return `task` of the config.json in a folder, or `model_type`, as of transformers. Empty if
    it has none."""
    try:
        return str(read_small_json(folder / "config.json")[key])
    except (ValueError, KeyError, TypeError):
        return ""


def is_clip(folder: Path) -> bool:
    """Return True if a folder has a CLIP or SigLIP of transformers, by its config.json."""
    return read_kind(folder, "model_type") in CLIP_TYPES


def model_folder(folder: Path) -> Path:
    """Return the folder model/ of an artifact, or the folder itself."""
    inside = folder / "model"
    return inside if inside.is_dir() else folder


def load_labels(path: Path) -> list[str]:
    """Read labels (entities or answers) of a model folder; empty if there is no such file."""
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[str]).validate_python(read_small_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: not a list of strings") from error


def load_clip_model(
    name: str,
    device: torch.device | str = "cpu",
    key: str = "prompter",
) -> ClipBundle:
    """Load a CLIP or SigLIP with its tokenizer and normalization, in float32 and eval mode.

    Args:
        name: A folder or a name on the hub.
        key: Configuration key of the name, for messages.

    Raises:
        InputError: If it is not available, not readable, or another kind of model.
    """
    config = read_model_config(key, name, CLIP_TYPES)
    folder = Path(config.name_or_path)
    try:
        from transformers import AutoTokenizer
        from transformers.image_processing_base import ImageProcessingMixin

        model = load_pretrained(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # Without its files, transformers makes a tokenizer without words.
        if len(tokenizer) < config.text_config.vocab_size / 2:
            raise ValueError(f"only {len(tokenizer)} tokens")
        check_tokens(tokenizer, config.text_config.vocab_size, folder)
        processor, _ = ImageProcessingMixin.get_image_processor_dict(folder)
        preprocessing = Preprocessing(
            mean=processor["image_mean"],
            std=processor["image_std"],
            max_text_tokens=config.text_config.max_position_embeddings,
        )
        prompter = ClipPrompter(model, ClipTokenizer(tokenizer).pad_id)
        load_temporal(prompter, folder / "model.safetensors")
    # Each library raises its own exception types for missing and damaged files.
    except Exception as error:
        raise InputError(
            f"{key} = {name!r}: not readable as a CLIP or SigLIP ({one_line(error)}); use a folder "
            "with all of its files"
        ) from error
    return ClipBundle("prompter", prompter.to(device), tokenizer, preprocessing)


def load_temporal(prompter: ClipPrompter, file: Path) -> None:
    """Load the temporal attention of a model that was trained here from its file of weights.

    Raises:
        ValueError: If the weights do not fit the model.
    """
    temporal = select_prefix(read_weights(file), TEMPORAL) if file.is_file() else {}
    if temporal:
        prompter.add_temporal(len(temporal["0.time_embed"]))
        load_weights(prompter.temporal, temporal, "temporal attention")
        # The new modules would be trainable, but this is a frozen teacher.
        prompter.requires_grad_(False)


# Keys that two models may differ in: of embeddings that are resized, and of training alone.
FREE_KEYS = {"video": {"frames", "image_size", "drop_path"}, "text": {"dropout"}}


def start_from(
    model: DualEncoder, other: DualEncoder, excluded: tuple[str, ...] = ()
) -> None:
    """Copy the weights that `model` and `other` share by name.

    The time embedding is resized to the model's number of frames (nearest neighbor, as in
    TimeSformer) and the position embedding to its image size (bicubic). Heads of another shape are
    not copied.

    Args:
        excluded: Prefixes of weights that are not copied.

    Raises:
        ValueError: If another setting of the encoders differs.
    """
    for section, keys in FREE_KEYS.items():
        theirs = getattr(other.config, section).model_dump(exclude=keys)
        check_values(f"model.{section}", getattr(model.config, section), theirs)
    check_values("model", model.config, {"embed_dim": other.config.embed_dim})

    expected = model.state_dict()
    weights = dict(other.state_dict())
    video = model.config.video
    weights["video_encoder.time_embed"] = resize_times(
        weights["video_encoder.time_embed"], video.frames
    )
    weights["video_encoder.pos_embed"] = resize_positions(
        weights["video_encoder.pos_embed"], video.grid
    )

    shared = {
        key: value
        for key, value in weights.items()
        if not key.startswith(excluded)
        and key in expected
        and value.shape == expected[key].shape
    }
    model.load_state_dict(shared, strict=False)
