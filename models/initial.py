"""Start from pre-trained weights: a ViT of timm or a CLIP's, and a BERT (paper, section 4.1)."""

import re
from pathlib import Path
from typing import Any, Literal

import torch

from alpro.errors import one_line
from alpro.models.alpro import ModelConfig, Prompter
from alpro.models.clip_prompter import TEMPORAL
from alpro.models.pretrained import HubName, find_weights, read_model_config
from alpro.models.timesformer import VideoConfig, resize_positions
from alpro.models.weights import (
    BERT,
    CLIP,
    SUFFIXES,
    TIMM,
    StateDict,
    check_values,
    convert,
    load_weights,
    read_weights,
    select_prefix,
    split_bert,
)

Encoder = Literal["vit", "bert"]
# Keys of `[model.video]` and `[model.text]` with the names that transformers has for them.
SIZES = {
    "vit": {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "patch_size": "patch_size",
        "activation": "hidden_act",
    },
    "bert": {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "max_length": "max_position_embeddings",
    },
}
# Weights of a BERT that the model has. Others are its pooler, and heads of other tasks.
BERT_WEIGHT = re.compile(r"(bert\.)?(embeddings|encoder\.layer)\.|cls\.predictions\.")
# Parts of the model that they go to. The MLM head may be missing.
BERT_PARTS = ("text_encoder", "multimodal_encoder", "mlm_head")


def read_encoder(key: Encoder, name: str, model: ModelConfig) -> Any:
    """Read the configuration of a CLIP of transformers, for its vision tower, or of a BERT.

    Raises:
        InputError: As in `read_model_config`.
        ValueError: If the encoder of the model would have other sizes.
    """
    part, kind = ("video", "clip") if key == "vit" else ("text", "bert")
    config = read_model_config(key, name, (kind,))
    source = f"{key} = {name!r}: model.{part}"
    check_values(source, getattr(model, part), encoder_sizes(key, config))
    return config


def encoder_sizes(key: Encoder, config: Any) -> dict[str, Any]:
    """Return the keys of `[model.video]` of the vision tower of a CLIP of transformers, or the keys
    of `[model.text]` of a BERT."""
    encoder = config.vision_config if key == "vit" else config
    sizes = {ours: getattr(encoder, theirs) for ours, theirs in SIZES[key].items()}
    sizes["mlp_ratio"] = encoder.intermediate_size / max(1, encoder.hidden_size)
    if key == "vit":
        sizes |= {"stem": "patch", "pre_norm": True}
    return sizes


def load_vit(model: Prompter, name: str) -> None:
    """Load the weights of a ViT into the video encoder.

    Temporal attention and its norm start as copies of the spatial ones and temporal_fc at zero, so
    the encoder starts as that ViT applied to each frame (TimeSformer). The position embedding is
    resized to the image size (bicubic); the time embedding starts at zero.

    Args:
        name: A timm model with its tag, perhaps with @REVISION; a state-dict file; or the folder or
            hub name of a CLIP of transformers, whose vision tower is loaded.

    Raises:
        InputError: As in `read_model_config`.
        ValueError: One line, if the weights are not available or do not match, or if the ViT has
            other components (register tokens, query norms, rotary positions).
    """
    encoder = model.video_encoder
    source = f"vit = {name!r}"
    if Path(name).suffix in SUFFIXES:
        vit = convert(read_weights(Path(name)), TIMM)
    elif "/" in name or Path(name).is_dir():
        vit = clip_tower(name, model.config)
    else:
        vit = convert(timm_weights(name, encoder.config), TIMM)
    vit = plain_vit(vit)

    if "pos_embed" in vit:
        vit["pos_embed"] = resize_positions(
            vit["pos_embed"], encoder.config.grid, f"{source}: pos_embed"
        )

    weights = encoder.state_dict()
    for key in weights.keys() - vit.keys():
        # Section 3.4: spatial and temporal attention both start from the ViT's.
        spatial = re.sub("temporal_(attn|norm1)", r"\1", key)
        if spatial in vit:
            vit[key] = vit[spatial]
        elif "temporal_fc" in key or key == "time_embed":
            vit[key] = torch.zeros_like(weights[key])
    load_weights(
        encoder,
        vit,
        source,
        "; it must be a plain ViT, and [model] must have its sizes",
    )


