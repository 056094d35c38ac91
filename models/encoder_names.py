"""The sizes of pre-trained encoders, from the names of timm's ViTs and from the configuration of a BERT in a folder.

Nothing is downloaded, and neither timm nor transformers is imported.
"""

import json
import re
from pathlib import Path
from typing import Any

from alpro.errors import InputError

# Width, depth and heads by the word in timm's names.
VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# The words in a name that say how its pixels were normalized; the paper's ViT is used with CLIP's constants.
NORMALIZATIONS = {"clip": "clip", "eva": "clip", "siglip": "half", "dinov2": "imagenet", "dino": "imagenet"}
NORMALIZATIONS |= {"mae": "imagenet"}
VIT_NAME = re.compile(r"(?:vit|eva)_(?P<size>tiny|small|base|large)_patch(?P<patch>\d+)(?P<rest>[\w.]*)")
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
    """The keys of `[model.video]` that timm's name of a ViT determines; empty for a file or an unknown name.

    >>> sorted(video_sizes("vit_base_patch14_dinov2.lvd142m"))
    ['activation', 'depth', 'heads', 'mlp_ratio', 'patch_size', 'pre_norm', 'stem', 'width']
    >>> video_sizes("vit_small_patch16_224.dino")["width"], video_sizes("vit_base_patch32_clip_224.openai")["pre_norm"]
    (384, True)
    """
    match = VIT_NAME.fullmatch(vit)
    if match is None:
        return {}
    width, depth, heads = VIT_SIZES[match["size"]]
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": 4.0}
    sizes |= {"patch_size": int(match["patch"]), "stem": "patch"}
    words = words_of(match["rest"])
    return sizes | {"pre_norm": "clip" in words, "activation": "quick_gelu" if "quickgelu" in words else "gelu"}


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
