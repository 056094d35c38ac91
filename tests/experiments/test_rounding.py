"""The program that simulates bfloat16, on a small model."""

import re

import torch
import torch.nn.functional as F

from experiments import rounding

SMALL = {
    "video": {"width": 16, "depth": 2, "heads": 2, "image_size": 64, "drop_path": 0.0},
    "text": {"width": 16, "depth": 4, "fusion_layer": 2, "heads": 2, "vocab_size": 2000},
    "embed_dim": 8,
}


def test_bfloat16_changes_losses_and_gradients_a_little(monkeypatch, capsys):
    monkeypatch.setattr(rounding, "SIZES", SMALL)
    rounding.main(["--init", "scratch"])
    errors = [float(number) for number in re.findall(r"off by ([\d.]+)%", capsys.readouterr().out)]
    assert len(errors) == 2  # with products in bfloat16, and with the stream, too
    assert all(0 < error < 20 for error in errors)


def test_types_are_those_of_autocast():
    x = torch.randn(3, 4)
    weight = torch.randn(5, 4)
    with rounding.products_in_bfloat16():
        product = F.linear(x, weight)
        with torch.autocast("cpu", enabled=False):
            exact = F.linear(x, weight)

    assert torch.equal(exact, x @ weight.T)
    assert torch.equal(product, (x.bfloat16().float() @ weight.bfloat16().float().T).bfloat16())
    assert not torch.is_autocast_enabled("cpu")
