"""Where training starts from other people's weights: a ViT of timm, a BERT (paper, section 4.1)."""

from pathlib import Path
from typing import Any

import torch

from alpro.models.alpro import DualEncoder
from alpro.models.folder import resize_embedding
from alpro.models.official import WEIGHT_FILES, Weights, first_line, from_official, read_checkpoint


def load_vit(model: DualEncoder, name: str) -> None:
    """Gives the video encoder the weights of a ViT: a timm name with its tag, or a file of its state dict.

    Temporal attention and its norm start as copies of the spatial ones, temporal_fc at zero, so that the encoder
    starts as that ViT on each frame (TimeSformer). The position embedding is resized to the image size (bicubic); the
    time embedding starts at zero. Raises ValueError, on one line, for weights that are not there or do not fit, and
    for a ViT that has more in it (layer scale, register tokens, norms of queries), which would compute something else.
    """
    given = read_checkpoint(Path(name)) if Path(name).suffix in WEIGHT_FILES else timm_weights(name)
    given = {key.replace("patch_embed.proj.", "patch_embed."): value for key, value in given.items()}
    encoder = model.video_encoder
    own = encoder.state_dict()
    plain = {key for key in own if "temporal_" not in key and key != "time_embed"}
    after = ("head.", "fc_norm.")  # what a ViT does to its tokens afterwards is of no use
    if more := sorted(key for key in given.keys() - plain if not key.startswith(after)):
        others = f" and {len(more) - 1} others" if len(more) > 1 else ""
        raise ValueError(f"vit = {name!r} is no plain ViT of {len(encoder.blocks)} blocks: it has {more[0]}{others}")
    weights = {key: value for key, value in given.items() if key in plain}
    if "pos_embed" in weights:
        try:
            weights["pos_embed"] = resize_embedding("pos_embed", weights["pos_embed"], own["pos_embed"])
        except ValueError as error:
            raise ValueError(f"vit = {name!r}: {error}") from error
    for spatial, temporal in ((".attn.", ".temporal_attn."), (".norm1.", ".temporal_norm1.")):
        weights |= {key.replace(spatial, temporal): value for key, value in weights.items() if spatial in key}
    for key in own:
        if ".temporal_fc." in key or key == "time_embed":
            weights[key] = torch.zeros_like(own[key])
    refuse_unfit(f"vit = {name!r}", weights, own)
    encoder.load_state_dict(weights)


def timm_weights(name: str) -> Weights:
    """The weights of a timm model by its name, from the hub or its cache."""
    if "." not in name:
        raise ValueError(
            f"vit = {name!r}: give timm's tag too, such as vit_base_patch16_224.orig_in21k_ft_in1k: several weights "
            "carry the name without it"
        )
    try:
        import timm

        return timm.create_model(name, pretrained=True).state_dict()
    except ImportError as error:
        raise ValueError(f"vit = {name!r} needs timm: pip install 'alpro-pipeline[timm]' ({error})") from error
    except Exception as error:  # no such model, no such tag, no network: each library on the way has its own
        raise ValueError(
            f"vit = {name!r}: not in the cache and the hub does not give it ({type(error).__name__}: "
            f"{first_line(error)}); on a machine with a network run timm.create_model({name!r}, pretrained=True), save "
            "its state_dict() with torch.save, bring the file, and set vit to its path"
        ) from error


def load_bert(model: DualEncoder, name: str) -> None:
    """Gives the text encoder the first layers of a BERT, the multimodal encoder the others, and the MLM head its own.

    name: a hub name, in the cache or not, or a folder with config.json and weights. Raises ValueError, on one line,
    for weights that are not there or do not fit.
    """
    weights, _, _ = from_official(bert_weights(name), model.config)
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if key in own}
    needed = [key for key in own if key.startswith(("text_encoder.", "multimodal_encoder."))]
    refuse_unfit(f"bert = {name!r}", weights, {key: own[key] for key in {*needed, *weights}})
    model.load_state_dict(weights, strict=False)


def bert_weights(name: str) -> Weights:
    """A BERT's weights under the names of the official checkpoints."""
    try:
        from transformers import AutoConfig, BertForMaskedLM

        found: Any = AutoConfig.from_pretrained(name)
        if found.model_type != "bert":
            raise ValueError(f"it is a {found.model_type}, not a bert")
        bert = BertForMaskedLM.from_pretrained(name)
    except Exception as error:
        raise ValueError(
            f"bert = {name!r}: no such folder, and neither cache nor hub give it ({type(error).__name__}: "
            f"{first_line(error)}); on a machine with a network run 'hf download {name} --local-dir FOLDER', "
            "bring the folder, and set bert to its path"
        ) from error
    return {f"text_encoder.{key}": value for key, value in bert.state_dict().items()}


def refuse_unfit(what: str, weights: Weights, own: Weights) -> None:
    """Raises ValueError where weights are missing or of another shape than the model's own."""
    wrong = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if weights[key].shape != own[key].shape
    ]
    if missing := sorted(own.keys() - weights.keys()):
        raise ValueError(f"{what}: weights are missing, such as {missing[0]}; do depth and kind of model agree?")
    if wrong:
        raise ValueError(f"{what}: {wrong[0]}; give [model] the sizes of these weights")


def load_initial(model: DualEncoder, vit: str, bert: str) -> None:
    """Both, where they are named."""
    if vit:
        load_vit(model, vit)
    if bert:
        load_bert(model, bert)
