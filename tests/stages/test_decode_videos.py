"""Every item ends in exactly one of a shard and the rejects, whoever decodes it and however often it is begun."""

import json
import os
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.decode import DecodeError, decode_image
from shards.identity import checksum
from shards.reader import ShardReader
from shards.schema import SPLITS, InputError
from stages import decode_videos
from stages.artifacts import Outcome, Resources, read_json
from stages.decode_videos import Config

BROKEN = {  # the sample's broken items and what is said of them
    "broken-empty": "empty",
    "broken-text": "unreadable",
    "broken-cut": "unreadable",
    "broken-playlist": "unreadable",
    "broken-silent": "no text",
    "broken-missing": "missing",
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
    with pytest.raises(InputError, match=r"2 of 3 items were rejected.*most_rejects = 0.5.*no text"):
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

    def decode(path, size, limits):
        if path.stem == "cut":
            raise DecodeError("unreadable")
        return decode_image(path, size, limits)

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
    with pytest.raises(InputError, match="no rows of these kinds"):
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


def decode_images(rows: list[dict], folder: Path, resources: Resources, **config) -> tuple[Outcome, Path]:
    """Decodes images made for the rows, as an artifact beside earlier ones of the same folder."""
    out = folder / "artifacts" / f"run {len(list(folder.glob('artifacts/*')))}"
    out.mkdir(parents=True)
    source = write_manifest(folder / "data", [dict(row) for row in rows])
    for row in rows:  # an image is written once: what is not changed keeps its time
        path = folder / "data" / f"{row['id']}.png"
        os.utime(path, (row.get("touched", 1), row.get("touched", 1)))
    outcome = decode_videos.run(Config(size=16, samples_per_shard=4, **config), {"data": source}, out, resources)
    (out / "manifest.json").write_text("{}")
    return outcome, out


def shards(folder: Path) -> dict[str, tuple[str, ...]]:
    """The ids of each shard, by the SHA-256 of its file."""
    table = pq.read_table(folder / "index.parquet").to_pylist()
    return {
        checksum(path): tuple(row["id"] for row in table if row["shard"] == path.name) for path in folder.glob("*.tar")
    }


WALLS = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]


@pytest.mark.parametrize(
    ("rows", "linked"),
    [
        ([*WALLS, {"id": "new", "captions": ["a new wall"], "split": "train"}], 16),
        (WALLS[:5] + WALLS[6:], 16),
        ([*WALLS[:5], WALLS[5] | {"captions": ["changed"]}, *WALLS[6:]], 20),
        ([*WALLS[:5], WALLS[5] | {"colour": "white", "touched": 7}, *WALLS[6:]], 20),
        (WALLS, 24),
    ],
    ids=["a row more", "a row less", "another caption", "another picture", "the same"],
)
def test_only_shards_with_new_or_changed_rows_are_made(rows, linked, tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path, resources)
    before = contents(old)
    outcome, new = decode_images(rows, tmp_path, resources)
    assert linked <= outcome.counts["linked"] <= (24 if len(rows) > 24 or rows == WALLS else 23)
    assert sorted(ShardReader(new).column("id").to_pylist()) == sorted(row["id"] for row in rows)
    assert sum(len(ids) for sha, ids in shards(new).items() if sha in shards(old)) == outcome.counts["linked"]
    assert contents(old) == before
    alone, apart = decode_images(rows, tmp_path / "apart", resources)
    assert alone.counts["linked"] == 0
    # units.parquet knows where the files are, and nothing else does.
    finished = {name: sha for name, sha in contents(apart).items() if "parts/" not in name and "units" not in name}
    assert finished.items() <= contents(new).items()


def test_a_damaged_shard_is_not_taken_over(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path, resources)
    damaged = old / "train-image-00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    outcome, new = decode_images(WALLS, tmp_path, resources)
    assert 0 < outcome.counts["linked"] < 24
    assert checksum(new / damaged.name) != checksum(damaged)


