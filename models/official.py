"""Weights of the official ALPRO code under this project's names.

The official checkpoints keep text and multimodal encoder in one 12-layer BERT (`text_encoder.bert.*`, for question
answering `text_encoder.*`), and hold tensors that nothing reads. Names here map one to one, but for attention: the
official text layers have three matrices where this project has one (queries, keys, values in that order).
"""

import re

import torch
from torch import Tensor

from models.alpro import ModelConfig

Weights = dict[str, Tensor]

# Held by official checkpoints and read by nothing: class scores of the video encoder, position numbers, the decoder
# and its bias (tied to the word embeddings and to predictions.bias).
UNREAD = (r"visual_encoder\.model\.head\.", r"\.position_ids$", r"cls\.predictions\.decoder\.")

_PLAIN = (
    (r"^temp$", "temperature"),
    (r"^visual_encoder\.model\.patch_embed\.proj\.", "video_encoder.patch_embed."),
    (r"^visual_encoder\.model\.", "video_encoder."),
    (r"^vision_proj\.", "video_proj."),
    (r"^itm_head\.", "vtm_head."),
    (r"^mpm_head\.", "pem_head."),
    (r"^classifier\.", "qa_head."),
    (r"^text_encoder\.cls\.predictions\.bias$", "mlm_head.bias"),
    (r"^text_encoder\.cls\.predictions\.transform\.dense\.", "mlm_head.dense."),
    (r"^text_encoder\.cls\.predictions\.transform\.LayerNorm\.", "mlm_head.norm."),
    (r"^text_encoder\.(bert\.)?embeddings\.word_embeddings\.", "text_encoder.embeddings.words."),
    (r"^text_encoder\.(bert\.)?embeddings\.position_embeddings\.", "text_encoder.embeddings.positions."),
    (r"^text_encoder\.(bert\.)?embeddings\.token_type_embeddings\.", "text_encoder.embeddings.segments."),
    (r"^text_encoder\.(bert\.)?embeddings\.LayerNorm\.", "text_encoder.embeddings.norm."),
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
    unread, unknown = [], []
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in UNREAD):
            unread.append(key)
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
        if len(three) == 3:
            weights[name] = torch.cat([three[i] for i in range(3)])
        else:
            unknown.append(name)
    return weights, unread, unknown


def layer_name(number: int, fusion_layer: int) -> str:
    """Where layer `number` of the one BERT is: in the text encoder, or behind the cut in the multimodal encoder."""
    if number < fusion_layer:
        return f"text_encoder.layers.{number}"
    return f"multimodal_encoder.layers.{number - fusion_layer}"


def _rename(key: str) -> str:
    for pattern, replacement in _PLAIN:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return key if key.startswith("text_proj.") else ""
