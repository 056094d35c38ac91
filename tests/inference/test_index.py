"""An index of videos: what it embeds and when. Parts and batches have two clips."""

import json
import shutil
from contextlib import suppress
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from alpro.errors import InputError
from alpro.inference import clips as clips_module
from alpro.inference import index as index_module
from alpro.inference.filters import filter_mask
from alpro.inference.index import Index, rows_of
from alpro.inference.index_videos import (
    add_videos,
    in_windows,
    remove_videos,
    scan_videos,
    settings,
    time_line,
)
from alpro.inference.search import list_clips, search
from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_video as decode
from alpro.shards.schema import Row
from alpro.shards.seeking import video_seconds
from alpro.stages.evaluation.any_model import labeled


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
    second = vectors(tmp_path)
    index = opened(tmp_path)
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
    monkeypatch.setattr("alpro.inference.index_videos.MAX_COUNTED", 1)  # no list before the first
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
    """At any of its writes and deletions; the next change of the index deletes what the list does
    not name."""
    update(own)
    gone = vectors(tmp_path)["1"].tobytes()
    before = len(opened(tmp_path))
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
    assert [hit.location.partition(" ")[2] for hit in list_clips(index).hits] == [
        "0-0.3 s",
        "0.3- s",
    ]
    assert index.items["caption"].to_pylist() == [None, "a ball"]
    assert not np.allclose(*index.embeddings)
    total = video_seconds(own / "0.mp4")
    assert index.items["duration"].to_pylist() == pytest.approx([0.3, total - 0.3], abs=0.01)
    assert [(row["reason"], bool(row["detail"])) for row in index.rejects.to_pylist()] == [
        ("bad row", True)
    ]
    (own / "more.jsonl").write_text(json.dumps({"path": "1.mp4", "day": "2"}) + "\n")
    update(own / "more.jsonl")  # keeps the columns of the index
    index = opened(tmp_path)
    assert filter_mask(index, ["day=2"]).tolist() == [False, False, True]
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
    real = clips_module.load_clip

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    def down(source, *options):
        if source.path.name == "1.mp4":
            raise DecodeError("not fetched", "the server is down")
        return real(source, *options)

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "local_copy", full)
        with pytest.raises(OSError, match="No space left"):
            update(own)
    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "load_clip", down)
        assert update(own)[0].reasons == {"not fetched": 1, "unreadable": 1}
    counts, lines = update(own)
    assert (counts.embedded, counts.replaced, counts.skipped, counts.rejected, lines) == (
        1,
        0,
        5,
        0,
        [],
    )


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
    (tmp_path / "index" / "index.json").write_text(
        '{"model": "m", "digest": "d", "parts": ["../x"]}'
    )
    with pytest.raises(InputError, match=r"index\.json"):
        opened(tmp_path)
    (tmp_path / "index" / "index.json").unlink()
    with pytest.raises(InputError, match="no index"):
        opened(tmp_path)
    with pytest.raises(InputError, match="not an index"):
        update(own)


def test_the_model_of_an_index_is_that_of_its_embeddings_wherever_it_is(
    update, own, folders, model, tmp_path
):
    update(own)
    with pytest.raises(InputError, match="another model"):
        opened(tmp_path).load_model(folders["qa"], device="cpu")
    moved = shutil.copytree(folders["retrieval"], tmp_path / "moved")
    assert opened(tmp_path).find_model(moved).path == moved
    about = settings(tmp_path / "index", moved)
    add_videos(tmp_path / "index", model, about, own)
    assert opened(tmp_path).about.model == str(moved)  # recorded
    shutil.rmtree(moved)
    with pytest.raises(InputError, match="--model"):
        opened(tmp_path).load_model(device="cpu")


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


@pytest.mark.parametrize("window", [0.3, 60.0])
def test_videos_without_a_known_length_are_counted_if_they_needed_windows(
    window, update, own, monkeypatch
):
    monkeypatch.setattr("alpro.inference.index_videos.video_seconds", lambda path: 0.0)
    counts, _ = update(own, window)
    assert counts.embedded == 5
    assert counts.uncut == (5 if window < 1 else 0)


