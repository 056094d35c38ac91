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
from alpro.inference.clips import load_frames
from alpro.inference.find import find_model, find_prompter
from alpro.inference.model import Model
from alpro.shards.decoding import DecodeError
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery

TEXTS = ["a red ball moves left", "something slides up"]


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
    answers = model.ask(videos[0], "where does it go?", top_k=9)
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


def test_a_pre_trained_model_names_a_region_by_its_fused_patches(folders, videos):
    model = Model.from_pretrained(folders["pretrain"], device="cpu")
    box, text = (0.5, 0, 0.25, 1), "a ball moves to the left"
    named = dict(model.entities(videos[0], box, 99, text))
    assert named.keys() == set("abcdefgh")
    assert sum(named.values()) == pytest.approx(1, abs=1e-5)
    caption, video = model.texts([text]), model.folder.model.encode_video(model.encoder.pixels(model.frames(videos[0])))
    fused = model.folder.model.fuse(caption.tokens, caption.mask, video)[:, -16:]
    inside = fused.view(1, 4, 4, -1)[:, :, 2].mean(1)  # the third column of the patches
    expected = model.folder.model.pem_head(inside).softmax(1)[0].tolist()
    assert expected == pytest.approx([named[name] for name in "abcdefgh"], abs=1e-6)
    assert dict(model.entities(videos[0], box, 99)) != named  # without a text
    assert len(model.entities(videos[0], top_k=2)) == 2
    assert model.draw_entities(videos[0], [box], text).width > 176


