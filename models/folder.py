"""A model as a folder, the Hugging Face way: config.json, model.safetensors, tokenizer.json and its word lists."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter


class Preprocessing(BaseModel):
    """How frames become the encoder's input: scaled to [0, 1], then normalized with these, per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    max_text_tokens: int = 30


class FolderConfig(BaseModel):
    """config.json of a model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: Literal["alpro"] = "alpro"
    task: Literal["prompter", "pretrain", "retrieval", "qa"]
    model: ModelConfig
    preprocessing: Preprocessing = Preprocessing()


@dataclass
class ModelFolder:
    """A model with everything that is needed to use it."""

    task: Literal["prompter", "pretrain", "retrieval", "qa"]
    model: DualEncoder
    tokenizer: Tokenizer
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    entities: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the folder. model.safetensors holds every weight of the model and nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        config = FolderConfig(task=self.task, model=self.model.config, preprocessing=self.preprocessing)
        (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / "model.safetensors")
        self.tokenizer.save(str(folder / "tokenizer.json"))
        for name, words in (("entities", self.entities), ("answers", self.answers)):
            if words:
                (folder / f"{name}.json").write_text(json.dumps(words, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu") -> "ModelFolder":
        """Reads what `save_pretrained` wrote. Raises ValueError, on one line, for what is missing or does not fit."""
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: {name} is missing; this is not a model folder")
        try:
            config = FolderConfig.model_validate_json((folder / "config.json").read_text())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{folder}/config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder}/model.safetensors: not readable: {error}") from error
        entities, answers = (read_words(folder / f"{name}.json") for name in ("entities", "answers"))
        model: DualEncoder
        if config.task == "prompter":
            model = Prompter(config.model)
        else:
            model = Alpro(config.model, len(entities), len(answers))
        check_weights(weights, model, folder)
        model.load_state_dict(weights)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ValueError(f"{folder}/tokenizer.json: not readable: {error}") from error
        return cls(config.task, model.to(device).eval(), tokenizer, config.preprocessing, entities, answers)


def read_task(folder: Path) -> str:
    """What the model of a folder is for. Raises ValueError where the folder is none."""
    try:
        return str(json.loads((folder / "config.json").read_text())["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no readable config.json; this is not a model folder") from error


def read_words(path: Path) -> list[str]:
    """A list of words that a model folder may have; empty where it has none."""
    if not path.is_file():
        return []
    try:
        words = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: not a list of words")
    return words


def check_weights(weights: dict[str, torch.Tensor], model: torch.nn.Module, where: Any) -> None:
    """Raises ValueError where weights are missing, unknown or of another shape than the model's."""
    own = model.state_dict()
    wrong = [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own.keys() & weights.keys()
        if weights[k].shape != own[k].shape
    ]
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    for what, keys in (
        ("weights of another shape", sorted(wrong)),
        ("missing weights", missing),
        ("unknown weights", unknown),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"{where}: {what}: {', '.join(keys[:3])}{more}")


M = TypeVar("M", bound=DualEncoder)


def start_from(model: M, other: DualEncoder) -> tuple[M, list[str]]:
    """Copies into `model` every weight that `other` has under the same name; returns what stayed as it was.

    A time embedding for another number of frames is resized to it (nearest neighbour, as in TimeSformer), a
    position embedding for another image size likewise (bicubic). Raises ValueError where a shape differs otherwise.
    """
    weights = dict(other.state_dict())
    own = model.state_dict()
    for key in ("video_encoder.time_embed", "video_encoder.pos_embed"):
        weights[key] = resize_embedding(key, weights[key], own[key])
    heads = {
        k
        for k in weights
        if k.startswith(("pem_head", "qa_head", "mlm_head")) and (k not in own or own[k].shape != weights[k].shape)
    }
    shared = {k: v for k, v in weights.items() if k in own and k not in heads}
    wrong = [
        f"{k} is {tuple(v.shape)}, not {tuple(own[k].shape)}" for k, v in shared.items() if v.shape != own[k].shape
    ]
    if wrong:
        raise ValueError(f"weights of another shape: {', '.join(sorted(wrong)[:3])}; use the same [model] sizes")
    model.load_state_dict(shared, strict=False)
    return model, sorted(own.keys() - shared.keys())


def set_frames(model: DualEncoder, frames: int) -> None:
    """Makes a model take another number of frames: the time embedding is resized to it (nearest neighbour)."""
    encoder = model.video_encoder
    if frames == encoder.config.frames:
        return
    given = encoder.time_embed.data
    wanted = given.new_empty(1, frames, given.shape[2])
    encoder.time_embed = torch.nn.Parameter(resize_embedding("time_embed", given, wanted))
    encoder.config = encoder.config.model_copy(update={"frames": frames})
    model.config = model.config.model_copy(update={"video": encoder.config})


def resize_embedding(key: str, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A time embedding (1, T, D) or position embedding (1, 1 + N, D) at the length of `wanted`.

    One that differs in more than its length stays as it is, for the caller to refuse. Raises ValueError for a position
    embedding that is not [CLS] and a square grid, as of a distilled ViT or of one without [CLS].
    """
    if given.dim() != 3 or given.shape[::2] != wanted.shape[::2] or given.shape[1] in (0, wanted.shape[1]):
        return given
    if key.endswith("time_embed"):
        return torch.nn.functional.interpolate(given.transpose(1, 2), size=wanted.shape[1], mode="nearest").transpose(
            1, 2
        )
    old, new = grid_side(given.shape[1], key), grid_side(wanted.shape[1], key)
    patches = given[:, 1:].transpose(1, 2).reshape(1, -1, old, old)
    patches = torch.nn.functional.interpolate(patches, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([given[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def grid_side(positions: int, key: str = "pos_embed") -> int:
    """The side of the square grid of a position embedding, whose first position is [CLS]. Raises ValueError."""
    side = math.isqrt(max(0, positions - 1))
    if not side or side**2 != positions - 1:
        raise ValueError(f"{key} has {positions} positions, which are not [CLS] and a square grid")
    return side
