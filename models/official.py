"""Weights of the official ALPRO code under this project's names.

The official checkpoints keep text and multimodal encoder in one 12-layer BERT (`text_encoder.bert.*`, for question
answering `text_encoder.*`), and hold tensors that nothing reads. Names here map one to one, but for attention: the
official text layers have three matrices where this project has one (queries, keys, values in that order).
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
from alpro.models.folder import grid_side
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig

Weights = dict[str, Tensor]
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")

# Held by official checkpoints and read by nothing: class scores of the video encoder, position numbers, the decoder
# and its bias (tied to the word embeddings and to predictions.bias).
UNREAD = (r"visual_encoder\.model\.head\.", r"\.position_ids$", r"cls\.predictions\.decoder\.")

# Ours and theirs, the longer first; BERT is written as if it lay in text_encoder itself.
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


def from_official(state: Weights, config: ModelConfig) -> tuple[Weights, list[str], list[str]]:
    """Official weights of one model (without a prompter's prefix) under this project's names.

    Returns the weights, the keys that are known and read by nothing, and the keys that are unknown.
    """
    weights: Weights = {}
    unused, unknown = [], []
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in UNREAD):
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
    """Where layer `number` of the one BERT is: in the text encoder, or behind the cut in the multimodal encoder."""
    if number < fusion_layer:
        return f"text_encoder.layers.{number}"
    return f"multimodal_encoder.layers.{number - fusion_layer}"


def _rename(key: str) -> str:
    key = key.replace("text_encoder.bert.", "text_encoder.", 1)
    for ours, theirs in _PREFIXES:
        if key == theirs or (key.startswith(theirs) and theirs.endswith(".")):
            return ours + key.removeprefix(theirs)
    return ""


def to_official(weights: Weights, config: ModelConfig, bert: str = "text_encoder.bert.") -> Weights:
    """The way back: this project's weights under the official names, BERT's below `bert` (for question answering
    "text_encoder."). Without what nothing reads."""
    state: Weights = {}
    for key, value in weights.items():
        match = re.match(r"(text|multimodal)_encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", key)
        if match is None:
            ours, theirs = next((o, t) for o, t in _PREFIXES if key.startswith(o))
            named = theirs + key.removeprefix(ours)
            state[named.replace("text_encoder.embeddings.", f"{bert}embeddings.")] = value
            continue
        number = int(match[2]) + (config.text.fusion_layer if match[1] == "multimodal" else 0)
        place = f"{bert}encoder.layer.{number}"
        if match[3] == "attention.qkv":
            for name, part in zip(_QKV, value.chunk(3), strict=True):
                state[f"{place}.{name}.{match[4]}"] = part
        else:
            name = next(theirs for theirs, ours in _IN_LAYER.items() if ours == match[3])
            state[f"{place}.{name}.{match[4]}"] = value
    return state


def read_checkpoint(path: Path) -> Weights:
    """The tensors of a .pt, .pth, .bin or .safetensors file, out of whatever wraps them (optimiser, `module.`).

    Nothing but tensors and plain values is ever unpickled. Raises ValueError, on one line, for a file that carries
    code, cannot be read, or has no weights.
    """
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)):? ?([\w.]+)", str(error))
        raise ValueError(
            f"{path}: refused: it is no plain checkpoint, but carries code{f' ({what[1]})' if what else ''}; "
            "ask whoever made it for the state dict alone"
        ) from error
    except Exception as error:  # a cut zip, a text file: torch raises many kinds
        raise ValueError(f"{path}: not readable as a checkpoint: {first_line(error)}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    weights = {str(k).removeprefix("module."): v for k, v in found.items()} if isinstance(found, dict) else {}
    weights = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    if not weights:
        raise ValueError(f"{path}: no weights in it")
    return weights


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def split_prompter(state: Weights) -> tuple[Weights, Weights]:
    """The weights of a pre-training checkpoint's model, and those of the prompter that it carries (maybe none)."""
    prompter = {k.removeprefix("prompter."): v for k, v in state.items() if k.startswith("prompter.")}
    return {k: v for k, v in state.items() if not k.startswith("prompter.")}, prompter


def sizes(state: Weights) -> ModelConfig:
    """The configuration that official weights have the shapes of. Raises ValueError where they are not ALPRO's.

    No shape tells the attention heads: there is one for every 64 channels, as in ViT and BERT.
    """

    def shape(pattern: str, axes: int) -> tuple[int, ...]:
        for key, value in state.items():
            if re.fullmatch(pattern, key):
                if value.dim() != axes or 0 in value.shape:
                    raise ValueError(f"{key} is {tuple(value.shape)}, which is no shape that it has in ALPRO")
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
        what = ": ".join([error.title, *map(str, first["loc"]), first["msg"]])
        raise ValueError(f"no sizes of ALPRO: {what}") from error
