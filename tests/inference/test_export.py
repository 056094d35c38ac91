"""An exported model in a process that cannot import this package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from alpro.errors import InputError
from alpro.inference.model import Model
from alpro.shards.ffmpeg_copy import ffmpeg_binary
from tests.conftest import ROOT

TEXTS = ["A red ball moves left.", "something slides up", "a " * 60]

LOAD = """
import sys
sys.modules["alpro"] = None  # what imports it fails
sys.modules["torchvision"] = None  # not needed; that of a CUDA build fails beside a CPU build of torch

import numpy as np, torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer

root = sys.argv[1]
files = sys.argv[2:]  # the last has a title in Latin-1
given = np.load(f"{root}/in.npz")
videos, texts = list(given["videos"]), given["texts"].tolist()
for task in ("retrieval", "qa", "prompter"):
    folder = f"{root}/{task}"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert not model.training
    one_file = processor(videos=files[0])["pixel_values"]
    assert one_file.equal(processor(videos=files[:1])["pixel_values"])
    assert one_file.equal(processor(videos=files[-1])["pixel_values"])
    assert processor(videos=videos[0])["pixel_values"].equal(processor(videos=videos[:1])["pixel_values"])
    assert model.get_input_embeddings().weight.ndim == 2
    batch, one = processor(videos=videos, text=texts), processor(text=texts[0])["input_ids"][0].tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(texts[0])["input_ids"] == one
    assert len(tokenizer(texts[2], truncation=True)["input_ids"]) == processor.max_text_tokens == 30
    with torch.inference_mode():
        out = model(**batch)
        results = {"videos": out.video_embeds, "texts": out.text_embeds, "similarity": out.similarity}
        if task == "prompter":
            picture = np.zeros((40, 30, 3), np.uint8)
            assert len(processor(images=picture)["pixel_values"]) == 1
            assert len(processor(images=np.stack([picture, picture]))["pixel_values"]) == 2
            try:
                processor(pictures=[])
            except TypeError as error:
                assert "pictures" in str(error), error
            else:
                raise AssertionError("accepted")
            try:
                processor(text="")
            except ValueError as error:
                assert "the text is empty" in str(error), error
            else:
                raise AssertionError("accepted")
        else:
            results["match"] = model.match(**batch)
        if task == "qa":
            results["answers"] = model.answer(**batch)
    np.savez(f"{folder}.npz", **{name: value.numpy() for name, value in results.items()})
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        with torch.inference_mode():
            near = half(**batch)
            assert near.similarity.dtype == dtype
            assert (near.similarity.float() - out.similarity).abs().max() < 0.1
            if task != "prompter":
                half.match(**batch)
            if task == "qa":
                half.answer(**batch)
    model.train()
    model(**batch).similarity.sum().backward()  # stochastic depth and dropout are there, too
    for block in model.model.video_encoder.blocks:
        assert block.attn.qkv.weight.grad.isfinite().all()
    model.save_pretrained(folder + "-again")
"""

SENTENCES = """
import sys
sys.modules["alpro"] = sys.modules["torchvision"] = None  # as above

import numpy as np
from sentence_transformers import SentenceTransformer