def plain_vit(vit: StateDict) -> StateDict:
    """Return the weights of a plain ViT with the same tokens.

    DINOv2: layer scales are multiplied into the layers before them. CLIP: the patches have no bias,
    so it is zero.
    """
    weights = dict(vit)
    for scale, layer in ((".ls1.gamma", ".attn.proj"), (".ls2.gamma", ".mlp.fc2")):
        for key in [key for key in weights if key.endswith(scale)]:
            scaled = key.replace(scale, layer)
            gamma = weights.pop(key)
            # gamma * (W x + b): an output of the layer is a row of W.
            weights[f"{scaled}.weight"] = weights[f"{scaled}.weight"] * gamma[:, None]
            weights[f"{scaled}.bias"] = weights[f"{scaled}.bias"] * gamma

    if "pre_norm.weight" in weights:
        no_bias = torch.zeros_like(weights["pre_norm.weight"])
        weights.setdefault("patch_embed.bias", no_bias)
    return weights


def clip_tower(name: str, model: ModelConfig) -> StateDict:
    """Read the vision tower of a CLIP of transformers, with the names of the video encoder.

    A SigLIP has no [CLS] token, from which the video encoder takes its embedding.

    Raises:
        InputError: As in `read_model_config`.
        ValueError: If the video encoder would not start as the tower on each frame.
    """
    config = read_encoder("vit", name, model)
    state = read_weights(find_weights(config.name_or_path))
    if select_prefix(state, TEMPORAL):
        raise ValueError(
            f"vit = {name!r}: it has the temporal attention of train_prompter; name the CLIP that "
            "it was"
        )

    # Some files of transformers have the prefix of the whole model.
    state = select_prefix(state, "clip.") or state
    vit = convert(select_prefix(state, "vision_model."), CLIP)
    # The tower's have no dimension of the batch, and [CLS] has none of the position.
    for key in {"cls_token", "pos_embed"} & vit.keys():
        vit[key] = torch.atleast_2d(vit[key])[None]
    return vit


def timm_weights(name: str, video: VideoConfig) -> StateDict:
    """Load the state dict of a timm model, from the hub or its cache.

    Raises:
        ValueError: If it is not available, or has other heads than `video`.
    """
    source = f"vit = {name!r}"
    hub_name = HubName.parse(f"timm/{name}")
    if hub_name is None or "." not in hub_name.repository:
        raise ValueError(
            f"{source}: add timm's tag, such as vit_base_patch16_224.orig_in21k_ft_in1k"
        )

    tagged = hub_name.repository.removeprefix("timm/")
    overlay = {"hf_hub_id": str(hub_name)} if hub_name.revision else None
    try:
        import timm

        vit = timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        # No timm, an unknown model or tag, no network: each library has its own type.
        raise ValueError(
            f"{source}: not available ({one_line(error)}); it needs timm (pip install "
            "'alpro-pipeline[timm]') and the hub; where there is a network, save "
            f"timm.create_model({tagged!r}, pretrained=True).state_dict() with torch.save, and set "
            "vit to the file"
        ) from error

    if getattr(vit, "rope", None) is not None:  # its weights do not show them
        raise ValueError(
            f"{source}: it has rotary positions; the video encoder learns its own"
        )
    blocks = getattr(vit, "blocks", None)
    if blocks:
        quick = "Quick" in type(blocks[0].mlp.act).__name__
        check_values(
            f"{source}: model.video",
            video,
            {
                "heads": blocks[0].attn.num_heads,
                "activation": "quick_gelu" if quick else "gelu",
            },
        )
    return dict(vit.state_dict())


def load_bert(model: Prompter, name: str) -> None:
    """Load the weights of a BERT into the parts of the model that come from one.

    The first layers go to the text encoder, the others to the multimodal encoder, the prediction
    head to the MLM head.

    Args:
        name: A hub name, or a folder with config.json and weights.

    Raises:
        InputError: If the model is not available, or not a BERT.
        ValueError: One line, if the weights are not readable or do not match.
    """
    source = f"bert = {name!r}"
    config = read_encoder("bert", name, model.config)
    text = model.config.text

    state: StateDict = {}
    for key, value in read_weights(find_weights(config.name_or_path)).items():
        if BERT_WEIGHT.match(key):
            # A file may have either name of the tied bias.
            key = key.replace("decoder.bias", "bias")
            state.setdefault(f"text_encoder.{key}", value)
    weights = convert(state, (*BERT, *split_bert(text.fusion_layer, text.depth)))

    for part in BERT_PARTS:
        module = getattr(model, part, None)
        part_weights = select_prefix(weights, f"{part}.")
        if module is not None and (part_weights or part != "mlm_head"):
            load_weights(
                module,
                part_weights,
                f"{source}: {part}",
                "; set the sizes in [model] and train_tokenizer.tokenizer to its own",
            )
