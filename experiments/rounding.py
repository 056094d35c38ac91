"""What a residual stream in bfloat16 changes in losses and gradients, by simulated rounding.

    python experiments/rounding.py [--init bert]

Products in float32 whose inputs and results are rounded to bfloat16, forward and backward, are those
of a GPU but for the order of sums. A CPU without bfloat16 instructions computes them a hundred times
as fast as real ones. The model has 12 video blocks, 12 text layers and a width of 256.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models import attention, text, timesformer
from alpro.models.alpro import Alpro, ModelConfig

BATCH = 8
WORDS = 24
ENTITIES = 1000
SIZES: dict[str, Any] = {
    "video": {"width": 256, "heads": 4, "image_size": 64, "drop_path": 0.0},
    "text": {"width": 256, "heads": 4, "vocab_size": 2000},
    "embed_dim": 128,
}


def rounded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A product as autocast computes it: bfloat16 inputs, sums in float32, a bfloat16 result."""

    def call(*inputs: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return function(*inputs, **options)
        exact = [
            x.bfloat16().float() if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs
        ]
        return function(*exact, **options).bfloat16()

    return call


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    """Tensors have the types that they have under autocast on CUDA, where layer norms are
    float32."""
    layer_norm = F.layer_norm
    attention_by_products = attention.attention_by_products

    def float_norm(x: Tensor, *args: Any) -> Tensor:
        return layer_norm(x.float(), *args)

    with (
        patch.object(F, "linear", rounded(F.linear)),
        patch.object(F, "conv2d", rounded(F.conv2d)),
        patch.object(F, "scaled_dot_product_attention", rounded(F.scaled_dot_product_attention)),
        patch.object(attention, "attention_by_products", rounded(attention_by_products)),
        patch.object(F, "layer_norm", float_norm),
        autocast_to_float32(),
    ):
        yield


@contextmanager
def autocast_to_float32() -> Iterator[None]:
    """Autocast that is on and casts nothing: `torch.autocast` takes no float32."""
    dtype = torch.get_autocast_dtype("cpu")
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_dtype("cpu", dtype)


@contextmanager
def stream_in_bfloat16() -> Iterator[None]:
    with (
        patch.object(text, "as_residual", Tensor.bfloat16),
        patch.object(timesformer, "as_residual", Tensor.bfloat16),
    ):
        yield


def new_model(init: str) -> Alpro:
    model = Alpro(ModelConfig.model_validate(SIZES | {"init": init}), entities=ENTITIES).eval()
    if init == "bert":
        # Zero at first, so that nothing would flow through temporal attention.
        for module in model.modules():
            if isinstance(module, timesformer.Block):
                nn.init.normal_(module.temporal_fc.weight, std=0.02)
    return model


def new_batch() -> dict[str, Tensor]:
    ids = torch.randint(0, 2000, (BATCH, WORDS))
    return {
        "frames": torch.randn(BATCH, 4, 3, 64, 64),
        "ids": ids,
        "labels": torch.randint(0, 2000, (BATCH, WORDS)),
        "entities": torch.rand(BATCH, ENTITIES).softmax(-1),
    }


def losses_of(model: Alpro, batch: dict[str, Tensor]) -> Tensor:
    """VTC, VTM, MLM and PEM of a batch: (4,)."""
    mask = torch.ones_like(batch["ids"])
    video = model.encode_video(batch["frames"])
    words = model.encode_text(batch["ids"], mask)

    # In float32, as the training objective computes it.
    with torch.autocast("cpu", enabled=False):
        similarities = model.project_video(video.float()) @ model.project_text(words.float()).T
        similarities = similarities / model.clamped_temperature()
    pairs = torch.arange(BATCH)
    vtc = (F.cross_entropy(similarities, pairs) + F.cross_entropy(similarities.T, pairs)) / 2

    fused = model.fuse(words, mask, video)
    others = model.match(words.roll(1, 0), mask, video)
    matches = torch.tensor([1] * BATCH + [0] * BATCH)
    vtm = F.cross_entropy(torch.cat([model.vtm_head(fused[:, 0]), others]).float(), matches)

    scores = model.mlm_scores(fused[:, :WORDS])
    mlm = F.cross_entropy(scores.flatten(0, 1).float(), batch["labels"].flatten())

    patches = fused[:, WORDS + 1 :]
    everywhere = torch.ones(patches.shape[:2], dtype=torch.bool)
    pem = F.cross_entropy(model.pem_logits(patches, everywhere).float(), batch["entities"])
    return torch.stack([vtc, vtm, mlm, pem])


def losses_and_gradient(model: Alpro, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    losses = losses_of(model, batch)
    losses.sum().backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return losses.detach(), torch.cat(gradients)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--init", choices=("bert", "scratch"), nargs="+", default=["bert", "scratch"]
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="compare with the official code's numbers, whose folder is ALPRO_ORACLE",
    )
    options = parser.parse_args(arguments)
    if options.golden:
        compare_with_golden()
        return

    for init in options.init:
        torch.manual_seed(0)
        model = new_model(init)
        batch = new_batch()
        losses, gradient = losses_and_gradient(model, batch)
        print(f"{init}: VTC, VTM, MLM, PEM", *(f"{loss:.4f}" for loss in losses.tolist()))

        with products_in_bfloat16():
            report("products in bfloat16", *losses_and_gradient(model, batch), losses, gradient)
            with stream_in_bfloat16():
                report("and the stream", *losses_and_gradient(model, batch), losses, gradient)


def report(
    name: str, losses: Tensor, gradient: Tensor, exact_losses: Tensor, exact_gradient: Tensor
) -> None:
    error = (gradient - exact_gradient).norm() / exact_gradient.norm()
    changes = " ".join(f"{change:+.4f}" for change in (losses - exact_losses).tolist())
    print(f"  {name}: losses {changes}, gradient off by {error:.1%}", flush=True)


def compare_with_golden() -> None:
    """Prints by how much losses and outputs differ from those of the official code, which
    tests/test_oracle.py reads: the paper's sizes, random weights, two videos."""
    from tests.test_oracle import ORACLE, pretrain

    with np.load(ORACLE / "pretrain_a.npz") as file:
        golden = dict(file)

    # A list of contexts: the products first, then the stream.
    precisions: dict[str, list[Callable[[], AbstractContextManager]]] = {
        "float32": [],
        "products in bfloat16": [products_in_bfloat16],
        "and the stream": [products_in_bfloat16, stream_in_bfloat16],
    }
    for name, contexts in precisions.items():
        with torch.inference_mode(), ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            results = dict(pretrain(golden))
        print(name)
        for key, result in results.items():
            exact = torch.from_numpy(golden[key])
            error = (result.float() - exact).abs().max()
            of_size = f"{exact:.4f}" if exact.ndim == 0 else f"up to {exact.abs().max():.4f}"
            print(f"  {key} ({of_size}): off by {error:.5f}", flush=True)


if __name__ == "__main__":
    main()
