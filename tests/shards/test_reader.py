"""Samples are read as they were written, by split and kind, and corrupt ones raise errors."""

import gc
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.shards.reader import ShardReader, Unreadable, decode_jpeg, read_index
from alpro.shards.schema import Question
from alpro.shards.writer import ShardWriter, index_shard
from tests.conftest import in_store

WRITTEN = {
    # id: split, kind, number of frames; in two shards
    "first.tar": {
        "a": ("train", "video", 4),
        "b/ü": ("train", "image", 1),
        "雪": ("validation", "video", 4),
    },
    "second.tar": {"d": ("train", "video", 2), "e": ("test", "image", 1)},
}
ROWS = {name: entry for shard in WRITTEN.values() for name, entry in shard.items()}


@pytest.fixture
def rows(make_row):
    question = Question(question="what is it?", answer="雪", type="what")
    more = {"questions": (question,), "meta": {"tags": ["é", None]}}
    rows = {}
    for name, (split, kind, _) in ROWS.items():
        captions = (f"dog {name}", "ein Hündchen 🐕")
        rows[name] = make_row(name, split=split, kind=kind, captions=captions, **more)
    return rows


@pytest.fixture
def clips(smooth_clip):
    counts = [count for _, _, count in ROWS.values()]
    return dict(zip(ROWS, map(smooth_clip, range(5), counts), strict=True))


@pytest.fixture
def corpus(rows, clips, tmp_path):
    """A corpus of three row groups and batches, as a large one has many."""
    for shard, names in WRITTEN.items():
        with ShardWriter(tmp_path / shard, quality=95) as writer:
            for name in names:
                writer.write(rows[name], clips[name])
    index = pa.concat_tables([index_shard(tmp_path / shard) for shard in WRITTEN])
    pq.write_table(index, tmp_path / "index.parquet", row_group_size=2)
    return tmp_path


def read_all(reader):
    return [reader[number].frames().tobytes() for number in range(len(reader))]


def read_in_a_loading_process(reader):
    gc.collect()  # what the parent had is not garbage here
    return read_all(reader)


@pytest.mark.parametrize("number", [4, 0, 3])
def test_samples_are_read_as_they_were_written(corpus, rows, clips, number):
    name = [*rows][number]
    row = rows[name]

    sample = ShardReader(corpus)[number]

    about = {
        "version": 1,
        "source": row.path.name,
        "frames": len(clips[name].frames),
        "duration": 2.5,
        "width": 64,
        "height": 48,
    }
    fields = ("id", "kind", "split", "group", "captions", "questions", "meta")
    assert sample.metadata == about | row.model_dump(mode="json", include={*fields})
    frames = sample.frames()
    assert frames.shape == clips[name].frames.shape
    assert np.abs(frames.astype(int) - clips[name].frames).mean() < 2


@pytest.mark.parametrize(
    ("split", "kind", "exclude", "names"),
    [
        (None, None, (), [*ROWS]),
        ("test", "video", (), []),
        ("train", None, ("a", "e"), ["b/ü", "d"]),
        (None, "image", (), ["b/ü", "e"]),
        ("train", "video", (), ["a", "d"]),
    ],
)
def test_samples_are_chosen_by_split_kind_and_id(corpus, split, kind, exclude, names):
    reader = ShardReader(corpus, split, kind, exclude)

    numbers = range(len(reader))
    captions = reader.column("captions").to_pylist()
    assert reader.column("id").to_pylist() == names
    assert [texts[0] for texts in captions] == [f"dog {name}" for name in names]
    assert [reader.frame_count(number) for number in numbers] == [
        ROWS[n][2] for n in names
    ]
    assert [reader[number].metadata["id"] for number in numbers] == names


def test_a_remote_corpus_is_read_like_a_local_one(corpus, memory, served):
    in_store(*corpus.iterdir())
    http = served(corpus)[0]
    here = ShardReader(corpus)
    for url in (memory, http, f"filecache::{http}"):
        there = ShardReader(url)
        assert there.column("captions") == here.column("captions")
        for number in range(5):
            assert there[number].metadata == here[number].metadata
        assert read_all(there) == read_all(here)
        assert np.array_equal(there[0].frames([2]), here[0].frames([2]))
        assert len(ShardReader(url, "train", "image")) == 1


