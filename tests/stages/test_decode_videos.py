"""Every item ends in either a shard or the rejects, for any number of workers and restarts."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import checksum, read_json
from alpro.shards.decode import DecodeError, decode_image
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS
from alpro.stages import decode_videos
from alpro.stages.artifacts.store import Outcome, Resources
from alpro.stages.decode_videos import Config
from alpro.stages.execution.workers import EXIT_TIMEOUT

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


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by its path."""
    return {str(p.relative_to(folder)): checksum(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("corpus", ["clips", "lessons", "stills"])
def test_every_item_is_in_a_shard_or_in_the_rejects(corpus, corpora, sample):
    folder = corpora[corpus]
    index, rejects = (pq.read_table(folder / f"{name}.parquet")["id"].to_pylist() for name in ("index", "rejects"))
    assert sorted(index + rejects) == sorted(manifest_ids(sample, corpus))


def test_sample_keys_are_unique(clips):
    """Readers of several shards at once, such as WebDataset's, would mix them."""
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


def test_an_interrupted_run_resumes_with_the_unfinished_unit(
    clips, sample, tmp_path, resources, inline_pool, monkeypatch
):
    out = shutil.copytree(clips, tmp_path / "clips")
    (out / "parts" / "train-video-00001.rejects.parquet").unlink()
    (out / "train-video-00001.tar").write_bytes(b"half a shard")
    done: list[str] = []
    process_unit = decode_videos.process_unit
    monkeypatch.setattr(
        decode_videos, "process_unit", lambda unit, **rest: (done.append(unit.name), process_unit(unit, **rest))[1]
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
    rows = [{"id": "asked", "questions": asked}, {"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}]
    outcome, out = decode_rows(rows, max_reject_share=0.4)
    assert set(ShardReader(out).column("id").to_pylist()) == {"asked", "captioned"}  # three groups: each its split
    assert (outcome.counts["captions"], outcome.counts["questions"], outcome.counts["rejected"]) == (1, 1, 1)


def test_too_many_rejects_fail_the_stage(decode_rows):
    rows = [{"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}, {"id": "mute"}]
    with pytest.raises(InputError, match=r"2 of 3 items are rejected.*max_reject_share = 0.5.*no text"):
        decode_rows(rows, max_reject_share=0.5)


def test_the_maximum_reject_share_is_accepted(decode_rows):
    outcome, _ = decode_rows([{"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}], max_reject_share=0.5)
    assert outcome.counts["rejected"] == 1


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


def test_a_missing_decoder_fails_the_stage_without_rejects(tmp_path, inline_pool, resources, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"a video")
    (tmp_path / "a.txt").write_text("a wall")
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="no PyAV"):
        decode_videos.run(Config(), {"data": tmp_path}, out, resources)
    assert not list(out.rglob("*.rejects.parquet"))


def decode_with(monkeypatch, errors: dict[str, BaseException]) -> None:
    """Makes the decoding of the images with these names raise an error."""
    whole = decode_videos.decode_image

    def decode(path, *given, **named):
        if path.stem in errors:
            raise errors[path.stem]
        return whole(path, *given, **named)

    monkeypatch.setattr(decode_videos, "decode_image", decode)


def test_any_decoding_exception_only_rejects_its_row(decode_rows, monkeypatch):
    errors = {"long": OverflowError("int too big"), "odd": AssertionError(), "io": OSError(5, "Input/output error")}
    decode_with(monkeypatch, errors)
    rows = [{"id": name, "captions": ["a wall"], "split": "train"} for name in (*errors, "good")]
    outcome, out = decode_rows(rows, max_reject_share=1)
    assert (outcome.counts["samples"], outcome.counts["rejected"]) == (1, 3)
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    assert {row["reason"] for row in rejects} == {"unexpected error"}
    assert [row["detail"] for row in rejects] == [
        "OverflowError: int too big",
        "AssertionError",
        "OSError: [Errno 5] Input/output error",
    ]


@pytest.mark.parametrize(
    "error", [InputError("no PyAV"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_errors_not_caused_by_the_file_fail_the_stage(decode_rows, monkeypatch, error):
    decode_with(monkeypatch, {"b": error})
    with pytest.raises(type(error)):
        decode_rows([{"id": name, "captions": ["a wall"], "split": "train"} for name in "abc"])


def test_a_timestamp_instead_of_seconds_is_a_bad_row(clips, sample, tmp_path, inline_pool, resources):
    row = {**json.loads((sample / "clips.jsonl").read_text().splitlines()[0]), "split": "train"}
    (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
    shutil.copy(sample / row["path"], tmp_path / row["path"])
    rows = [row, {**row, "id": "stamp", "start": 1.7e18}, {**row, "id": "late", "start": 999_999}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(frames=2, size=16, max_reject_share=1)
    counts = decode_videos.run(config, {"data": tmp_path / "m.jsonl"}, tmp_path / "out", resources).counts
    assert (counts["samples"], counts["rejected"]) == (1, 2)
    reasons = {row["id"]: row["reason"] for row in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()}
    assert reasons == {"stamp": "bad row", "late": "no frames"}


def test_items_without_texts_do_not_count_as_expected(decode_rows, monkeypatch):
    rows = [{"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}, {"id": "cut", "captions": ["x", "y"]}]
    decode_with(monkeypatch, {"cut": DecodeError("unreadable")})
    outcome, out = decode_rows([row | {"split": "test"} for row in rows], max_reject_share=1)
    assert outcome.counts["rejected"] == 2
    assert read_json(out / "statistics.json")["splits"]["test"] == {
        "items": [1, 2],
        "captions": [1, 3],
        "questions": [0, 0],
    }


def test_no_captions_raise_an_input_error_with_a_hint(decode_rows):
    with pytest.raises(InputError, match="no captions and no questions; fill the column 'captions'"):
        decode_rows([{"id": "silent", "captions": []}, {"id": "mute", "captions": []}])


def test_a_folder_without_texts_raises_an_error_with_a_hint(tmp_path, resources):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"in a \.txt file of the same name"):
        decode_videos.run(Config(), {"data": tmp_path}, tmp_path / "out", resources)


def test_kinds_selects_one_kind(decode_rows):
    with pytest.raises(InputError, match="no rows of these kinds"):
        decode_rows([{"id": "captioned", "captions": ["a wall"]}], kinds="video")


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


SHOTS = [  # clips of four videos, of which two have a caption in common with others
    {"id": f"star_{video}_{n}", "captions": [f"{video} {n}", f"all of {video}"], "colour": (40 * v, 60 * n, 90)}
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
    whole, shown = decode_videos.decode_image, {"a": 0, "b": 1, "copy": 0, "other": 2}

    def decode(path, *given, **named):
        clip = whole(path, *given, **named)
        return replace(clip, frames=pictures[shown[path.stem]][None])

    monkeypatch.setattr(decode_videos, "decode_image", decode)
    splits = {"a": "train", "b": "train", "copy": "test", "other": "test"}
    outcome, out = decode_rows([{"id": name, "captions": [name], "split": split} for name, split in splits.items()])
    table = pq.read_table(out / "overlap.parquet").to_pylist()
    assert table == [{"id": "copy", "split": "test", "captions": False, "frames": True}]
    assert outcome.counts["test_frames_in_training"] == 1
    assert read_json(out / "statistics.json")["overlap"]["test"]["compared"] == 2


def decode_images(rows: list[dict], folder: Path, resources: Resources, **config) -> tuple[Outcome, Path]:
    """Decodes images made for the rows, as an artifact beside earlier ones of the same folder.

    Of a row, `touched` (the time of change of its file) and `more` (bytes behind the image) are not in the manifest.
    """
    out = folder / "artifacts" / f"run {len(list(folder.glob('artifacts/*')))}"
    out.mkdir(parents=True)
    files = [{key: row.get(key, other) for key, other in (("touched", 1), ("more", b""))} for row in rows]
    source = write_manifest(folder / "data", [{k: v for k, v in row.items() if k not in files[0]} for row in rows])
    for row, file in zip(rows, files, strict=True):  # an image that is not changed keeps its time
        path = folder / "data" / f"{row['id']}.png"
        path.write_bytes(path.read_bytes() + file["more"])
        os.utime(path, (file["touched"], file["touched"]))
    settings = {"size": 16, "samples_per_shard": 4, **config}
    outcome = decode_videos.run(Config.model_validate(settings), {"data": source}, out, resources)
    (out / "artifact.json").write_text("{}")
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
def test_only_shards_with_new_or_changed_rows_are_decoded(rows, linked, tmp_path, resources, inline_pool):
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


OTHER_SETTINGS = {
    "frames": 8,
    "size": 20,
    "quality": 80,
    "decoder": "pyav",
    "timeout": 30.0,
    "max_bytes": 10**6,
    "max_pixels": 10**6,
    "max_memory": 2**30,
}


def test_shards_are_not_reused_with_other_settings(tmp_path, resources, inline_pool):
    """Each setting is changed separately. Settings that do not affect frames do not cause decoding."""
    rows = WALLS[:4]
    assert OTHER_SETTINGS.keys() == decode_videos.UNIT_SETTINGS
    assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 0
    for name, value in OTHER_SETTINGS.items():
        assert decode_images(rows, tmp_path, resources, **{name: value})[0].counts["linked"] == 0, name
    for name, value in {"validation": 0.3, "test": 0.3, "seed": 7, "max_reject_share": 1.0, "kinds": "image"}.items():
        assert decode_images(rows, tmp_path, resources, **{name: value})[0].counts["linked"] == 4, name


def test_shards_of_another_version_are_not_reused(tmp_path, resources, inline_pool, monkeypatch):
    rows = WALLS[:4]
    decode_images(rows, tmp_path, resources)
    with monkeypatch.context() as patch:
        patch.setattr(decode_videos, "VERSION", decode_videos.VERSION + 1)
        assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 0
    for version, linked in (("9.0.1", 0), ("9.0.2", 0), ("9.0.1", 4)):  # of the binary, where it decodes everything
        monkeypatch.setattr(decode_videos, "ffmpeg_version", lambda version=version: version)
        assert decode_images(rows, tmp_path, resources, decoder="ffmpeg")[0].counts["linked"] == linked


def test_shards_with_a_changed_file_are_not_reused(tmp_path, resources, inline_pool):
    """Its row is equal: another time of change with the same size, and another size with the same time."""
    rows = WALLS[:4]
    _, old = decode_images(rows, tmp_path, resources)
    manifest = (tmp_path / "data" / "items.jsonl").read_text()
    for change in ({"touched": 2}, {"more": b"more"}):
        outcome, new = decode_images([rows[0] | change, *rows[1:]], tmp_path, resources)
        assert (tmp_path / "data" / "items.jsonl").read_text() == manifest
        assert outcome.counts["linked"] == 0
        assert shards(new) == shards(old)  # the picture is the same, and so are the bytes
    assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 4


def test_damaged_shards_are_not_reused(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path, resources)
    damaged = old / "train-image-00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    outcome, new = decode_images(WALLS, tmp_path, resources)
    assert 0 < outcome.counts["linked"] < 24
    assert checksum(new / damaged.name) != checksum(damaged)


def test_rejects_are_reused_with_their_shard(tmp_path, resources, inline_pool):
    rows = [*WALLS, {"id": "silent", "split": "train"}]
    first, old = decode_images(rows, tmp_path, resources)
    second, new = decode_images(rows, tmp_path, resources)
    assert (first.counts["rejected"], second.counts["rejected"], second.counts["linked"]) == (1, 1, 24)
    assert (old / "rejects.parquet").read_bytes() == (new / "rejects.parquet").read_bytes()


def test_paths_that_are_not_files_are_rejected_as_missing(tmp_path, resources, inline_pool):
    data = tmp_path / "data"
    (data / "folder.mp4").mkdir(parents=True)
    os.mkfifo(data / "pipe.mp4")
    (data / "loop.mp4").symlink_to("loop.mp4")
    Image.new("RGB", (20, 10)).save(data / "a.png")
    names = ["folder.mp4", "pipe.mp4", "loop.mp4", "a.png/below.mp4", 300 * "x" + ".mp4", "gone.mp4", "lost.png"]
    rows = [{"path": name, "captions": ["a wall"], "split": "train"} for name in [*names, "a.png"]]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    decode_videos.run(Config(size=16, max_reject_share=1), {"data": data / "m.jsonl"}, tmp_path / "out", resources)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet")["reason"].to_pylist()
    assert len(rejects) == len(names)
    assert set(rejects) <= {"missing", "unreadable"}


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


def test_transient_rejects_are_retried(tmp_path, resources, inline_pool, monkeypatch):
    def slow(*_, **__):
        raise DecodeError("too slow")

    monkeypatch.setattr(decode_videos, "decode_image", slow)
    first, _ = decode_images(WALLS, tmp_path, resources, max_reject_share=1)
    monkeypatch.undo()
    second, _ = decode_images(WALLS, tmp_path, resources, max_reject_share=1)
    assert (first.counts["rejected"], second.counts["rejected"]) == (24, 0)


def test_damaged_earlier_artifacts_and_unknown_folders_are_ignored(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    (old / "units.parquet").write_bytes(b"")
    outcome, _ = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    assert outcome.counts["samples"] == 24


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


def unruly(path: Path, *given, **named):
    """In the place of decode_image: an image named so kills its process, or ends it as one that hangs is ended."""
    if path.stem == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.stem == "hangs":
        os._exit(EXIT_TIMEOUT)
    return decode_image(path, *given, **named)


class Unruly(decode_videos.Config):
    """A configuration whose arrival in a process makes `decode_image` there the unruly one."""

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        decode_videos.decode_image = unruly


def test_a_hanging_item_exits_its_process(decode_rows, monkeypatch):
    limits, inside = [], [False]

    @contextmanager
    def watch(seconds: float):
        limits.append(seconds)
        inside[0] = True
        yield
        inside[0] = False

    whole = decode_videos.decode_image
    monkeypatch.setattr(decode_videos, "exit_after", watch)
    monkeypatch.setattr(
        decode_videos, "decode_image", lambda *given, **named: whole(*given, **named) if inside[0] else None
    )
    outcome, _ = decode_rows([{"id": name, "captions": ["a wall"]} for name in "abc"], timeout=7)
    assert (outcome.counts["samples"], limits) == (3, [7 + 30] * 3)


def test_only_the_item_that_kills_or_hangs_its_process_is_rejected(tmp_path):
    rows = [{"id": name, "captions": ["a wall"], "split": "train"} for name in ("a", "kills", "b", "hangs", "c")]
    source, out = write_manifest(tmp_path / "data", rows), tmp_path / "out"
    config = Unruly(size=16, samples_per_shard=4, max_reject_share=0.5)
    decode_videos.run(config, {"data": source}, out, Resources(workers=2, device="cpu"))
    rejects = {row["id"]: row["reason"] for row in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert rejects == {"kills": "crashed", "hangs": "too slow"}
    assert ShardReader(out).column("id").to_pylist() == ["a", "b", "c"]
