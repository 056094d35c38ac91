"""A trained model in a few lines of Python."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from alpro.artifact import RECORD_VERSION, read_record
from alpro.artifact_names import find_artifact
from alpro.errors import InputError
from alpro.files import write_json
from alpro.inference import clips as clips_module
from alpro.inference.clips import load_frames
from alpro.inference.find import find_model, find_prompter
from alpro.inference.model import Model
from alpro.shards.decoding import DecodeError
from alpro.shards.reader import ShardReader
from alpro.shards.schema import Row
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.scorer import Scorer

TEXTS = ["a red ball moves left", "something slides up"]


@pytest.fixture(scope="module")
def models(folders):
    """A model of each task, and a prompter without prompts."""
    models = {task: Model.load(folders[task], device="cpu") for task in ("retrieval", "pretrain", "qa")}
    models["prompter"] = Model.load(folders["prompter"], prompts=folders["prompts"], device="cpu")
    return models | {"bare": Model.load(folders["prompter"], device="cpu")}


@pytest.fixture
def mixed(videos, tmp_path):
    """Files of which the second and the last cannot be decoded."""
    (tmp_path / "notes.mp4").write_text("no video")
    return [videos[0], tmp_path / "notes.mp4", str(videos[1]), videos[2], tmp_path / "none.mp4"]


def test_embeddings_are_those_of_the_evaluation(models, videos, clips, tokenizer):
    model, reader, gallery = models["retrieval"], ShardReader(clips, "test"), Gallery.of(clips, "test")
    texts, evaluated = Scorer(model.encoder, tokenizer, 30).encode(gallery)
    actual = model.encode(videos)
    assert (actual.shape, actual.dtype) == ((3, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)
    places = [gallery.ids.index(path.stem) for path in videos]
    # Shards hold JPEGs of another size, so that pixels differ a little.
    assert (actual * evaluated.features[places].numpy()).sum(axis=1).min() > 0.95
    np.testing.assert_allclose(model.encode(gallery.texts[:2]), texts.features[:2], atol=1e-4)
    samples = model.encode([reader[number] for number in gallery.numbers])
    np.testing.assert_allclose(samples, evaluated.features, atol=1e-5, rtol=1e-4)


def test_similarity_has_the_order_of_its_arguments(models, videos):
    model = models["retrieval"]
    scores = model.similarity(TEXTS, videos)
    assert scores.shape == (2, 3)
    torch.testing.assert_close(model.similarity(videos, TEXTS), scores.T)
    torch.testing.assert_close(model.similarity(model.encode(TEXTS[1]), model.encode(videos)), scores[1:])
    torch.testing.assert_close(model.similarity(TEXTS[0], str(videos[2])), scores[:1, 2:])
    np.testing.assert_allclose(model.encode(str(videos[0])), model.encode(videos)[0], atol=1e-6)


def test_answers_are_the_best_first(models, videos):
    answers = models["qa"].ask(videos[0], "where does it go?", top_k=9)
    assert {word for word, _ in answers} == {"ball", "box", "left"}
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)
    assert sum(p for _, p in answers) == pytest.approx(1, abs=1e-5)


def test_a_pre_trained_model_names_a_region_by_its_fused_patches(models, videos):
    model, box, text = models["pretrain"], (0.5, 0, 0.25, 1), "a ball moves to the left"
    named = dict(model.entities(videos[0], box, 99, text))
    caption, video = model.texts([text]), model.folder.model.encode_video(model.encoder.pixels(model.frames(videos[0])))
    fused = model.folder.model.fuse(caption.tokens, caption.mask, video)[:, -16:]
    inside = fused.view(1, 4, 4, -1)[:, :, 2].mean(1)  # the third column of the patches
    expected = model.folder.model.pem_head(inside).softmax(1)[0].tolist()
    assert expected == pytest.approx([named[name] for name in "abcdefgh"], abs=1e-6)
    assert dict(model.entities(videos[0], box, 99)) != named  # without a text
    assert len(model.entities(videos[0], top_k=2)) == 2


@pytest.mark.parametrize("kind", ["image", "video"])
def test_images_and_videos_are_named_with_the_prompts_of_their_kind(models, videos, tmp_path, kind):
    """Also a row that says what a file without an extension is, such as an upload."""
    model, image = models["prompter"], tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(image)
    file = image if kind == "image" else videos[0]
    upload = Row(id="upload", path=shutil.copy(file, tmp_path / "upload"), kind=kind)
    for source in (file, upload):
        pixels, whole = model.encoder.pixels(model.frames(source)), torch.tensor([[0, 0, 4, 4]])
        named = dict(model.entities(source, top_k=99))
        assert sum(named.values()) == pytest.approx(1, abs=1e-5)
        for prompts in ("image", "video"):
            expected = model.folder.model.pseudo_labels(pixels, whole, model.prompts[prompts], model.encoder.black)[0]
            same = expected.tolist() == pytest.approx([named[name] for name in model.folder.entities], abs=1e-6)
            assert same is (prompts == kind)


def test_a_region_is_left_top_width_and_height(models, videos, monkeypatch):
    model, seen = models["prompter"], []
    labels = model.folder.model.pseudo_labels
    watched = lambda x, boxes, *rest: seen.append(boxes.tolist()) or labels(x, boxes, *rest)  # noqa: E731
    monkeypatch.setattr(model.folder.model, "pseudo_labels", watched)
    for box in ((0, 0.75, 0.5, 0.25), (0.5, 0.25, 0.25, 0.75), (0, 0, 1, 1)):
        model.entities(videos[0], box)
    assert seen == [[[0, 3, 2, 1]], [[2, 1, 1, 3]], [[0, 0, 4, 4]]]  # of 4 x 4 patches


@pytest.mark.parametrize(
    ("task", "call", "named"),
    [
        ("bare", lambda m, v: m.entities(v[0]), "prompts"),
        ("prompter", lambda m, v: m.entities(v[0], text="a ball"), "text"),
        ("prompter", lambda m, v: m.entities(v[0], (0, 0, 50, 50)), "region"),
        ("prompter", lambda m, v: m.entities(v[0], (0.5, 0.5, 1, 1)), "region"),
        ("prompter", lambda m, v: m.entities(v[0], None), "region"),
        ("retrieval", lambda m, v: m.entities(v[0]), "retrieval"),
        ("prompter", lambda m, v: m.match(TEXTS, v), "match"),
        ("retrieval", lambda m, v: m.match(v, TEXTS), "texts, then files"),
        ("retrieval", lambda m, v: m.ask(v[0], "what?"), "finetune_qa"),
        ("qa", lambda m, v: m.ask(v[0], " \n"), "empty"),
        ("retrieval", lambda m, v: list(m.pairs([(v[0], "")])), "empty"),
        ("retrieval", lambda m, v: m.match([None], v), "None"),
        ("retrieval", lambda m, v: m.encode(["a dog", ""]), "empty"),
        ("retrieval", lambda m, v: m.encode(["a dog", "\udcff"]), "UTF-8"),
        ("retrieval", lambda m, v: m.encode(["a dog", v[0]]), "not both"),
        ("retrieval", lambda m, v: m.encode([]), r"\[\]"),
        ("retrieval", lambda m, v: m.similarity(None, v), "None"),
        ("retrieval", lambda m, v: m.match("a dog", v), "a dog"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(models, videos, task, call, named):
    with pytest.raises(InputError, match=named):
        call(models[task], videos)


def test_a_folder_that_is_no_model_is_one_line(folders, tmp_path, models):
    with pytest.raises(InputError, match="model folder"):
        Model.load(tmp_path)
    for prompts in (tmp_path / "nowhere", folders["qa"]):
        with pytest.raises(InputError, match=r"prompts\.safetensors"):
            Model.load(folders["prompter"], prompts=prompts, device="cpu")
    fewer = shutil.copytree(folders["prompts"], tmp_path / "fewer")
    (fewer / "entities.json").write_text('["ball"]')
    with pytest.raises(InputError, match="1 names"):
        Model.load(folders["prompter"], prompts=fewer, device="cpu")
    with pytest.raises(InputError, match="float8"):
        Model.load(folders["retrieval"], device="cpu", dtype="float8")
    with pytest.raises(DecodeError, match=r"missing: .*none\.mp4"):
        models["qa"].frames(tmp_path / "none.mp4")


def test_a_bad_file_is_reported_and_the_others_are_scored(models, videos, mixed):
    model = models["retrieval"]
    for call in (model.match, model.similarity):
        with pytest.warns(UserWarning, match="missing|unreadable") as warned:
            scores = call(TEXTS, mixed, batch_size=2)
        assert {str(one.message).rpartition("/")[2].partition(":")[0] for one in warned} == {"none.mp4", "notes.mp4"}
        torch.testing.assert_close(scores[:, [0, 2, 3]], call(TEXTS, videos), atol=1e-5, rtol=1e-4)
        assert scores[:, [1, 4]].isnan().all()
    with pytest.warns(UserWarning, match="missing"):
        assert np.isnan(model.encode(mixed[4:])).all()  # a batch without any video


def test_a_stream_has_a_result_for_every_file_in_order(models, videos, mixed):
    results = list(models["bare"].stream((file for file in mixed), batch_size=2))
    assert [result.file for result in results] == mixed
    reasons = [result.error.reason if result.error else "" for result in results]
    assert reasons == ["", "unreadable", "", "", "missing"]
    embeddings = torch.stack([result.embedding for result in results if result.embedding is not None])
    torch.testing.assert_close(embeddings, torch.from_numpy(models["bare"].encode(videos)))


def test_a_stream_is_read_and_decoded_only_a_little_ahead(models, videos, monkeypatch):
    """500 videos do not fill memory: clips that are decoded and not yet encoded are those of some batches."""
    model, read, decoded, waiting = models["bare"], [], [], []
    frames = load_frames(videos[0], model.folder.model.config.video)
    monkeypatch.setattr(clips_module, "cores", lambda: 2)
    monkeypatch.setattr(clips_module, "load_frames", lambda *_: decoded.append(1) or frames)

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


def test_pairs_are_scored_as_one_by_one(models, videos, mixed):
    model, texts = models["retrieval"], [TEXTS[i % 2] for i in range(5)]
    with pytest.warns(UserWarning, match="missing"):
        rows = list(model.pairs(zip(mixed, texts, strict=True), batch_size=3))
    assert [row["match"] is None for row in rows] == [False, True, False, False, True]
    for file, text, row in zip(mixed, texts, rows, strict=True):
        if row["match"] is not None:
            assert row["match"] == pytest.approx(model.match([text], [file]).item(), abs=1e-5)
            assert row["similarity"] == pytest.approx(model.similarity(text, [file]).item(), abs=1e-5)
    (first,) = models["qa"].pairs([(videos[0], "where?")])
    assert (first["answer"], pytest.approx(first["probability"], abs=1e-6)) == models["qa"].ask(videos[0], "where?")[0]
    (first,) = models["bare"].pairs([(videos[0], "a ball")])
    assert first == {"similarity": pytest.approx(models["bare"].similarity("a ball", [videos[0]]).item(), abs=1e-5)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_changes_scores_a_little(models, folders, videos, dtype):
    whole, half = models["retrieval"], Model.load(folders["retrieval"], device="cpu", dtype=dtype)
    assert half.encode(videos).dtype == np.float32
    for name in ("similarity", "match"):
        expected, actual = (getattr(model, name)(TEXTS, videos) for model in (whole, half))
        assert 0 < (expected - actual).abs().max() < 0.05


@pytest.fixture
def workspace(folders, tmp_path):
    """A workspace with a prompter and its prompts, and a QA model that was trained with them."""
    records = {
        "train_prompter": ("prompter", "a" * 64, {}),
        "cache_prompts": ("prompts", "b" * 64, {"prompter": ("train_prompter", "a" * 64)}),
        "pretrain": ("retrieval", "c" * 64, {"prompts": ("cache_prompts", "b" * 64)}),
        "finetune_qa": ("qa", "cd" * 32, {"model": ("pretrain", "c" * 64)}),
    }
    for stage, (source, fingerprint, inputs) in records.items():
        folder = tmp_path / "artifacts" / stage / fingerprint[:16]
        shutil.copytree(folders[source], folder)
        named = {name: {"stage": of, "fingerprint": other} for name, (of, other) in inputs.items()}
        about = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": fingerprint, "inputs": named}
        write_json(folder / "artifact.json", about)
    return tmp_path


def test_a_model_is_found_by_its_fingerprint(workspace, videos):
    qa = Model.load("cdcd", workspace, device="cpu")
    assert len(qa.ask(videos[0], "where?")) == 3
    for name in ("aaaa", "b" * 64, workspace / "artifacts" / "train_prompter" / ("a" * 16)):
        assert len(Model.load(name, workspace, device="cpu").entities(videos[0])) == 3
    for name in ("c", "f", "../x", "finetune_qa@ef"):  # two, and none
        with pytest.raises(InputError, match=name):
            Model.load(name, workspace, device="cpu")
    (workspace / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        Model.load(workspace / "empty", device="cpu")


@pytest.fixture
def built(workspace):
    """built(mark, at, stage, inputs, **arguments): an artifact of a fingerprint of this mark, built at this time."""

    def build(mark, at, stage="finetune_qa", inputs=None, **arguments):
        source = next((workspace / "artifacts" / stage).iterdir())
        folder = source.with_name(mark * 8)
        if not folder.is_dir():
            shutil.copytree(source, folder)
        record = read_record(folder) | {"fingerprint": mark * 32, "run": {"at": at, "arguments": arguments}}
        write_json(folder / "artifact.json", record | ({"inputs": inputs} if inputs else {}))
        return folder

    return build


def test_a_stage_stands_for_the_artifact_that_was_built_last(workspace, built, capsys):
    """Whatever the times of its files: that of a fetched one is when it was fetched."""
    new = built("ef", "2026-02-01T10:20:30+00:00", config="own_videos", changes=["finetune_qa.steps=5"])
    old = built("cd", "2026-01-01T00:00:00+00:00", config="own_videos", changes=[])
    line = "efefefef (own_videos finetune_qa.steps=5, 2026-02-01 10:20)"
    assert [find_model(name, workspace) for name in ("finetune_qa", "finetune-qa")] == [new, new]
    assert capsys.readouterr().err == f"finetune_qa: {line}\nfinetune-qa: {line}\n"
    names = ("finetune_qa@cd", "finetune-qa@cdcd", "cdcdcd", old, str(old))
    assert [find_model(name, workspace) for name in names] == [old] * len(names)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="evaluate"):
        find_model("evaluate", workspace)
    (new / "artifact.json").write_text("")  # after a power failure
    assert find_model("finetune_qa", workspace) == old
    assert "artifact.json is corrupt" in capsys.readouterr().err


def test_a_trial_after_the_last_whole_run_is_not_taken_by_its_stage(workspace, built):
    def run(name, started, mark, stage="", state="finished"):
        steps = [{"stage": "finetune_qa", "fingerprint": mark * 32}, {"stage": "pretrain", "fingerprint": "c" * 64}]
        (workspace / "reports").mkdir(exist_ok=True)
        values = {"state": state, "stage": stage, "started": started, "steps": steps}
        write_json(workspace / "reports" / f"{name}.json", values)

    built("cd", "2026-01-01T00:00:00", config="own_videos", changes=[])
    trial = built("ef", "2026-02-01T00:00:00", config="own_videos", changes=["finetune_qa.steps=5"])
    run("whole", "2026-01-01", "cd")
    run("one-stage", "2026-02-01", "ef", stage="finetune_qa")
    run("failed", "2026-02-02", "ef", state="failed")
    (workspace / "reports" / "other.json").write_text("[")
    with pytest.raises(InputError, match=r"finetune_qa@efefefef .*steps=5.* or finetune_qa@cdcdcdcd"):
        find_model("finetune_qa", workspace)
    assert find_model("finetune_qa@ef", workspace) == trial
    assert find_model("train_prompter", workspace).parent.name == "train_prompter"  # the run had none of this stage
    run("later", "2026-03-01", "ef")
    assert find_model("finetune_qa", workspace) == trial


def test_a_stage_with_several_corpora_stands_for_none_of_them(workspace):
    for mark in ("ab", "ba"):
        folder = workspace / "artifacts" / "decode_videos" / (mark * 8)
        folder.mkdir(parents=True)
        values = {"version": RECORD_VERSION, "stage": "decode_videos", "name": f"decode_videos {mark}"}
        write_json(folder / "artifact.json", {**values, "fingerprint": mark * 32, "inputs": {}, "run": {"at": mark}})
    with pytest.raises(InputError, match=r"several artifacts; name one: decode_videos@baba.* or decode_videos@abab"):
        find_artifact("decode_videos", workspace)
    assert find_artifact("decode_videos@ab", workspace)[1]["name"] == "decode_videos ab"


def test_the_prompts_of_a_prompter_are_the_newest_that_were_embedded_with_it(workspace, built):
    own, other = ({"prompter": {"stage": "train_prompter", "fingerprint": mark * 64}} for mark in "a9")
    built("bd", "2026-01-02", "cache_prompts", own)
    expected = built("be", "2026-01-03", "cache_prompts", own)
    built("bc", "2026-01-01", "cache_prompts", own)
    built("bf", "2026-01-04", "cache_prompts", other)
    prompter = workspace / "artifacts" / "train_prompter" / ("a" * 16)
    assert find_prompter(prompter) == (prompter, expected)


def test_the_prompter_of_a_trained_model_is_found(workspace):
    artifacts = workspace / "artifacts"
    prompter = artifacts / "train_prompter" / ("a" * 16), artifacts / "cache_prompts" / ("b" * 16)
    assert find_prompter(artifacts / "finetune_qa" / ("cd" * 8), follow=True) == prompter
    assert find_prompter(artifacts / "finetune_qa" / ("cd" * 8)) == (artifacts / "finetune_qa" / ("cd" * 8), None)