def test_requests_of_a_sample_at_a_url(corpus, served, monkeypatch):
    """One for all; or one for each member that is needed, in shards whose samples lie in between
    one another: no request fetches megabytes for a few frames."""
    url, server = served(corpus)
    reader = ShardReader(url)
    server.asked.clear()
    for number in (3, 0):
        reader[number].frames()
    requests = [(method, path) for method, path, _ in server.asked]
    assert requests == [("GET", "/second.tar"), ("GET", "/first.tar")]

    monkeypatch.setattr("alpro.shards.reader.MAX_GAP_BYTES", -(2**30))
    reader = ShardReader(url)
    server.asked.clear()
    frames = reader[0].frames([2, 0])
    assert np.array_equal(frames, ShardReader(corpus)[0].frames()[[2, 0]])
    assert len(server.asked) == 3  # what is known of it, and two frames


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_reader_in_use_can_be_sent_to_loading_processes(corpus, served, start):
    here = ShardReader(corpus)
    there = ShardReader(served(corpus)[0])
    expected = read_all(here)
    assert read_all(there) == expected  # connections are open now
    # A child that is forked would wait for FFmpeg's threads, which it has not, when it frees what
    # other tests have left.
    gc.collect()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        for reader in (here, there, here, there):
            assert pool.submit(read_in_a_loading_process, reader).result() == expected
            # If the child dropped a connection, this would wait forever.
            assert read_all(there) == expected


def test_an_unreadable_corpus_raises_a_one_line_error(tmp_path, memory):
    for folder in (memory, tmp_path):
        with pytest.raises(InputError, match=f"{folder}: no index.parquet"):
            ShardReader(folder)
    (tmp_path / "index.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match=r"index.parquet cannot be read: [^\n]*$"):
        ShardReader(tmp_path)
    with pytest.raises(InputError, match="Protocol not known"):
        ShardReader("pipe://cat /data")


def zeros(content, row):
    at = row["frame_offsets"][0]
    return content[:at] + bytes(40) + content[at + 40 :]


def cut_metadata(content, row):
    return content[: row["json_offset"] + 10]


def cut_last_byte(content, row):
    return content[: row["frame_offsets"][-1] + row["frame_sizes"][-1] - 1]


def change_caption(content, row):
    return content.replace(b"dog", b"cat")


@pytest.mark.parametrize(
    ("damage", "number", "message"),
    [
        (cut_metadata, 0, "a: .*truncated"),
        (cut_last_byte, 2, "雪.*truncated"),
        (zeros, 1, r"b/ü: damaged: \d+ bytes at byte \d+ .* changed since"),
        (change_caption, 2, r"雪: damaged: \d+ bytes at byte .* changed since"),
        (None, 0, "a: No such file"),
    ],
)
def test_a_missing_truncated_or_changed_shard_is_named_in_the_error(
    corpus, memory, damage, number, message
):
    row = read_index(corpus).to_pylist()[number]
    content = (corpus / "first.tar").read_bytes()
    (corpus / "first.tar").unlink()
    if damage:
        (corpus / "first.tar").write_bytes(damage(content, row))
    in_store(*corpus.iterdir())
    for folder in (corpus, memory):
        with pytest.raises(Unreadable, match=f"first.tar: {message}"):
            ShardReader(folder)[number].frames()
        assert len(ShardReader(folder)[4].frames()) == 1  # a sample in the other shard


def test_frames_of_two_sizes_raise_an_error(make_row, smooth_clip, tmp_path):
    clip = smooth_clip(0, 2)
    with ShardWriter(tmp_path / "a.tar", quality=90) as writer:
        frames = [clip.frames[0], clip.frames[1, :16]]
        writer.write(make_row("a"), replace(clip, frames=frames))
    pq.write_table(index_shard(tmp_path / "a.tar"), tmp_path / "index.parquet")
    sample = ShardReader(tmp_path)[0]
    assert sample.frames([0, 0]).shape == (2, 32, 32, 3)
    with pytest.raises(Unreadable, match=r"a\.tar: a: .* same shape"):
        sample.frames()


def test_a_shard_that_is_replaced_after_it_was_read_is_read_again(corpus, clips, rows):
    """Not from the file that is still open. An index of another shard is noticed."""
    before = ShardReader(corpus)[0].frames()
    with ShardWriter(corpus / "first.tar", quality=95) as writer:
        writer.write(rows["a"], replace(clips["a"], frames=255 - clips["a"].frames))
    os.utime(corpus / "first.tar", ns=(1, 1))
    pq.write_table(index_shard(corpus / "first.tar"), corpus / "index.parquet")
    after = ShardReader(corpus)[0].frames()
    assert np.abs(before.astype(int) + after - 255).mean() < 10
    index = read_index(corpus)
    pq.write_table(
        index.set_column(0, "id", pa.array(["not a"])), corpus / "index.parquet"
    )
    with pytest.raises(
        Unreadable, match=r"first.tar: not a: the shard has a in its place"
    ):
        ShardReader(corpus)[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_have_the_pixels_that_pillow_reads(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = (
        Image.fromarray(pixels).resize((61, 45), Image.Resampling.BICUBIC).convert(mode)
    )
    for options in (
        {"quality": 95},
        {"quality": 40, "subsampling": 2},
        {"progressive": True},
    ):
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        content = file.getvalue()
        expected = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(decode_jpeg(content), expected)
        for size in (len(content) // 2, 3):
            with pytest.raises(Exception, match=r"(?i)truncated|not a JPEG"):
                decode_jpeg(content[:size])
