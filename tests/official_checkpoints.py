"""Checkpoints as the official code writes them, from models of this project."""

import re

from alpro.models.alpro import ModelConfig
from alpro.models.official import _IN_LAYER, _PREFIXES, _QKV, StateDict


def one_head(config: ModelConfig) -> ModelConfig:
    """The configuration with as many heads as an import takes it to have at a width below 128."""
    parts = {
        name: getattr(config, name).model_copy(update={"heads": 1}) for name in ("video", "text")
    }
    return config.model_copy(update=parts)


def to_official(
    weights: StateDict, config: ModelConfig, bert: str = "text_encoder.bert."
) -> StateDict:
    """Converts this project's state dict to the official keys, without the unused ones.

    bert: prefix of the BERT keys; "text_encoder." for question answering.
    """
    state: StateDict = {}
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
