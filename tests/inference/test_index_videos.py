"""What `alpro index add` embeds, keeps and removes. The first unit has one clip."""

import json
import os
import shutil
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.files import write_json
from alpro.inference import index_videos as module
from alpro.inference import model as model_module
from alpro.inference import scan as scan_module
from alpro.inference.index import EMPTY, Index
from alpro.inference.index_videos import Embedder, add_videos, remove_videos
from alpro.inference.loading import resolve
from alpro.inference.scan import scan_videos, split_into_windows
from alpro.pool import Died
from alpro.shards.clip import DecodeError
from alpro.shards.duration import video_seconds
from alpro.shards.sources.form import Columns
from alpro.shards.sources.manifest import import_source
from tests.conftest import write_lines


@pytest.fixture
def opened(tmp_path):
    """opened(): the index as it is now."""
    return lambda: Index.open(tmp_path / "index")


def vectors(index):
    return {item["id"]: index.embedding(item["key"]) for item in index.rows()}


def ids(index):
    return [item["id"] for item in index.rows()]


def rejected(index):
    return [item["id"] for item in index.rows("reason IS NOT NULL")]


def reasons(index):
    return [item["reason"] for item in index.rows("reason IS NOT NULL")]


def replace(path, content, source=None):
    """Write a file whose identity differs from that of the file before."""
    path.write_bytes(content)
    os.utime(path, ns=(0, 10**18))


def test_each_file_is_embedded_once(update, own, model, videos, opened):
    counts = update(own)
    again = update(own)

    assert counts.embedded == 5
    assert reasons(opened()) == ["unreadable"]
    assert again.embedded == 0
    assert again.skipped == 6
    embedded = vectors(opened())
    three = [embedded[f"{n}"] for n in range(3)]
    np.testing.assert_allclose(three, model.encode(videos), atol=1e-6)


def test_new_changed_and_repaired_files_are_embedded(update, own, videos, opened):
    update(own)
    before = vectors(opened())
    replace(own / "notes.mp4", videos[0].read_bytes())
    replace(own / "1.mp4", videos[2].read_bytes())
    replace(own / "3.mp4", b"broken")
    shutil.copy(videos[2], own / "new.mp4")

    counts = update(own)

    assert counts.embedded == 3
    assert counts.skipped == 3
    after = vectors(opened())
    for name, same in {"notes": "0", "1": "2", "new": "2"}.items():
        np.testing.assert_allclose(after[name], before[same], atol=1e-6)
    assert rejected(opened()) == ["3"]


def test_clips_of_a_subfolder_that_is_not_there_stay(update, own, opened, caplog):
    """It may be a disk that is not mounted: the folder is then empty, or missing."""
    disk = own / "disk"
    other = own / "other disk"
    (disk / "videos").mkdir(parents=True)
    other.mkdir()
    shutil.copy(own / "1.mp4", disk / "videos/5.mp4")
    shutil.copy(own / "1.mp4", other / "6.mp4")
    shutil.copy(own / "1.mp4", other / "7.mp4")
    update(own)
    shutil.rmtree(disk / "videos")
    shutil.rmtree(other)

    counts = update(own)

    assert counts.removed == 0
    assert "disk/videos/5" in ids(opened())
    assert "3 clips stay in the index" in caplog.text
    assert f"such as {disk}/videos;" in caplog.text


