"""An index of videos: what it embeds and when, and what a search ranks and opens."""

import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from alpro.errors import InputError
from alpro.inference import clips as clips_module
from alpro.inference import index as index_module
from alpro.inference.find import model_digest
from alpro.inference.index import About, Index
from alpro.inference.index_videos import scan_videos, update_index
from alpro.inference.model import UNKNOWN, Model
from alpro.inference.search import hit_path, most_similar, search
from alpro.shards.decoding import DecodeError
from alpro.shards.decoding import decode_video as decode
from alpro.shards.schema import Row


@pytest.fixture(scope="module")
def model(folders):
    return Model.from_pretrained(folders["retrieval"], device="cpu")


@pytest.fixture
def update(tmp_path, folders, model):
    """update(videos, task): adds a folder, a manifest or a corpus to the index; the counts, and the reported lines."""

    def add(videos, task="retrieval", sources=None):
        chosen = model if task == "retrieval" else Model.from_pretrained(folders[task], device="cpu")
        about = About(model=str(folders[task]), digest=model_digest(folders[task]), embed_dim=16)
        lines = []
        counts = update_index(tmp_path / "index", chosen, about, sources or list(scan_videos(videos)), lines.append)
        return counts, lines

    return add


@pytest.fixture
def own_videos(tmp_path, videos):
    """A folder of three videos and a file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in videos:
        shutil.copy(video, folder)
    (folder / "notes.mp4").write_text("no video")
    return folder


def embeddings(folder):
    index = Index.open(folder)
    return {index.item(i)["id"]: np.concatenate(index.embeddings)[i] for i in range(len(index))}


def test_only_new_and_changed_files_are_embedded(update, own_videos, model, videos, tmp_path):
    counts, lines = update(own_videos)
    assert (counts.embedded, counts.rejected, counts.skipped, counts.reasons) == (3, 1, 0, {"unreadable": 1})
    assert lines == [f"{own_videos / 'notes.mp4'}: unreadable: moov atom not found"]
    first = embeddings(tmp_path / "index")
    for video, expected in zip(videos, model.embed_videos(videos).numpy(), strict=True):
        np.testing.assert_allclose(first[video.stem], expected, atol=1e-6)
    (reject,) = pq.read_table(tmp_path / "index" / "rejects.parquet").to_pylist()
    assert (reject["id"], reject["reason"]) == ("notes", "unreadable")

    counts, lines = update(own_videos)
    assert (counts.embedded, counts.rejected, counts.skipped, lines) == (0, 0, 4, [])

    shutil.copy(videos[0], own_videos / "notes.mp4")  # repaired
    (own_videos / videos[1].name).write_bytes(videos[2].read_bytes() + b"\0")  # changed
    shutil.copy(videos[2], own_videos / "zz.mp4")  # new
    counts, _ = update(own_videos)
    assert (counts.embedded, counts.replaced, counts.rejected, counts.skipped) == (3, 2, 0, 2)
    assert len(Index.open(tmp_path / "index")) == 5
    second = embeddings(tmp_path / "index")
    for name, same in (
        ("notes", videos[0]),
        (videos[1].stem, videos[2]),
        ("zz", videos[2]),
        (videos[0].stem, videos[0]),
    ):
        np.testing.assert_allclose(second[name], first[same.stem], atol=1e-6)
    assert pq.read_table(tmp_path / "index" / "rejects.parquet").num_rows == 0


def test_an_interrupted_index_keeps_its_parts_and_continues(update, own_videos, tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "PART_CLIPS", 1)
    monkeypatch.setattr("alpro.inference.index_videos.BATCH", 1)

    def interrupted():
        for number, item in enumerate(scan_videos(own_videos)):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr("alpro.inference.index_videos.CHUNK", 1)
    monkeypatch.setattr("alpro.inference.clips.cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        update(own_videos, sources=interrupted())
    kept = len(Index.open(tmp_path / "index"))
    (tmp_path / "index" / "half.npy").write_bytes(b"of a killed process")
    assert 0 < kept < 3
    monkeypatch.setattr(index_module, "MAX_PARTS", 2)
    counts, _ = update(own_videos)
    assert (counts.embedded, counts.skipped + counts.embedded + counts.rejected) == (3 - kept, 4)
    index = Index.open(tmp_path / "index")
    assert (len(index), len(index.about.parts), index.rejects().num_rows) == (3, 1, 1)
    names = sorted(file.name for file in (tmp_path / "index").iterdir())
    part = index.about.parts[0].name
    expected = [f"{part}{end}" for end in (".arrow", ".npy", ".rejects.parquet")]
    assert names == sorted([".lock", "index.json", "rejects.parquet", *expected])


def test_a_manifest_needs_no_captions_and_may_have_windows(update, own_videos, videos, tmp_path):
    rows = [{"path": videos[0].name, "start": 0, "end": 0.3}, {"path": videos[0].name, "start": 0.3}, {"file": "x"}]
    (own_videos / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, _ = update(own_videos / "m.jsonl")
    assert (counts.embedded, counts.reasons) == (2, {"bad row": 1})
    index = Index.open(tmp_path / "index")
    assert [hit_path(index.item(i)).partition(" ")[2] for i in range(2)] == ["0-0.3 s", "0.3- s"]
    assert not np.allclose(*np.concatenate(index.embeddings))
    assert pq.read_table(tmp_path / "index" / "rejects.parquet")["reason"].to_pylist() == ["bad row"]


def test_the_frames_of_a_window_are_those_between_its_start_and_its_end(videos, model):
    video = model.folder.model.config.video

    def frames(start, end):
        return decode(videos[0], video.frames, video.image_size, start, end).frames.transpose(0, 3, 1, 2)

    row = Row(id="a", path=videos[0], kind="video", start=0.25, end=0.5)
    np.testing.assert_array_equal(clips_module.load_frames(row, video), frames(0.25, 0.5))
    assert not np.array_equal(frames(0.25, 0.5), frames(0.25, None))
    assert not np.array_equal(frames(0.25, 0.5), frames(None, 0.5))


def test_a_video_that_could_not_be_fetched_is_tried_again_and_one_that_is_none_is_not(
    update, own_videos, videos, monkeypatch
):
    real = clips_module.load_frames

    def down(source, video):
        if source.path.name == videos[0].name:
            raise DecodeError("not fetched", "the server is down")
        return real(source, video)

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "load_frames", down)
        assert update(own_videos)[0].reasons == {"not fetched": 1, "unreadable": 1}
    counts, lines = update(own_videos)
    assert (counts.embedded, counts.skipped, counts.rejected, lines) == (1, 3, 0, [])


def test_samples_of_a_decoded_corpus_are_indexed_and_matched(update, clips, model, tmp_path):
    counts, _ = update(clips)
    assert counts.embedded == len(Index.open(tmp_path / "index")) > 20
    assert update(clips)[0].embedded == 0
    found = search(Index.open(tmp_path / "index"), model, "a red ball moves left", k=5, rerank=5)
    assert all(hit.match is not None for hit in found.hits)
    assert hit_path(found.hits[0].item).startswith(str(clips))


def test_what_cannot_be_added_to_an_index_is_one_line(update, own_videos, folders, tmp_path):
    update(own_videos)
    with pytest.raises(InputError, match=r"this index is of another model, .*retrieval .* not of .*prompter"):
        update(own_videos, task="prompter")
    with (
        FileLock(tmp_path / "index" / ".lock"),
        pytest.raises(InputError, match="another process is changing"),
    ):
        update(own_videos)
    (tmp_path / "index" / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index.json: cannot be read: .*delete .*create the index again"):
        update(own_videos)
    (tmp_path / "index" / "index.json").unlink()
    with pytest.raises(InputError, match="not empty, and not an index"):
        update(own_videos)
    with pytest.raises(InputError, match=r"no index\.json; `alpro index add"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("sizes", "k", "expected"),
    [((3, 4), 3, [5, 1, 2]), ((7,), 9, [5, 1, 2, 3, 4, 0, 6]), ((0, 7), 1, [5]), ((), 3, [])],
)
def test_the_most_similar_rows_of_all_parts(sizes, k, expected, monkeypatch):
    monkeypatch.setattr("alpro.inference.search.CHUNK", 2)
    values = np.array([-0.5, 0.7, 0.5, 0.5, 0.25, 0.9, -1.0], np.float32)[: sum(sizes)]
    matrices = np.split(np.stack([values, np.zeros_like(values)], axis=1), np.cumsum(sizes)[:-1]) if sizes else []
    rows, scores = most_similar(matrices, np.array([1, 0], np.float32), k)
    assert rows.tolist() == expected
    assert scores.tolist() == values[expected].tolist()


def test_the_best_by_similarity_are_ranked_by_matching(update, own_videos, model, tmp_path):
    update(own_videos)
    index, text = Index.open(tmp_path / "index"), "a red ball moves left"
    files = [index.item(i)["path"] for i in range(3)]
    similarity = dict(zip(files, model.similarity(files, [text])[0].tolist(), strict=True))
    probability = dict(zip(files, model.match(files, [text])[0].tolist(), strict=True))
    order = sorted(files, key=lambda f: -(np.log(probability[f] / (1 - probability[f])) + similarity[f]))
    found = search(index, model, text)
    assert [hit.item["path"] for hit in found.hits] == order
    for hit in found.hits:
        assert hit.similarity == pytest.approx(similarity[hit.item["path"]], abs=1e-5)
        assert hit.match == pytest.approx(probability[hit.item["path"]], abs=1e-5)
    plain = search(index, model, text, k=2, rerank=0)
    assert [hit.item["path"] for hit in plain.hits] == sorted(files, key=lambda f: -similarity[f])[:2]
    assert (plain.clips, plain.matched, plain.hits[0].match) == (3, 0, None)


def test_a_prompter_ranks_by_similarity_alone(update, own_videos, folders, tmp_path):
    update(own_videos, task="prompter")
    index = Index.open(tmp_path / "index")
    found = search(index, index.load_model(device="cpu"), "a red ball")
    assert len(found.hits) == 3
    assert found.matched == 0


def test_a_clip_that_is_gone_or_changed_is_ranked_last_and_noted(update, own_videos, videos, model, tmp_path):
    update(own_videos)
    (own_videos / videos[0].name).unlink()
    (own_videos / videos[1].name).write_bytes(b"something else")
    index, notes = Index.open(tmp_path / "index"), {videos[0].stem: "missing", videos[1].stem: "changed since"}
    found = search(index, model, "a red ball")
    assert found.hits[0].item["id"] == videos[2].stem
    assert {hit.item["id"]: hit.note for hit in found.hits[1:]} == notes
    found = search(index, model, "a red ball", rerank=0)
    assert {hit.item["id"]: hit.note for hit in found.hits} == {**notes, videos[2].stem: ""}


def test_a_text_of_which_the_vocabulary_has_nothing_is_noted(update, own_videos, model, tmp_path):
    update(own_videos)
    index = Index.open(tmp_path / "index")
    for text, note in {"a red ball": "", "\u4f60\u597d?": UNKNOWN, "\U0001f600": UNKNOWN, "\u4f60 ball": ""}.items():
        assert search(index, model, text, rerank=0).note == note


def test_a_search_opens_only_the_index_and_the_best_files(update, own_videos, model, tmp_path, monkeypatch):
    """And no file of the videos if nothing is matched."""
    update(own_videos)
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and watching[0] else None)
    index = Index.open(tmp_path / "index")
    search(index, model, "a red ball", rerank=0)
    inside = {path for path in opened if path.startswith(str(tmp_path))}
    assert inside
    assert all(path.startswith(str(tmp_path / "index")) for path in inside)
    decoded = []
    monkeypatch.setattr(clips_module, "decode_video", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    found = search(index, model, "a red ball", k=3, rerank=1)
    watching[0] = False
    assert [str(path) for path in decoded] == [found.hits[0].item["path"]]


def test_the_model_of_an_index_is_that_of_its_embeddings(update, own_videos, folders, tmp_path):
    update(own_videos)
    index = Index.open(tmp_path / "index")
    with pytest.raises(InputError, match="this index is of another model"):
        index.load_model(str(folders["qa"]), device="cpu")
    moved = shutil.copytree(folders["retrieval"], tmp_path / "moved")
    assert index.load_model(str(moved), device="cpu").folder.task == "retrieval"
    about = index.about.model_copy(update={"model": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="is gone; name a copy of it with --model"):
        Index(index.folder, about).load_model(device="cpu")


def test_an_index_that_was_killed_in_its_first_commit_is_continued(update, own_videos, tmp_path):
    (tmp_path / "index").mkdir()
    for name in ("0123456789ab.npy", "0123456789ab.arrow", ".index.json.0123456789ab.part", ".lock"):
        (tmp_path / "index" / name).write_bytes(b"")
    assert update(own_videos)[0].embedded == 3
    assert not list((tmp_path / "index").glob("0123456789ab*"))


@pytest.mark.parametrize("kind", ["npy", "arrow", "rejects.parquet"])
def test_a_part_that_is_empty_after_a_power_failure_is_embedded_again(update, own_videos, tmp_path, capsys, kind):
    update(own_videos)
    (file,) = (tmp_path / "index").glob(f"*[0-9a-f].{kind}")
    file.write_bytes(b"")
    if kind != "rejects.parquet":
        with pytest.raises(InputError, match="repairs"):
            Index.open(tmp_path / "index")
    counts, _ = update(own_videos)
    assert (counts.embedded, counts.rejected, len(Index.open(tmp_path / "index"))) == (3, 1, 3)
    assert "cannot be read; its 3 clips are embedded again" in capsys.readouterr().err
