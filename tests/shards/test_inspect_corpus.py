"""`alpro data inspect`: the description of decoded corpora."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.pipeline.cli.main import execute
from alpro.shards.inspect_corpus import (
    BLANK,
    NOT_HASHED,
    Samples,
    hashed,
    inspect,
    perceptual_hash,
    quantiles,
    read_samples,
    save,
    shared,
)
from alpro.shards.reader import read_index
from alpro.shards.schema import INDEX, SPLITS


def test_counts_are_those_of_the_artifacts(clips, stills):
    report = inspect([clips, stills])
    statistics = [json.loads((folder / "statistics.json").read_text()) for folder in (clips, stills)]
    for split in ("train", "validation", "test"):
        samples = sum(row["samples"] for row in report["splits"] if row["split"] == split)
        assert samples == sum(corpus["splits"][split]["items"][0] for corpus in statistics)
        captions = sum(row["captions"] for row in report["splits"] if row["split"] == split)
        assert captions == sum(corpus["splits"][split]["captions"][0] for corpus in statistics)
    assert report["captions"]["all"] >= report["captions"]["different"] > 0
    assert report["unreadable"] == 0


def samples(rows: list[tuple[str, str, tuple[str, ...], bytes | int]]) -> Samples:
    """Samples with a split, a group, captions and a frame hash."""
    texts = [caption for _, _, captions, _ in rows for caption in captions]
    zeros = np.zeros(len(rows), np.int32)
    return Samples(
        corpus=zeros,
        split=np.array([SPLITS.index(split) for split, *_ in rows]),
        kind=zeros,
        group=hashed([group for _, group, _, _ in rows]),
        seconds=zeros,
        frames=zeros,
        captions=np.array([len(captions) for _, _, captions, _ in rows]),
        questions=zeros,
        caption_hashes=hashed(texts),
        words=np.ones(len(texts)),
        vocabulary=set(),
        frame_hashes=np.array([bits if isinstance(bits, int) else hashed([bits])[0] for *_, bits in rows]),
    )


def test_overlap_with_training_by_group_caption_and_frames():
    rows = samples(
        [
            ("train", "a", ("a dog",), b"1"),
            ("train", "b", ("a cat",), BLANK),
            ("test", "a", ("other",), b"2"),
            ("test", "c", ("new", "a cat"), b"3"),
            ("test", "d", ("newer",), b"1"),
            ("test", "e", ("newest", "a dog", "a cat"), BLANK),
            ("test", "f", (), NOT_HASHED),
            ("validation", "f", (), b"1"),
        ]
    )
    report = {"samples": 5, "same group": 1, "same caption": 2, "compared": 3, "same frames": 1}
    assert shared(rows, "test") == report
    assert shared(rows, "validation")["same frames"] == 1


def test_repeated_captions_are_counted_and_listed(corpus_of, tmp_path):
    rows = [
        {"id": f"{n}", "captions": captions} for n, captions in enumerate([("a", "b c"), ("a",), ("b c", "d"), ("a",)])
    ]
    report = inspect([corpus_of(tmp_path / "one", rows), corpus_of(tmp_path / "two", rows[:1])])["captions"]
    assert report["most repeated"] == [["a", 4], ["b c", 3]]
    assert (report["all"], report["different"], report["different words"]) == (8, 3, 4)
    assert report["repeated"] == 2


@pytest.mark.parametrize(("max_samples", "held_out", "training"), [(0, 0, 0), (4, 2, 2), (9, 3, 6), (100, 3, 8)])
def test_frames_of_a_limited_number_of_samples_are_read_held_out_first(
    corpus_of, tmp_path, max_samples, held_out, training
):
    rows = [{"id": f"{n}", "captions": ("x",), "split": "train" if n < 8 else "test"} for n in range(11)]
    report = inspect([corpus_of(tmp_path / "one", rows)], max_samples)
    assert report["also in training"]["test"]["compared"] == held_out
    assert report["compared"] == held_out + training


def test_corrupt_samples_are_counted_and_not_drawn(corpus_of, tmp_path):
    folder = corpus_of(tmp_path / "one", [{"id": f"{n}", "captions": ("x",)} for n in range(4)])
    row = read_index(folder).to_pylist()[1]
    content = bytearray((folder / "all.tar").read_bytes())
    content[row["frame_offsets"][0] : row["frame_offsets"][0] + 64] = bytes(64)
    (folder / "all.tar").write_bytes(content)
    report = inspect([folder])
    assert (report["unreadable"], report["compared"]) == (1, 4)
    assert [path.name for path in save(report, [folder], tmp_path)] == ["inspect.json", "frames-1.png"]


def test_memory_for_a_million_samples(corpus_of, tmp_path, monkeypatch):
    """Memory does not grow with the texts: 60,000 captions of 300 letters are 18 MB."""
    folder = corpus_of(tmp_path / "one", [{"id": "a", "captions": ("x",)}])
    row = read_index(folder).to_pylist()[0]
    with pq.ParquetWriter(folder / "index.parquet", INDEX) as file:
        for at in range(0, 20_000, 10_000):
            rows = [
                row | {"id": f"{n}", "captions": [f"{n} {k} " + "x" * 300 for k in range(3)]}
                for n in range(at, at + 10_000)
            ]
            file.write_table(pa.Table.from_pylist(rows, schema=INDEX))
    monkeypatch.setattr("alpro.shards.reader.ROWS_PER_BATCH", 500)
    tracemalloc.start()
    report = read_samples([folder])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(report) == 20_000
    assert peak < 6e6 + 100 * len(report.vocabulary)


def test_resized_copies_have_the_same_hash_and_other_clips_do_not():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 9, 3), np.uint8)
    clip, other = (
        np.stack([np.asarray(Image.fromarray(f).resize((144, 128), Image.Resampling.BICUBIC)) for f in frames])
        for frames in (coarse, rng.integers(0, 256, (2, 8, 9, 3), np.uint8))
    )
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize((72, 64))) for frame in clip])
    assert perceptual_hash(clip) == perceptual_hash(smaller) != perceptual_hash(other)
    assert perceptual_hash(np.full((2, 64, 64, 3), 7, np.uint8)) is None  # blank frames have no hash


def test_quantiles():
    assert quantiles(np.array([])) == {}
    assert quantiles(np.array([1, 3, 2]))["median"] == 2


def test_the_command_prints_a_table(clips, capsys):
    assert execute(["data", "inspect", str(clips)]) == 0
    output = capsys.readouterr().out
    assert "also in training" in output
    assert "words of a caption" in output


def test_the_command_prints_json(clips, tmp_path, capsys):
    arguments = ["data", "inspect", str(clips), "--json", "--out", str(tmp_path)]
    assert execute(arguments) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "inspect.json").read_text())


def test_a_missing_corpus_raises_an_input_error(tmp_path):
    with pytest.raises(InputError, match="this is not a decoded corpus"):
        inspect([tmp_path])
