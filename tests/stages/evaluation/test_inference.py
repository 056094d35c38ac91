"""A trained model in a few lines of Python."""

import numpy as np
import pytest
import torch
from PIL import Image

from alpro.errors import InputError
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.shards.decode import DecodeError
from alpro.stages import cache_prompts
from alpro.stages.evaluation.inference import Model
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery

TEXTS = ["a red ball moves left", "something slides up"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model, vocabulary, tokenizer, resources):
    """Model folders by task, and the prompts of the prompter."""
    config, root = tiny_model(tokenizer.get_vocab_size()), tmp_path_factory.mktemp("folders")
    torch.manual_seed(0)
    folders = {
        "prompter": ModelFolder("prompter", Prompter(config), tokenizer),
        "retrieval": ModelFolder("retrieval", Alpro(config), tokenizer),
        "qa": ModelFolder("qa", Alpro(config, answers=3), tokenizer, answers=["ball", "box", "left"]),
    }
    for name, folder in folders.items():
        folder.save_pretrained(root / name / "model")  # as in an artifact
    prompts = root / "prompts"
    prompts.mkdir()
    inputs = {"prompter": root / "prompter", "vocabulary": vocabulary}
    cache_prompts.run(cache_prompts.Config(), inputs, prompts, resources)
    return {name: root / name for name in (*folders, "prompts")}


@pytest.fixture(scope="module")
def videos(sample):
    return sorted((sample / "videos").glob("test-*.mp4"))[:3]


def test_embeddings_are_those_of_the_evaluation(folders, videos, clips, tokenizer):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    actual = model.embed_videos(videos)
    assert actual.shape == (3, 16)
    torch.testing.assert_close(actual.norm(dim=1), torch.ones(3))
    gallery = Gallery.of(clips, "test")
    texts, evaluated = encode_gallery(model.encoder, gallery, tokenizer, 30, torch.device("cpu"))
    places = [gallery.ids.index(path.stem) for path in videos]
    # Shards hold JPEGs of another size, so that pixels differ a little.
    assert (actual * evaluated.features[places]).sum(dim=1).min() > 0.95
    torch.testing.assert_close(model.embed_texts(gallery.texts[:2]), texts.features[:2], atol=1e-4, rtol=0)


def test_matching_gives_a_probability_for_every_pair(folders, videos):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    both = model.match(videos, TEXTS)
    assert both.shape == (2, 3)
    assert ((both > 0) & (both < 1)).all()
    torch.testing.assert_close(model.match(videos[1:2], TEXTS), both[:, 1:2], atol=1e-5, rtol=1e-4)


def test_answers_are_the_best_first(folders, videos):
    model = Model.from_pretrained(folders["qa"], device="cpu")
    answers = model.answer(videos[0], "where does it go?", top_k=9)
    assert {word for word, _ in answers} == {"ball", "box", "left"}
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)
    assert sum(p for _, p in answers) == pytest.approx(1, abs=1e-5)


def test_entities_of_a_region_are_those_of_the_prompter(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu")
    whole = model.entities(videos[0], top_k=99)
    assert len(whole) == 8
    assert sum(p for _, p in whole) == pytest.approx(1, abs=1e-5)
    assert dict(model.entities(videos[0], (0.5, 0.5, 0.5, 0.5), top_k=99)) != dict(whole)
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / "still.png")
    assert len(model.entities(tmp_path / "still.png")) == 3
    picture = model.draw_entities(videos[0], [(0, 0, 1, 1), (0, 0, 0.5, 0.5)])
    assert picture.width > 2 * 176


def test_a_region_is_top_left_height_and_width(folders, videos, monkeypatch):
    model, seen = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu"), []
    whole = model.folder.model.pseudo_labels

    def watched(frames, boxes, *rest):
        seen.append(boxes.tolist())
        return whole(frames, boxes, *rest)

    monkeypatch.setattr(model.folder.model, "pseudo_labels", watched)
    model.entities(videos[0], (0.75, 0, 0.25, 0.5))  # of 4 x 4 patches
    model.entities(videos[0], (0.25, 0.5, 0.75, 0.25))
    assert seen == [[[3, 0, 1, 2]], [[1, 2, 3, 1]]]


def test_a_folder_is_saved_and_read_again(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["qa"], device="cpu")
    model.save_pretrained(tmp_path / "copy")
    again = Model.from_pretrained(tmp_path / "copy", device="cpu")
    assert again.answer(videos[0], "what?") == model.answer(videos[0], "what?")


def test_what_a_model_cannot_do_is_one_line(folders, videos, tmp_path):
    prompter = Model.from_pretrained(folders["prompter"], device="cpu")
    with pytest.raises(InputError, match="a prompter with its prompts"):
        prompter.entities(videos[0])
    with pytest.raises(InputError, match="no multimodal encoder"):
        prompter.match(videos[:1], TEXTS)
    with pytest.raises(InputError, match="does not answer questions"):
        Model.from_pretrained(folders["retrieval"], device="cpu").answer(videos[0], "what?")
    with pytest.raises(InputError, match="not a model folder"):
        Model.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no prompts\.safetensors in this folder"):
        Model.from_pretrained(folders["prompter"], tmp_path / "nowhere", device="cpu")


def test_wrong_arguments_are_reported(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    for call, argument in ((model.embed_texts, "a dog"), (model.embed_videos, str(videos[0])), (model.embed_texts, [])):
        with pytest.raises(InputError, match="expected a list of one or more"):
            call(argument)
    with pytest.raises(DecodeError, match=r"missing: .*none\.mp4"):
        model.embed_videos([*videos, tmp_path / "none.mp4"])
    prompter = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu")
    with pytest.raises(InputError, match="fractions of the frame"):
        prompter.entities(videos[0], (0, 0, 50, 50))
    with pytest.raises(InputError, match="folder of a cache_prompts artifact"):
        Model.from_pretrained(folders["prompter"], folders["qa"], device="cpu")
