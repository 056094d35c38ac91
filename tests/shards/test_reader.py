"""What went into shards comes out of them: whole, by split and kind, and never garbage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.decode import Clip
from shards.reader import ShardReader, Unreadable, read_index
from shards.schema import InputError, Question, Row
from shards.writer import ShardWriter, index_shard

WRITTEN = {
    # id: split, kind, number of frames; in two shards
    "first.tar": {"a": ("train", "video", 4), "b/ü": ("train", "image", 1), "雪": ("validation", "video", 4)},
    "second.tar": {"d": ("train", "video", 2), "e": ("test", "image", 1)},
}
ROWS = {name: entry for shard in WRITTEN.values() for name, entry in shard.items()}


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> dict[str, Row]:
    question = Question(question="what is it?", answer="雪", type="what")
    more = {"captions": ("a dog", "ein Hündchen 🐕"), "questions": (question,), "meta": {"tags": ["é", None]}}
    return {name: make_row(name, split=split, kind=kind, **more) for name, (split, kind, _) in ROWS.items()}


@pytest.fixture
def clips(smooth_clip: Callable[..., Clip]) -> dict[str, Clip]:
    return {name: smooth_clip(seed, count) for seed, (name, (_, _, count)) in enumerate(ROWS.items())}


@pytest.fixture
def corpus(rows: dict[str, Row], clips: dict[str, Clip], tmp_path: Path) -> Path:
    for shard, names in WRITTEN.items():
        writer = ShardWriter(tmp_path / shard, quality=95)
        for name in names:
            writer.write(rows[name], clips[name])
        writer.close()
    pq.write_table(pa.concat_tables([index_shard(tmp_path / shard) for shard in WRITTEN]), tmp_path / "index.parquet")
    return tmp_path


def test_what_went_in_comes_out(corpus: Path, rows: dict[str, Row], clips: dict[str, Clip]):
    reader = ShardReader(corpus)
    assert len(reader) == 5
    for number, (name, row) in enumerate(rows.items()):
        sample = reader[number]
        assert sample.about == {
            "version": 1,
            "id": name,
            "kind": row.kind,
            "split": row.split,
            "group": name,
            "captions": ["a dog", "ein Hündchen 🐕"],
            "questions": [{"question": "what is it?", "answer": "雪", "type": "what"}],
            "duration": 2.5,
            "width": 64,
            "height": 48,
            "source": row.path.name,
            "meta": {"tags": ["é", None]},
        }
        frames = sample.frames()
        assert frames.shape == clips[name].frames.shape
        assert np.abs(frames.astype(int) - clips[name].frames).mean() < 2


def test_samples_are_read_in_any_order(corpus: Path):
    reader = ShardReader(corpus)
    names = list(ROWS)
    for number in (4, 0, 3, 3, 1, 2):
        assert reader[number].about["id"] == names[number]


def test_frames_are_chosen_by_number_and_may_repeat(corpus: Path):
    sample = ShardReader(corpus)[0]
    chosen, every = sample.frames([3, 0, 0]), sample.frames()
    assert np.array_equal(chosen, every[[3, 0, 0]])


@pytest.mark.parametrize(
    ("split", "kind", "names"),
    [
        (None, None, list(ROWS)),
        ("train", None, ["a", "b/ü", "d"]),
        (None, "image", ["b/ü", "e"]),
        ("train", "video", ["a", "d"]),
        ("validation", None, ["雪"]),
        ("test", "video", []),
    ],
)
def test_a_split_and_a_kind_alone_are_read(corpus: Path, split: str | None, kind: str | None, names: list[str]):
    reader = ShardReader(corpus, split, kind)
    assert len(reader) == len(names)
    assert reader.column("id").to_pylist() == names
    samples = [reader[number] for number in range(len(reader))]
    assert [sample.about["id"] for sample in samples] == names
    assert [len(sample) for sample in samples] == [ROWS[name][2] for name in names]


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no index.parquet; this is not a decoded corpus") as error:
        ShardReader(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_columns_of_the_index_are_read_alone(corpus: Path):
    assert read_index(corpus, ["id", "split"]).column_names == ["id", "split"]


def test_a_shard_cut_short_gives_an_error_and_no_garbage(corpus: Path):
    last = read_index(corpus).to_pylist()[2]  # the last of the first shard
    shard = corpus / last["shard"]
    content = shard.read_bytes()
    shard.write_bytes(content[: last["frame_offsets"][-1] + last["frame_sizes"][-1] - 1])
    reader = ShardReader(corpus)
    assert [reader[number].about["id"] for number in (0, 1, 3, 4)] == ["a", "b/ü", "d", "e"]  # what is there
    with pytest.raises(Unreadable, match=rf"first.tar: {last['id']}: .*cut short"):
        reader[2]
    shard.write_bytes(content[: last["json_offset"]])
    with pytest.raises(Unreadable, match=rf"first.tar: {last['id']}: .*cut short"):
        reader[2]


def test_a_shard_that_is_gone_gives_an_error(corpus: Path):
    (corpus / "first.tar").unlink()
    with pytest.raises(Unreadable, match=r"first.tar: a: No such file or directory"):
        ShardReader(corpus)[0]


def test_a_damaged_member_gives_an_error_that_names_it(corpus: Path):
    row = read_index(corpus).to_pylist()[1]
    shard = corpus / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["frame_offsets"][0] : row["frame_offsets"][0] + 40] = bytes(40)
    shard.write_bytes(content)
    with pytest.raises(Unreadable, match=f"first.tar: {row['id']}, frame 0: "):
        ShardReader(corpus)[1].frames()
    content[row["json_offset"]] = ord("!")
    shard.write_bytes(content)
    with pytest.raises(Unreadable, match=f"first.tar: {row['id']}: "):
        ShardReader(corpus)[1]


def test_another_shard_in_the_place_of_the_indexed_one_is_noticed(corpus: Path):
    """What lies there may be a sound sample, with another one's caption."""
    row = read_index(corpus).to_pylist()[0]
    shard = corpus / row["shard"]
    shard.write_bytes(shard.read_bytes().replace(b'"id": "a"', b'"id": "z"').replace(b'"id":"a"', b'"id":"z"'))
    with pytest.raises(Unreadable, match=r"first.tar: a: z lies in its place"):
        ShardReader(corpus)[0]
