"""An index of videos: what it embeds and when, and what a search ranks and opens. Parts and batches have two clips."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.inference import clips as clips_module
from alpro.inference import index as index_module
from alpro.inference.index import ITEMS, Index, rows_of
from alpro.inference.index_videos import (
    add_videos,
    in_windows,
    remove_videos,
    scan_videos,
    settings,
)
from alpro.inference.model import Model
from alpro.inference.search import (
    Hit,
    fitting,
    group_windows,
    listed,
    most_similar,
    search,
    similar,
    similar_hits,
)
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_video as decode
from alpro.shards.ffmpeg_decoder import ffmpeg_binary
from alpro.shards.pyav_decoder import video_seconds
from alpro.shards.reader import read_index
from alpro.shards.schema import Row
from alpro.stages.evaluation.any_model import labeled

TEXT = "a red ball moves left"


@pytest.fixture(scope="module")
def model(folders):
    return Model.load(folders["retrieval"], device="cpu")


@pytest.fixture
def update(tmp_path, folders, model):
    """update(videos, window, stride, columns): adds a folder, a manifest or a corpus to the index; the counts, and the
    reported lines."""

    def add(videos, *options, task="retrieval"):
        lines = []
        about = settings(tmp_path / "index", folders[task], *options)
        chosen = model if task == "retrieval" else Model.load(folders[task], device="cpu")
        return add_videos(tmp_path / "index", chosen, about, videos, lines.append), lines

    return add


@pytest.fixture
def own(tmp_path, videos):
    """A folder of five videos, three of them different, and a file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        shutil.copy(videos[number % 3], folder / f"{number}.mp4")
    (folder / "notes.mp4").write_text("no video")
    return folder


@pytest.fixture
def filled(update, own):
    """What a search takes: an index of `own`."""
    update(own)
    return opened(own.parent)


def opened(tmp_path):
    return Index.open(tmp_path / "index")


def vectors(tmp_path):
    index = opened(tmp_path)
    return {index.item(i)["id"]: index.embeddings[i] for i in range(len(index))}


def test_only_new_and_changed_files_are_embedded(update, own, model, videos, tmp_path):
    counts, lines = update(own)
    assert (counts.embedded, counts.rejected, counts.skipped, counts.reasons) == (
        5,
        1,
        0,
        {"unreadable": 1},
    )
    assert [line.startswith(f"{own / 'notes.mp4'}: unreadable") for line in lines] == [True]
    assert len(parts := opened(tmp_path).about.parts) > 2
    first = vectors(tmp_path)
    np.testing.assert_allclose([first[str(n)] for n in range(3)], model.encode(videos), atol=1e-6)
    counts, lines = update(own)
    assert (counts.embedded, counts.rejected, counts.skipped, lines) == (0, 0, 6, [])
    shutil.copy(videos[0], own / "notes.mp4")  # repaired
    (own / "1.mp4").write_bytes(videos[2].read_bytes() + b"\0")  # changed
    shutil.copy(videos[2], own / "zz.mp4")  # new
    counts, _ = update(own)
    assert (counts.embedded, counts.replaced, counts.rejected, counts.skipped) == (3, 2, 0, 4)
    second, index = vectors(tmp_path), opened(tmp_path)
    assert (len(index), [part in parts for part in index.about.parts], index.rejects.num_rows) == (
        7,
        [False],
        0,
    )
    for name, same in {"notes": "0", "1": "2", "zz": "2", "4": "1"}.items():
        np.testing.assert_allclose(second[name], first[same], atol=1e-6)
    (own / "1.mp4").write_text("broken")
    counts, _ = update(own)
    assert (counts.replaced, counts.reasons, len(opened(tmp_path))) == (1, {"unreadable": 1}, 6)
    assert opened(tmp_path).rejects["id"].to_pylist() == ["1"]
    assert update(own)[0].skipped == 7
    shutil.copy(videos[1], own / "1.mp4")
    assert (update(own)[0].embedded, len(opened(tmp_path)), opened(tmp_path).rejects.num_rows) == (
        1,
        7,
        0,
    )


