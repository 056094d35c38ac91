"""A CLIP or SigLIP of transformers as the prompter: its features and pseudo-labels are those of
transformers."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate, normalize

from alpro.models.folder import ClipBundle, is_clip, load_clip_model
from alpro.models.word_pieces import load_tokenizer
from tests.clip_models import REVISION
from tests.conftest import one_line
from tests.models.conftest import near

TEXTS = ["a photo of a dog.", "A Photo of the BALL.", "one cat"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def loaded(request, clip_folders):
    return load_clip_model(str(clip_folders[request.param]))


@pytest.fixture
def trainable(loaded):
    """A copy with temporal attention over 3 frames that does something, unfrozen."""
    model = load_clip_model(loaded.model.clip.name_or_path).model
    model.unfreeze(3)
    with torch.no_grad():
        for temporal in model.temporal:
            temporal.attn.proj.weight.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def frames():
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 3, 48, 48), generator=random, dtype=torch.uint8)


def own_pixels(loaded, frames):
    """Frames (..., 3, S, S) uint8 -> (N, 3, 32, 32) with the normalization in the model's
    preprocessor_config.json."""
    images = frames.reshape(-1, *frames.shape[-3:]) / 255
    images = interpolate(images, (32, 32), mode="bilinear", antialias=True)
    mean = torch.tensor(loaded.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(loaded.preprocessing.std).view(3, 1, 1)
    return (images - mean) / std


def embedded(loaded, texts):
    return loaded.embed_texts(texts)


@torch.no_grad()
def test_embeddings_and_labels_of_a_clip_are_those_of_its_frames_by_hand(
    loaded, frames
):
    """A mean of unit features; a softmax of similarities at the model's logit scale."""
    encoder = loaded.normalized(CPU)
    model = loaded.model
    prompts = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    pixels = encoder.pixels(frames)
    actual = model.project_video(model.encode_video(pixels))
    labels = model.probabilities(pixels, prompts)
    assert not labels.requires_grad
    assert not labels.is_inference()
    for clip, embedding, probabilities in zip(frames, actual, labels, strict=True):
        images = own_pixels(loaded, clip)
        features = model.clip.get_image_features(pixel_values=images).pooler_output
        mean = normalize(features, dim=1).mean(0)
        expected = normalize(mean, dim=0)
        near(embedding, expected)
        logits = prompts @ expected * model.clip.logit_scale.exp()
        near(probabilities, logits.softmax(-1).view(5))
    with torch.autocast("cpu", torch.bfloat16):  # similarities stay float32
        rounded = model.probabilities(pixels, prompts)
    near(rounded.sum(1), torch.ones(2))
    near(rounded, labels, atol=0.05)


@torch.no_grad()
def test_labels_of_an_image_are_the_softmax_of_transformers_logits(loaded, frames):
    """Also SigLIP's, which have a bias. A still clip of equal frames is the image; a whole frame is
    a crop of it."""
    model = loaded.model
    words = loaded.tokenizer(
        TEXTS, padding="max_length", max_length=24, return_tensors="pt"
    )
    if model.clip.config.model_type == "siglip":
        del words["attention_mask"]
    pixels = own_pixels(loaded, frames[:, :1])
    outputs = model.clip(pixel_values=pixels, **words)
    prompts = embedded(loaded, TEXTS)
    grid = model.config.video.grid
    whole = torch.tensor([[0, 0, grid, grid]] * 2)
    near(prompts, outputs.text_embeds)
    for count in (1, 4):
        clip = pixels.view(2, 1, 3, 32, 32).expand(-1, count, -1, -1, -1)
        labels = model.pseudo_labels(clip, whole, prompts, torch.zeros(3, 1, 1))
        near(labels, outputs.logits_per_image.softmax(1))


