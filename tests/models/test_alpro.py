"""ALPRO and the prompter: padding, fusion of the first tokens, pseudo-labels, temperature, sizes,
mixed precision.

What the whole model computes is in test_golden.py, and which parts each loss trains in
tests/stages/training/test_objective.py.
"""

import pytest
import torch

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.attention import TransformerLayer, attention_by_products
from alpro.models.precision import WIDE, compute_dtype
from tests.models.conftest import near

LENGTH = 6


@pytest.fixture
def frames():
    return torch.randn(3, 4, 3, 32, 32)


@pytest.fixture
def ids():
    return torch.randint(5, 40, (3, LENGTH))


@pytest.fixture
def mask():
    return torch.tensor(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0, 0],
        ]
    )


def test_padding_does_not_change_the_text(tiny, frames, ids, mask):
    model = Alpro(tiny).eval()
    noise = torch.where(mask.bool(), ids, torch.randint(5, 40, ids.shape))
    text = model.encode_text(ids, mask)
    other = model.encode_text(noise, mask)
    real = mask.bool()
    near(text[real], other[real])
    # The result is that of the text without padding.
    alone = model.encode_text(ids[2:, :3], mask[2:, :3])
    near(alone[0], text[2, :3])
    # Fusion ignores padding as well.
    video = model.encode_video(frames)
    matched = model.match(alone, mask[2:, :3], video[2:])
    near(matched, model.match(text, mask, video)[2:])


def test_what_a_model_cannot_do_is_an_error(tiny, frames, ids, mask):
    model = Alpro(tiny)
    with pytest.raises(ValueError, match="no question-answering head"):
        model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames))
    with pytest.raises(ValueError, match="text of 18 tokens; the encoder takes 12"):
        model.encode_text(ids.repeat(1, 3), mask)


def test_the_temperature_is_clamped(tiny):
    model = Prompter(tiny)
    assert model.temperature.item() == pytest.approx(0.07)
    for learned, used in ((0.07, 0.07), (3.0, 0.5), (1e-5, 0.001), (-1.0, 0.001)):
        model.temperature.data.fill_(learned)
        assert model.clamped_temperature().item() == pytest.approx(used)
        model.clamp_temperature_()
        assert model.temperature.item() == pytest.approx(used)


def test_activation_checkpointing_gives_equal_gradients(tiny, frames, ids, mask):
    video = tiny.video.model_copy(update={"drop_path": 0.5})
    text = tiny.text.model_copy(update={"dropout": 0.2, "depth": 4})
    model = Alpro(
        tiny.model_copy(update={"video": video, "text": text}), answers=7
    ).train()
    gradients = []
    for checkpointed in (False, True):
        for module in model.modules():
            if isinstance(module, TransformerLayer):
                module.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(1)  # the same dropout and dropped branches
        text = model.encode_text(ids, mask)
        answers = model.answer(text, mask, model.encode_video(frames))
        answers.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_inconsistent_sizes_are_refused():
    video = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
    sizes = {
        "video": video,
        "text": {"width": 16, "depth": 3, "fusion_layer": 2, "heads": 2},
    }
    ModelConfig.model_validate(sizes)
    for part, wrong, message in (
        ("video", {"image_size": 30}, "30 is not a multiple of patch_size 8"),
        ("video", {"heads": 3}, "16 is not a multiple of heads 3"),
        (
            "video",
            {"image_size": 36, "patch_size": 12, "stem": "conv"},
            "a power of 2, not 12",
        ),
        (
            "text",
            {"fusion_layer": 3},
            "fusion_layer 3 leaves no fusion layer of depth 3",
        ),
        ("text", {"width": 24}, "video.width 16 and text.width 24 must be equal"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.model_validate(sizes | {part: sizes[part] | wrong})


def test_the_full_size_model_has_the_papers_parameters():
    """ViT-B/16 with divided attention, BERT-base cut after layer 6, 256-d projections, 1000
    entities."""
    with torch.device("meta"):
        model = Alpro(ModelConfig(), entities=1000)

    sizes = {}
    for name, part in model.named_children():
        sizes[name] = sum(weight.numel() for weight in part.parameters())
    encoders = {
        "video_encoder": 121_255_680,
        "text_encoder": 66_364_416,
        "multimodal_encoder": 42_527_232,
    }
    heads = {
        "video_proj": 196_864,
        "text_proj": 196_864,
        "vtm_head": 1538,
        "mlm_head": 622_650,  # its decoder is the word embeddings
        "pem_head": 2_718_184,
    }
    assert sizes == encoders | heads
    # With the temperature.
    assert sum(p.numel() for p in model.parameters()) == 233_883_429


CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_for_gpus_and_for_wide_models_on_processors_that_have_it(
    native, monkeypatch
):
    monkeypatch.setattr("alpro.models.precision.cpu_has_bfloat16", lambda: native)
    assert compute_dtype(WIDE, CPU) == (torch.bfloat16 if native else torch.float32)
    assert compute_dtype(WIDE - 1, CPU) == torch.float32
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: native or including_emulation,
    )
    assert compute_dtype(8, GPU) == (torch.bfloat16 if native else torch.float32)
    for device in (CPU, GPU):
        assert compute_dtype(WIDE, device, mixed=False) == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products_is_the_fused_one(masked):
    q, k, v = (torch.randn(3, 2, 5, 8, requires_grad=True) for _ in range(3))
    mask = (
        torch.rand(3, 1, 1, 5).gt(0.4).index_fill(3, torch.tensor([0]), True)
        if masked
        else None
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    actual = attention_by_products(q, k, v, attn_mask=mask)
    near(actual, expected)
    gradients = torch.autograd.grad(actual.square().sum(), (q, k, v))
    near(gradients, torch.autograd.grad(expected.square().sum(), (q, k, v)))
    assert attention_by_products(q, k, v, dropout_p=1.0).abs().max() == 0