def test_an_interrupted_run_keeps_its_parts_and_many_are_merged(update, own, tmp_path, monkeypatch):
    def interrupted():
        for number, item in enumerate(scan_videos(own)):
            if number == 4:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr("alpro.threads.cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        update(interrupted())
    kept = len(opened(tmp_path))
    assert 0 < kept < 5
    (tmp_path / "index" / "half.parquet").write_bytes(b"of a killed process")
    (tmp_path / "index" / ".index.json.0.part").write_bytes(b"of a killed process")
    monkeypatch.setattr(index_module, "MAX_PARTS", 2)
    counts, _ = update(own)
    assert (counts.embedded, counts.skipped + counts.embedded + counts.rejected) == (5 - kept, 6)
    index = opened(tmp_path)
    assert (len(index), [bool(detail) for detail in index.rejects["detail"].to_pylist()]) == (
        5,
        [True],
    )
    kept = {".lock", "index.json", "rejects.parquet", f"{index.about.parts[0]}.parquet"}
    assert {file.name for file in (tmp_path / "index").iterdir()} == kept


@pytest.mark.parametrize("killed_at", range(3))
def test_what_is_removed_is_not_on_the_disk_also_after_a_kill(
    update, own, tmp_path, monkeypatch, killed_at
):
    """At any of its writes and deletions; the next change of the index deletes what the list does not name."""
    update(own)
    gone, before = vectors(tmp_path)["1"].tobytes(), len(opened(tmp_path))
    steps = iter(range(100))

    def kill(function):
        def run(*arguments):
            if next(steps) == killed_at:
                raise KeyboardInterrupt
            return function(*arguments)

        return run

    with monkeypatch.context() as patch:
        for name in ("_add_part", "_delete_others"):
            patch.setattr(
                index_module.IndexWriter, name, kill(getattr(index_module.IndexWriter, name))
            )
        with pytest.raises(KeyboardInterrupt):
            remove_videos(tmp_path / "index", [str(own / "1.mp4"), "4"])
    assert len(opened(tmp_path)) in (before, before - 2)
    with suppress(InputError):  # they were removed before the kill
        remove_videos(tmp_path / "index", ["1", "4"])
    contents = b"".join(file.read_bytes() for file in (tmp_path / "index").iterdir())
    assert gone not in contents
    assert b"1.mp4" not in contents
    assert sorted(vectors(tmp_path)) == ["0", "2", "3"]
    assert [item["id"] for item in remove_videos(tmp_path / "index", [str(own)])] == [
        "0",
        "2",
        "3",
        "notes",
    ]
    assert (len(opened(tmp_path)), opened(tmp_path).rejects.num_rows) == (0, 0)


def test_rows_of_a_manifest_have_windows_captions_and_columns(update, own, tmp_path):
    rows = [
        {"path": "0.mp4", "start": 0, "end": 0.3, "day": "1"},
        {"path": "0.mp4", "start": 0.3, "caption": "a ball"},
    ]
    rows += [{"file": "x"}]
    (own / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, _ = update(own / "m.jsonl", None, None, ["day"])
    assert (counts.embedded, counts.reasons) == (2, {"bad row": 1})
    index = opened(tmp_path)
    assert [hit.place.partition(" ")[2] for hit in listed(index).hits] == ["0-0.3 s", "0.3- s"]
    assert index.items["caption"].to_pylist() == [None, "a ball"]
    assert not np.allclose(*index.embeddings)
    assert [(row["reason"], bool(row["detail"])) for row in index.rejects.to_pylist()] == [
        ("bad row", True)
    ]
    (own / "more.jsonl").write_text(json.dumps({"path": "1.mp4", "day": "2"}) + "\n")
    update(own / "more.jsonl")  # keeps the columns of the index
    index = opened(tmp_path)
    assert fitting(index, ["day=2"]).tolist() == [False, False, True]
    assert index.rejects.num_rows == 0  # the manifest of this run has no bad row


def test_the_frames_of_a_window_are_those_between_its_start_and_its_end(videos, model):
    video = model.folder.model.config.video

    def frames(start, end):
        return decode(videos[0], video.frames, video.image_size, start, end).frames.transpose(
            0, 3, 1, 2
        )

    row = Row(id="a", path=videos[0], kind="video", start=0.25, end=0.5)
    np.testing.assert_array_equal(clips_module.load_frames(row, video), frames(0.25, 0.5))
    np.testing.assert_array_equal(
        clips_module.load_frames(str(videos[0]), video), frames(None, None)
    )
    assert not np.array_equal(frames(0.25, 0.5), frames(0.25, None))
    assert not np.array_equal(frames(0.25, 0.5), frames(None, 0.5))


def test_a_video_that_could_not_be_fetched_is_tried_again_and_one_that_is_none_is_not(
    update, own, monkeypatch
):
    """A full disk ends a run and is no reject."""
    real = clips_module.load_frames

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    def down(source, video):
        if source.path.name == "1.mp4":
            raise DecodeError("not fetched", "the server is down")
        return real(source, video)

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "local_copy", full)
        with pytest.raises(OSError, match="No space left"):
            update(own)
    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "load_frames", down)
        assert update(own)[0].reasons == {"not fetched": 1, "unreadable": 1}
    counts, lines = update(own)
    assert (counts.embedded, counts.replaced, counts.skipped, counts.rejected, lines) == (
        1,
        0,
        5,
        0,
        [],
    )