def test_texts_do_not_depend_on_their_batch_case_and_length(loaded):
    texts = [*TEXTS, "a " * 50 + "dog"]  # longer than the model's 24 tokens
    together = embedded(loaded, texts)
    assert loaded.preprocessing.max_text_tokens == 24
    near(together.norm(dim=1), torch.ones(4))
    alone = torch.cat([embedded(loaded, [text.upper()]) for text in texts])
    near(alone, together)


@torch.no_grad()
def test_temporal_attention_starts_at_nothing_and_sees_the_order_of_frames(
    loaded, trainable, frames
):
    pixels = loaded.normalized(CPU).pixels(frames)
    model = trainable
    fresh = load_clip_model(loaded.model.clip.name_or_path).model
    fresh.unfreeze(3)
    near(fresh.eval().encode_video(pixels), loaded.model.encode_video(pixels))
    spatial = fresh.clip.vision_model.encoder.layers[0].self_attn
    joined = [part.weight for part in (spatial.q_proj, spatial.k_proj, spatial.v_proj)]
    assert torch.equal(fresh.temporal[0].attn.qkv.weight, torch.cat(joined))

    played = model.encode_video(pixels)
    assert (played - model.encode_video(pixels.flip(1))).abs().max() > 1e-3
    near(model.encode_video(pixels[:1]), played[:1])
    frozen = {
        name for name, weight in model.named_parameters() if not weight.requires_grad
    }
    assert frozen <= {"clip.logit_bias"}
    assert not any(p.requires_grad for p in loaded.model.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("count", "nearest"),
    [
        (1, [0]),
        (2, [0, 1]),
        (5, [0, 0, 1, 1, 2]),
        (6, [0, 0, 1, 1, 2, 2]),
    ],
)
def test_another_number_of_frames_has_the_nearest_times_and_keeps_them(
    loaded, trainable, tmp_path, count, nearest
):
    """Also when it is trained further with them, saved and loaded."""
    times = trainable.temporal[0].time_embed.clone()
    assert torch.equal(trainable.temporal[0].times(count), times[nearest])
    trainable.unfreeze(count)
    assert torch.equal(trainable.temporal[0].time_embed, times[nearest])
    clip = torch.randn(2, count, 3, 32, 32)
    bundle = ClipBundle("prompter", trainable, loaded.tokenizer, loaded.preprocessing)
    bundle.save_pretrained(tmp_path)

    again = load_clip_model(str(tmp_path)).model
    assert again.config.video.frames == count
    near(again.encode_video(clip), trainable.encode_video(clip))


def test_a_saved_model_is_the_same(loaded, tmp_path, capfd):
    loaded.save_pretrained(tmp_path)
    assert capfd.readouterr().err == ""
    # The weights are readable, too.
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert is_clip(tmp_path)
    again = load_clip_model(str(tmp_path))
    assert again.preprocessing == loaded.preprocessing
    assert torch.equal(embedded(again, TEXTS), embedded(loaded, TEXTS))
    near(again.model.state_dict(), loaded.model.state_dict(), atol=0)


@pytest.mark.parametrize("kind", ["clip", "pickled"])
def test_a_hub_name_may_have_a_revision(kind, hub, clip_folders):
    name = hub(clip_folders[kind])
    weights = clip_folders["clip"] / "model.safetensors"
    loaded = load_clip_model(f"{name}@{REVISION}").model.clip.state_dict()
    for key, value in load_file(weights).items():
        assert torch.equal(loaded[key], value), key
    assert load_tokenizer(f"{name}@{REVISION}").get_vocab_size() > 5
    for load in (load_clip_model, load_tokenizer):
        with one_line(f"{name}@1"):
            load(f"{name}@1")


def test_the_temperature_is_bounded(trainable):
    for learned, used in ((0.2, 0.2), (3.0, 0.5), (1e-5, 0.001)):
        trainable.clip.logit_scale.data.fill_(-math.log(learned))
        trainable.clamp_temperature_()
        assert trainable.clamped_temperature().shape == ()
        assert trainable.clamped_temperature().item() == pytest.approx(used)