def test_rejects_are_taken_over_with_their_shard(tmp_path, resources, inline_pool):
    rows = [*WALLS, {"id": "silent", "split": "train"}]
    first, old = decode_images(rows, tmp_path, resources)
    second, new = decode_images(rows, tmp_path, resources)
    assert (first.counts["rejected"], second.counts["rejected"], second.counts["linked"]) == (1, 1, 24)
    assert (old / "rejects.parquet").read_bytes() == (new / "rejects.parquet").read_bytes()


def test_what_is_no_file_is_missing_and_ends_nothing(tmp_path, resources, inline_pool):
    data = tmp_path / "data"
    (data / "folder.mp4").mkdir(parents=True)
    os.mkfifo(data / "pipe.mp4")
    (data / "loop.mp4").symlink_to("loop.mp4")
    Image.new("RGB", (20, 10)).save(data / "a.png")
    names = ["folder.mp4", "pipe.mp4", "loop.mp4", "a.png/below.mp4", 300 * "x" + ".mp4", "gone.mp4", "lost.png"]
    rows = [{"path": name, "captions": ["a wall"], "split": "train"} for name in [*names, "a.png"]]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    decode_videos.run(Config(size=16, most_rejects=1), {"data": data / "m.jsonl"}, tmp_path / "out", resources)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet")["reason"].to_pylist()
    assert len(rejects) == len(names)
    assert set(rejects) <= {"missing", "unreadable"}


def test_rejects_that_may_pass_are_tried_again(tmp_path, resources, inline_pool, monkeypatch):
    def slow(*_):
        raise DecodeError("too slow")

    monkeypatch.setattr(decode_videos, "decode_image", slow)
    first, _ = decode_images(WALLS, tmp_path, resources, most_rejects=1)
    monkeypatch.undo()
    second, _ = decode_images(WALLS, tmp_path, resources, most_rejects=1)
    assert (first.counts["rejected"], second.counts["rejected"]) == (24, 0)


def test_a_damaged_earlier_artifact_and_a_strange_folder_are_no_hindrance(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    (old / "units.parquet").write_bytes(b"")
    outcome, _ = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    assert outcome.counts["samples"] == 24


def test_no_id_is_too_strange_for_a_shard(tmp_path, resources, inline_pool):
    names = ["../../up", "/abs", "a/b", "..", ".", "A", "a", "é", "e\u0301", "猫 🐈", "x" * 3000, "-rf", "a\tb\nc"]
    names += ["%s'\"`$()", "a.tar", "con"]
    (tmp_path / "data").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "data" / "a.png")
    rows = [{"id": name, "path": "a.png", "captions": [name], "split": "train"} for name in names]
    (tmp_path / "data" / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    decode_videos.run(Config(size=16), {"data": tmp_path / "data" / "m.jsonl"}, out, resources)
    reader = ShardReader(out)
    assert [reader[number].about["id"] for number in range(len(reader))] == names
    (shard,) = out.glob("*.tar")
    with tarfile.open(shard) as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == {f"{n:06d}" for n in range(len(names))}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}


def unruly(path: Path, size: int, *rest):
    """In the place of decode_image: an image named so kills its process, or holds it for ever."""
    if path.stem == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.stem == "hangs":
        time.sleep(600)
    return decode_image(path, size, *rest)


class Unruly(decode_videos.Config):
    """A configuration whose arrival in a process makes `decode_image` there the unruly one."""

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        decode_videos.decode_image = unruly
        decode_videos.most_seconds = lambda config: 6.0


def test_an_item_that_kills_or_hangs_its_process_is_rejected_and_no_other(tmp_path):
    rows = [{"id": name, "captions": ["a wall"], "split": "train"} for name in ("a", "kills", "b", "hangs", "c")]
    source, out = write_manifest(tmp_path / "data", rows), tmp_path / "out"
    config = Unruly(size=16, samples_per_shard=4, most_rejects=0.5)
    decode_videos.run(config, {"data": source}, out, Resources(workers=2, device="cpu"))
    rejects = {row["id"]: row["reason"] for row in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert rejects == {"kills": "crashed", "hangs": "too slow"}
    assert ShardReader(out).column("id").to_pylist() == ["a", "b", "c"]