def test_samples_of_a_decoded_corpus_are_indexed_and_matched(update, clips, model, tmp_path):
    counts, _ = update(clips)
    assert counts.embedded == len(opened(tmp_path)) == read_index(clips, ["id"]).num_rows > 20
    assert update(clips)[0].embedded == 0
    found = search(opened(tmp_path), model, TEXT, k=5, rerank=5)
    assert all(hit.match is not None and hit.item["caption"] for hit in found.hits)
    assert found.hits[0].place.startswith(str(clips))


def test_what_cannot_be_added_to_an_index_is_refused(update, own, tmp_path):
    with pytest.raises(InputError, match="no video has a column 'day'"):
        update(own, None, None, ["split", "day"])
    update(own)
    with pytest.raises(InputError, match=r"another model, .*retrieval .*prompter"):
        update(own, task="prompter")
    for options, named in (
        ((5.0,), "windows"),
        ((None, 1.0), "--stride"),
        ((1.0, 2.0), "--stride"),
    ):
        with pytest.raises(InputError, match=named):
            update(own, *options)
    with pytest.raises(InputError, match="columns"):
        update(own, None, None, ["day"])
    with FileLock(tmp_path / "index" / ".lock"), pytest.raises(InputError, match="another process"):
        update(own)
    part = f"{opened(tmp_path).about.parts[1]}.parquet"
    for name, content, named in ((part, "", "corrupt"), ("index.json", "{", r"index\.json")):
        (tmp_path / "index" / name).write_text(content)
        with pytest.raises(InputError, match=named):
            opened(tmp_path)
    (tmp_path / "index" / "index.json").unlink()
    with pytest.raises(InputError, match="no index"):
        opened(tmp_path)
    with pytest.raises(InputError, match="not an index"):
        update(own)


@given(
    values=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.9]), max_size=9),
    kept=st.lists(st.booleans(), min_size=9, max_size=9),
    k=st.integers(1, 10),
)
def test_the_most_similar_rows_are_those_of_a_stable_sort(values, kept, k):
    matrix = np.array([[value, 1.0] for value in values], np.float32).reshape(-1, 2)
    chosen = np.array(kept[: len(values)], bool)
    rows, scores = most_similar(matrix, np.array([1, 0], np.float32), k, chosen)
    expected = sorted(np.flatnonzero(chosen), key=lambda row: (-values[row], row))[:k]
    assert rows.tolist() == expected
    assert scores.tolist() == pytest.approx([values[row] for row in expected])


