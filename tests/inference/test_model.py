"""A trained model in a few lines of Python."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from alpro.errors import InputError
from alpro.inference.clips import get_row, is_file, load_clip
from alpro.inference.loading import Found
from alpro.inference.model import Model
from alpro.shards.clip import DecodeError
from alpro.shards.schema import Row
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from tests.conftest import one_line

TEXTS = ["a red ball moves left", "something slides up"]


@pytest.fixture(scope="module")
def models(folders):
    """A model of each task, and a prompter without prompts."""
    places = {task: folders[task] for task in ("retrieval", "pretrain", "qa")}
    places["bare"] = folders["prompter"]
    places["prompter"] = Found(folders["prompter"], folders["prompts"])
    return {name: Model.load(place, device="cpu") for name, place in places.items()}


@pytest.fixture
def mixed(videos, tmp_path):
    """Files of which the second and the last cannot be decoded."""
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    return [
        videos[0],
        tmp_path / "notes.mp4",
        str(videos[1]),
        videos[2],
        tmp_path / "empty.mp4",
    ]


@torch.no_grad()  # as `evaluate_model`
def test_embeddings_are_those_of_the_evaluation(models, videos):
    model = models["retrieval"]
    loaded = LoadedModel("", model.folder, model.encoder, length=30)
    gallery = Gallery([*map(get_row, videos)], [*"abc"], [["a ball"]] * 3)
    _, evaluated = loaded.encode_videos(gallery)

    embeddings = model.encode(videos)

    np.testing.assert_allclose(embeddings, evaluated.features, atol=1e-5, rtol=1e-4)
    in_batches = model.encode(videos, batch_size=2)
    np.testing.assert_allclose(in_batches, embeddings, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    (one,) = model.stream(str(videos[0]))
    assert one.embedding == pytest.approx(embeddings[0], abs=1e-5)
    texts = loaded.encode_texts(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), texts.features, atol=1e-4)


def test_similarity_has_the_order_of_its_arguments(models, videos):
    model = models["retrieval"]
    scores = model.similarity(TEXTS, videos)

    assert scores.shape == (2, 3)
    assert scores.dtype == np.float32
    close = partial(np.testing.assert_allclose, atol=1e-6)
    close(model.similarity(videos, TEXTS), scores.T)
    close(model.similarity(model.encode(TEXTS[1]), model.encode(videos)), scores[1:])
    close(model.similarity(TEXTS[0], str(videos[2])), scores[:1, 2:])
    close(model.match(TEXTS[0], videos[2]), model.match(TEXTS[:1], videos[2:]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.mp4", True),
        ("https://host/a", True),
        (Path("README"), True),
        ("a dog", False),
        ("notes/README.md", False),
    ],
)
def test_a_string_is_a_file_if_it_ends_like_one(value, expected):
    assert is_file(value) is expected


def test_a_model_is_looked_up_in_the_workspace_of_the_environment(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"no artifact of this name in .*workspace/artifacts"
    ):
        Model.load("finetune_retrieval")
    monkeypatch.setenv("ALPRO_WORKSPACE", str(tmp_path / "other"))
    with pytest.raises(InputError, match="other"):
        Model.load("finetune_retrieval")


def test_answers_are_the_best_first(models, videos):
    answers = models["qa"].ask(videos[0], "where does it go?", top_k=9)
    assert {word for word, _ in answers} == {"ball", "box", "left"}
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)
    assert sum(p for _, p in answers) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_images_and_videos_are_named_with_the_prompts_of_their_kind(
    models, videos, tmp_path, kind
):
    """Also a row that says what a file without an extension is, such as an upload."""
    model = models["prompter"]
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    file = {"image": tmp_path / "a.png", "video": videos[0]}[kind]
    upload = Row(id="upload", path=shutil.copy(file, tmp_path / "upload"), kind=kind)

    region = (0.5, 0.25, 0.25, 0.75)
    named = dict(model.entities(file, region, top_k=99))

    pixels = model.encoder.clip_pixels([model.frames(file)])
    patches = torch.tensor([[2, 1, 1, 3]])  # in a grid of 4 x 4
    prompts = model.folder.prompts[kind]
    labels = model.folder.model.pseudo_labels(
        pixels, patches, prompts, model.encoder.black
    )
    expected = dict(zip(model.folder.entities, labels[0].tolist(), strict=True))
    assert named == pytest.approx(expected, abs=1e-6)
    assert dict(model.entities(upload, region, top_k=99)) == named


MISTAKES = [
    ("bare", "entities", ("a.mp4",), "prompts"),
    ("prompter", "entities", ("a.mp4", (0.5, 0.5, 1, 1)), "region"),
    ("prompter", "entities", ("a.mp4", [[0, 0], [1, 1]]), "region"),
    ("retrieval", "entities", ("a.mp4",), "retrieval"),
    ("prompter", "match", (TEXTS, ["a.mp4"]), "match"),
    ("retrieval", "ask", ("a.mp4", "what?"), "finetune_qa"),
    ("qa", "ask", ("a.mp4", " \n"), "empty"),
    ("retrieval", "match", ([None], ["a.mp4"]), "None"),
    ("retrieval", "encode", (["a dog", "\udcff"],), "UTF-8"),
    ("retrieval", "encode", (["a dog", "a.mp4"],), "not both"),
    ("retrieval", "encode", ([],), "[]"),
    ("retrieval", "encode", ([1],), "not 1"),
]


@pytest.mark.parametrize(("task", "method", "arguments", "named"), MISTAKES)
def test_what_a_model_cannot_do_is_one_line(
    task, method, arguments, named, models, videos, tmp_path, monkeypatch
):
    shutil.copy(videos[0], tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    with one_line(named):
        getattr(models[task], method)(*arguments)


def test_a_folder_that_is_no_model_is_one_line(folders, tmp_path):
    prompter = folders["prompter"]
    others = shutil.copytree(folders["prompts"], tmp_path / "others")
    (others / "entities.json").write_text('["a"]')
    narrow = shutil.copytree(folders["prompts"], tmp_path / "narrow")
    save_file({"video": torch.ones(8, 3)}, narrow / "prompts.safetensors")
    for place, named in (
        (tmp_path, "model folder"),
        (Found(tmp_path / "gone"), "config.json"),
        (Found(prompter, tmp_path), "prompts.safetensors"),
        (Found(prompter, others), "of its entities"),
        (Found(prompter, narrow), "(8, 3) in place of (8, 16)"),
    ):
        with one_line(named):
            Model.load(place, device="cpu")


@pytest.mark.parametrize("method", ["match", "similarity"])
def test_the_scores_of_a_bad_file_are_nan_with_a_warning(
    method, models, videos, mixed, monkeypatch
):
    monkeypatch.setattr("alpro.inference.model.BATCH", 2)
    score = getattr(models["retrieval"], method)

    with pytest.warns(UserWarning, match="empty") as warned:
        scores = score(TEXTS, mixed)

    assert [warning.filename for warning in warned] == [__file__] * 2
    np.testing.assert_allclose(
        scores[:, [0, 2, 3]], score(TEXTS, videos), atol=1e-5, rtol=1e-4
    )
    assert np.isnan(scores[:, [1, 4]]).all()


def test_the_error_of_one_file_names_it(models, mixed):
    for call in (models["prompter"].entities, partial(models["qa"].ask, question="?")):
        with pytest.raises(DecodeError, match=r"unreadable: .*notes\.mp4"):
            call(mixed[1])


def test_a_stream_is_read_and_decoded_only_a_little_ahead(models, videos, monkeypatch):
    """500 videos do not fill memory: clips that are decoded and not yet encoded are those of some
    batches."""
    read = []
    clip = load_clip(videos[0], 4, 64)
    monkeypatch.setattr("alpro.threads.cores", lambda: 2)
    monkeypatch.setattr("alpro.inference.model.BATCH", 4)
    monkeypatch.setattr("alpro.inference.model.load_clip", lambda *_: clip)
    files = (read.append(number) or videos[0] for number in range(500))

    done = 0
    for _ in models["bare"].stream(files):
        done += 1
        assert len(read) - done <= 4 + 2 * 2

    assert done == 500


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"device": "cuda:1"}])
def test_a_wrong_dtype_or_device_is_refused(options, folders):
    with one_line(*options.values()):
        Model.load(folders["retrieval"], **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["similarity", "match"])
def test_lower_precision_changes_scores_a_little(
    dtype, method, models, folders, videos
):
    half = Model.load(folders["retrieval"], device="cpu", dtype=dtype)

    actual = getattr(half, method)(TEXTS, videos)

    expected = getattr(models["retrieval"], method)(TEXTS, videos)
    assert actual.dtype == np.float32
    assert 0 < np.abs(expected - actual).max() < 0.05
