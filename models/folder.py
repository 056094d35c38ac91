"""A model folder in the style of Hugging Face: config.json, model.safetensors, tokenizer.json and
label lists."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alpro.errors import one_line
from alpro.files import os_errors, read_small_json, use_default_mode
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.frames import NormalizedModel
from alpro.models.timesformer import resize_embedding
from alpro.models.word_pieces import read_tokenizer

Ranking = Literal["similarity", "matching"]


class Preprocessing(BaseModel):
    """Input preprocessing: per-channel mean and std of pixels in [0, 1], and the maximum text
    length in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.26862954, 0.26130258, 0.27577711)
    max_text_tokens: int = Field(default=30, ge=2)


class FolderConfig(BaseModel):
    """config.json of a model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: Literal["alpro"] = "alpro"
    task: Literal["prompter", "pretrain", "retrieval", "qa"]
    model: ModelConfig
    preprocessing: Preprocessing = Preprocessing()
    ranking: Ranking = "similarity"


def write_tensors(
    tensors: dict[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a safetensors file. Raises OSError if it cannot, for example if the disk is full."""
    with os_errors(path):
        save_file(tensors, path, metadata)
        use_default_mode(path)


@dataclass
class ModelBundle:
    """A model with its tokenizer, preprocessing and labels, and by which of its scores it ranks
    clips better."""

    task: Literal["prompter", "pretrain", "retrieval", "qa"]
    model: DualEncoder
    tokenizer: Tokenizer
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    entities: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    ranking: Ranking = "similarity"

    def save_pretrained(self, folder: Path) -> None:
        """Writes the folder. model.safetensors holds the model's state dict."""
        folder.mkdir(parents=True, exist_ok=True)
        config = FolderConfig(
            task=self.task,
            model=self.model.config,
            preprocessing=self.preprocessing,
            ranking=self.ranking,
        )
        (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")

        # safetensors refuses tensors that are views in another order.
        state = self.model.state_dict()
        weights = {key: value.contiguous() for key, value in state.items()}
        write_tensors(weights, folder / "model.safetensors")

        self.tokenizer.save(str(folder / "tokenizer.json"))
        for name, labels in (("entities", self.entities), ("answers", self.answers)):
            if labels:
                text = json.dumps(labels, ensure_ascii=False, indent=0)
                (folder / f"{name}.json").write_text(text + "\n")

    def normalized(self, device: torch.device) -> NormalizedModel:
        """The model with its frame normalization, on `device` and in eval mode."""
        model = NormalizedModel(self.model, self.preprocessing.mean, self.preprocessing.std)
        return model.to(device).eval()

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu") -> "ModelBundle":
        """Loads a folder written by `save_pretrained`. Raises ValueError with a one-line message if
        a file is missing, corrupt or does not match the configuration.

        The folder is untrusted: the sizes of the configuration are compared with the shapes in the
        header of the weights before memory is taken for either.
        """
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: {name} is missing; this is not a model folder")

        try:
            config = FolderConfig.model_validate(read_small_json(folder / "config.json"))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(name) for name in first["loc"])
            raise ValueError(f"{folder}/config.json: {key}: {first['msg']}") from error

        entities = load_labels(folder / "entities.json")
        answers = load_labels(folder / "answers.json")

        def build() -> DualEncoder:
            if config.task == "prompter":
                return Prompter(config.model)
            return Alpro(config.model, entities=len(entities), answers=len(answers))

        # The header first: a model of the sizes in config.json may not fit the memory.
        try:
            header = shapes(folder / "model.safetensors")
            check_sizes(config.model, header, build, folder)
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise ValueError(f"{folder}/model.safetensors: not readable: {error}") from error

        model = build().to(device).eval()
        check_weights(weights, model, folder)
        model.load_state_dict(weights)

        tokenizer = read_tokenizer(folder / "tokenizer.json")
        # An id without an embedding is a failed assertion on a GPU, which ends the process.
        last_id = max(tokenizer.get_vocab().values(), default=0)
        embeddings = config.model.text.vocab_size
        if last_id >= embeddings:
            raise ValueError(
                f"{folder}/tokenizer.json: token {last_id}, but {embeddings} embeddings"
            )
        return cls(
            task=config.task,
            model=model,
            tokenizer=tokenizer,
            preprocessing=config.preprocessing,
            entities=entities,
            answers=answers,
            ranking=config.ranking,
        )