def test_clips_are_ranked_by_similarity_and_on_request_the_best_by_matching(
    filled, model, monkeypatch
):
    """Only those that are matched are decoded."""
    decoded = []
    paths = [filled.item(i)["path"] for i in range(5)]
    similarity = dict(zip(paths, model.similarity([TEXT], paths)[0].tolist(), strict=True))
    probability = dict(zip(paths, model.match([TEXT], paths)[0].tolist(), strict=True))
    monkeypatch.setattr(
        clips_module,
        "decode_video",
        lambda path, *rest: decoded.append(path) or decode(path, *rest),
    )
    found = search(filled, model, TEXT)
    plain = [hit.item["path"] for hit in found.hits]
    assert [similarity[path] for path in plain] == pytest.approx(
        sorted(similarity.values(), reverse=True), abs=1e-5
    )
    assert (found.clips, found.matched, found.hits[0].match, found.nothing_fits) == (
        5,
        0,
        None,
        None,
    )
    assert decoded == []
    first = similar_hits(filled, model.encode(TEXT), 4, np.ones(5, bool))
    margin = {path: np.log(p / (1 - p)) for path, p in probability.items()}
    order = sorted(first, key=lambda hit: -(margin[hit.item["path"]] + hit.similarity))
    found = search(filled, model, TEXT, rerank=4)
    assert {str(path) for path in decoded} == {hit.item["path"] for hit in first}
    assert len(decoded) == 4
    assert [hit.item["path"] for hit in found.hits] == [
        *(hit.item["path"] for hit in order),
        plain[4],
    ]
    assert [hit.match is None for hit in found.hits] == [False] * 4 + [True]
    for hit in found.hits[:4]:
        assert hit.match == pytest.approx(probability[hit.item["path"]], abs=1e-5)
    pages = [
        hit.number
        for at in (0, 2, 4, 6)
        for hit in search(filled, model, TEXT, 2, at, rerank=4).hits
    ]
    assert pages == [hit.number for hit in found.hits]
    assert search(filled, model, TEXT, 2, 4, rerank=4).matched == 0  # a page after them
    against = lambda alpro, text, videos, pairs: -0.5 * (videos.features @ text.features[0])  # noqa: E731
    with monkeypatch.context() as patch:  # half of the similarity is left
        patch.setattr("alpro.inference.search.match", against)
        assert [hit.item["path"] for hit in search(filled, model, TEXT, rerank=5).hits] == plain
    best = max(similarity.values())
    for below, nothing in ((best + 0.01, True), (best - 0.01, False)):
        assert search(filled, model, TEXT, nothing_below=below).nothing_fits is nothing


def test_clips_that_cannot_be_matched_follow_with_a_note(filled, own, model):
    """One that cannot be decoded is in the first of two batches: the scores of the second stay those of its own clips.
    One that is gone or changed is noted without a rerank, too."""
    first = search(filled, model, TEXT, rerank=5)
    bad = similar_hits(filled, model.encode(TEXT), 5, np.ones(5, bool))[1].item["path"]
    stat = os.stat(bad)
    with open(bad, "r+b") as file:
        file.write(b"\0" * (stat.st_size))
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same identity
    found = search(filled, model, TEXT, rerank=5)
    others = [hit for hit in first.hits if hit.item["path"] != bad]
    assert [hit.number for hit in found.hits[:-1]] == [hit.number for hit in others]
    assert [hit.match for hit in found.hits[:-1]] == pytest.approx([hit.match for hit in others])
    assert (found.hits[-1].item["path"], found.hits[-1].match, found.matched) == (bad, None, 4)
    assert found.hits[-1].note.startswith("unreadable")
    (own / "0.mp4").unlink()
    (own / "1.mp4").write_bytes(b"something else")
    for rerank in (0, 5):
        found = search(filled, model, TEXT, rerank=rerank)
        notes = {hit.item["id"]: hit.note for hit in found.hits if hit.note}
        assert (notes["0"], notes["1"]) == ("missing", "changed since")
        assert len(notes) <= 3
    assert {hit.item["id"] for hit in found.hits[-len(notes) :]} == notes.keys()


def test_the_ranking_that_was_better_on_validation_is_the_default(
    filled, update, own, model, tmp_path, monkeypatch
):
    for ranking, matched in {"matching": 5, "similarity": 0}.items():
        monkeypatch.setattr(model.folder, "ranking", ranking)
        assert search(filled, model, TEXT).matched == matched
        assert search(filled, model, TEXT, rerank=2).matched == 2
    shutil.rmtree(tmp_path / "index")
    update(own, task="prompter")  # which has no matching head
    index = opened(tmp_path)
    found = search(index, index.load_model(device="cpu"), "a red ball", rerank=3)
    assert (len(found.hits), found.matched, found.note) == (5, 0, "")


def test_words_that_the_model_does_not_know_are_named(model):
    cases = {
        "a politician gives a speech in parliament": ["politician", "gives", "speech", "parliament"]
    }
    cases |= {"a red ball": [], "a ball of the parliament, parliament": ["parliament"]}
    cases |= {
        "\u4f60\u597d?": ["\u4f60\u597d"],
        "\u4f60 ball!": ["\u4f60"],
        "\U0001f600": ["\U0001f600"],
    }
    for text, unknown in cases.items():
        assert model.unknown_words(text) == unknown
        assert bool(model.note(text)) == bool(unknown)
        assert all(word in model.note(text) for word in unknown)


