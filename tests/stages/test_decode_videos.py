"""decode_videos: every item ends in either a shard or the rejects, for any number of workers and restarts."""

import json
import re
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from tests.stages.conftest import contents, write_manifest

BROKEN = {  # the sample's broken items and their rejects
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


@pytest.mark.parametrize("corpus", ["clips", "lessons", "stills"])
def test_every_item_is_in_a_shard_or_in_the_rejects(corpus, corpora, sample):
    folder = corpora[corpus]
    index, rejects = (pq.read_table(folder / f"{name}.parquet")["id"].to_pylist() for name in ("index", "rejects"))
    assert sorted(index + rejects) == sorted(manifest_ids(sample, corpus))


def test_sample_keys_are_unique(clips):
    """Readers of several shards, such as WebDataset's, would otherwise mix samples."""
    index = pq.read_table(clips / "index.parquet")
    assert len(set(index["shard"].to_pylist())) > 1
    assert len(set(index["key"].to_pylist())) == index.num_rows > 1


def test_counts_add_up(clips, sample, tmp_path, resources, inline_pool):
    done = shutil.copytree(clips, tmp_path / "clips")
    counts = decode_videos.run(CLIPS, {"sample": sample}, done, resources).counts
    assert counts["items"] == len(manifest_ids(sample, "clips"))
    assert counts["samples"] + counts["rejected"] == counts["items"]
    assert counts["videos"] + counts["images"] == counts["samples"]
    assert sum(counts[split] for split in SPLITS) == counts["samples"]
    assert (counts["validation"], counts["test"], counts["rejected"]) == (8, 8, len(BROKEN))


def test_broken_items_are_rejected_with_their_reasons(clips):
    rejects = pq.read_table(clips / "rejects.parquet").to_pylist()
    assert {row["id"] for row in rejects} == BROKEN.keys()
    for row in rejects:
        assert row["reason"].startswith(BROKEN[row["id"]]), row
        assert row["path"] == f"{row['id']}.mp4"
    assert sum(read_json(clips / "statistics.json")["reasons"].values()) == len(BROKEN)


def test_a_sample_has_the_metadata_of_the_manifest(clips, sample):
    manifest_rows = {row["id"]: row for row in map(json.loads, (sample / "clips.jsonl").read_text().splitlines())}
    reader = ShardReader(clips, "test")
    assert len(reader) == 8
    for number in range(len(reader)):
        stored = reader[number]
        row = manifest_rows[stored.about["id"]]
        assert stored.about["captions"] == row["captions"]
        assert [q["answer"] for q in stored.about["questions"]] == [q["answer"] for q in row["questions"]]
        assert stored.about["meta"]["things"] == row["things"]
        assert stored.frames().shape == (8, 40, 40, 3)


def test_shards_are_identical_for_one_and_two_workers(clips, decode_sample, tmp_path, resources):
    two = decode_sample(tmp_path, "clips", resources.model_copy(update={"workers": 2}), samples_per_shard=16)
    assert contents(two) == contents(clips)


@pytest.mark.parametrize("damage", ["no json", "empty json", "empty index.parquet", "empty rejects.parquet"])
def test_an_interrupted_run_resumes_with_the_unfinished_unit(
    clips, sample, tmp_path, resources, inline_pool, monkeypatch, capsys, damage
):
    """Parts are empty if a system writes their names to its disk, but not their contents, before a power failure."""
    out = shutil.copytree(clips, tmp_path / "clips")
    kind, part = damage.split()
    (out / "parts" / f"train-video-00001.{part}").write_bytes(b"")
    if kind == "no":
        (out / "parts" / f"train-video-00001.{part}").unlink()
    (out / "train-video-00001.tar").write_bytes(b"half a shard")
    done: list[str] = []
    process_unit = decode_videos.process_unit
    monkeypatch.setattr(
        decode_videos, "process_unit", lambda unit, **rest: (done.append(unit.name), process_unit(unit, **rest))[1]
    )
    decode_videos.run(CLIPS, {"sample": sample}, out, resources)
    assert done == ["train-video-00001"]
    assert contents(out) == contents(clips)
    assert ("train-video-00001 is made again" in capsys.readouterr().err) == (kind == "empty")


def test_a_resumed_run_decodes_a_unit_again_if_one_of_its_files_has_changed(tmp_path, resources, inline_pool):
    rows = [{"id": name, "captions": ["a wall"], "split": "train"} for name in "ab"]
    source, out, config = write_manifest(tmp_path / "data", rows), tmp_path / "out", Config(size=16)
    decode_videos.run(config, {"data": source}, out, resources)
    before, media = contents(out), next(path for path in source.parent.iterdir() if path.stem.startswith("b"))
    Image.new("RGB", (40, 30), "red").save(media)
    decode_videos.run(config, {"data": source}, out, resources)
    assert contents(out) != before
    assert ShardReader(out)[1].frames()[0, 0, 0, 0] > 200


def test_items_with_questions_and_no_captions_are_kept(decode_rows):
    asked = [{"question": "what is it?", "answer": "a wall"}]
    rows = [{"id": "asked", "questions": asked}, {"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}]
    outcome, out = decode_rows(rows, max_reject_share=0.4)
    assert set(ShardReader(out).column("id").to_pylist()) == {"asked", "captioned"}
    assert (outcome.counts["captions"], outcome.counts["questions"], outcome.counts["rejected"]) == (1, 1, 1)


def test_a_rerun_after_failure_only_decodes_units_with_rejects(tmp_path, inline_pool, resources, monkeypatch):
    rows = [{"id": name, "captions": ["a wall"], "split": split} for name, split in zip("abc", SPLITS, strict=True)]
    source, out = write_manifest(tmp_path / "data", rows), tmp_path / "out"
    out.mkdir()
    whole = (tmp_path / "data" / "b.png").read_bytes()
    (tmp_path / "data" / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 3 items are rejected"):
        decode_videos.run(Config(size=16), {"data": source}, out, resources)
    (tmp_path / "data" / "b.png").write_bytes(whole)
    done: list[str] = []
    process_unit = decode_videos.process_unit
    monkeypatch.setattr(
        decode_videos, "process_unit", lambda unit, **how: (done.append(unit.name), process_unit(unit, **how))[1]
    )
    assert decode_videos.run(Config(size=16), {"data": source}, out, resources).counts["rejected"] == 0
    assert done == ["validation-image-00000"]


def test_kinds_selects_one_kind(decode_rows):
    with pytest.raises(InputError, match="no rows of these kinds"):
        decode_rows([{"id": "captioned", "captions": ["a wall"]}], kinds="video")


def test_statistics_are_those_of_the_training_frames(decode_rows):
    rows = [
        {"id": "dark", "captions": ["night"], "split": "train", "color": "black"},
        {"id": "light", "captions": ["snow"], "split": "train", "color": (255, 255, 0)},
        {"id": "grey", "captions": ["fog"], "split": "test", "color": "grey"},
    ]
    _, out = decode_rows(rows)
    statistics = read_json(out / "statistics.json")
    assert statistics["mean"] == [0.5, 0.5, 0.0]
    assert statistics["std"] == [0.5, 0.5, 0.001]


SHOTS = [  # clips of four videos, of which two share a caption with others
    {"id": f"star_{video}_{n}", "captions": [f"{video} {n}", f"all of {video}"], "color": (40 * v, 60 * n, 90)}
    for v, video in enumerate(("AB", "CD", "EF", "GH"))
    for n in range(3)
]


def test_a_pattern_keeps_clips_of_one_video_in_one_split(decode_rows, capsys):
    rows = [{**row} for row in SHOTS]
    outcome, out = decode_rows(rows, group_pattern=r"star_(\w+)_\d+", validation=0.3, test=0.3)
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert len({(row["group"], row["split"]) for row in index}) == 4
    assert {row["split"] for row in index} == set(SPLITS)
    assert not any("in_training" in name for name in outcome.counts)
    assert "hint" not in capsys.readouterr().err


def test_overlap_with_training_is_printed_counted_and_listed(decode_rows, capsys):
    outcome, out = decode_rows([{**row} for row in SHOTS], validation=0.3, test=0.3, seed=2)
    index = pq.read_table(out / "index.parquet").to_pylist()
    known = {caption for row in index if row["split"] == "train" for caption in row["captions"]}
    shared = {s: {r["id"] for r in index if r["split"] == s and known & {*r["captions"]}} for s in SPLITS[1:]}
    assert len(shared["test"]) > 0
    table = pq.read_table(out / "overlap.parquet").to_pylist()
    for split in SPLITS[1:]:
        assert {row["id"] for row in table if row["split"] == split and row["captions"]} == shared[split]
        assert outcome.counts.get(f"{split}_captions_in_training", 0) == len(shared[split])
        assert read_json(out / "statistics.json")["overlap"][split]["captions"] == len(shared[split])
    printed = capsys.readouterr().err
    assert f"test: {len(shared['test'])} of 4 items share a caption with a training item, and 0 of 0 look" in printed
    assert "hint: the names of 12 files differ only in a number, such as star_AB_0.png and star_AB_1.png; if" in printed
    (pattern,) = re.findall(r"group_pattern = '(.*)' keeps", printed)
    assert re.search(pattern, "tv/star_AB_12.png")[1] == "tv/star_AB"


def test_an_image_that_is_also_in_training_is_detected(decode_rows, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9, 9, 3), np.uint8).repeat(16, 0).repeat(16, 1) for _ in range(3)]
    original, shown = decode_videos.decode_image, {"a": 0, "b": 1, "copy": 0, "other": 2}

    def decode(path, *args, **options):
        clip = original(path, *args, **options)
        return replace(clip, frames=pictures[shown[path.stem]][None])

    monkeypatch.setattr(decode_videos, "decode_image", decode)
    splits = {"a": "train", "b": "train", "copy": "test", "other": "test"}
    outcome, out = decode_rows([{"id": name, "captions": [name], "split": split} for name, split in splits.items()])
    table = pq.read_table(out / "overlap.parquet").to_pylist()
    assert table == [{"id": "copy", "split": "test", "captions": False, "frames": True}]
    assert outcome.counts["test_frames_in_training"] == 1
    assert read_json(out / "statistics.json")["overlap"]["test"]["compared"] == 2


def test_links_in_the_data_folder_are_followed(tmp_path, resources, inline_pool):
    """Large folders of videos are often linked. No path in a row leads out."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data, elsewhere):
        folder.mkdir()
    for name in ("a.png", "b.png", "secret.png"):
        Image.new("RGB", (20, 10)).save(elsewhere / name)
    (data / "folder").symlink_to(elsewhere)
    (data / "b.png").symlink_to(elsewhere / "b.png")
    rows = [{"path": path, "caption": "a wall", "split": "train"} for path in ("folder/a.png", "b.png")]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = partial(decode_videos.run, Config(size=16), {"data": data / "m.jsonl"})
    assert run(tmp_path / "out", resources).counts["samples"] == 2
    for path in ("folder/../../elsewhere/secret.png", "../elsewhere/secret.png", str(elsewhere / "secret.png")):
        (data / "m.jsonl").write_text(json.dumps({"path": path, "caption": "x"}))
        with pytest.raises(InputError, match="is outside the data folder"):
            run(tmp_path / "more", resources)


def test_any_id_can_be_written_to_a_shard(tmp_path, resources, inline_pool):
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
        keys = {name.partition(".")[0] for name in tar.getnames()}
    assert len(keys) == len(names)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
