"""The video encoder: frame order, stems, initialization and stochastic depth."""

import pytest
import torch

from alpro.models.alpro import initialize
from alpro.models.timesformer import Block, TimeSformer, VideoConfig, drop_path
from tests.conftest import one_line
from tests.models.conftest import near


def new(config, init="scratch", **changes):
    encoder = TimeSformer(config.model_copy(update=changes))
    initialize(encoder, init)
    return encoder.eval()


@pytest.fixture
def frames():
    return torch.randn(2, 4, 3, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("init", ["bert", "scratch"])
def test_one_frame_is_the_first_of_a_clip_and_a_still_clip_of_one_time(
    tiny, frames, init
):
    """ "bert" starts temporal_fc at zero: a TimeSformer that loads a ViT starts as that ViT on
    every frame."""
    encoder = new(tiny.video, init)
    assert all(
        block.temporal_fc.weight.any() == (init == "scratch")
        for block in encoder.blocks
    )
    single = new(tiny.video, init, frames=1)
    single.load_state_dict(
        encoder.state_dict() | {"time_embed": encoder.time_embed.data[:, :1]}
    )
    assert torch.equal(encoder(frames[:, :1]), single(frames[:, :1]))
    encoder.time_embed.copy_(encoder.time_embed[:, :1].expand(-1, 4, -1))
    still = encoder(frames[:, :1].expand(-1, 4, -1, -1, -1))
    near(still, single(frames[:, :1]))


def test_a_conv_stem_halves_the_frame_and_a_wrong_size_is_refused(tiny, frames):
    for patch in (4, 8, 16):
        encoder = new(tiny.video, stem="conv", patch_size=patch)
        assert encoder.patch_embed(frames[:, 0]).shape == (
            2,
            16,
            32 // patch,
            32 // patch,
        )
        assert encoder(frames).shape == (2, 1 + (32 // patch) ** 2, 16)
    for count, height, width in ((4, 24, 32), (4, 40, 40), (3, 32, 32)):
        shape = (2, count, 3, height, width)
        with one_line(f"{shape}; the encoder takes (B, 4, 3, 32, 32)", of=ValueError):
            encoder(torch.zeros(shape))


def stochastic(rate, depth):
    """An encoder in training mode, with stochastic depth."""
    shape = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 8, "heads": 1}
    return new(VideoConfig(**shape, depth=depth, drop_path=rate)).train()


def test_stochastic_depth_grows_over_the_blocks_and_draws_each_branch_of_each_sample():
    keep = stochastic(0.8, depth=5).sample_drop_path(torch.zeros(2000, 1, 8))
    assert keep.shape == (5, 3, 2000)
    rates = torch.tensor([0, 0.2, 0.4, 0.6, 0.8])
    # The share in 6,000 draws has a standard deviation of at most 0.0065.
    near((keep == 0).float().mean(dim=(1, 2)), rates, atol=0.033)
    near(keep.amax(dim=(1, 2)), 1 / (1 - rates))  # the mean is 1

    dropped = (keep[2] == 0).double()
    branches = dropped.corrcoef().fill_diagonal_(0)
    neighbors = torch.stack([dropped[0, :-1], dropped[0, 1:]]).corrcoef()
    assert branches.abs().max() < 0.12  # standard deviation 0.022
    assert neighbors[0, 1].abs() < 0.12

    rows = drop_path(torch.ones(2000 * 3, 2), keep[2], 1).view(2000, 6)
    assert torch.equal(rows, keep[2, 1][:, None].expand_as(rows))  # its sample's factor


@torch.no_grad()
def test_the_branches_of_a_block_are_dropped_by_their_number(tiny):
    block = Block(tiny.video)
    x = torch.randn(4, 1 + 4 * 16, 16)
    # Sample n is without branch n - 1.
    keep = torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    out = block(x, 4, keep)
    near(out[:1], block(x[:1], 4))
    for number, silent in enumerate(
        (block.temporal_attn.proj, block.attn.proj, block.mlp.fc2), 1
    ):
        weights = silent.weight.clone(), silent.bias.clone()
        silent.weight.zero_()
        silent.bias.zero_()
        # What temporal_fc adds to every token does not go through the branch, as in the official
        # code.
        near(out[number : number + 1], block(x[number : number + 1], 4))
        silent.weight.copy_(weights[0])
        silent.bias.copy_(weights[1])


def test_cls_only_equals_the_cls_of_all_tokens_with_gradients(tiny, frames):
    encoder = new(tiny.video, drop_path=0.5)
    actual = []
    for cls_only in (False, True):
        encoder.zero_grad()
        torch.manual_seed(1)  # the same branches are dropped
        cls = encoder.train()(frames, cls_only)[:, 0]
        (cls * torch.linspace(-1, 1, cls.shape[1])).sum().backward()
        gradients = [parameter.grad for parameter in encoder.parameters()]
        actual.append([cls.detach(), *gradients])
    near(actual[1], actual[0])