root, *files = sys.argv[1:]
given = np.load(f"{root}/in.npz")
model = SentenceTransformer(f"{root}/retrieval", trust_remote_code=True, device="cpu")
results = {"frames": model.encode(list(given["videos"])), "files": model.encode(files)}
results["texts"] = model.encode(given["texts"].tolist())
assert model.get_embedding_dimension() == results["texts"].shape[1]
results["similarity"] = model.similarity(results["texts"], results["frames"]).numpy()
model.save(f"{root}/saved")
again = SentenceTransformer(f"{root}/saved", trust_remote_code=True, device="cpu")
assert np.array_equal(again.encode(files), results["files"])
np.savez(f"{root}/sentences.npz", **results)
"""


@pytest.fixture(scope="module")
def exporting():
    """The module that exports. It imports the models of transformers, in seconds: not in every
    process of `-n`."""
    from alpro.inference import export

    return export


@pytest.fixture(scope="module")
def exported(exporting, folders, videos, tmp_path_factory):
    """The models by task, and a folder with their exports and what another process computes with
    them (TASK.npz)."""
    root = tmp_path_factory.mktemp("exported")
    models = {}
    for task in ("retrieval", "qa", "prompter"):
        models[task] = Model.load(folders[task], device="cpu")
        exporting.export(models[task], root / task, "# A model\n")
    frames = np.stack([models["qa"].frames(video) for video in videos])
    np.savez(root / "in.npz", videos=frames, texts=np.array(TEXTS))
    # Copied without encoding it again: only the title is another.
    titled = root / "titled.mp4"
    command = [ffmpeg_binary(), "-v", "error", "-i", videos[0], "-c", "copy"]
    command += ["-metadata", "title=caf#", titled]
    subprocess.run([*map(str, command)], check=True)
    content = titled.read_bytes()
    assert content.count(b"caf#") == 1
    titled.write_bytes(content.replace(b"caf#", b"caf\xe9"))

    run(LOAD, root, *videos, titled)
    return models, root


def run(program, root, *arguments):
    """Runs a program in another process and folder, without a network."""
    elsewhere = root / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "home")}
    command = [sys.executable, "-c", program, str(root), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, np.asarray(expected), atol=1e-5, rtol=0)


@pytest.mark.long
def test_a_model_computes_the_same_without_this_package(exported, videos):
    models, root = exported
    retrieval = models["retrieval"]
    results = np.load(root / "retrieval.npz")
    assert_close(results["videos"], retrieval.encode(videos))
    assert_close(results["texts"], retrieval.encode(TEXTS))
    assert_close(results["similarity"], retrieval.similarity(TEXTS, videos))
    assert_close(results["match"], retrieval.match(TEXTS, videos))

    qa = models["qa"]
    answers = np.load(root / "qa.npz")["answers"]
    for row, video, text in zip(answers, videos, TEXTS, strict=True):
        expected = dict(qa.ask(video, text, top_k=9))
        assert_close(row, [expected[answer] for answer in qa.folder.answers])

    results = np.load(root / "prompter.npz")
    assert_close(results["similarity"], models["prompter"].similarity(TEXTS, videos))


@pytest.mark.long
def test_a_sentence_transformer_embeds_the_same_texts_frames_and_files(
    exported, videos
):
    models, root = exported
    run(SENTENCES, root, *videos)
    model = models["retrieval"]
    results = np.load(root / "sentences.npz")
    assert_close(results["texts"], model.encode(TEXTS))
    assert_close(results["frames"], model.encode(videos))
    assert_close(results["files"], model.encode(videos))
    assert_close(results["similarity"], model.similarity(TEXTS, videos))


def test_an_exported_folder_has_the_labels_code_and_license(
    exporting, folders, tmp_path
):
    model = Model.load(folders["qa"], device="cpu")
    out = tmp_path / "out"

    exporting.export(model, out, "# A card\n")

    config = json.loads((out / "config.json").read_text())
    assert config["task"] == "qa"
    assert config["answers"] == model.folder.answers
    assert {file.name for file in out.iterdir()} >= {"README.md", "modules.json"}
    # transformers copies the modules of the folder, without the files beside them.
    assert not [
        file for file in out.glob("*.py") if "__file__" in file.read_text("utf-8")
    ]
    assert (out / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    with pytest.raises(InputError, match="out"):
        exporting.export(model, out, "")


def test_a_clip_is_not_exported(exporting, clip_folders, tmp_path):
    with pytest.raises(InputError, match="CLIP"):
        exporting.export(
            Model.load(clip_folders["clip"], device="cpu"), tmp_path / "clip", ""
        )
    assert list(tmp_path.iterdir()) == []


ODD_FILES = {  # options of the input and of the output
    "cut.mp4": (["-ss", "0.7", "-i", "film.mp4"], ["-c", "copy"]),  # with an edit list
    "palette.mov": (["-i", "film.mp4"], ["-c:v", "qtrle", "-pix_fmt", "pal8"]),
    "mirrored.mp4": (["-display_hflip:v", "-i", "film.mp4"], ["-c", "copy"]),
    "turned.mp4": (["-display_rotation:v", "90", "-i", "film.mp4"], ["-c", "copy"]),
    "raw.h264": (["-i", "film.mp4"], ["-c", "copy"]),
    "program.mpg": (["-i", "film.mp4"], ["-c:v", "mpeg1video", "-r", "25"]),
    "moving.png": (["-i", "film.mp4"], ["-f", "apng"]),
    "still.jpg": (["-i", "film.mp4"], ["-frames:v", "1"]),
}


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    film = (
        ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=2"],
        ["-c:v", "libx264", "-g", "8"],
    )
    for name, (given, made) in {"film.mp4": film, **ODD_FILES}.items():
        command = [ffmpeg_binary(), "-v", "error", *given, *made, name]
        subprocess.run(command, check=True, cwd=folder)
    return folder


@pytest.mark.parametrize("name", ODD_FILES)
def test_the_processor_sees_the_frames_of_the_pipeline(
    exporting, folders, odd_files, name
):
    model = Model.load(folders["retrieval"], device="cpu")
    processor = exporting.make_processor(model)

    pixels = processor(videos=str(odd_files / name))["pixel_values"]

    expected = model.encoder.clip_pixels([model.frames(odd_files / name)])
    assert torch.equal(pixels, expected)


def test_a_file_that_is_no_video_is_a_value_error(exporting, folders, tmp_path):
    processor = exporting.make_processor(Model.load(folders["retrieval"], device="cpu"))
    (tmp_path / "a.mp4").write_text("<!DOCTYPE html>")

    with pytest.raises(ValueError, match=r"a\.mp4: unreadable: HTML page"):
        processor(videos=tmp_path / "a.mp4")
