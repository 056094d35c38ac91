"""A trained model in a few lines of Python."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alpro.errors import InputError
from alpro.inference import clips as clips_module
from alpro.inference.clips import is_file, load_clip
from alpro.inference.model import Model
from alpro.shards.schema import Row
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from tests.conftest import one_line

TEXTS = ["a red ball moves left", "something slides up"]


@pytest.fixture(scope="module")
def models(folders):
    """A model of each task, and a prompter without prompts."""
    models = {
        task: Model.load(folders[task], device="cpu") for task in ("retrieval", "pretrain", "qa")
    }
    models["prompter"] = Model.load(folders["prompter"], prompts=folders["prompts"], device="cpu")
    return models | {"bare": Model.load(folders["prompter"], device="cpu")}


@pytest.fixture
def mixed(videos, tmp_path):
    """Files of which the second and the last cannot be decoded."""
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    return [videos[0], tmp_path / "notes.mp4", str(videos[1]), videos[2], tmp_path / "empty.mp4"]


def test_embeddings_are_those_of_the_evaluation(models, videos, clips, tokenizer):
    model = models["retrieval"]
    gallery = Gallery.read(clips, "test")
    loaded = LoadedModel("", model.encoder, tokenizer, 30)
    texts = loaded.encode_texts(gallery.texts)
    _, evaluated = loaded.encode_videos(gallery)
    actual = model.encode(videos)
    assert (actual.shape, actual.dtype) == ((3, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)
    places = [gallery.ids.index(path.stem) for path in videos]
    # Shards hold JPEGs of another size, so that pixels differ a little.
    assert (actual * evaluated.features[places].numpy()).sum(axis=1).min() > 0.95
    np.testing.assert_allclose(model.encode(gallery.texts[:2]), texts.features[:2], atol=1e-4)
    samples = model.encode(list(gallery.videos))
    np.testing.assert_allclose(samples, evaluated.features, atol=1e-5, rtol=1e-4)


def test_similarity_has_the_order_of_its_arguments(models, videos):
    model = models["retrieval"]
    scores = model.similarity(TEXTS, videos)
    assert (scores.shape, scores.dtype) == ((2, 3), np.float32)
    close = partial(np.testing.assert_allclose, atol=1e-6)
    close(model.similarity(videos, TEXTS), scores.T)
    close(model.similarity(model.encode(TEXTS[1]), model.encode(videos)), scores[1:])
    close(model.similarity(TEXTS[0], str(videos[2])), scores[:1, 2:])
    assert isinstance(model.match(TEXTS[:1], videos[:1]), np.ndarray)
    np.testing.assert_allclose(model.encode(str(videos[0])), model.encode(videos)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.mp4", True),
        ("https://host/a", True),
        (Path("README"), True),
        ("a dog", False),
        ("notes/README.md", False),
        ("a" * 5000, False),
        ("a\0b", False),
    ],
)
def test_a_string_is_a_file_if_it_ends_like_one(value, expected):
    assert is_file(value) is expected


def test_a_model_is_looked_up_in_the_workspace_of_the_environment(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"workspace=") as raised:
        Model.load("finetune_retrieval")
    assert raised.value.__context__ is None  # one error, not two
    monkeypatch.setenv("ALPRO_WORKSPACE", str(tmp_path / "other"))
    with pytest.raises(InputError, match="other"):
        Model.load("finetune_retrieval")
    assert "retrieval" in repr(Model.load(folders["retrieval"], device="cpu"))


def test_answers_are_the_best_first(models, videos):
    answers = models["qa"].ask(videos[0], "where does it go?", top_k=9)
    assert {word for word, _ in answers} == {"ball", "box", "left"}
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)
    assert sum(p for _, p in answers) == pytest.approx(1, abs=1e-5)


def test_a_pre_trained_model_names_a_region_by_its_fused_patches(models, videos):
    model = models["pretrain"]
    box = (0.5, 0, 0.25, 1)
    text = "a ball moves to the left"
    named = dict(model.entities(videos[0], box, 99, text))
    caption = model.texts([text])
    video = model.folder.model.encode_video(model.encoder.pixels(model.frames(videos[0])))
    fused = model.folder.model.fuse(caption.tokens, caption.mask, video)[:, -16:]
    inside = fused.view(1, 4, 4, -1)[:, :, 2].mean(1)  # the third column of the patches
    expected = model.folder.model.pem_head(inside).softmax(1)[0].tolist()
    assert expected == pytest.approx([named[name] for name in "abcdefgh"], abs=1e-6)
    assert dict(model.entities(videos[0], box, 99)) != named  # without a text
    assert len(model.entities(videos[0], top_k=2)) == 2


@pytest.mark.parametrize("kind", ["image", "video"])
def test_images_and_videos_are_named_with_the_prompts_of_their_kind(models, videos, tmp_path, kind):
    """Also a row that says what a file without an extension is, such as an upload."""
    model = models["prompter"]
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
        image
    )
    file = image if kind == "image" else videos[0]
    upload = Row(id="upload", path=shutil.copy(file, tmp_path / "upload"), kind=kind)
    for source in (file, upload):
        for box, patches in (
            ((0, 0, 1, 1), [0, 0, 4, 4]),
            ((0.5, 0.25, 0.25, 0.75), [2, 1, 1, 3]),
        ):  # of 4 x 4
            pixels = model.encoder.pixels(model.frames(source))
            boxes = torch.tensor([patches])
            named = dict(model.entities(source, box, top_k=99))
            assert sum(named.values()) == pytest.approx(1, abs=1e-5)
            for prompts, features in model.prompts.items():
                expected = model.folder.model.pseudo_labels(
                    pixels, boxes, features, model.encoder.black
                )[0]
                same = expected.tolist() == pytest.approx(
                    [named[name] for name in model.folder.entities], abs=1e-6
                )
                assert same is (prompts == kind)


def test_what_a_model_cannot_do_is_one_line(models, videos):
    for task, call, named in (
        ("bare", lambda m, v: m.entities(v[0]), "prompts"),
        ("prompter", lambda m, v: m.entities(v[0], text="a ball"), "text"),
        ("prompter", lambda m, v: m.entities(v[0], (0.5, 0.5, 1, 1)), "region"),
        ("retrieval", lambda m, v: m.entities(v[0]), "retrieval"),
        ("prompter", lambda m, v: m.match(TEXTS, v), "match"),
        ("retrieval", lambda m, v: m.match(v, TEXTS), "text"),
        ("retrieval", lambda m, v: m.ask(v[0], "what?"), "finetune_qa"),
        ("qa", lambda m, v: m.ask(v[0], " \n"), "empty"),
        ("retrieval", lambda m, v: m.match([None], v), "None"),
        ("retrieval", lambda m, v: m.encode(["a dog", ""]), "empty"),
        ("retrieval", lambda m, v: m.encode(["a dog", "\udcff"]), "UTF-8"),
        ("retrieval", lambda m, v: m.encode(["a dog", v[0]]), "not both"),
        ("retrieval", lambda m, v: m.encode([]), "[]"),
        ("retrieval", lambda m, v: m.similarity(None, v), "None"),
        ("retrieval", lambda m, v: m.match("a dog", v), "a dog"),
    ):
        with one_line(named):
            call(models[task], videos)


def test_a_folder_that_is_no_model_is_one_line(folders, tmp_path, models):
    with pytest.raises(InputError, match="model folder"):
        Model.load(tmp_path)
    for prompts in (tmp_path / "nowhere", folders["qa"]):
        with pytest.raises(InputError, match=r"prompts\.safetensors"):
            Model.load(folders["prompter"], prompts=prompts, device="cpu")
    with pytest.raises(InputError, match="float8"):
        Model.load(folders["retrieval"], device="cpu", dtype="float8")


def test_a_file_that_does_not_exist_raises(models, videos, tmp_path):
    missing = [videos[0], tmp_path / "none.mp4"]
    for call in (
        lambda: models["retrieval"].encode(missing),
        lambda: models["retrieval"].similarity(TEXTS, missing),
        lambda: models["retrieval"].match(TEXTS, missing),
        lambda: models["qa"].ask(missing[1], "what?"),
        lambda: models["prompter"].entities(str(missing[1])),
    ):
        with pytest.raises(InputError, match=r"none\.mp4: no such file"):
            call()


def test_a_bad_file_is_reported_and_the_others_are_scored_and_streamed_in_order(
    models, videos, mixed
):
    model = models["retrieval"]
    for call in (model.match, model.similarity):
        with pytest.warns(UserWarning, match="empty|unreadable") as warned:
            scores = call(TEXTS, mixed, batch_size=2)
        assert {str(one.message).rpartition("/")[2].partition(":")[0] for one in warned} == {
            "empty.mp4",
            "notes.mp4",
        }
        expected = call(TEXTS, videos)
        np.testing.assert_allclose(scores[:, [0, 2, 3]], expected, atol=1e-5, rtol=1e-4)
        assert np.isnan(scores[:, [1, 4]]).all()
    with pytest.warns(UserWarning, match="empty"):
        assert np.isnan(model.encode(mixed[4:])).all()  # a batch without any video
    results = list(models["bare"].stream((file for file in mixed), batch_size=2))
    assert [result.file for result in results] == mixed
    reasons = [result.error.reason if result.error else "" for result in results]
    assert reasons == ["", "unreadable", "", "", "empty"]
    embeddings = [result.embedding for result in results if result.embedding is not None]
    np.testing.assert_allclose(embeddings, models["bare"].encode(videos), atol=1e-6)


def test_a_stream_is_read_and_decoded_only_a_little_ahead(models, videos, monkeypatch):
    """500 videos do not fill memory: clips that are decoded and not yet encoded are those of some
    batches."""
    model = models["bare"]
    read = []
    decoded = []
    waiting = []
    clip = load_clip(videos[0], 4, 64)
    monkeypatch.setattr("alpro.threads.cores", lambda: 2)
    monkeypatch.setattr(clips_module, "load_clip", lambda *_: decoded.append(1) or clip)

    def files():
        for number in range(500):
            read.append(number)
            yield videos[0]

    for number, _ in enumerate(model.stream(files(), batch_size=4), 1):
        waiting.append(max(len(read), len(decoded)) - number)
    assert len(read) == len(decoded) == 500
    assert max(waiting) <= 4 + 2 * 2
    stream = model.stream(files(), batch_size=4)
    next(stream)
    stream.close()  # leaves no thread waiting


def test_lower_precision_changes_scores_a_little(models, folders, videos):
    for dtype in ("bfloat16", "float16"):
        half = Model.load(folders["retrieval"], device="cpu", dtype=dtype)
        assert half.encode(videos).dtype == np.float32
        for name in ("similarity", "match"):
            expected, actual = (
                getattr(model, name)(TEXTS, videos) for model in (models["retrieval"], half)
            )
            assert 0 < np.abs(expected - actual).max() < 0.05
