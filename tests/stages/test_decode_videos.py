"""Every item ends in exactly one of a shard and the rejects, whoever decodes it and however often it is begun."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.decode import DecodeError
from shards.reader import ShardReader
from shards.schema import SPLITS, InputError, Row
from stages import decode_videos
from stages.artifacts import read_json
from stages.decode_videos import Config, plan
from stages.training.checkpoint import checksum

BROKEN = {  # the sample's broken items and what is said of them
    "broken-empty": "the file is empty",
    "broken-text": "unreadable",
    "broken-cut": "unreadable",
    "broken-playlist": "unreadable",
    "broken-silent": "neither caption nor question",
    "broken-missing": "no such file",
}

CLIPS = Config(manifest="clips.jsonl", frames=8, size=40, samples_per_shard=16)  # as the fixture decodes them


def manifest_ids(sample: Path, corpus: str) -> list[str]:
    return [json.loads(line)["id"] for line in (sample / f"{corpus}.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by its path."""
    return {str(p.relative_to(folder)): checksum(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("corpus", ["clips", "lessons", "stills"])
def test_every_item_ends_in_a_shard_or_in_the_rejects(corpus, corpora, sample):
    folder = corpora[corpus]
    index, rejects = (pq.read_table(folder / f"{name}.parquet")["id"].to_pylist() for name in ("index", "rejects"))
    assert sorted(index + rejects) == sorted(manifest_ids(sample, corpus))


def test_counts_add_up(clips, sample, tmp_path, resources, inline_pool):
    done = shutil.copytree(clips, tmp_path / "clips")
    counts = decode_videos.run(CLIPS, {"sample": sample}, done, resources).counts
    assert counts["items"] == len(manifest_ids(sample, "clips"))
    assert counts["samples"] + counts["rejected"] == counts["items"]
    assert counts["videos"] + counts["images"] == counts["samples"]
    assert sum(counts[split] for split in SPLITS) == counts["samples"]
    assert (counts["validation"], counts["test"], counts["rejected"]) == (8, 8, len(BROKEN))


def test_broken_items_are_rejected_each_with_its_reason(clips):
    rejects = pq.read_table(clips / "rejects.parquet").to_pylist()
    assert {row["id"] for row in rejects} == BROKEN.keys()
    for row in rejects:
        assert row["reason"].startswith(BROKEN[row["id"]]), row
        assert row["path"] == f"{row['id']}.mp4"
    assert sum(read_json(clips / "statistics.json")["reasons"].values()) == len(BROKEN)


def test_a_sample_holds_what_the_manifest_said(clips, sample):
    said = {row["id"]: row for row in map(json.loads, (sample / "clips.jsonl").read_text().splitlines())}
    reader = ShardReader(clips, "test")
    assert len(reader) == 8
    for number in range(len(reader)):
        stored = reader[number]
        row = said[stored.about["id"]]
        assert stored.about["captions"] == row["captions"]
        assert [q["answer"] for q in stored.about["questions"]] == [q["answer"] for q in row["questions"]]
        assert stored.about["meta"]["things"] == row["things"]
        assert stored.frames().shape == (8, 40, 40, 3)


def test_shards_are_the_same_bytes_for_one_and_two_workers(clips, decode_sample, tmp_path, resources):
    two = decode_sample(tmp_path, "clips", resources.model_copy(update={"workers": 2}), samples_per_shard=16)
    assert contents(two) == contents(clips)


def test_an_interrupted_run_does_the_unfinished_unit_alone(
    clips, sample, tmp_path, resources, inline_pool, monkeypatch
):
    out = shutil.copytree(clips, tmp_path / "clips")
    (out / "parts" / "train-video-00001.rejects.parquet").unlink()
    (out / "train-video-00001.tar").write_bytes(b"half a shard")
    done: list[str] = []
    do_unit = decode_videos.do_unit
    monkeypatch.setattr(
        decode_videos, "do_unit", lambda unit, **rest: (done.append(unit.name), do_unit(unit, **rest))[1]
    )
    decode_videos.run(CLIPS, {"sample": sample}, out, resources)
    assert done == ["train-video-00001"]
    assert contents(out) == contents(clips)


def write_manifest(folder: Path, rows: list[dict]) -> Path:
    """A manifest of images, one for each row: black, unless the row says otherwise."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        Image.new("RGB", (20, 10), row.pop("colour", "black")).save(folder / f"{row['id']}.png")
        row["path"] = f"{row['id']}.png"
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "items.jsonl"


@pytest.fixture
def decode_rows(tmp_path, inline_pool, resources):
    """decode_rows(rows, **config) decodes images made for the rows and returns the outcome and the folder."""

    def decode(rows: list[dict], **config):
        out = tmp_path / "out"
        out.mkdir()
        source = write_manifest(tmp_path / "data", rows)
        return decode_videos.run(Config(size=16, **config), {"data": source}, out, resources), out

    return decode


def test_items_with_questions_and_no_captions_are_kept(decode_rows):
    asked = [{"question": "what is it?", "answer": "a wall"}]
    rows = [{"id": "asked", "questions": asked}, {"id": "told", "captions": ["a wall"]}, {"id": "silent"}]
    outcome, out = decode_rows(rows, most_rejects=0.4)
    assert set(ShardReader(out).column("id").to_pylist()) == {"asked", "told"}  # three groups: each its split
    assert (outcome.counts["captions"], outcome.counts["questions"], outcome.counts["rejected"]) == (1, 1, 1)


def test_more_rejects_than_allowed_end_the_stage(decode_rows):
    rows = [{"id": "told", "captions": ["a wall"]}, {"id": "silent"}, {"id": "mute"}]
    with pytest.raises(
        InputError, match=r"2 of 3 items were rejected.*most_rejects = 0.5.*neither caption nor question"
    ):
        decode_rows(rows, most_rejects=0.5)


def test_as_many_rejects_as_allowed_do_not(decode_rows):
    outcome, _ = decode_rows([{"id": "told", "captions": ["a wall"]}, {"id": "silent"}], most_rejects=0.5)
    assert outcome.counts["rejected"] == 1


def test_a_failed_stage_decodes_again_what_was_rejected_and_nothing_else(tmp_path, inline_pool, resources, monkeypatch):
    rows = [{"id": name, "captions": ["a wall"], "split": split} for name, split in zip("abc", SPLITS, strict=True)]
    source, out = write_manifest(tmp_path / "data", rows), tmp_path / "out"
    out.mkdir()
    whole = (tmp_path / "data" / "b.png").read_bytes()
    (tmp_path / "data" / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 3 items were rejected"):
        decode_videos.run(Config(size=16), {"data": source}, out, resources)
    (tmp_path / "data" / "b.png").write_bytes(whole)
    done: list[str] = []
    do_unit = decode_videos.do_unit
    monkeypatch.setattr(decode_videos, "do_unit", lambda unit, **how: (done.append(unit.name), do_unit(unit, **how))[1])
    assert decode_videos.run(Config(size=16), {"data": source}, out, resources).counts["rejected"] == 0
    assert done == ["validation-image-00000"]


def test_a_missing_decoder_ends_the_stage_and_rejects_nothing(tmp_path, inline_pool, resources, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"a video")
    (tmp_path / "a.txt").write_text("a wall")
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="no PyAV"):
        decode_videos.run(Config(), {"data": tmp_path}, out, resources)
    assert not list(out.rglob("*.rejects.parquet"))


def test_an_item_of_which_nothing_was_said_was_not_asked_for(decode_rows, monkeypatch):
    rows = [{"id": "told", "captions": ["a wall"]}, {"id": "silent"}, {"id": "cut", "captions": ["x", "y"]}]
    decode_image = decode_videos.decode_image

    def decode(path, size):
        if path.stem == "cut":
            raise DecodeError("unreadable")
        return decode_image(path, size)

    monkeypatch.setattr(decode_videos, "decode_image", decode)
    outcome, out = decode_rows([row | {"split": "test"} for row in rows], most_rejects=1)
    assert outcome.counts["rejected"] == 2
    assert read_json(out / "statistics.json")["splits"]["test"] == {
        "items": [1, 2],
        "captions": [1, 3],
        "questions": [0, 0],
    }


def test_no_captions_at_all_is_a_mistake_that_says_what_to_do(decode_rows):
    with pytest.raises(InputError, match="no captions and no questions at all; fill the column 'captions'"):
        decode_rows([{"id": "silent", "captions": []}, {"id": "mute", "captions": []}])


def test_a_folder_without_texts_is_told_where_captions_go(tmp_path, resources):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"in a \.txt beside it"):
        decode_videos.run(Config(), {"data": tmp_path}, tmp_path / "out", resources)


def test_kinds_takes_one_kind_alone(decode_rows):
    with pytest.raises(InputError, match="no captions"):
        decode_rows([{"id": "told", "captions": ["a wall"]}], kinds="video")


def test_statistics_are_those_of_the_training_frames(decode_rows):
    rows = [
        {"id": "dark", "captions": ["night"], "split": "train", "colour": "black"},
        {"id": "light", "captions": ["snow"], "split": "train", "colour": (255, 255, 0)},
        {"id": "grey", "captions": ["fog"], "split": "test", "colour": "grey"},
    ]
    _, out = decode_rows(rows)
    found = read_json(out / "statistics.json")
    assert found["mean"] == [0.5, 0.5, 0.0]
    assert found["std"] == [0.5, 0.5, 0.001]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from(["video", "image"])), max_size=30),
    st.integers(1, 7),
)
def test_a_plan_has_every_item_once_in_units_of_one_split_and_kind(items, per_shard):
    rows = [Row(id=str(n), path=Path("a"), kind=kind, split=split) for n, (split, kind) in enumerate(items)]
    units = plan(rows, per_shard)
    assert sorted(row.id for unit in units for row in unit.rows) == sorted(row.id for row in rows)
    assert len({unit.name for unit in units}) == len(units)
    for unit in units:
        assert 1 <= len(unit.rows) <= per_shard
        assert {f"{row.split}-{row.kind}" for row in unit.rows} == {unit.name.rpartition("-")[0]}
        numbers = [int(row.id) for row in unit.rows]
        assert numbers == sorted(numbers)