def test_the_model_of_an_index_is_that_of_its_embeddings_wherever_it_is(
    update, own, folders, model, tmp_path
):
    update(own)
    with pytest.raises(InputError, match="another model"):
        opened(tmp_path).load_model(folders["qa"], device="cpu")
    moved = shutil.copytree(folders["retrieval"], tmp_path / "moved")
    assert opened(tmp_path).model_folder(moved) == moved
    about = settings(tmp_path / "index", moved)
    add_videos(tmp_path / "index", model, about, own)
    assert opened(tmp_path).about.model == str(moved)  # recorded
    shutil.rmtree(moved)
    with pytest.raises(InputError, match="--model"):
        opened(tmp_path).load_model(device="cpu")


def test_filters_and_numbers_of_clips_through_all_parts(tmp_path):
    """Of an index of clips without files, in two parts."""
    folder, empty = tmp_path / "index", dict.fromkeys(ITEMS.names)
    folder.mkdir()
    writer = index_module.IndexWriter(
        folder, index_module.About(model="m", digest="d", columns=("day", "views"))
    )
    rows = [("7", "/v/2024/a.mp4", "video", None, {"day": "2024-02-01", "views": "9"})]
    rows += [("07", "/v/2023/b.mp4", "video", 3.0, {"day": "2024-01-01", "views": "10"})]
    rows += [("red", "/v/2024/c.png", "image", None, {"views": "many"})]
    for number, (id, path, kind, start, columns) in enumerate(rows):
        item = {
            "id": id,
            "path": path,
            "kind": kind,
            "start": start,
            "end": start and start + 2.0,
            "identity": "",
        }
        item |= {"columns": list(columns.items()), "caption": ["a ball", None, "two balls"][number]}
        writer.add(empty | item, np.array([number == 0, number == 1, number == 2], np.float32))
        writer.commit()
    writer.finish()
    table = Index.open(folder)
    cases = {
        "": [0, 1, 2],
        "kind=image": [2],
        "kind!=image": [0, 1],
        "path~*/2024/*": [0, 2],
        "path~*?.png": [2],
    }
    cases |= {"id=7": [0], "id>=07, id<7": [1]}  # texts: 07 is another one
    cases |= {"views<10": [0], "views>=9, kind=video": [0, 1], "views=9.0": [0], "views=many": [2]}
    cases |= {
        "caption~*ball*": [0, 2],
        "day>=2024-01-15": [0],
        "day=": [],
        "start>0": [1],
        " end <= 5 ": [1],
    }
    for filters, expected in (
        (text.split(",") if text else [], rows) for text, rows in cases.items()
    ):
        assert fitting(table, filters).nonzero()[0].tolist() == expected
        assert [hit.number for hit in listed(table, filters=filters).hits] == expected
        found = similar(table, np.array([1, 2, 3], np.float32), filters=filters)
        assert ([hit.number for hit in found.hits], found.clips) == (expected[::-1], len(expected))
    assert [table.item(n)["id"] for n in range(3)] == ["7", "07", "red"]
    assert [hit.number for hit in similar(table, table.embeddings[2], k=1, without=2).hits] == [0]
    for text in ("x", "=3", "color=red", "start~1", "end>soon", "kind=\udcff"):
        with pytest.raises(InputError):
            fitting(table, [text])


@pytest.fixture
def film(tmp_path):
    """film(name, parts): videos of one format after another in a file, without encoding them again."""
    (tmp_path / "films").mkdir()

    def join(name, parts):
        listed, path = tmp_path / "parts.txt", tmp_path / "films" / name
        listed.write_text("".join(f"file '{clip}'\n" for clip in parts))
        command = [
            ffmpeg_binary(),
            "-y",
            "-v",
            "error",
            "-f",
            "concat",
            "-safe",
            "0",
            "-i",
            listed,
            "-c",
            "copy",
            path,
        ]
        subprocess.run([str(part) for part in command], check=True)
        return path.parent

    return join


