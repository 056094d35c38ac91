"""The video encoder: shapes, frame order, stochastic depth and checkpointing."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from alpro.models.alpro import ModelConfig, initialize
from alpro.models.attention import Attention
from alpro.models.timesformer import Block, TimeSformer, VideoConfig, drop_path


@pytest.fixture
def encoder(tiny: ModelConfig) -> TimeSformer:
    encoder = TimeSformer(tiny.video)
    initialize(encoder, "scratch")
    return encoder.eval()


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(2, 4, 3, 32, 32)


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_only_kept_patches_are_encoded(tiny: ModelConfig, frames: Tensor, stem):
    encoder = TimeSformer(tiny.video.model_copy(update={"stem": stem}))
    initialize(encoder, "scratch")
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder.eval()(frames, kept=everything), encoder(frames))
    kept = torch.tensor([[0, 5, 6, 15], [1, 2, 3, 4]])
    tokens = encoder(frames, kept=kept)
    assert tokens.shape == (2, 1 + 4, 16)
    torch.testing.assert_close(encoder(frames, True, kept), tokens[:, :1])
    # Each token keeps its position, and no token comes from another example's patches.
    flipped = encoder(frames, kept=kept.flip(1))
    torch.testing.assert_close(flipped, torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(frames[1:], kept=kept[1:]), tokens[1:], atol=1e-5, rtol=1e-4)
    if stem == "patch":  # what a dropped patch shows is not seen
        hidden = frames.clone()
        hidden[0, :, :, 8:16, :8] = 0  # the first of the second row of patches
        torch.testing.assert_close(encoder(hidden, kept=kept), tokens)


@torch.no_grad()
def test_without_time_embeddings_the_order_of_frames_changes_nothing(encoder: TimeSformer, frames: Tensor):
    """Attention over time is permutation-equivariant, and tokens are averaged over time."""
    encoder.time_embed.zero_()
    for order in ([3, 2, 1, 0], [1, 2, 3, 0]):
        torch.testing.assert_close(encoder(frames[:, order]), encoder(frames), atol=1e-5, rtol=1e-4)
    # Frames are not ignored: another frame gives another output.
    assert (encoder(frames[:, [0, 0, 1, 2]]) - encoder(frames)).abs().max() > 0.01


@torch.no_grad()
def test_a_still_clip_through_new_temporal_layers_equals_one_frame(tiny: ModelConfig, frames: Tensor):
    """ "bert" starts temporal_fc at zero: a TimeSformer that loads a ViT starts as that ViT on every frame."""
    encoder = TimeSformer(tiny.video)
    initialize(encoder, "bert")
    encoder.time_embed.zero_()
    single = TimeSformer(tiny.video.model_copy(update={"frames": 1}))
    weights = encoder.state_dict()
    single.load_state_dict(weights | {"time_embed": weights["time_embed"][:, :1]})
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(encoder.eval()(still), single.eval()(frames[:, :1]), atol=1e-5, rtol=1e-4)


def test_an_image_is_one_frame_at_the_first_time(encoder: TimeSformer, frames: Tensor):
    single = TimeSformer(encoder.config.model_copy(update={"frames": 1}))
    single.load_state_dict(encoder.state_dict() | {"time_embed": encoder.time_embed.data[:, :1]})
    assert torch.equal(encoder(frames[:, :1]), single.eval()(frames[:, :1]))


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_a_conv_stem_halves_the_frame_down_to_the_patches(tiny: ModelConfig, frames: Tensor, patch: int):
    config = tiny.video.model_copy(update={"stem": "conv", "patch_size": patch})
    encoder = TimeSformer(config)
    initialize(encoder, "scratch")
    assert encoder.patch_embed(frames[:, 0]).shape == (len(frames), config.width, 32 // patch, 32 // patch)
    assert encoder(frames).shape == (len(frames), 1 + (32 // patch) ** 2, config.width)


@pytest.mark.parametrize("shape", [(2, 4, 3, 24, 32), (2, 4, 3, 40, 40), (2, 3, 3, 32, 32)])
def test_a_wrong_frame_size_is_refused_with_both_sizes(encoder: TimeSformer, shape: tuple[int, ...]):
    actual, expected = f"({shape[1]}, {shape[3]}, {shape[4]})", "(4, 32, 32)"
    with pytest.raises(ValueError, match="encoder takes") as error:
        encoder(torch.zeros(shape))
    assert actual in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 30}, "30 is not a multiple of patch_size 8"),
        ({"heads": 3}, "16 is not a multiple of heads 3"),
        ({"color": 1}, "color"),
        ({"image_size": 36, "patch_size": 12, "stem": "conv"}, "a power of 2, not 12"),
    ],
)
def test_inconsistent_sizes_are_refused(tiny: ModelConfig, wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VideoConfig(**(tiny.video.model_dump() | wrong))


def test_activation_checkpointing_gives_equal_gradients(tiny: ModelConfig, frames: Tensor):
    plain = TimeSformer(tiny.video.model_copy(update={"drop_path": 0.5}))
    initialize(plain, "scratch")
    checkpointed = deepcopy(plain)
    checkpointed.checkpoint_activations = True
    gradients = []
    for encoder in (plain, checkpointed):
        torch.manual_seed(1)  # the same branches are dropped
        encoder.train()(frames).square().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


def stochastic(rate: float, depth: int) -> TimeSformer:
    """An encoder in training mode, with stochastic depth."""
    shape = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 8, "heads": 1}
    encoder = TimeSformer(VideoConfig(**shape, depth=depth, drop_path=rate))
    initialize(encoder, "scratch")
    return encoder.train()


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    keep = stochastic(0.25, depth=2).sample_drop_path(4000)
    assert keep.shape == (2, 3, 4000)
    assert keep[1].unique().tolist() == pytest.approx([0, 1 / 0.75])
    for branch in range(3):
        kept = drop_path(torch.ones(4000 * 3, 2), keep[1], branch).view(4000, 6)
        assert torch.equal(kept, kept[:, :1].expand_as(kept))  # all rows of a sample are kept or dropped
        assert kept.mean().item() == pytest.approx(1, abs=0.05)


def test_stochastic_depth_grows_linearly_over_the_blocks():
    keep = stochastic(0.8, depth=5).sample_drop_path(2000)
    # Of 6,000 draws the share has a standard deviation of at most 0.0065.
    assert (keep == 0).double().mean(dim=(1, 2)).tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.033)


def test_branches_are_dropped_independently_of_each_other_and_of_other_samples():
    dropped = (stochastic(0.5, depth=2).sample_drop_path(4000)[1] == 0).double()
    between = dropped.corrcoef().fill_diagonal_(0)  # of the three branches: standard deviation 0.016
    assert between.abs().max() < 0.08
    assert torch.stack([dropped[0, :-1], dropped[0, 1:]]).corrcoef()[0, 1].abs() < 0.08  # of a sample and the next


def test_evaluation_drops_nothing(frames: Tensor):
    encoder = stochastic(0.5, depth=2)
    plain = stochastic(0.0, depth=2)
    plain.load_state_dict(encoder.state_dict())
    small = frames[:, :2, :, :16, :16]
    assert encoder.eval().sample_drop_path(3) is None
    assert plain.train().sample_drop_path(3) is None  # nor if the rate is 0
    assert torch.equal(encoder(small), plain(small))


@torch.no_grad()
def test_a_block_is_the_identity_for_a_sample_whose_branches_are_all_dropped(tiny: ModelConfig):
    block = Block(tiny.video)
    x = torch.randn(2, 1 + 4 * 16, 16)
    keep = torch.tensor([[0.0, 1.0]] * 3)
    out = block(x, 4, keep)
    whole = block(x, 4)
    assert torch.equal(out[0, 0], x[0, 0])
    # What temporal_fc adds to every token does not go through the branch, as in the official code.
    torch.testing.assert_close(out[0, 1:], x[0, 1:] + block.temporal_fc.bias)
    torch.testing.assert_close(out[1], whole[1])


@torch.no_grad()
@pytest.mark.parametrize("branch", [0, 1, 2])
def test_every_branch_of_a_block_is_dropped_by_its_own_number(tiny: ModelConfig, branch: int):
    block = Block(tiny.video)
    x = torch.randn(1, 1 + 4 * 16, 16)
    keep = torch.ones(3, 1)
    keep[branch] = 0
    out = block(x, 4, keep)
    silent = [block.temporal_attn.proj, block.attn.proj, block.mlp.fc2][branch]
    silent.weight.zero_()
    silent.bias.zero_()
    torch.testing.assert_close(out, block(x, 4))


def test_cls_only_equals_the_cls_of_all_tokens_with_gradients(tiny: ModelConfig, frames: Tensor):
    encoder = TimeSformer(tiny.video.model_copy(update={"drop_path": 0.5}))
    initialize(encoder, "scratch")
    actual = []
    for cls_only in (False, True):
        encoder.zero_grad()
        torch.manual_seed(1)  # the same branches are dropped
        cls = encoder.train()(frames, cls_only)[:, 0]
        (cls * torch.linspace(-1, 1, cls.shape[1])).sum().backward()
        actual.append({"cls": cls.detach()} | {name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, value in actual[0].items():
        torch.testing.assert_close(actual[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_attention_against_pytorchs_own():
    """One linear layer has queries, keys and values in that order, as in torch.nn.MultiheadAttention."""
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
