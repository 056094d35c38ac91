"""What `alpro data forget` finds and deletes."""

import json
import shutil

import numpy as np
import pytest
from filelock import FileLock

from alpro.artifact import RECORD_VERSION
from alpro.files import digest, write_json
from alpro.inference.index import About, Index, IndexWriter, rows_of
from alpro.inference.index_videos import scan_videos, with_identities
from alpro.pipeline.store.forget import is_named
from alpro.stages import decode_videos
from tests.pipeline.test_cli import call

UNFINISHED = ("decode_videos", "train_prompter")


@pytest.fixture
def workspace(tmp_path, sample, resources):
    """A corpus of two videos and a broken one, a model made of it, another model, a report, and work in progress."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, video in zip("ab", sorted((sample / "videos").glob("test-*.mp4")), strict=False):
        shutil.copy(video, folder / f"{name}.mp4")
        (folder / f"{name}.txt").write_text("a ball\n")
    (folder / "bad.mp4").write_text("no video")
    (folder / "bad.txt").write_text("a box\n")
    root = tmp_path / "workspace" / "artifacts"
    for stage in UNFINISHED:
        (root / stage / "half").mkdir(parents=True)
    for stage, source in (("decode_videos", ""), ("pretrain", "decode_videos"), ("train_prompter", "")):
        out = root / stage / digest(stage)[:16]
        out.mkdir(parents=True)
        if stage == "decode_videos":
            config = decode_videos.Config(frames=2, size=32, max_reject_share=1)
            decode_videos.run(config, {"data": folder}, out, resources)
        inputs = {"data": {"stage": source, "fingerprint": digest(source)}} if source else {}
        record = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": digest(stage)}
        write_json(out / "artifact.json", {**record, "inputs": inputs})
    reports = root.parent / "reports"
    reports.mkdir()
    write_json(reports / "own.json", {"steps": [{"fingerprint": digest("pretrain")}]})
    write_json(reports / "other.json", {"steps": [{"fingerprint": digest("train_prompter")}]})
    (reports / "own.html").write_text("a page")
    return root.parent


def write_index(folder, sources):
    folder.mkdir()
    writer = IndexWriter(folder, About(model="x", digest="y", embed_dim=2))
    for item in with_identities(sources):
        writer.add(item, np.zeros(2))
    writer.finish(False)


def ids(folder):
    return sorted(row["id"] for table in Index.open(folder).items for row in rows_of(table))


def test_everything_that_holds_a_video_is_listed_and_indexes_lose_it(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus = workspace / "artifacts" / "decode_videos" / digest("decode_videos")[:16]
    write_index(tmp_path / "of_files", scan_videos(tmp_path / "videos"))
    write_index(workspace / "of_samples", scan_videos(corpus))
    (tmp_path / "no_index").mkdir()
    (tmp_path / "no_index" / "index.json").write_text("{}")
    arguments = "data", "forget", tmp_path / "videos" / "a.mp4", "--workspace", workspace
    status, out, err = call(monkeypatch, capsys, *arguments, "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert {folder: list(samples) for folder, samples in found["corpora"].items()} == {str(corpus): ["a"]}
    assert list(found["derived"].values()) == ["pretrain"]
    assert found["reports"] == [str(workspace / "reports" / f"own.{end}") for end in ("html", "json")]
    assert found["unfinished"] == [str(workspace / "artifacts" / stage / "half") for stage in UNFINISHED]
    assert {folder: len(items) for folder, items in found["indexes"].items()} == {
        str(tmp_path / "of_files"): 1,
        str(workspace / "of_samples"): 1,
    }
    assert ids(tmp_path / "of_files") == ["b", "bad"]
    assert ids(workspace / "of_samples") == ["b"]
    status, out, _ = call(monkeypatch, capsys, *arguments)
    assert "run again: decode_videos, pretrain get new artifacts" in out
    assert f"index {tmp_path / 'of_files'}: 0 deleted" in out
    status, out, _ = call(monkeypatch, capsys, "data", "forget", "bad", "--workspace", workspace)
    assert f"names of rejects: {corpus}: bad" in out
    status, _, err = call(monkeypatch, capsys, "data", "forget", "none.mp4", "--workspace", workspace)
    assert (status, f"none.mp4: neither in {workspace} nor in an index" in err) == (2, True)


def test_an_index_that_changes_is_an_error_after_the_list(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("busy", "free"):
        write_index(tmp_path / name, scan_videos(tmp_path / "videos"))
    arguments = "data", "forget", tmp_path / "videos" / "a.mp4", "--workspace", workspace
    with FileLock(tmp_path / "busy" / ".lock"):
        status, out, err = call(monkeypatch, capsys, *arguments)
    assert (status, "frames and texts: " in out, f"index {tmp_path / 'free'}: 1 deleted" in out) == (2, True, True)
    assert f"{tmp_path / 'busy'}: another process is changing this index" in err
    assert (ids(tmp_path / "busy"), ids(tmp_path / "free")) == (["a", "b", "bad"], ["b", "bad"])


@pytest.mark.parametrize(
    ("name", "named"),
    [("/data/tv/a.mp4", True), ("/data/a.mp4", False), ("tv/a", True), ("tv/a.mp4", True), ("/data/tv/b.mp4", False)],
)
def test_a_sample_is_named_by_its_file_or_its_id(name, named):
    """Files of equal names in other folders are others, unless the manifest gave a group of its own."""
    row = {"id": "tv/a", "source": "a.mp4", "group": "tv/a.mp4"}
    assert is_named(row, name) == named
    assert is_named(row | {"group": "person 7"}, "/data/a.mp4")
