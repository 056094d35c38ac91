"""Checkpoints as the official code writes them, from models of this project."""

import re

from alpro.models.alpro import ModelConfig
from alpro.models.weights import StateDict

# Our names and the official ones; BERT is the prefix of the text encoder's keys. The keys that
# result are compared with those of the authors' code (official_keys.json).
NAMES = (
    (r"^temperature$", "temp"),
    (r"^video_encoder\.patch_embed\.", "visual_encoder.model.patch_embed.proj."),
    (r"^video_encoder\.", "visual_encoder.model."),
    (r"^video_proj\.", "vision_proj."),
    (r"^vtm_head\.", "itm_head."),
    (r"^pem_head\.", "mpm_head."),
    (r"^qa_head\.", "classifier."),
    (r"^mlm_head\.bias$", "text_encoder.cls.predictions.bias"),
    (r"^mlm_head\.dense\.", "text_encoder.cls.predictions.transform.dense."),
    (r"^mlm_head\.norm\.", "text_encoder.cls.predictions.transform.LayerNorm."),
    (r"^text_encoder\.embeddings\.norm\.", "BERT.embeddings.LayerNorm."),
    (r"^text_encoder\.embeddings\.", "BERT.embeddings."),
    (r"^text_encoder\.layers\.", "BERT.encoder.layer."),
    (r"(BERT.*)\.attention\.proj\.", r"\1.attention.output.dense."),
    (r"(BERT.*)\.norm1\.", r"\1.attention.output.LayerNorm."),
    (r"(BERT.*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(BERT.*)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"(BERT.*)\.norm2\.", r"\1.output.LayerNorm."),
)


def to_official(
    weights: StateDict, config: ModelConfig, bert: str = "text_encoder.bert"
) -> StateDict:
    """Convert this project's state dict to the official keys, without the unused ones.

    bert: prefix of the BERT keys; "text_encoder" for question answering.
    """
    state: StateDict = {}
    for key, value in weights.items():
        layer = re.match(r"multimodal_encoder\.layers\.(\d+)", key)
        if layer:
            depth = config.text.fusion_layer + int(layer[1])
            key = f"text_encoder.layers.{depth}{key[layer.end() :]}"
        for ours, theirs in NAMES:
            key = re.sub(ours, theirs, key)
        key = key.replace("BERT", bert)

        if key.startswith(bert) and ".qkv." in key:
            for name, part in zip(
                ("query", "key", "value"), value.chunk(3), strict=True
            ):
                state[key.replace(".qkv.", f".self.{name}.")] = part
        else:
            state[key] = value
    return state
