"""A CLIP or SigLIP of transformers as the prompter: its features and pseudo-labels are those of transformers."""

import json
import shutil

import pytest
import torch
from torch.nn.functional import normalize

from alpro.errors import InputError
from alpro.models.clip_prompter import ClipFolder, ClipPrompter, is_clip, load_clip
from alpro.models.timesformer import VideoConfig

MEAN, STD = torch.tensor([0.4, 0.45, 0.5]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
STUDENT = VideoConfig(image_size=48, patch_size=12)  # a grid of 4 x 4
TEXTS = ["a photo of a dog.", "A Photo of the BALL.", "one cat"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def loaded(request, clip_folders) -> ClipFolder:
    return load_clip(str(clip_folders[request.param]))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 3, 48, 48), generator=random, dtype=torch.uint8)


def own_pixels(loaded: ClipFolder, frames: torch.Tensor) -> torch.Tensor:
    """Frames (..., 3, S, S) uint8 -> (N, 3, 32, 32) with the normalization in the model's preprocessor_config.json."""
    images = torch.nn.functional.interpolate(
        frames.reshape(-1, *frames.shape[-3:]) / 255, (32, 32), mode="bilinear", antialias=True
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loaded.model.mean, loaded.model.std))
    return (images - mean) / std


def test_the_embedding_of_a_clip_is_the_mean_of_transformers_features_of_its_frames(loaded, frames):
    model = loaded.model
    with torch.no_grad():
        model.accept(STUDENT, MEAN.flatten().tolist(), STD.flatten().tolist())
        actual = model.project_video(model.encode_video((frames / 255 - MEAN) / STD))
        for clip, embedding in zip(frames, actual, strict=True):
            features = model.clip.get_image_features(pixel_values=own_pixels(loaded, clip)).pooler_output
            mean = sum(feature / feature.norm() for feature in features) / 3
            torch.testing.assert_close(embedding, mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_pseudo_labels_by_hand(loaded, frames):
    """A softmax of the similarities at the model's logit scale, of frames that are black outside of the crop."""
    model, prompts = loaded.model, torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    model.accept(STUDENT, MEAN.flatten().tolist(), STD.flatten().tolist())
    boxes = torch.tensor([[1, 0, 3, 2], [0, 1, 2, 3]])
    actual = model.pseudo_labels((frames / 255 - MEAN) / STD, boxes, prompts, -MEAN / STD)
    assert not actual.requires_grad
    assert not actual.is_inference()
    for clip, (left, top, width, height), probabilities in zip(frames, boxes.tolist(), actual, strict=True):
        black = torch.zeros_like(clip)
        inside = slice(12 * top, 12 * (top + height)), slice(12 * left, 12 * (left + width))
        black[..., inside[0], inside[1]] = clip[..., inside[0], inside[1]]
        with torch.no_grad():
            features = model.clip.get_image_features(pixel_values=own_pixels(loaded, black)).pooler_output
        embedding = normalize(normalize(features, dim=1).mean(0), dim=0)
        logits = prompts @ embedding * model.clip.logit_scale.exp()
        torch.testing.assert_close(probabilities, logits.exp() / logits.exp().sum(), atol=1e-5, rtol=1e-4)


def test_labels_of_an_image_are_the_softmax_of_transformers_logits(loaded, frames):
    """Also SigLIP's, which have a bias. A still clip of equal frames is the image."""
    model, words = loaded.model, loaded.tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    mask = {"attention_mask": words["attention_mask"]} if model.clip.config.model_type == "clip" else {}
    model.accept(VideoConfig(image_size=32, patch_size=8), loaded.preprocessing.mean, loaded.preprocessing.std)
    image = frames[:, :1, :, :32, :32]
    pixels = own_pixels(loaded, image)
    with torch.no_grad():
        outputs = model.clip(input_ids=words["input_ids"], pixel_values=pixels, **mask)
    prompts, whole = model.embed_texts(loaded.tokenizer, TEXTS), torch.tensor([[0, 0, 4, 4]] * 2)
    torch.testing.assert_close(prompts, outputs.text_embeds, atol=1e-5, rtol=1e-4)
    for count in (1, 4):
        clip = pixels.view(2, 1, 3, 32, 32).expand(-1, count, -1, -1, -1)
        actual = model.pseudo_labels(clip, whole, prompts, torch.zeros(3, 1, 1))
        torch.testing.assert_close(actual, outputs.logits_per_image.softmax(1), atol=1e-5, rtol=1e-4)


def test_texts_do_not_depend_on_the_batch_case_and_length(loaded):
    texts = [*TEXTS, "a " * 50 + "dog"]  # longer than the model's 24 tokens
    together = loaded.model.embed_texts(loaded.tokenizer, texts)
    assert loaded.preprocessing.max_text_tokens == 24
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for text, embedding in zip(texts, together, strict=True):
        alone = loaded.model.embed_texts(loaded.tokenizer, [text.upper()], batch=1)[0]
        torch.testing.assert_close(alone, embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loaded.model.embed_texts(loaded.tokenizer, texts, batch=3), together, atol=1e-5, rtol=0)


def test_autocast_keeps_similarities_in_float32_and_nothing_is_trained(loaded, frames):
    model, prompts = loaded.model, torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    model.accept(STUDENT, MEAN.flatten().tolist(), STD.flatten().tolist())
    arguments = (frames / 255 - MEAN) / STD, torch.tensor([[0, 0, 2, 3]] * 2), prompts, -MEAN / STD
    expected = model.pseudo_labels(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.pseudo_labels(*arguments)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.sum(1), torch.ones(2))
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0)


