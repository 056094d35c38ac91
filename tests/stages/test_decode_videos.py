"""decode_videos: every item ends in either a shard or the rejects, for any number of workers and
restarts."""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.clip import DecodeError
from alpro.shards.reader import ShardReader
from alpro.shards.schema import SPLITS
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from tests.conftest import decode_data, read_lines
from tests.stages.conftest import contents, rejects_of, run_stage, write_manifest

BROKEN = {  # the sample's broken items and their rejects
    "broken-empty": "empty",
    "broken-text": "unreadable",
    "broken-cut": "unreadable",
    "broken-playlist": "unreadable",
    "broken-silent": "no text",
    "broken-missing": "missing",
}
# As the fixture decodes them.
CLIPS = {"manifest": "clips.jsonl", "frames": 8, "size": 40, "samples_per_shard": 16}


def manifest_rows(sample, corpus):
    return {row["id"]: row for row in read_lines(sample / f"{corpus}.jsonl")}


def finished_contents(out):
    """The SHA-256 of every file of a corpus, without unfinished work."""
    return {
        name: sha
        for name, sha in contents(out).items()
        if not name.startswith("parts/")
    }


@pytest.mark.parametrize("corpus", ["clips", "lessons", "stills"])
def test_every_item_is_in_a_shard_or_in_the_rejects(corpus, corpora, sample):
    rows = manifest_rows(sample, corpus)
    reader = ShardReader(corpora[corpus])
    rejects = rejects_of(corpora[corpus])
    assert sorted([*reader.column("id").to_pylist(), *rejects]) == sorted(rows)
    assert rejects == (BROKEN if corpus == "clips" else {})
    paths = pq.read_table(corpora[corpus] / "rejects.parquet")["path"].to_pylist()
    assert [Path(path).name for path in paths] == [f"{name}.mp4" for name in rejects]
    for number in (0, len(reader) - 1):
        about = reader[number].metadata
        row = rows[about["id"]]
        for field in ("captions", "split", "group"):
            assert about[field] == row[field]
        assert [q["answer"] for q in about["questions"]] == [
            q["answer"] for q in row["questions"]
        ]
        assert about["meta"]["things"] == row["things"]
        assert about["width"] == 48
        assert about["height"] == 48
        count = 1 if corpus == "stills" else 8
        assert reader[number].frames().shape == (count, 40, 40, 3)


def test_counts_add_up(clips, sample, tmp_path, resources, inline_pool):
    done = shutil.copytree(clips, tmp_path / "clips")
    counts = run_stage(
        decode_videos, {"sample": sample}, done, resources, **CLIPS
    ).counts

    assert finished_contents(done) == finished_contents(clips)
    index = pq.read_table(clips / "index.parquet").to_pylist()
    items = len(manifest_rows(sample, "clips"))
    samples = items - len(BROKEN)
    expected = {
        "items": items,
        "samples": samples,
        "rejected": len(BROKEN),
        "videos": samples,
        "images": 0,
        "train": samples - 16,
        "validation": 8,
        "test": 8,
    }
    expected["linked"] = samples  # all units were there
    for name in ("captions", "questions"):
        expected[name] = sum(len(row[name]) for row in index)
    assert counts == expected
    statistics = read_json(clips / "statistics.json")
    assert statistics["reasons"] == Counter(BROKEN.values())
    # Each has 8 frames at 8 a second.
    assert statistics["hours"] == pytest.approx(samples / 3600, abs=1e-4)
    test = [row for row in index if row["split"] == "test"]
    texts = {
        name: [sum(len(row[name]) for row in test)] * 2
        for name in ("captions", "questions")
    }
    assert statistics["splits"]["test"] == {"items": [8, 8], **texts}


def test_shards_are_identical_for_one_and_two_workers(
    clips, decode_sample, tmp_path, resources
):
    two = decode_sample(
        tmp_path,
        "clips",
        resources.model_copy(update={"workers": 2}),
        samples_per_shard=16,
    )
    assert finished_contents(two) == finished_contents(clips)


def test_a_rerun_after_too_many_rejects_decodes_units_that_may_be_better_now(
    tmp_path, inline_pool, resources, monkeypatch
):
    """Units whose rejects were transient, or whose files have changed."""
    pairs = zip("abc", SPLITS, strict=True)
    rows = [
        {"id": name, "captions": ["a wall"], "split": split} for name, split in pairs
    ]
    source = write_manifest(tmp_path / "data", rows)
    out = tmp_path / "out"
    media = tmp_path / "data" / "b.png"
    config = Config(size=16)
    decode = decode_videos.decode_image

    def decode_slowly(path, *arguments, **options):
        if path == media:
            raise DecodeError("too slow")
        return decode(path, *arguments, **options)

    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(decode_videos, "decode_image", decode_slowly)
        with pytest.raises(InputError, match="1 of 3 items are rejected"):
            decode_data(config, source, out, resources)

    counts = decode_data(config, source, out, resources).counts
    assert counts["rejected"] == 0
    assert counts["linked"] == 2

    Image.new("RGB", (40, 30), "red").save(media)
    assert decode_data(config, source, out, resources).counts["linked"] == 2
    assert ShardReader(out, "validation")[0].frames()[0, 0, 0, 0] > 200


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


def list_shots():
    """Clips of four videos, each of which have a caption in common."""
    rows = []
    for number, video in enumerate(("AB", "CD", "EF", "GH")):
        for n in range(3):
            row = {
                "id": f"star_{video}_{n}",
                "captions": [f"{video} {n}", f"all of {video}"],
            }
            rows.append(row | {"color": (40 * number, 60 * n, 90)})
    return rows


def test_a_pattern_keeps_clips_of_one_video_in_one_split(decode_rows):
    pattern = r"star_(\w+)_\d+"

    outcome, out = decode_rows(
        list_shots(), group_pattern=pattern, validation=0.3, test=0.3
    )

    index = pq.read_table(out / "index.parquet").to_pylist()
    assert len({(row["group"], row["split"]) for row in index}) == 4
    assert {row["split"] for row in index} == set(SPLITS)
    assert not any("in_training" in name for name in outcome.counts)