def test_an_image_is_named_with_the_prompts_of_images_and_a_video_with_those_of_videos(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for file, kind, other in ((tmp_path / "a.png", "image", "video"), (videos[0], "video", "image")):
        pixels, whole = model.encoder.pixels(model.frames(file)), torch.tensor([[0, 0, 4, 4]])
        named = dict(model.entities(file, top_k=99))
        for prompts, same in ((model.prompts[kind], True), (model.prompts[other], False)):
            labels = model.folder.model.pseudo_labels(pixels, whole, prompts, model.encoder.black)[0].tolist()
            assert (labels == pytest.approx([named[name] for name in model.folder.entities], abs=1e-6)) is same


def test_a_region_is_left_top_width_and_height(folders, videos, monkeypatch):
    model, seen = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu"), []
    whole = model.folder.model.pseudo_labels

    def watched(frames, boxes, *rest):
        seen.append(boxes.tolist())
        return whole(frames, boxes, *rest)

    monkeypatch.setattr(model.folder.model, "pseudo_labels", watched)
    model.entities(videos[0], (0, 0.75, 0.5, 0.25))  # of 4 x 4 patches: left, top, width, height
    model.draw_entities(videos[0], [(0.5, 0.25, 0.25, 0.75)])
    assert seen == [[[0, 3, 2, 1]], [[2, 1, 1, 3]]]


def test_a_folder_is_saved_and_read_again(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["qa"], device="cpu")
    model.save_pretrained(tmp_path / "copy")
    again = Model.from_pretrained(tmp_path / "copy", device="cpu")
    assert again.ask(videos[0], "what?") == model.ask(videos[0], "what?")


def test_what_a_model_cannot_do_is_one_line(folders, videos, tmp_path):
    prompter = Model.from_pretrained(folders["prompter"], device="cpu")
    with pytest.raises(InputError, match="a prompter with its prompts"):
        prompter.entities(videos[0])
    with pytest.raises(InputError, match="without a text"):
        Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu").entities(videos[0], text="a ball")
    with pytest.raises(InputError, match="this retrieval model names no entities"):
        Model.from_pretrained(folders["retrieval"], device="cpu").entities(videos[0])
    with pytest.raises(InputError, match="no multimodal encoder"):
        prompter.match(videos[:1], TEXTS)
    with pytest.raises(InputError, match="does not answer questions"):
        Model.from_pretrained(folders["retrieval"], device="cpu").ask(videos[0], "what?")
    with pytest.raises(InputError, match="not a model folder"):
        Model.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no prompts\.safetensors in this folder"):
        Model.from_pretrained(folders["prompter"], tmp_path / "nowhere", device="cpu")


def test_wrong_arguments_are_reported(folders, videos, tmp_path):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    for call in (model.embed_texts, model.embed_videos, lambda texts: model.similarity(videos, texts)):
        for argument in ("a dog", [], None):
            with pytest.raises(InputError, match="expected a list of one or more"):
                call(argument)
    qa = Model.from_pretrained(folders["qa"], device="cpu")
    for text, message in {
        "": "the text is empty",
        " \n": "the text is empty",
        None: "a text is a str, not None",
    }.items():
        for call in (
            lambda text: model.embed_texts(["a dog", text]),
            lambda text: model.similarity(videos, [text]),
            lambda text: model.match(videos, [text]),
            lambda text: list(model.pairs([(videos[0], text)])),
            lambda text: qa.ask(videos[0], text),
        ):
            with pytest.raises(InputError, match=message):
                call(text)
    with pytest.raises(DecodeError, match=r"missing: .*none\.mp4"):
        model.frames(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="dtype 'float8' is not one of auto, float32, bfloat16, float16"):
        Model.from_pretrained(folders["retrieval"], device="cpu", dtype="float8")
    prompter = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu")
    for box in ((0, 0, 50, 50), (0.5, 0.5, 1, 1), (0.5, 0.5), None):
        with pytest.raises(InputError, match="is not a region of the frame: it takes left, top, width and height"):
            prompter.entities(videos[0], box)
    with pytest.raises(InputError, match="folder of a cache_prompts artifact"):
        Model.from_pretrained(folders["prompter"], folders["qa"], device="cpu")


@pytest.fixture
def mixed(videos, tmp_path):
    """Files of which the second and the last cannot be decoded."""
    (tmp_path / "notes.mp4").write_text("no video")
    return [videos[0], tmp_path / "notes.mp4", str(videos[1]), videos[2], tmp_path / "none.mp4"]


def test_a_bad_file_is_reported_and_the_others_are_scored(folders, videos, mixed):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    for call in (model.match, model.similarity):
        with pytest.warns(UserWarning, match="missing|unreadable") as warned:
            scores = call(mixed, TEXTS, batch_size=2)
        messages = sorted(str(one.message) for one in warned)
        assert [message.rpartition("/")[2].split(":")[:2] for message in messages] == [
            ["none.mp4", " missing"],
            ["notes.mp4", " unreadable"],
        ]
        torch.testing.assert_close(scores[:, [0, 2, 3]], call(videos, TEXTS), atol=1e-5, rtol=1e-4)
        assert scores[:, [1, 4]].isnan().all()
    with pytest.warns(UserWarning, match="missing"):
        assert model.embed_videos(mixed[4:]).isnan().all()  # a batch without any video


def test_a_stream_has_a_result_for_every_file_in_order(folders, videos, mixed):
    model = Model.from_pretrained(folders["prompter"], device="cpu")
    results = list(model.stream((file for file in mixed), batch_size=2))
    assert [result.file for result in results] == mixed
    reasons = [result.error.reason if result.error else "" for result in results]
    assert reasons == ["", "unreadable", "", "", "missing"]
    embeddings = torch.stack([result.embedding for result in results if result.embedding is not None])
    torch.testing.assert_close(embeddings, model.embed_videos(videos))


def test_a_stream_is_read_and_decoded_only_a_little_ahead(folders, videos, monkeypatch):
    """500 videos do not fill memory: clips that are decoded and not yet encoded are those of some batches."""
    model, read, decoded, waiting = Model.from_pretrained(folders["prompter"], device="cpu"), [], [], []
    monkeypatch.setattr("alpro.inference.clips.cores", lambda: 2)
    frames = load_frames(videos[0], model.folder.model.config.video)
    monkeypatch.setattr("alpro.inference.clips.load_frames", lambda *_: decoded.append(1) or frames)

    def files():
        for number in range(500):
            read.append(number)
            yield videos[0]

    for number, _ in enumerate(model.stream(files(), batch_size=4), 1):
        waiting.append((len(read) - number, len(decoded) - number))
    assert len(read) == len(decoded) == 500
    assert max(ahead for ahead, _ in waiting) <= 4 + 2 * 2
    assert max(clips for _, clips in waiting) <= 4 + 2 * 2
    stream = model.stream(files(), batch_size=4)
    next(stream)
    stream.close()  # leaves no thread waiting


def test_pairs_are_scored_as_one_by_one(folders, videos, mixed):
    model = Model.from_pretrained(folders["retrieval"], device="cpu")
    texts = [TEXTS[i % 2] for i in range(5)]
    with pytest.warns(UserWarning, match="missing"):
        rows = list(model.pairs(zip(mixed, texts, strict=True), batch_size=3))
    assert [row["match"] is None for row in rows] == [False, True, False, False, True]
    for file, text, row in zip(mixed, texts, rows, strict=True):
        if row["match"] is not None:
            assert row["match"] == pytest.approx(model.match([file], [text]).item(), abs=1e-5)
            assert row["similarity"] == pytest.approx(model.similarity([file], [text]).item(), abs=1e-5)
    qa = Model.from_pretrained(folders["qa"], device="cpu")
    (first,) = qa.pairs([(videos[0], "where?")])
    assert (first["answer"], pytest.approx(first["probability"], abs=1e-6)) == qa.ask(videos[0], "where?")[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_changes_scores_a_little(folders, videos, dtype):
    whole = Model.from_pretrained(folders["retrieval"], device="cpu")
    half = Model.from_pretrained(folders["retrieval"], device="cpu", dtype=dtype)
    assert half.embed_videos(videos).dtype == torch.float32
    for expected, actual in (
        (whole.similarity(videos, TEXTS), half.similarity(videos, TEXTS)),
        (whole.match(videos, TEXTS), half.match(videos, TEXTS)),
    ):
        assert 0 < (expected - actual).abs().max() < 0.05
    prompter = Model.from_pretrained(folders["prompter"], folders["prompts"], device="cpu", dtype=dtype)
    assert len(prompter.entities(videos[0])) == 3


def test_a_sample_of_a_decoded_corpus_is_a_source(folders, clips, tokenizer):
    model, reader = Model.from_pretrained(folders["retrieval"], device="cpu"), ShardReader(clips, "test")
    gallery = Gallery.of(clips, "test")
    _, evaluated = encode_gallery(model.encoder, gallery, tokenizer, 30, torch.device("cpu"))
    actual = model.embed_videos([reader[number] for number in gallery.numbers])
    torch.testing.assert_close(actual, evaluated.features, atol=1e-5, rtol=1e-4)


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
    for name, message in {
        "c": "2 artifacts start with it",
        "f": "no such folder, and no artifact starts with it",
        "../x": "no such folder",
        "finetune_qa@ef": "no such folder, and no artifact starts with it",
    }.items():
        with pytest.raises(InputError, match=message):
            Model.load(name, workspace, device="cpu")
    (workspace / "empty").mkdir()
    with pytest.raises(InputError, match="not a model folder"):
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
    message = r"^evaluate: no such folder, and no artifact of this stage in .*/artifacts; `alpro artifacts ls`"
    with pytest.raises(InputError, match=message):
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
    with pytest.raises(InputError) as error:
        find_model("finetune_qa", workspace)
    assert str(error.value) == (
        "finetune_qa: its newest artifact is not that of the last `alpro run`; name one: finetune_qa@efefefef "
        "(own_videos finetune_qa.steps=5, 2026-02-01 00:00) or finetune_qa@cdcdcdcd (own_videos, 2026-01-01 00:00)"
    )
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
    assert find_prompter(artifacts / "finetune_qa" / ("cd" * 8)) == (artifacts / "finetune_qa" / ("cd" * 8), "")
