"""Initialization from pre-trained weights: a ViT of timm or a CLIP's, and a BERT (paper, section
4.1)."""

import re
from pathlib import Path
from typing import Any

import torch

from alpro.errors import InputError, one_line
from alpro.files import read_small_json
from alpro.models.alpro import Prompter
from alpro.models.clip_prompter import DOWNLOAD, load_clip, load_pretrained, pretrained_config
from alpro.models.folder import check_finite, check_values, other_shapes
from alpro.models.official import (
    WEIGHT_FILES,
    StateDict,
    from_official,
    read_checkpoint,
)
from alpro.models.text import TextConfig
from alpro.models.timesformer import CLIP_EPS, VideoConfig, resize_embedding

# The names of the vision tower's weights in transformers, and in timm.
CLIP_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed"),
    ("pre_layrnorm", "pre_norm"),
    ("post_layernorm", "norm"),
    ("encoder.layers", "blocks"),
    ("layer_norm", "norm"),
    ("self_attn.out_proj", "attn.proj"),
    ("self_attn", "attn"),
)
# The vision tower's keys in transformers, whose config.json leaves out those that have these
# values.
CLIP_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}


def read_config(name: str) -> dict[str, Any]:
    """The config.json of a model of transformers in a folder; empty if it is missing or not
    readable: loading the weights reports the reason."""
    if not name:
        return {}
    try:
        config = read_small_json(Path(name) / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def video_sizes(vit: str) -> dict[str, Any]:
    """The keys of `[model.video]` of a CLIP of transformers in a folder; empty if `vit` is anything
    else. Raises InputError for a folder with another model of transformers."""
    config = read_config(vit)
    tower = config.get("vision_config")
    if not isinstance(tower, dict):
        return {}
    check_type("vit", vit, config.get("model_type", ""), "clip")
    return tower_sizes(tower)


def tower_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of `[model.video]` of the vision tower of a CLIP of transformers. config: its
    `vision_config`."""
    values = CLIP_TOWER | config
    width = values["hidden_size"]
    return {
        "width": width,
        "depth": values["num_hidden_layers"],
        "heads": values["num_attention_heads"],
        "mlp_ratio": values["intermediate_size"] / width,
        "patch_size": values["patch_size"],
        "stem": "patch",
        "pre_norm": True,
        "activation": values["hidden_act"],
    }


def check_type(key: str, name: str, model_type: str, supported: str) -> None:
    """Raises InputError for another type of model of transformers: a SigLIP has no [CLS] token,
    from which the video encoder takes its embedding; what is like a BERT has other tokens,
    positions or layers."""
    if model_type != supported:
        raise InputError(
            f"{key} = {name!r}: this is a {model_type}; of transformers only a {supported} is "
            "supported"
        )


def text_sizes(bert: str) -> dict[str, Any]:
    """The keys of `[model.text]` of a BERT in a folder, split in halves as in the paper; empty if
    `bert` is anything else. Raises InputError for a folder with another model of transformers."""
    config = read_config(bert)
    if not config:
        return {}
    check_type("bert", bert, config.get("model_type", "bert"), "bert")
    try:
        width = config["hidden_size"]
        depth = config["num_hidden_layers"]
        return {
            "width": width,
            "depth": depth,
            "fusion_layer": max(1, depth // 2),
            "heads": config["num_attention_heads"],
            "mlp_ratio": config["intermediate_size"] / width,
            "max_length": config["max_position_embeddings"],
        }
    except (KeyError, TypeError, ZeroDivisionError):
        return {}


def load_vit(model: Prompter, name: str) -> None:
    """Loads ViT weights into the video encoder. name: a timm model name with its tag, perhaps with
    @REVISION, a state-dict file, or the folder or hub name of a CLIP of transformers, of which it
    is the vision tower.

    Temporal attention and its norm start as copies of the spatial ones and temporal_fc at zero, so
    that the encoder starts as that ViT applied to each frame (TimeSformer). The position embedding
    is resized to the image size (bicubic); the time embedding starts at zero. `plain_vit` says what
    of other ViTs is converted. Raises ValueError with a one-line message if the weights are not
    available or do not match, or if the ViT has other components (register tokens, query norms,
    rotary positions).
    """
    encoder = model.video_encoder
    if Path(name).suffix in WEIGHT_FILES:
        vit = plain_vit(read_checkpoint(Path(name)))
    elif "/" in name or Path(name).is_dir():
        vit = plain_vit(clip_weights(name, encoder.config))
    else:
        vit = plain_vit(timm_weights(name, encoder.config))

    expected = encoder.state_dict()
    plain = {key for key in expected if "temporal_" not in key and key != "time_embed"}
    classifier = ("head.", "fc_norm.")
    unexpected = sorted(key for key in vit.keys() - plain if not key.startswith(classifier))
    if unexpected:
        others = f" and {len(unexpected) - 1} others" if len(unexpected) > 1 else ""
        raise ValueError(
            f"vit = {name!r} is not a plain ViT of {len(encoder.blocks)} blocks: "
            f"it has {unexpected[0]}{others}"
        )

    weights = {key: value for key, value in vit.items() if key in plain}
    if "pos_embed" in weights:
        weights["pos_embed"] = resize_embedding(
            f"vit = {name!r}: pos_embed", weights["pos_embed"], expected["pos_embed"]
        )

    # Section 3.4: spatial and temporal attention both start from the ViT's.
    for spatial, temporal in ((".attn.", ".temporal_attn."), (".norm1.", ".temporal_norm1.")):
        copies = {}
        for key, value in weights.items():
            if spatial in key:
                copies[key.replace(spatial, temporal)] = value
        weights |= copies

    for key, value in expected.items():
        if ".temporal_fc." in key or key == "time_embed":
            weights[key] = torch.zeros_like(value)

    check_match(f"vit = {name!r}", weights, expected)
    encoder.load_state_dict(weights)


def plain_vit(vit: StateDict) -> StateDict:
    """The weights of a timm ViT as those of a plain one with the same tokens.

    DINOv2: layer scales are multiplied into the layers before them. CLIP: the patches have no bias,
    so it is zero.
    """
    weights = {}
    for key, value in vit.items():
        renamed = key.replace("patch_embed.proj.", "patch_embed.")
        # timm's name of the norm that a CLIP has before its blocks.
        renamed = re.sub("^norm_pre", "pre_norm", renamed)
        weights[renamed] = value

    scales = [key for key in weights if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", key)]
    for key in scales:
        block, scale = key.split(".ls")
        scaled = "attn.proj" if scale.startswith("1") else "mlp.fc2"
        weight = f"{block}.{scaled}.weight"
        bias = f"{block}.{scaled}.bias"
        gamma = weights.pop(key)
        # gamma * (W x + b): an output of the layer is a row of W.
        weights[weight] = weights[weight] * gamma[:, None]
        weights[bias] = weights[bias] * gamma

    if "patch_embed.weight" in weights and "pre_norm.weight" in weights:
        width = len(weights["patch_embed.weight"])
        weights.setdefault("patch_embed.bias", torch.zeros(width))
    return weights


def clip_weights(name: str, video: VideoConfig) -> StateDict:
    """The vision tower of a CLIP of transformers, with timm's key names. Raises ValueError if the
    video encoder would not start exactly as it on each frame, and InputError as `load_clip`."""
    prompter = load_clip(name, key="vit").prompter
    check_type("vit", name, prompter.clip.config.model_type, "clip")
    if prompter.temporal:
        raise ValueError(
            f"vit = {name!r}: it has the temporal attention of train_prompter; name the CLIP that "
            "it was"
        )

    config = prompter.clip.config.vision_config
    if config.layer_norm_eps != CLIP_EPS:
        raise ValueError(
            f"vit = {name!r}: the epsilon of its layer norms is {config.layer_norm_eps}, not "
            f"{CLIP_EPS}"
        )
    check_values(f"vit = {name!r}: model.video", video, tower_sizes(config.to_dict()))

    vit = {}
    for key, value in prompter.clip.vision_model.state_dict().items():
        for theirs, ours in CLIP_NAMES:
            key = key.replace(theirs, ours)
        vit[key] = value

    vit["cls_token"] = vit["cls_token"][None, None]
    vit["pos_embed"] = vit["pos_embed"][None]

    # transformers has three matrices for queries, keys and values; timm and this project have one.
    for block in range(video.depth):
        attention = f"blocks.{block}.attn"
        for kind in ("weight", "bias"):
            projections = [vit.pop(f"{attention}.{name}_proj.{kind}") for name in "qkv"]
            vit[f"{attention}.qkv.{kind}"] = torch.cat(projections)
    return vit


def timm_weights(name: str, video: VideoConfig) -> StateDict:
    """The state dict of a timm model, from the hub or its cache. Raises ValueError, also for other
    heads than those of `video`."""
    tagged, _, revision = name.partition("@")
    if "." not in tagged:
        raise ValueError(
            f"vit = {name!r}: add timm's tag, such as vit_base_patch16_224.orig_in21k_ft_in1k"
        )

    try:
        import timm

        overlay = {"hf_hub_id": f"timm/{name}"} if revision else None
        vit = timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay)
    except ImportError as error:
        raise ValueError(
            f"vit = {name!r} needs timm: pip install 'alpro-pipeline[timm]' ({error})"
        ) from error
    except Exception as error:  # unknown model or tag, no network: each library has its own type
        raise ValueError(
            f"vit = {name!r}: not available from the cache or the hub ({one_line(error)}); where "
            f"there is a network, save timm.create_model({tagged!r}, pretrained=True).state_dict() "
            "with torch.save, and set vit to the file"
        ) from error

    if getattr(vit, "rope", None) is not None:  # its weights do not show them
        raise ValueError(
            f"vit = {name!r}: it has rotary positions; the video encoder learns its own"
        )
    blocks = getattr(vit, "blocks", None)
    if blocks:
        first_block = blocks[0]
        class_name = type(first_block.mlp.act).__name__
        sizes = {
            "heads": first_block.attn.num_heads,
            "activation": "quick_gelu" if "Quick" in class_name else "gelu",
        }
        check_values(f"vit = {name!r}: model.video", video, sizes)
    return dict(vit.state_dict())


def load_bert(model: Prompter, name: str) -> None:
    """Loads BERT weights: the first layers into the text encoder, the others into the multimodal
    encoder, and the prediction head into the MLM head.

    name: a hub name or a folder with config.json and weights. Raises ValueError with a one-line
    message if the weights are not available or do not match, and InputError if the model is not a
    BERT.
    """
    state = bert_weights(name, model.config.text)
    converted, _, _ = from_official(state, model.config)
    expected = model.state_dict()
    weights = {key: value for key, value in converted.items() if key in expected}

    # The encoders are required, the MLM head is not.
    encoders = ("text_encoder.", "multimodal_encoder.")
    required = {key for key in expected if key.startswith(encoders)} | weights.keys()
    check_match(f"bert = {name!r}", weights, {key: expected[key] for key in required})
    model.load_state_dict(weights, strict=False)


def bert_weights(name: str, text: TextConfig) -> StateDict:
    """The state dict of a BERT, with the key names of the official ALPRO checkpoints; without an
    MLM head if its file has none. Raises as `load_bert`, also if the text encoder has other
    heads."""
    try:
        from transformers import AutoModelForMaskedLM

        config = pretrained_config(name)
        check_type("bert", name, config.model_type, "bert")
        bert, missing = load_pretrained(AutoModelForMaskedLM, config.name_or_path, config)
    except InputError:
        raise
    except Exception as error:
        raise ValueError(
            f"bert = {name!r}: not readable as a BERT ({one_line(error)}); {DOWNLOAD}"
        ) from error

    check_values(f"bert = {name!r}: model.text", text, {"heads": config.num_attention_heads})
    state = bert.state_dict()
    return {f"text_encoder.{key}": value for key, value in state.items() if key not in missing}


def check_match(source: str, weights: StateDict, expected: StateDict) -> None:
    """Raises ValueError if weights are missing, of another shape than the model's, or not
    finite."""
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise ValueError(
            f"{source}: weights are missing, such as {missing[0]}; check the depth in [model]"
        )
    wrong = other_shapes(weights, expected)
    if wrong:
        raise ValueError(
            f"{source}: {wrong[0]}; set the sizes in [model] to those of these weights"
        )
    check_finite(weights, source)
