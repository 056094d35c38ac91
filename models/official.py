"""Conversion of state dicts of the official ALPRO code to those of this project.

Official checkpoints store the text and multimodal encoders as one 12-layer BERT (`text_encoder.bert.*`, for question
answering `text_encoder.*`) and contain unused tensors. Keys map one to one except in attention: the official text
layers have separate query, key and value matrices; this project concatenates them in that order.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from alpro.models.alpro import ModelConfig
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig, grid_side

StateDict = dict[str, Tensor]
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")

# Unused keys of official checkpoints: the classifier of the video encoder, position ids, and the MLM decoder with its
# bias (tied to the word embeddings and to predictions.bias).
UNUSED = (r"visual_encoder\.model\.head\.", r"\.position_ids$", r"cls\.predictions\.decoder\.")

# Our prefix and the official one, longer prefixes first; BERT keys without `bert.`.
_PREFIXES = (
    ("temperature", "temp"),
    ("video_encoder.patch_embed.", "visual_encoder.model.patch_embed.proj."),
    ("video_encoder.", "visual_encoder.model."),
    ("video_proj.", "vision_proj."),
    ("text_proj.", "text_proj."),
    ("vtm_head.", "itm_head."),
    ("pem_head.", "mpm_head."),
    ("qa_head.", "classifier."),
    ("mlm_head.bias", "text_encoder.cls.predictions.bias"),
    ("mlm_head.dense.", "text_encoder.cls.predictions.transform.dense."),
    ("mlm_head.norm.", "text_encoder.cls.predictions.transform.LayerNorm."),
    ("text_encoder.embeddings.word_embeddings.", "text_encoder.embeddings.word_embeddings."),
    ("text_encoder.embeddings.position_embeddings.", "text_encoder.embeddings.position_embeddings."),
    ("text_encoder.embeddings.token_type_embeddings.", "text_encoder.embeddings.token_type_embeddings."),
    ("text_encoder.embeddings.norm.", "text_encoder.embeddings.LayerNorm."),
)
_LAYER = re.compile(r"^text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_IN_LAYER = {
    "attention.output.dense": "attention.proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}
_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")


def from_official(state: StateDict, config: ModelConfig) -> tuple[StateDict, list[str], list[str]]:
    """Converts an official state dict of one model (without the `prompter.` prefix) to this project's keys.

    Returns the weights, the known but unused keys, and the unknown keys.
    """
    weights: StateDict = {}
    unused, unknown = [], []
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in UNUSED):
            unused.append(key)
        elif match := _LAYER.match(key):
            number, name, kind = int(match[1]), match[2], match[3]
            place = layer_name(number, config.text.fusion_layer)
            if name in _QKV:
                parts.setdefault(f"{place}.attention.qkv.{kind}", {})[_QKV.index(name)] = value
            elif name in _IN_LAYER:
                weights[f"{place}.{_IN_LAYER[name]}.{kind}"] = value
            else:
                unknown.append(key)
        elif renamed := _rename(key):
            weights[renamed] = value
        else:
            unknown.append(key)
    for name, three in parts.items():
        if len({part.shape for part in three.values()}) == 1 and len(three) == 3:
            weights[name] = torch.cat([three[i] for i in range(3)])
        else:
            unknown.append(name)
    return weights, unused, unknown


def layer_name(number: int, fusion_layer: int) -> str:
    """Our name of BERT layer `number`: text encoder below `fusion_layer`, multimodal encoder from it on."""
    if number < fusion_layer:
        return f"text_encoder.layers.{number}"
    return f"multimodal_encoder.layers.{number - fusion_layer}"


def _rename(key: str) -> str:
    key = key.replace("text_encoder.bert.", "text_encoder.", 1)
    for ours, theirs in _PREFIXES:
        if key == theirs or (key.startswith(theirs) and theirs.endswith(".")):
            return ours + key.removeprefix(theirs)
    return ""


def read_checkpoint(path: Path) -> StateDict:
    """Reads the state dict in a .pt, .pth, .bin or .safetensors file, without training state and `module.` prefixes.

    Unpickles tensors and plain values only. Raises ValueError with a one-line message if the file contains code, is not
    readable, or has no weights.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, or not a regular file")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)):? ?([\w.]+)", str(error))
        raise ValueError(
            f"{path}: refused: this file is not a plain checkpoint, it contains code{f' ({name[1]})' if name else ''}; "
            "ask its author for the state dict only"
        ) from error
    except Exception as error:  # a truncated zip file, a text file: torch raises many types
        raise ValueError(f"{path}: not readable as a checkpoint: {first_line(error)}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    weights = {str(k).removeprefix("module."): v for k, v in content.items()} if isinstance(content, dict) else {}
    weights = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    if not weights:
        raise ValueError(f"{path}: contains no weights")
    return weights


def first_line(error: Exception) -> str:
    """The first non-empty line of an error message, at most 200 characters; the type if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def split_prompter(state: StateDict) -> tuple[StateDict, StateDict]:
    """Splits a pre-training checkpoint into the weights of the model and those of its prompter (possibly empty)."""
    prompter = {k.removeprefix("prompter."): v for k, v in state.items() if k.startswith("prompter.")}
    return {k: v for k, v in state.items() if not k.startswith("prompter.")}, prompter


def sizes(state: StateDict) -> ModelConfig:
    """Infers the model configuration from the shapes of official weights. Raises ValueError if they are not ALPRO's.

    Shapes do not determine the number of attention heads: it is one per 64 channels, as in ViT and BERT.
    """

    def shape(pattern: str, axes: int) -> tuple[int, ...]:
        for key, value in state.items():
            if re.fullmatch(pattern, key):
                if value.dim() != axes or 0 in value.shape:
                    raise ValueError(f"{key} is {tuple(value.shape)}, which is not its shape in ALPRO")
                return tuple(value.shape)
        plain = pattern.replace("\\", "").replace("(bert.)?", "bert.")
        raise ValueError(f"no {plain}: these are not the weights of ALPRO's official code")

    def layers(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    visual, text = r"visual_encoder\.model\.", r"text_encoder\.(bert\.)?"
    width, _, patch, _ = shape(visual + r"patch_embed\.proj\.weight", 4)
    grid, frames = grid_side(shape(visual + "pos_embed", 3)[1]), shape(visual + "time_embed", 3)[1]
    words, positions = (shape(text + rf"embeddings\.{name}_embeddings\.weight", 2)[0] for name in ("word", "position"))
    depth = layers(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.")
    heads = max(1, width // 64)
    blocks = layers(r"visual_encoder\.model\.blocks\.(\d+)\.")
    video_mlp = shape(visual + r"blocks\.0\.mlp\.fc1\.weight", 2)[0]
    text_mlp = shape(text + r"encoder\.layer\.0\.intermediate\.dense\.weight", 2)[0]
    try:
        return ModelConfig(
            video=VideoConfig(
                image_size=grid * patch,
                patch_size=patch,
                frames=frames,
                width=width,
                depth=blocks,
                heads=heads,
                mlp_ratio=video_mlp / width,
            ),
            text=TextConfig(
                vocab_size=words,
                width=width,
                depth=depth,
                fusion_layer=depth // 2,
                heads=heads,
                mlp_ratio=text_mlp / width,
                max_length=positions,
            ),
            embed_dim=shape(r"vision_proj\.weight", 2)[0],
        )
    except ValidationError as error:
        first = error.errors()[0]
        detail = ": ".join([error.title, *map(str, first["loc"]), first["msg"]])
        raise ValueError(f"these are not the sizes of an ALPRO model: {detail}") from error