def test_a_file_is_removed_by_its_name_as_any_system_spells_it(update, videos, tmp_path):
    """macOS decomposes the accents of names."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for spelling in ("NFC", "NFD"):
        shutil.copy(videos[0], folder / f"{normalize(spelling, 'café')} {spelling}.mp4")
    update(folder)
    for spelling, other in (("NFC", "NFD"), ("NFD", "NFC")):
        name = f"{normalize(other, 'café')} {spelling}.mp4"
        (item,) = remove_videos(tmp_path / "index", [str(folder / name)])
        assert item["path"].endswith(f"{spelling}.mp4")


def test_a_file_that_several_names_stand_for_is_removed_once(update, videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos[0], folder / "a.mp4")
    update(folder)
    names = [str(folder), str(folder / "a.mp4"), str(folder / "." / "a.mp4"), "a"]
    assert len(remove_videos(tmp_path / "index", names)) == 1


def test_a_table_of_captions_is_read_as_a_run_reads_it(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.csv").write_text("video,caption\na.mp4,a dog\n")
    (item,), ((labels,), _) = scan_videos(tmp_path / "b.csv"), labeled(tmp_path / "b.csv", "test")
    assert (item["path"], item["caption"], labels.metadata["captions"]) == (
        str(tmp_path / "a.mp4"),
        "a dog",
        ("a dog",),
    )


def test_a_last_window_shows_something_new_and_only_whole_videos_have_windows(
    clips, videos, monkeypatch
):
    """A video often lasts a little longer than its last frame: a window of that alone would have no
    frames."""
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


def test_an_index_of_an_earlier_version_has_no_durations_and_a_corrupt_part_is_named(
    update, own, tmp_path
):
    update(own)
    folder = tmp_path / "index"
    parts = [folder / f"{name}.parquet" for name in opened(tmp_path).about.parts]
    whole = [pq.read_table(part) for part in parts]
    for part, table in zip(parts, whole, strict=True):
        pq.write_table(table.drop_columns("duration"), part)
    index = opened(tmp_path)
    assert index.items["duration"].null_count == len(index) == 5
    with pytest.raises(InputError, match="durations"):
        filter_mask(index, ["duration<10"])

    table = whole[0]
    empty = pa.nulls(len(table), pa.list_(pa.float32()))
    ragged = pa.array([[1.0], [1.0, 2.0]][: len(table)], pa.list_(pa.float32()))
    place = table.column_names.index("embedding")
    for wrong in (
        table.set_column(place, "embedding", empty),
        table.set_column(place, "embedding", ragged),
        table.drop_columns("path"),
        table.set_column(1, "path", pa.nulls(len(table), pa.string())),
    ):
        pq.write_table(wrong, parts[0])
        with pytest.raises(InputError, match="corrupt"):
            opened(tmp_path)


def test_the_time_that_embedding_takes_is_said_after_the_first_batch(update, own, monkeypatch):
    cases = {
        (20_000, 16, 40.0, "cpu"): "20,000 videos, about 14 h on this CPU",
        (300, 16, 4.0, "cuda"): "300 videos, about 1 min on this GPU",
        (16, 16, 40.0, "cpu"): "",  # no other is left
        (20, 16, 4.0, "cpu"): "",  # a second
        (None, 16, 8.0, "cpu"): "more than 100,000 videos, 120 a minute",
    }
    for arguments, expected in cases.items():
        line = time_line(*arguments)
        assert line.startswith(expected)
        assert bool(line) == bool(expected) == ("Ctrl-C" in line)

    lines = []
    monkeypatch.setattr("alpro.inference.index_videos.MIN_SECONDS", -1.0)
    monkeypatch.setattr("alpro.inference.index_videos.log.info", lines.append)
    update(own)
    assert [line for line in lines if line.startswith("6 videos, about")]


def test_an_index_searches_by_a_text_a_file_or_an_embedding(update, own, model, tmp_path):
    update(own)
    index = opened(tmp_path)
    assert "5 clips" in repr(index)
    assert index.model is index.model
    found = index.search("a red ball", 2, filters=["kind=video"])
    assert [hit.number for hit in found] == [
        hit.number for hit in search(index, index.model, "a red ball", 2)
    ]
    assert "similarity" in repr(found.hits[0])
    for query in (own / "0.mp4", str(own / "0.mp4"), model.encode(own / "0.mp4")):
        assert index.search(query).hits[0].item["id"] in ("0", "3")  # copies of one video
    with pytest.raises(DecodeError):
        index.search(own / "none.mp4")
