"""The sizes of pre-trained encoders, from the names of timm's ViTs and from the configuration of a CLIP or a BERT in a
folder.

Nothing is downloaded, and neither timm nor transformers is imported.
"""

import json
import re
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.files import read_small_json

# Width, depth and heads by the word in timm's names.
VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# The words in a name that say how its pixels were normalized; the paper's ViT is used with CLIP's constants.
NORMALIZATIONS = {"clip": "clip", "eva": "clip", "siglip": "half", "dinov2": "imagenet", "dino": "imagenet"}
NORMALIZATIONS |= {"mae": "imagenet"}
VIT_NAME = re.compile(r"(?:vit|eva)_(?P<size>tiny|small|base|large)_patch(?P<patch>\d+)(?P<rest>[\w.]*)")
ROTARY = {"dinov3", "eva02", "pe", "rope"}  # words in timm's names of ViTs with rotary positions
ROTARY_POSITIONS = "it has rotary positions, and the video encoder learned ones; name another ViT"
OPENAI_CLIP = re.compile(r"openai/clip-vit-(?P<size>base|large)-patch(?P<patch>\d+)(?:-336)?")
# The keys of the vision tower of a CLIP of transformers, whose config.json leaves out those that have these values.
CLIP_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
CLIP_TOWER |= {"patch_size": 32, "hidden_act": "quick_gelu"}
# Google's BERTs of many sizes, such as google/bert_uncased_L-4_H-512_A-8.
SMALL_BERT = re.compile(r"google/bert_uncased_L-(?P<depth>\d+)_H-(?P<width>\d+)_A-(?P<heads>\d+)")
# Width, depth, heads and positions of BERTs on the hub.
BERTS = {
    "bert-base-uncased": (768, 12, 12, 512),
    "bert-base-cased": (768, 12, 12, 512),
    "bert-base-multilingual-cased": (768, 12, 12, 512),
    "bert-large-uncased": (1024, 24, 16, 512),
    "bert-large-cased": (1024, 24, 16, 512),
    "microsoft/MiniLM-L12-H384-uncased": (384, 12, 12, 512),
}


def video_sizes(vit: str) -> dict[str, Any]:
    """The keys of `[model.video]` that timm's name of a ViT determines, or a CLIP of transformers in a folder or of
    OpenAI on the hub; empty for a file or an unknown name. Raises InputError for a ViT with rotary positions, and for
    another model of transformers.

    >>> sorted(video_sizes("vit_base_patch14_dinov2.lvd142m"))
    ['activation', 'depth', 'heads', 'mlp_ratio', 'patch_size', 'pre_norm', 'stem', 'width']
    >>> video_sizes("vit_small_patch16_224.dino")["width"], video_sizes("vit_base_patch32_clip_224.openai")["pre_norm"]
    (384, True)
    """
    if match := OPENAI_CLIP.fullmatch(vit):
        width, depth, heads = VIT_SIZES[match["size"]]
        named = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        return tower_sizes(named | {"intermediate_size": 4 * width, "patch_size": int(match["patch"])})
    if vit and (Path(vit) / "config.json").is_file():
        try:
            config = read_small_json(Path(vit) / "config.json")
            check_tower(vit, config["model_type"])
            return tower_sizes(config["vision_config"])
        except (ValueError, KeyError, TypeError):
            return {}  # loading the weights reports what is wrong
    if vit.startswith(("vit_", "eva02_")) and ROTARY & {*words_of(vit)}:
        raise InputError(f"vit = {vit!r}: {ROTARY_POSITIONS}")
    match = VIT_NAME.fullmatch(vit)
    if match is None:
        return {}
    width, depth, heads = VIT_SIZES[match["size"]]
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": 4.0}
    sizes |= {"patch_size": int(match["patch"]), "stem": "patch"}
    words = words_of(match["rest"])
    return sizes | {"pre_norm": "clip" in words, "activation": "quick_gelu" if "quickgelu" in words else "gelu"}


def tower_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of `[model.video]` of the vision tower of a CLIP of transformers. config: its `vision_config`."""
    values = CLIP_TOWER | config
    width = values["hidden_size"]
    sizes = {"width": width, "depth": values["num_hidden_layers"], "heads": values["num_attention_heads"]}
    sizes |= {"mlp_ratio": values["intermediate_size"] / width, "patch_size": values["patch_size"], "stem": "patch"}
    return sizes | {"pre_norm": True, "activation": values["hidden_act"]}


def check_tower(vit: str, model_type: str) -> None:
    """Raises InputError if the video encoder cannot start exactly as the vision tower of a model of transformers."""
    if model_type == "siglip":
        raise InputError(
            f"vit = {vit!r}: a SigLIP has no [CLS] token, from which the video encoder takes its embedding"
        )
    if model_type != "clip":
        raise InputError(f"vit = {vit!r}: this is a {model_type}; of transformers only a CLIP is supported")


def normalization_of(vit: str) -> str:
    """The `normalization` of a ViT by timm's name, or an empty string."""
    match = VIT_NAME.fullmatch(vit)
    names = [name for word in words_of(vit) if (name := NORMALIZATIONS.get(word))] if match else []
    return names[0] if names else ""


def words_of(name: str) -> list[str]:
    return re.split(r"[_.]", name)


def text_sizes(bert: str) -> dict[str, Any]:
    """The keys of `[model.text]` that a BERT determines: one of BERTS or SMALL_BERT, or a folder with its config.json;
    else empty. Raises InputError if the model in the folder is not a BERT.

    >>> text_sizes("google/bert_uncased_L-4_H-768_A-12")
    {'width': 768, 'depth': 4, 'heads': 12, 'mlp_ratio': 4.0, 'max_length': 512}
    """
    known = BERTS.get(bert.removeprefix("google-bert/"))
    if match := SMALL_BERT.fullmatch(bert):
        known = int(match["width"]), int(match["depth"]), int(match["heads"]), 512
    if known:
        width, depth, heads, length = known
        return {"width": width, "depth": depth, "heads": heads, "mlp_ratio": 4.0, "max_length": length}
    try:
        config = json.loads((Path(bert) / "config.json").read_text())
        check_type(bert, config.get("model_type", "bert"))
        width = config["hidden_size"]
        return {
            "width": width,
            "depth": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "mlp_ratio": config["intermediate_size"] / width,
            "max_length": config["max_position_embeddings"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # loading the weights reports what is wrong


def check_type(bert: str, model_type: str) -> None:
    """Raises InputError if a model of transformers is not a BERT: others have other tokens, positions or layers."""
    if model_type != "bert":
        raise InputError(f"bert = {bert!r}: this is a {model_type}; only models of the type bert are supported")
