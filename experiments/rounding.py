"""What a residual stream in bfloat16 changes in losses and gradients, by simulated rounding.

    python experiments/rounding.py [--init bert]

Products in float32 whose inputs and results are rounded to bfloat16, forward and backward, are those
of a GPU but for the order of sums. A CPU without bfloat16 instructions computes them a hundred times
as fast as real ones. The model has 12 video blocks, 12 text layers and a width of 256; layer norms
are float32, as in autocast on CUDA.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models import text, timesformer
from alpro.models.alpro import Alpro, ModelConfig

BATCH = 8
WORDS = 24
ENTITIES = 1000
SIZES: dict[str, Any] = {
    "video": {"width": 256, "heads": 4, "image_size": 64, "drop_path": 0.0},
    "text": {"width": 256, "heads": 4, "vocab_size": 2000},
    "embed_dim": 128,
}


class Round(torch.autograd.Function):
    """Rounds a tensor, and its gradient, to bfloat16."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.bfloat16().float()


def rounded(x: Tensor) -> Tensor:
    return Round.apply(x)


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    linear = F.linear
    attention = F.scaled_dot_product_attention

    def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return rounded(linear(rounded(x), rounded(weight), bias))

    def rounded_attention(*args: Any, **options: Any) -> Tensor:
        return rounded(attention(*args, **options))

    with (
        patch.object(F, "linear", rounded_linear),
        patch.object(F, "scaled_dot_product_attention", rounded_attention),
    ):
        yield


@contextmanager
def stream_in_bfloat16() -> Iterator[None]:
    block = timesformer.Block.forward

    def rounded_block(self: timesformer.Block, *args: Any, **options: Any) -> Tensor:
        return rounded(block(self, *args, **options))

    with (
        patch.object(text, "as_residual", rounded),
        patch.object(timesformer, "as_residual", rounded),
        patch.object(timesformer.Block, "forward", rounded_block),
    ):
        yield


def new_model(init: str) -> Alpro:
    model = Alpro(ModelConfig.model_validate(SIZES | {"init": init}), entities=ENTITIES).eval()
    if init == "bert":
        # Zero at first, so that nothing would flow through temporal attention.
        for block in model.video_encoder.blocks:
            nn.init.normal_(block.temporal_fc.weight, std=0.02)
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

    similarities = model.project_video(video) @ model.project_text(words).T
    similarities = similarities / model.clamped_temperature()
    pairs = torch.arange(BATCH)
    vtc = (F.cross_entropy(similarities, pairs) + F.cross_entropy(similarities.T, pairs)) / 2

    fused = model.fuse(words, mask, video)
    others = model.match(words.roll(1, 0), mask, video)
    matches = torch.tensor([1] * BATCH + [0] * BATCH)
    vtm = F.cross_entropy(torch.cat([model.vtm_head(fused[:, 0]), others]), matches)

    scores = model.mlm_scores(fused[:, :WORDS])
    mlm = F.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten())

    patches = fused[:, WORDS + 1 :]
    everywhere = torch.ones(patches.shape[:2], dtype=torch.bool)
    pem = F.cross_entropy(model.pem_logits(patches, everywhere), batch["entities"])
    return torch.stack([vtc, vtm, mlm, pem])


def losses_and_gradient(model: Alpro, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    losses = losses_of(model, batch)
    losses.sum().backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return losses.detach(), torch.cat(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--init", choices=("bert", "scratch"), nargs="+", default=["bert", "scratch"]
    )
    for init in parser.parse_args().init:
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


if __name__ == "__main__":
    main()