def test_a_search_finds_the_window_of_a_film_that_shows_a_clip(
    update, videos, model, film, tmp_path
):
    """Two minutes of one clip, with another one at 80 s: it is the clip that is searched for."""
    common, rare, _ = videos
    count = round(120 / video_seconds(rare))
    films = film(
        "film.mp4", [rare if number == count * 2 // 3 else common for number in range(count)]
    )
    assert update(films, 10.0)[0].embedded == 23  # one every 5 seconds
    hits = similar_hits(opened(tmp_path), model.encode(rare), 3, np.ones(23, bool))
    assert (hits[0].item["start"], hits[0].item["end"], hits[0].span) == (80, 90, (75, 90))
    assert hits[0].remarks == ["neighbors fit too: 75-90 s"]
    assert all(hit.item["end"] < 80 or hit.item["start"] > 90 for hit in hits[1:])


def test_an_index_keeps_its_windows_and_replaces_those_of_a_changed_file(
    update, videos, film, tmp_path
):
    def windows():
        return sorted((row["start"], row["end"]) for row in rows_of(opened(tmp_path).items))

    films = film("film.mp4", [videos[0]] * 5)
    film("other.mp4", [videos[0]] * 4)
    update(films, 2.0, 1.5)
    assert windows() == [(0, 2), (0, 2), (1.5, 3.5), (1.5, 3.5), (3, 4), (3, 5)]
    assert update(films)[0].skipped == 6
    film("film.mp4", [videos[1]] * 3)
    assert update(films)[0].embedded == 2
    assert windows() == [(0, 2), (0, 2), (1.5, 3), (1.5, 3.5), (3, 4)]
    with pytest.raises(InputError, match=r"1\.5 s"):
        update(films, 2.0, 1.0)
    assert len(remove_videos(tmp_path / "index", ["film"])) == 2


def test_a_table_of_captions_is_read_as_a_run_reads_it(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.csv").write_text("video,caption\na.mp4,a dog\n")
    (item,), ((labels,), _) = scan_videos(tmp_path / "b.csv"), labeled(tmp_path / "b.csv", "test")
    assert (item["path"], item["caption"], labels.about["captions"]) == (
        str(tmp_path / "a.mp4"),
        "a dog",
        ("a dog",),
    )


def test_a_last_window_shows_something_new_and_only_whole_videos_have_windows(
    clips, videos, monkeypatch
):
    """A video often lasts a little longer than its last frame: a window of that alone would have no frames."""
    url = {
        "id": "a",
        "path": "https://host/a.mp4",
        "kind": "video",
        "start": None,
        "end": None,
        "frame_offsets": None,
    }
    (reject,) = in_windows([url], 10.0, 5.0)
    assert reject.reason == "bad row"
    short = [
        *scan_videos(videos[0].parent),
        url | {"start": 3.0},
    ]  # also files that are no videos: decoding says why
    assert list(in_windows(short, 5.0, 5.0)) == short
    with pytest.raises(InputError, match="decoded corpus"):
        list(in_windows(scan_videos(clips), 10.0, 5.0))
    for seconds, ends in {
        10.01: [4, 8, 10.01],
        8.05: [4, 8.05],
        8.15: [4, 8, 8.15],
        4.05: [4.05],
    }.items():
        monkeypatch.setattr(
            "alpro.inference.index_videos.video_seconds", lambda path, seconds=seconds: seconds
        )
        windows = [(window["start"], window["end"]) for window in in_windows(short[:1], 4.0, 4.0)]
        assert windows == [(4 * n, end) for n, end in enumerate(ends)]


def test_windows_of_several_files_are_grouped_by_file():
    """In order of similarity; a window that touches a group's best one belongs to it."""
    windows = [
        ("a", 10, 20),
        ("b", 15, 25),
        ("a", 20, 30),
        ("a", 31, 40),
        ("a", 5, 15),
        ("c", None, None),
    ]
    items = [dict(zip(("path", "start", "end"), window, strict=True)) for window in windows]
    groups = group_windows(
        [Hit(item, number, 1 - number / 10) for number, item in enumerate(items)]
    )
    assert [(hit.number, hit.span) for hit in groups] == [
        (0, (5, 30)),
        (1, (15, 25)),
        (3, (31, 40)),
        (5, None),
    ]
    items = [{"path": "a", "start": 0, "end": n + 1} for n in range(40)] + [
        {"path": "b", "start": 0, "end": 1}
    ]
    falling, about = np.linspace(1, 0.5, 41, dtype=np.float32)[:, None], SimpleNamespace(window=1.0)
    index = SimpleNamespace(embeddings=falling, about=about, item=items.__getitem__)
    hits = similar_hits(index, np.ones(1, np.float32), 2, np.ones(41, bool))
    assert [hit.item["path"] for hit in hits] == ["a", "b"]  # the forty are one hit
