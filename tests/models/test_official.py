"""Conversion of the keys of official checkpoints; test_oracle.py compares the numbers."""

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.official import from_official

LAYERS = {
    "attention.self.query": (16, 16),
    "attention.self.key": (16, 16),
    "attention.self.value": (16, 16),
    "attention.output.dense": (16, 16),
    "attention.output.LayerNorm": (16,),
    "intermediate.dense": (64, 16),
    "output.dense": (16, 64),
    "output.LayerNorm": (16,),
}
VIDEO_BLOCK = {
    "norm1": (16,),
    "attn.qkv": (48, 16),
    "attn.proj": (16, 16),
    "temporal_norm1": (16,),
    "temporal_attn.qkv": (48, 16),
    "temporal_attn.proj": (16, 16),
    "temporal_fc": (16, 16),
    "norm2": (16,),
    "mlp.fc1": (64, 16),
    "mlp.fc2": (16, 64),
}
UNUSED = {
    "visual_encoder.model.head.weight": (10, 16),
    "visual_encoder.model.head.bias": (10,),
    "text_encoder.bert.embeddings.position_ids": (1, 12),
    "text_encoder.cls.predictions.decoder.weight": (40, 16),
    "text_encoder.cls.predictions.decoder.bias": (40,),
}


def linear(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a linear, convolution or norm."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def official_shapes(bert: str, tiny: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The keys of official checkpoints, at the sizes of the tiny model; `bert` is the prefix of their BERT."""
    words = f"{bert}embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        "temp": (),
        "visual_encoder.model.cls_token": (1, 1, 16),
        "visual_encoder.model.pos_embed": (1, 17, 16),
        "visual_encoder.model.time_embed": (1, 4, 16),
        f"{words}word_embeddings.weight": (40, 16),
        f"{words}position_embeddings.weight": (12, 16),
        f"{words}token_type_embeddings.weight": (2, 16),
        **linear("visual_encoder.model.patch_embed.proj", (16, 3, 8, 8)),
        **linear("visual_encoder.model.norm", (16,)),
        **linear(f"{words}LayerNorm", (16,)),
        **linear("vision_proj", (8, 16)),
        **linear("text_proj", (8, 16)),
        **linear("itm_head", (2, 16)),
    }
    for number in range(tiny.video.depth):
        for name, shape in VIDEO_BLOCK.items():
            shapes |= linear(f"visual_encoder.model.blocks.{number}.{name}", shape)
    for number in range(tiny.text.depth):
        for name, shape in LAYERS.items():
            shapes |= linear(f"{bert}encoder.layer.{number}.{name}", shape)
    return shapes


def mlm_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "text_encoder.cls.predictions.bias": (40,),
        **linear("text_encoder.cls.predictions.transform.dense", (16, 16)),
        **linear("text_encoder.cls.predictions.transform.LayerNorm", (16,)),
    }


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.randn(shape) for key, shape in shapes.items()}


@pytest.fixture
def pretrained(tiny: ModelConfig) -> dict[str, Tensor]:
    shapes = official_shapes("text_encoder.bert.", tiny) | mlm_shapes() | UNUSED
    return draw(shapes | linear("mpm_head.0", (32, 16)) | linear("mpm_head.2", (5, 32)))


def shapes_of(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}


def test_every_key_of_a_pretrained_checkpoint_is_converted(tiny: ModelConfig, pretrained: dict[str, Tensor]):
    weights, unused, unknown = from_official(pretrained, tiny)
    assert shapes_of(weights) == shapes_of(Alpro(tiny, entities=5).state_dict())
    assert set(unused) == UNUSED.keys()
    assert unknown == []


def test_every_key_of_a_question_answering_checkpoint_is_converted(tiny: ModelConfig):
    """BERT is in text_encoder itself."""
    shapes = official_shapes("text_encoder.", tiny) | {"text_encoder.embeddings.position_ids": (1, 12)}
    state = draw(shapes | linear("classifier.0", (32, 16)) | linear("classifier.2", (7, 32)))
    weights, unused, unknown = from_official(state, tiny)
    assert shapes_of(weights) == shapes_of(Alpro(tiny, answers=7).state_dict())
    assert unused == ["text_encoder.embeddings.position_ids"]
    assert unknown == []


def test_queries_keys_and_values_are_joined_in_that_order(tiny: ModelConfig, pretrained: dict[str, Tensor]):
    weights, _, _ = from_official(dict(reversed(pretrained.items())), tiny)  # in any order
    for kind in ("weight", "bias"):
        joined = weights[f"multimodal_encoder.layers.0.attention.qkv.{kind}"].chunk(3)
        for part, name in zip(joined, ("query", "key", "value"), strict=True):
            assert torch.equal(part, pretrained[f"text_encoder.bert.encoder.layer.2.attention.self.{name}.{kind}"])


def test_an_incomplete_query_key_value_triple_is_unknown(tiny: ModelConfig, pretrained: dict[str, Tensor]):
    del pretrained["text_encoder.bert.encoder.layer.0.attention.self.key.weight"]
    weights, _, unknown = from_official(pretrained, tiny)
    assert "text_encoder.layers.0.attention.qkv.weight" not in weights
    assert unknown == ["text_encoder.layers.0.attention.qkv.weight"]