def read_task(folder: Path) -> str:
    """The task of the model in a folder. Raises ValueError if it is not a model folder."""
    try:
        return str(read_small_json(folder / "config.json")["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: no readable config.json; this is not a model folder"
        ) from error


def load_labels(path: Path) -> list[str]:
    """The labels (entities or answers) in a JSON file of a model folder; empty if there is no such
    file."""
    if not path.exists():
        return []
    labels = read_small_json(path)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: not a list of strings")
    return labels


def shapes(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a safetensors file as tensors without contents. Raises SafetensorError, and
    ValueError if one is not of a floating-point type."""
    with safe_open(file, framework="pt") as weights:
        header = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118

    tensors = {}
    for name, entry in header.items():
        dtype = entry.get_dtype()
        # `load_state_dict` would convert integers without a word.
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{file}: {name} is {dtype}, not of a floating-point type")
        tensors[name] = torch.empty(entry.get_shape(), device="meta")
    return tensors


class Uninitialized(TorchFunctionMode):
    """Leaves out the random weights of embeddings: on the meta device, they import the compiler (3
    s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def check_sizes(
    config: ModelConfig,
    header: dict[str, torch.Tensor],
    build: Callable[[], DualEncoder],
    where: Path,
) -> None:
    """Raises ValueError if the weights of a file are not those of the model that `build` makes,
    without its memory."""
    # Each layer takes time to build, even without memory for its weights.
    depth = max(config.video.depth, config.text.depth)
    if depth > len(header):
        raise ValueError(
            f"{where}: config.json has {depth} layers, but model.safetensors only {len(header)} "
            "weights"
        )

    try:
        with torch.device("meta"), Uninitialized():
            model = build()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        raise ValueError(
            f"{where}/config.json: a model of these sizes cannot be built: {one_line(error)}"
        ) from error
    check_shapes(header, model, where)


def check_weights(weights: dict[str, torch.Tensor], model: torch.nn.Module, where: Any) -> None:
    """Raises ValueError if weights are missing, unexpected, of another shape than the model's, or
    not finite."""
    check_shapes(weights, model, where)
    check_finite(weights, where)


def check_finite(weights: Mapping[str, torch.Tensor], where: Any) -> None:
    """Raises ValueError if a weight is not a finite number."""
    for key, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{where}: {key} has weights that are not finite numbers; delete it, or train it "
                "again"
            )


def check_shapes(weights: dict[str, torch.Tensor], model: torch.nn.Module, where: Any) -> None:
    """Raises ValueError if weights are missing, unexpected or of another shape than the model's."""
    expected = model.state_dict()
    faults = {
        "of another shape": other_shapes(weights, expected),
        "missing": sorted(expected.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - expected.keys()),
    }
    for fault, keys in faults.items():
        if keys:
            shown = ", ".join(keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"{where}: weights {fault}: {shown}{more}")


def other_shapes(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """The names that both have with different shapes, sorted, each with its two shapes."""
    differences = []
    for key in sorted(expected.keys() & weights.keys()):
        actual_shape = tuple(weights[key].shape)
        expected_shape = tuple(expected[key].shape)
        if actual_shape != expected_shape:
            differences.append(f"{key} is {actual_shape}, not {expected_shape}")
    return differences


# Settings that change what a model computes, but not the shapes of the weights that two models
# share.
SETTINGS_NOT_IN_SHAPES = {
    "video": ("depth", "heads", "pre_norm", "activation"),
    "text": ("depth", "fusion_layer", "heads"),
}


def check_values(source: str, config: BaseModel, values: dict[str, Any]) -> None:
    """Raises ValueError if a configuration has another value of a key that no shape of the weights
    may show."""
    for key, value in values.items():
        configured = getattr(config, key)
        if configured != value:
            raise ValueError(f"{source}.{key} is {configured}; set it to {value}")


def start_from(model: DualEncoder, other: DualEncoder, but: tuple[str, ...] = ()) -> None:
    """Copies the weights that `model` and `other` share by name.

    The time embedding is resized to the model's number of frames (nearest neighbour, as in
    TimeSformer) and the position embedding to its image size (bicubic). Heads of another shape, and
    those in `but`, are not copied. Raises ValueError if any other shape differs, or a setting that
    no shape shows.
    """
    for section, keys in SETTINGS_NOT_IN_SHAPES.items():
        ours = getattr(model.config, section)
        theirs = getattr(other.config, section)
        values = {key: getattr(theirs, key) for key in keys}
        check_values(f"model.{section}", ours, values)

    expected = model.state_dict()
    weights = dict(other.state_dict())
    for key in ("video_encoder.time_embed", "video_encoder.pos_embed"):
        weights[key] = resize_embedding(key, weights[key], expected[key])

    shared = {}
    for key, value in weights.items():
        if key in expected and not key.startswith(but):
            shared[key] = value

    heads = ("pem_head", "qa_head", "mlm_head")
    wrong = [line for line in other_shapes(shared, expected) if not line.startswith(heads)]
    if wrong:
        shown = ", ".join(wrong[:3])
        raise ValueError(f"weights of another shape: {shown}; use the same [model] sizes")

    fitting = {}
    for key, value in shared.items():
        if value.shape == expected[key].shape:
            fitting[key] = value
    model.load_state_dict(fitting, strict=False)
