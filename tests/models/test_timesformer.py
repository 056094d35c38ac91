"""The video encoder: shapes, what the order of frames changes, and what its parts leave alone."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from models.alpro import ModelConfig, initialize
from models.attention import Attention, DropPath
from models.timesformer import TimeSformer, VideoConfig


@pytest.fixture
def encoder(tiny: ModelConfig) -> TimeSformer:
    encoder = TimeSformer(tiny.video)
    initialize(encoder, "scratch")
    return encoder.eval()


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(2, 4, 3, 32, 32)


def test_tokens_are_cls_and_one_for_each_place(encoder: TimeSformer, frames: Tensor):
    assert encoder(frames).shape == (2, 1 + 16, 16)


def test_the_order_of_frames_changes_the_output(encoder: TimeSformer, frames: Tensor):
    forward, backward = encoder(frames), encoder(frames.flip(1))
    assert (forward - backward).abs().max() > 0.01


@torch.no_grad()
def test_without_time_embeddings_the_order_of_frames_changes_nothing(encoder: TimeSformer, frames: Tensor):
    """Attention over time knows no order, and tokens are averaged over time: only the embedding tells it."""
    encoder.time_embed.zero_()
    for order in ([3, 2, 1, 0], [1, 2, 3, 0]):
        torch.testing.assert_close(encoder(frames[:, order]), encoder(frames), atol=1e-5, rtol=1e-4)
    # Not because frames were ignored: another frame is another output.
    assert (encoder(frames[:, [0, 0, 1, 2]]) - encoder(frames)).abs().max() > 0.01


def test_the_order_of_equal_frames_changes_nothing(encoder: TimeSformer, frames: Tensor):
    still = frames.clone()
    still[:, 2] = still[:, 0]
    assert torch.equal(encoder(still[:, [2, 1, 0, 3]]), encoder(still))


@torch.no_grad()
def test_a_still_clip_through_fresh_temporal_layers_is_one_frame(tiny: ModelConfig, frames: Tensor):
    """ "bert" starts temporal_fc at zero: a TimeSformer that loads a ViT begins as that ViT on every frame."""
    encoder = TimeSformer(tiny.video)
    initialize(encoder, "bert")
    encoder.time_embed.zero_()
    single = TimeSformer(tiny.video.model_copy(update={"frames": 1}))
    weights = encoder.state_dict()
    single.load_state_dict(weights | {"time_embed": weights["time_embed"][:, :1]})
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(encoder.eval()(still), single.eval()(frames[:, :1]), atol=1e-5, rtol=1e-4)


def test_clips_of_a_batch_do_not_see_each_other(encoder: TimeSformer, frames: Tensor):
    torch.testing.assert_close(encoder(frames)[1:], encoder(frames[1:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 3, 24, 32), (2, 4, 3, 40, 40), (2, 3, 3, 32, 32)])
def test_a_wrong_size_is_refused_with_both_sizes(encoder: TimeSformer, shape: tuple[int, ...]):
    given, taken = f"({shape[1]}, {shape[3]}, {shape[4]})", "(4, 32, 32)"
    with pytest.raises(ValueError, match="encoder takes") as error:
        encoder(torch.zeros(shape))
    assert given in str(error.value)
    assert taken in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_size": 30}, "30 is not a multiple of patch_size 8"),
        ({"heads": 3}, "16 is not a multiple of heads 3"),
        ({"colour": 1}, "colour"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(tiny: ModelConfig, wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        VideoConfig(**(tiny.video.model_dump() | wrong))


def test_activation_checkpointing_gives_equal_gradients(tiny: ModelConfig, frames: Tensor):
    plain = TimeSformer(tiny.video.model_copy(update={"drop_path": 0.5}))
    initialize(plain, "scratch")
    thrifty = deepcopy(plain)
    thrifty.checkpoint_activations = True
    gradients = []
    for encoder in (plain, thrifty):
        torch.manual_seed(1)  # the same branches are dropped
        encoder.train()(frames).square().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000 * 3, 2), samples=4000).view(4000, 6)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))  # the three rows of a sample share a fate
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    x = torch.randn(6, 2)
    assert torch.equal(drop.eval()(x, samples=2), x)


def test_stochastic_depth_grows_linearly_over_the_blocks():
    encoder = TimeSformer(VideoConfig(image_size=16, patch_size=8, width=8, heads=1, depth=5, drop_path=0.1))
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


def test_attention_against_pytorchs_own():
    """The one linear holds queries, keys and values in that order, as torch.nn.MultiheadAttention's does."""
    attention, reference = Attention(16, heads=4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight.detach(),
            "in_proj_bias": attention.qkv.bias.detach(),
            "out_proj.weight": attention.proj.weight.detach(),
            "out_proj.bias": attention.proj.bias.detach(),
        }
    )
    x, mask = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    expected, _ = reference(x, x, x, key_padding_mask=~mask)
    torch.testing.assert_close(attention(x, mask[:, None, None]), expected, atol=1e-5, rtol=1e-4)
