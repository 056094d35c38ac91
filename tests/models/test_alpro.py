"""ALPRO and the prompter: shapes, gradients of each loss, padding, heads and temperature."""

import pytest
import torch
from torch import Tensor, nn

from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.losses import box_mask, hard_negatives, mlm_loss, pem_loss, vtc_loss, vtm_loss
from alpro.models.text import TextConfig

ENTITIES, ANSWERS, SIZE, LENGTH = 5, 7, 3, 6
BOXES = torch.tensor([[0, 0, 3, 2], [1, 1, 2, 3], [0, 2, 4, 2]])
INSIDE = box_mask(BOXES, 4)


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(SIZE, 4, 3, 32, 32)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(5, 40, (SIZE, LENGTH))


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])


def vtc(model: DualEncoder, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the similarity of videos to texts."""
    similarity = model.project_video(video) @ model.project_text(text).T / model.clamped_temperature()
    return vtc_loss(similarity, similarity.T, torch.arange(SIZE), torch.eye(SIZE, dtype=torch.bool)), similarity


def retrieval_loss(model: Alpro, frames: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """VTC + VTM."""
    video, text = model.encode_video(frames), model.encode_text(ids, mask)
    contrast, similarity = vtc(model, video, text)
    negatives, valid = hard_negatives(similarity.T, torch.eye(SIZE, dtype=torch.bool), torch.rand(SIZE))
    logits = torch.cat([model.match(text, mask, video), model.match(text, mask, video[negatives])])
    labels = torch.tensor([1] * SIZE + [0] * SIZE)
    return contrast + vtm_loss(logits, labels, torch.cat([torch.ones(SIZE), valid.float()]))


def pretraining_loss(model: Alpro, frames: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """VTC + VTM + MLM + PEM."""
    video, text = model.encode_video(frames), model.encode_text(ids, mask)
    fused = model.fuse(text, mask, video)
    words = mlm_loss(model.mlm_scores(fused[:, 1:3].flatten(0, 1)), ids[:, 1:3].flatten())
    labels = torch.randn(SIZE, ENTITIES).softmax(dim=1)
    entities, _ = pem_loss(model.pem_logits(fused[:, LENGTH + 1 :], INSIDE), labels, threshold=0.0)
    return retrieval_loss(model, frames, ids, mask) + words + entities


def without_gradient(model: nn.Module) -> set[str]:
    """The top-level modules that have parameters without a gradient."""
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_shapes(tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor):
    model = Alpro(tiny, entities=ENTITIES, answers=ANSWERS).eval()
    video, text = model.encode_video(frames), model.encode_text(ids, mask)
    fused = model.fuse(text, mask, video)
    assert video.shape == (SIZE, 17, 16)
    assert text.shape == (SIZE, LENGTH, 16)
    assert fused.shape == (SIZE, LENGTH + 17, 16)
    assert model.project_video(video).shape == model.project_text(text).shape == (SIZE, 8)
    assert model.match(text, mask, video).shape == (SIZE, 2)
    assert model.answer(text, mask, video).shape == (SIZE, ANSWERS)
    assert model.mlm_scores(fused[:, :LENGTH]).shape == (SIZE, LENGTH, 40)
    assert model.pem_logits(fused[:, LENGTH + 1 :], INSIDE).shape == (SIZE, ENTITIES)


def test_embeddings_have_unit_length(tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor):
    model = Prompter(tiny).eval()
    for embeddings in (
        model.project_video(model.encode_video(frames)),
        model.project_text(model.encode_text(ids, mask)),
    ):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(SIZE))


def test_pretraining_has_gradients_for_every_weight(tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor):
    model = Alpro(tiny, entities=ENTITIES)
    pretraining_loss(model, frames, ids, mask).backward()
    assert without_gradient(model) == set()
    # In the text embeddings, token type 1 and positions after the longest text are not used.
    assert not model.text_encoder.embeddings.token_type_embeddings.weight.grad[1].any()
    assert not model.text_encoder.embeddings.position_embeddings.weight.grad[LENGTH:].any()


def test_other_tasks_have_gradients_for_every_weight_they_use(
    tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor
):
    model = Alpro(tiny)
    retrieval_loss(model, frames, ids, mask).backward()
    assert without_gradient(model) == set()
    prompter = Prompter(tiny)
    vtc(prompter, prompter.encode_video(frames), prompter.encode_text(ids, mask))[0].backward()
    assert without_gradient(prompter) == set()
    model = Alpro(tiny, answers=ANSWERS)
    logits = model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames))
    nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    assert without_gradient(model) == {"video_proj", "text_proj", "temperature", "vtm_head"}


def test_padding_does_not_change_the_text(tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor):
    model = Alpro(tiny).eval()
    noise = torch.where(mask.bool(), ids, torch.randint(5, 40, ids.shape))
    text, other = model.encode_text(ids, mask), model.encode_text(noise, mask)
    real = mask.bool()
    torch.testing.assert_close(text[real], other[real])
    # The result is that of the text without padding.
    torch.testing.assert_close(model.encode_text(ids[1:2, :4], mask[1:2, :4])[0], text[1, :4], atol=1e-5, rtol=1e-4)
    # Fusion ignores padding as well.
    video = model.encode_video(frames)
    alone = model.match(text[2:, :3], mask[2:, :3], video[2:])
    torch.testing.assert_close(alone, model.match(text, mask, video)[2:], atol=1e-5, rtol=1e-4)


def test_the_order_of_words_changes_the_text(tiny: ModelConfig, ids: Tensor):
    model, mask = Alpro(tiny).eval(), torch.ones_like(ids)
    assert (model.encode_text(ids, mask) - model.encode_text(ids.flip(1), mask).flip(1)).abs().max() > 0.01


def test_a_too_long_text_is_refused_with_both_lengths(tiny: ModelConfig):
    ids = torch.ones(1, 13, dtype=torch.long)
    with pytest.raises(ValueError, match=r"text of 13 tokens.* 12"):
        Alpro(tiny).encode_text(ids, ids)


def test_answering_without_the_head_raises_an_error(tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor):
    model = Alpro(tiny)
    with pytest.raises(ValueError, match="no question-answering head"):
        model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames))


def test_entities_are_read_from_the_patches_inside_the_box(tiny: ModelConfig):
    model = Alpro(tiny, entities=ENTITIES)
    patches = torch.randn(SIZE, 16, 16)
    outside = torch.where(INSIDE[:, :, None], patches, torch.randn_like(patches))
    logits = model.pem_logits(patches, INSIDE)
    torch.testing.assert_close(model.pem_logits(outside, INSIDE), logits)
    # The first box by hand: rows 0-1 and columns 0-2 of the 4 x 4 grid.
    mean = patches[0, [0, 1, 2, 4, 5, 6]].mean(dim=0)
    torch.testing.assert_close(model.pem_head(mean), logits[0])


@torch.no_grad()
def test_pseudo_labels_are_the_softmax_of_the_crops_similarity(tiny: ModelConfig, frames: Tensor):
    prompter = Prompter(tiny).eval()
    prompts = nn.functional.normalize(torch.randn(ENTITIES, 8), dim=1)
    labels = prompter.pseudo_labels(frames, BOXES, prompts, torch.full((3, 1, 1), -0.5))
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(SIZE))
    # The first by hand: rows 0-1 and columns 0-2 of patches of 8 pixels are visible, the rest is black.
    visible = torch.full_like(frames[:1], -0.5)
    visible[..., :16, :24] = frames[:1, ..., :16, :24]
    similarity = prompter.project_video(prompter.encode_video(visible)) @ prompts.T
    torch.testing.assert_close(labels[:1], (similarity / 0.07).softmax(dim=1), atol=1e-5, rtol=1e-4)


def test_pseudo_labels_carry_no_gradient(tiny: ModelConfig, frames: Tensor):
    prompter = Prompter(tiny)
    prompts = torch.randn(ENTITIES, 8, requires_grad=True)
    assert not prompter.pseudo_labels(frames, BOXES, prompts, torch.zeros(3, 1, 1)).requires_grad


@pytest.mark.parametrize(("learned", "used"), [(0.07, 0.07), (3.0, 0.5), (1e-5, 0.001), (-1.0, 0.001)])
def test_the_temperature_is_clamped(tiny: ModelConfig, learned: float, used: float):
    model = Prompter(tiny)
    assert model.temperature.item() == pytest.approx(0.07)
    model.temperature.data.fill_(learned)
    assert model.clamped_temperature().item() == pytest.approx(used)


def test_activation_checkpointing_gives_equal_gradients_in_text_and_fusion(
    tiny: ModelConfig, frames: Tensor, ids: Tensor, mask: Tensor
):
    config = tiny.model_copy(update={"text": tiny.text.model_copy(update={"dropout": 0.2, "depth": 4})})
    model = Alpro(config, answers=ANSWERS).train()
    gradients = []
    for checkpointed in (False, True):
        for layers in (model.text_encoder.layers, model.multimodal_encoder.layers):
            layers.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(1)  # the same dropout
        model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("init", ["bert", "scratch"])
def test_temporal_layers_start_at_zero_only_for_a_loaded_vit(tiny: ModelConfig, init: str):
    model = Alpro(tiny.model_copy(update={"init": init}))
    for block in model.video_encoder.blocks:
        assert bool(block.temporal_fc.weight.any()) == (init == "scratch")
        assert not block.temporal_fc.bias.any()


def test_video_and_text_need_the_same_width(tiny: ModelConfig):
    text = TextConfig(**(tiny.text.model_dump() | {"width": 24}))
    with pytest.raises(ValueError, match=r"video.width 16 and text.width 24 must be equal"):
        ModelConfig(video=tiny.video, text=text)


def test_the_full_size_model_has_the_papers_parameters():
    """ViT-B/16 with divided attention, BERT-base cut after layer 6, 256-d projections, 1000 entities."""
    attention = 3 * (768 * 768 + 768) + (768 * 768 + 768)  # queries, keys, values; output
    mlp = (768 * 3072 + 3072) + (3072 * 768 + 768)
    norm = 2 * 768
    block = 2 * attention + (768 * 768 + 768) + mlp + 3 * norm  # over time and over space, temporal_fc
    patches = 3 * 16 * 16 * 768 + 768
    video = patches + 768 + 197 * 768 + 4 * 768 + 12 * block + norm  # [CLS], 14 * 14 + 1 places, 4 frames
    layer = attention + mlp + 2 * norm
    text = (30522 + 512 + 2) * 768 + norm + 6 * layer
    projections = 2 * (768 * 256 + 256)
    mlm = (768 * 768 + 768) + norm + 30522  # the decoder is the word embeddings
    pem = (768 * 1536 + 1536) + (1536 * 1000 + 1000)
    expected = {
        "video_encoder": video,  # 121,255,680
        "text_encoder": text,  # 66,364,416
        "video_proj": projections // 2,
        "text_proj": projections // 2,
        "temperature": 1,
        "multimodal_encoder": 6 * layer,  # 42,527,232
        "vtm_head": 768 * 2 + 2,
        "mlm_head": mlm,
        "pem_head": pem,
    }
    assert (video, text, 6 * layer) == (121_255_680, 66_364_416, 42_527_232)
    assert sum(expected.values()) == 233_883_429

    model = Alpro(ModelConfig(), entities=1000)
    actual = dict.fromkeys(expected, 0)
    for name, parameter in model.named_parameters():
        actual[name.split(".")[0]] += parameter.numel()
    assert actual == expected