def test_a_saved_model_is_the_same(loaded, frames, tmp_path):
    loaded.save_pretrained(tmp_path)
    assert is_clip(tmp_path)
    again = load_clip(str(tmp_path))
    assert again.preprocessing == loaded.preprocessing
    texts = [folder.model.embed_texts(folder.tokenizer, TEXTS) for folder in (loaded, again)]
    assert torch.equal(*texts)
    weights = (folder.model.clip.state_dict() for folder in (loaded, again))
    assert all(torch.equal(one, other) for one, other in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize("patch", [10, 14, 16])
def test_boxes_are_in_pieces_that_divide_the_image(clip_folders, tmp_path, patch):
    """Such as those of so400m-patch14-384."""
    loaded = load_clip(str(clip_folders["clip"]))
    loaded.model.clip.config.vision_config.patch_size = patch
    config = ClipPrompter(loaded.model.clip, *[(0.5,) * 3] * 2).config.video
    assert (config.image_size, config.patch_size) == (32, 16 if patch == 16 else 8)


def without(folder, name: str) -> None:
    (folder / name).unlink()


def changed(folder, name: str, **values) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def drop_a_weight(folder) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: changed(f, "config.json", model_type="bert"), r"it is a bert, not a clip or siglip$"),
        (drop_a_weight, r"weights are missing, such as visual_projection\.weight$"),
        (lambda f: without(f, "preprocessor_config.json"), "preprocessor_config.json, as 'hf download' copies them$"),
        (lambda f: (f / "preprocessor_config.json").write_text("{}"), "not readable as .*KeyError: 'image_mean'"),
        (lambda f: without(f, "tokenizer.json"), r"its tokenizer has \d tokens, and the model 56; "),
        (lambda f: without(f, "model.safetensors"), "not readable as .*the folder needs its config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"{}"), "not readable as .*the folder needs its config.json"),
        (lambda f: without(f, "config.json"), "not readable as .*the folder needs its config.json"),
        (shutil.rmtree, "no such folder, and not available .* 'hf download .* --local-dir FOLDER', copy .* its path$"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(damage, message, clip_folders, tmp_path):
    folder = shutil.copytree(clip_folders["clip"], tmp_path / "clip")
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_clip(str(folder))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"prompter = '{folder}': ")


def test_a_name_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"no such folder.*'hf download nobody/clip --local"):
        load_clip("nobody/clip")


def test_what_is_a_clip(clip_folders, tmp_path):
    assert all(is_clip(folder) for folder in clip_folders.values())
    for content in (None, "no json", "[]", '{"model_type": "alpro"}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert not is_clip(tmp_path)
