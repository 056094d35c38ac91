"""Mixed precision: where bfloat16 is used, and what stays in float32."""

import pytest
import torch

from alpro.models import precision as module
from alpro.models.attention import attention_by_products
from alpro.models.precision import NATIVE, WIDE, cpu_has_bfloat16, precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_processor_with_one_of_the_instructions_has_bfloat16(monkeypatch):
    known = {"avx512_f": True, **dict.fromkeys(NATIVE, False)}
    for features in ({}, *({feature: True} for feature in NATIVE)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda more=features: known | more, raising=False)
        assert cpu_has_bfloat16() == bool(features)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # a torch that cannot tell
    assert not cpu_has_bfloat16()


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_for_gpus_and_for_wide_models_on_processors_that_have_it(native, monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: native)
    assert precision(WIDE, CPU) == (torch.bfloat16 if native else torch.float32)
    assert precision(WIDE - 1, CPU) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert precision(8, GPU) == (torch.bfloat16 if native else torch.float32)
    for device in (CPU, GPU):
        assert precision(WIDE, device, mixed=False) == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products_is_the_fused_one(masked):
    q, k, v = (torch.randn(3, 2, 5, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, 1, 1, 5).gt(0.4).index_fill(3, torch.tensor([0]), True) if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    actual = attention_by_products(q, k, v, attn_mask=mask)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert attention_by_products(q, k, v, dropout_p=1.0).abs().max() == 0