def test_files_that_are_gone_are_removed(update, own, tmp_path, videos, opened):
    """But not those of a folder that is not there now."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(videos[0], other / "other.mp4")
    update(own)
    update(other)
    (own / "1.mp4").unlink()
    (own / "notes.mp4").unlink()
    (other / "other.mp4").unlink()

    counts = update(own)

    assert counts.removed == 2
    assert sorted(ids(opened())) == ["0", "2", "3", "4", "other"]
    assert rejected(opened()) == []


def test_an_interrupted_run_continues(update, own, opened, monkeypatch):
    real = module.embed
    done = []

    def interrupt(embedder, items):
        done.append(items)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(embedder, items)

    with monkeypatch.context() as patch:
        patch.setattr(module, "embed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            update(own)
    assert len(opened()) == 3

    counts = update(own)
    assert counts.embedded == 2
    assert counts.skipped == 3
    assert len(opened()) == 5


@pytest.mark.parametrize(("seconds", "longest"), [(0.001, 1024), (2.4, 16), (50, 1)])
def test_a_unit_takes_at_most_a_minute_and_is_large_where_clips_are_fast(
    update, own, monkeypatch, seconds, longest
):
    """Also beyond the clips that are listed before."""
    sizes = []

    def embed(embedder, items):
        sizes.append(len(items))
        reject = {"reason": "unreadable", "detail": ""}
        return [reject] * len(items), seconds * len(items)

    monkeypatch.setattr(module, "embed", embed)
    monkeypatch.setattr(module, "MAX_LISTED", 100)
    monkeypatch.setattr(module, "MAX_UNIT", 1024)
    rows = [{"path": "0.mp4", "start": n / 1e5} for n in range(3000)]
    update(write_lines(own / "m.jsonl", rows))

    assert sum(sizes) == len(rows)
    assert max(sizes) == longest
    assert longest * seconds <= 60


def test_a_unit_that_dies_costs_only_the_file_that_kills_it(
    update, own, opened, monkeypatch
):
    def each(tasks, work, workers, scheduler):
        for task in tasks:
            crashes = any(item["id"] == "1" for item in task)
            yield (
                task,
                Died("its process ended with status -11") if crashes else work(task),
            )

    with monkeypatch.context() as patch:
        patch.setattr(module, "each", each)
        update(own)
    assert reasons(opened()) == ["crashed", "unreadable"]
    assert ids(opened()) == ["0", "2", "3", "4"]
    assert rejected(opened()) == ["1", "notes"]
    assert update(own).embedded == 1  # it may have been the memory


@pytest.mark.parametrize("cluster", [1], indirect=True)  # each thread imports torch
def test_a_cluster_embeds_what_this_machine_does(
    update, own, opened, folders, cluster, tmp_path
):
    found = resolve(folders["retrieval"], tmp_path)
    embedder = Embedder(found, "cpu", scheduler=cluster.scheduler_address)

    counts = add_videos(tmp_path / "there", embedder, own)

    update(own)
    assert counts.embedded == 5
    there = vectors(Index.open(tmp_path / "there"))
    for name, vector in vectors(opened()).items():
        np.testing.assert_allclose(there[name], vector, atol=1e-6)


@pytest.fixture
def down(monkeypatch):
    """down(): a context in which no store answers."""

    @contextmanager
    def run():
        def load_clip(source, *options):
            raise DecodeError("not fetched", "the server is down")

        with monkeypatch.context() as patch:
            patch.setattr(model_module, "load_clip", load_clip)
            yield

    return run


def test_what_could_not_be_fetched_is_tried_again_and_what_the_index_has_stays(
    update, own, opened, down
):
    with down():
        assert update(own).embedded == 0
    assert update(own).embedded == 5
    replace(own / "1.mp4", b"newer")
    with down():
        assert update(own).skipped == 5
    assert len(opened()) == 5
    update(own)
    assert reasons(opened()) == ["unreadable", "unreadable"]


def test_a_full_disk_ends_a_run_and_is_no_reject(update, own, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alpro.shards.decoding.local_copy", full)
    with pytest.raises(OSError, match="No space left"):
        update(own)


def test_videos_that_moved_keep_their_embeddings(update, own, tmp_path, opened):
    update(own)
    before = vectors(opened())
    moved = own.rename(tmp_path / "archive")
    replace(moved / "1.mp4", (moved / "0.mp4").read_bytes())

    counts = update(moved)

    assert counts.embedded == 1
    assert {Path(item["path"]).parent for item in opened().rows()} == {moved}
    np.testing.assert_array_equal(vectors(opened())["2"], before["2"])


def test_another_folder_is_not_where_a_missing_one_moved(
    update, own, tmp_path, videos, opened
):
    update(own)
    own.rename(tmp_path / "unmounted")
    (tmp_path / "other").mkdir()
    shutil.copy(videos[1], tmp_path / "other" / "0.mp4")

    update(tmp_path / "other")

    folders = {Path(item["path"]).parent for item in opened().rows()}
    assert folders == {own, tmp_path / "other"}


def test_rows_of_a_manifest_are_parts_with_captions(update, own, opened):
    rows = [{"path": "0.mp4", "start": 0, "end": 0.3}]
    rows.append({"path": "0.mp4", "start": 0.3, "caption": "a ball"})

    update(write_lines(own / "m.jsonl", rows))

    first, second = opened().rows()
    assert first["caption"] is None
    assert second["caption"] == "a ball"
    total = video_seconds(own / "0.mp4")
    assert [first["duration"], second["duration"]] == pytest.approx(
        [0.3, total - 0.3], abs=0.01
    )


@pytest.fixture
def rights(own):
    """A table of two clips with captions and rights."""
    rows = [
        {"path": f"{n}.mp4", "caption": "a dog", "rights": "free"} for n in range(2)
    ]
    return write_lines(own / "m.jsonl", rows)


def change_rights(table):
    rows = [{"path": "0.mp4", "caption": "a horse", "rights": "blocked"}]
    return write_lines(
        table, [*rows, {"path": "1.mp4", "caption": "a dog", "rights": "free"}]
    )


def test_what_a_table_says_anew_is_taken_without_decoding(update, rights, opened):
    update(rights, columns=["rights"])
    before = vectors(opened())
    change_rights(rights)

    counts = update(rights)

    assert (counts.embedded, counts.updated, counts.skipped) == (0, 1, 1)
    assert (
        opened().count("rights = 'free'")
        == opened().count("contains(words, 'dog')")
        == 1
    )
    assert opened().count("contains(words, 'horse') AND duration > 0") == 1
    np.testing.assert_array_equal(vectors(opened())["0"], before["0"])
    assert update(rights).skipped == 2


def test_a_row_that_its_table_no_longer_has_is_removed(update, own, rights, opened):
    """But not those of another table or of the folder, whose files are there."""
    update(rights, columns=["rights"])
    update(write_lines(own / "more.jsonl", [{"path": "2.mp4"}]))
    update(own)
    write_lines(rights, [{"path": "1.mp4", "caption": "a dog", "rights": "free"}])

    counts = update(rights)

    assert counts.removed == counts.skipped == 1
    assert ids(opened()) == ["1", "2", "3", "4"]


def test_a_folder_says_nothing_of_captions_and_columns(update, own, rights, opened):
    update(rights, columns=["rights"])
    counts = update(own)
    assert (counts.embedded, counts.updated, counts.skipped) == (3, 0, 2)
    assert opened().count("caption = 'a dog' AND rights = 'free'") == 2


def test_new_texts_of_a_folder_are_taken_for_clips_that_no_table_has(
    update, own, tmp_path, opened
):
    update(own)
    table = write_lines(
        tmp_path / "m.jsonl", [{"path": "videos/1.mp4", "caption": "a horse"}]
    )
    update(table)
    for name in ("0.txt", "1.txt"):
        (own / name).write_text("a cat")

    counts = update(own)

    assert (counts.embedded, counts.updated) == (0, 1)
    captions = [item["caption"] for item in opened().rows()]
    assert captions[:2] == ["a cat", "a horse"]
    assert update(own).updated == 0


def test_an_index_of_an_earlier_version_is_refused_with_what_makes_it_anew(
    update, own, opened
):
    update(own)
    opened().table.drop_columns(["listed_by", "listed_as"])

    for read in (opened, lambda: update(own)):
        with pytest.raises(InputError, match="makes it anew"):
            read()


def test_columns_of_a_manifest_keep_their_types(update, own, opened):
    rows = [
        {"path": "0.mp4", "day": "2024-01-02", "views": 9},
        {"path": "1.mp4", "views": 10},
    ]
    manifest = write_lines(own / "m.jsonl", [*rows, {"views": 8}])

    counts = update(manifest, columns=["day", "views"])

    assert counts.embedded == 2
    assert reasons(opened()) == ["bad row"]
    columns = [item["columns"] for item in opened().rows()]
    assert columns == [{"day": "2024-01-02", "views": 9}, {"day": None, "views": 10}]
    assert opened().count("views > 9") == opened().count("day < '2024-02'") == 1


def test_a_value_that_a_column_cannot_hold_is_refused(update, own, opened):
    update(
        write_lines(own / "m.jsonl", [{"path": "0.mp4", "views": 1.5}]),
        columns=["views"],
    )
    rows = write_lines(own / "more.jsonl", [{"path": "1.mp4", "views": "many"}])
    with pytest.raises(InputError, match="many"):
        update(rows)


def test_a_column_without_values_or_with_a_taken_name_is_refused(update, own):
    manifest = write_lines(
        own / "m.jsonl", [{"path": "0.mp4", "vector": 1, "tags": ["a"]}]
    )
    for name in ("day", "tags", "vector"):
        with pytest.raises(InputError, match=f"column '{name}' has no values"):
            update(manifest, columns=[name])


def test_a_creation_that_a_full_disk_ended_is_no_index_and_is_made_again(
    update, own, tmp_path
):
    (tmp_path / "index" / "clips.lance" / "_versions").mkdir(parents=True)

    update(own)

    assert len(Index.open(tmp_path / "index")) > 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task": "prompter"}, r"another model, .*retrieval, not of .*prompter"),
        ({"window": 5.0}, "made with window None"),
        ({"stride": 1.0}, "--stride"),
        ({"window": 1.0, "stride": 2.0}, "--stride"),
        ({"columns": ["day"]}, r"columns \[\]"),
    ],
)
def test_an_index_keeps_its_model_windows_and_columns(options, reason, update, own):
    update(own)

    with pytest.raises(InputError, match=reason):
        update(own, **options)


def windows(index):
    return sorted((item["start"], item["end"]) for item in index.rows())


def test_an_index_keeps_its_windows_and_replaces_those_of_a_changed_file(
    update, videos, film, opened
):
    films = film("film.mp4", [videos[0]] * 5)
    film("other.mp4", [videos[0]] * 4)
    update(films, window=2.0, stride=1.5)
    assert windows(opened()) == [(0, 2), (0, 2), (1.5, 3.5), (1.5, 3.5), (3, 4), (3, 5)]
    assert update(films).skipped == 6

    film("film.mp4", [videos[1]] * 3)

    assert update(films).embedded == 2
    assert windows(opened()) == [(0, 2), (0, 2), (1.5, 3), (1.5, 3.5), (3, 4)]


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        (8.05, [4, 8.05]),
        (8.15, [4, 8, 8.15]),
    ],
)
def test_a_last_window_shows_something_new(seconds, ends, monkeypatch):
    """A video often lasts a little longer than its last frame: a window of that alone would have
    no frames."""
    monkeypatch.setattr(scan_module, "video_seconds", lambda path: seconds)
    item = EMPTY | {"id": "a", "path": "/a.mp4", "kind": "video"}
    windows = split_into_windows([item], 4.0, 4.0)
    assert [window["end"] for window in windows] == ends


def test_only_whole_videos_on_this_machine_have_windows(videos):
    url = EMPTY | {"id": "a", "path": "https://host/a.mp4", "kind": "video"}
    (reject,) = split_into_windows([url], 10.0, 5.0)
    assert reject["reason"] == "bad row"
    # Also files that are no videos: decoding says why.
    short = [*scan_videos(videos[0].parent), url | {"start": 3.0}]
    assert list(split_into_windows(short, 5.0, 5.0)) == short


def test_a_corpus_has_the_rows_of_its_table(update, own, tmp_path, opened):
    """Only its configuration knows what the columns of that table mean."""
    table = tmp_path / "videos.csv"
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "index.parquet").touch()
    columns = Columns(file="Datei", captions="Worte")
    for name in ("0", "1"):
        table.write_text(f"Datei,Worte\nvideos/{name}.mp4,a dog\n")
        imported = import_source(table, tmp_path / "imported", columns=columns)
        record = Record(paths={"manifest": str(imported.folder)})
        write_json(corpus / "artifact.json", record.to_json())

        update(corpus)

        (item,) = opened().rows()
        assert (item["id"], item["caption"]) == (f"videos/{name}", "a dog")


def test_videos_in_tars_of_downloads_are_indexed(
    update, videos, model, tmp_path, opened
):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for number, video in enumerate(videos):
            key = f"0000{number}"
            (tmp_path / "about").write_text(
                json.dumps({"key": key, "status": "success"})
            )
            tar.add(tmp_path / "about", f"{key}.json")
            tar.add(video, f"{key}.mp4")

    counts = update(tmp_path / "shards")

    assert counts.embedded == 3
    assert rejected(opened()) == []
    np.testing.assert_allclose(
        [*vectors(opened()).values()], model.encode(videos), atol=1e-6
    )


@pytest.mark.parametrize(
    ("names", "remaining"),
    [
        (["4", "FOLDER/1.mp4", "FOLDER/./1.mp4", "1"], ["0", "2", "3"]),
        (["FOLDER"], []),
    ],
)
def test_what_is_removed_is_named_by_an_id_a_file_or_a_folder(
    names, remaining, update, own, opened
):
    update(own)

    places = [name.replace("FOLDER", str(own)) for name in names]
    removed = remove_videos(own.parent / "index", places)

    assert ids(opened()) == remaining
    assert {item["id"] for item in removed}.isdisjoint(remaining)
    # Also what names the removed clips in a condition.
    records = (own.parent / "index").glob("clips.lance/_transactions/*")
    assert not any(b"starts_with" in record.read_bytes() for record in records)


def test_a_name_that_stands_for_nothing_removes_nothing(update, own, opened):
    update(own)
    with pytest.raises(InputError, match="none is not in this index"):
        remove_videos(own.parent / "index", ["0", "none"])
    assert len(opened()) == 5
