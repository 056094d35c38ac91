"""Existing shards as a corpus: indexed without a copy, and read by later stages like those of
decode_videos."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.reader import ShardReader, read_index
from alpro.stages import index_shards
from tests.conftest import in_store
from tests.stages.conftest import run_stage


@pytest.fixture
def shards(clips, tmp_path):
    """The shards of a decoded corpus, without its index."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in clips.glob("*.tar"):
        shutil.copy(shard, folder)
    return folder


@pytest.fixture
def index(tmp_path, resources, inline_pool):
    """index(shards, **config): the artifact of a folder or URL of shards, and the outcome of the
    stage."""

    def run(shards, out="indexed", **config):
        folder = tmp_path / out
        return folder, run_stage(
            index_shards, {"shards": shards}, folder, resources, **config
        )

    return run


def statistics_of(artifact):
    return read_json(artifact / "statistics.json")


def read_rejects(artifact):
    return pq.read_table(artifact / "rejects.parquet").to_pylist()


def assert_same(one, other):
    """Both corpora have the same samples."""
    samples = []
    for corpus in (one, other):
        reader = ShardReader(corpus)
        every = [reader[number] for number in range(len(reader))]
        samples.append(sorted(every, key=lambda sample: sample.metadata["id"]))
    for sample, same in zip(*samples, strict=True):
        assert sample.metadata == same.metadata
        assert np.array_equal(sample.frames([0]), same.frames([0]))


@pytest.mark.parametrize("place", ["here", "in a store"])
def test_existing_shards_give_the_corpus_of_the_decoded_ones(
    shards, index, clips, memory, place
):
    in_store(*shards.iterdir())
    folder = shards if place == "here" else memory

    artifact, outcome = index(folder)

    assert_same(artifact, clips)
    expected = statistics_of(clips)
    statistics = statistics_of(artifact)
    assert statistics.keys() == expected.keys()
    assert np.allclose(statistics["mean"], expected["mean"], atol=0.02)
    assert np.allclose(statistics["std"], expected["std"], atol=0.02)
    assert (
        outcome.counts["items"] == outcome.counts["samples"] == len(ShardReader(clips))
    )
    names = {f"{folder}/{shard.name}" for shard in shards.iterdir()}
    assert outcome.counts["shards"] == len(names)
    assert outcome.counts["rejected"] == 0
    for split in ("train", "validation", "test"):
        numbers = {
            name: [count, count]
            for name, (count, _) in expected["splits"][split].items()
        }
        assert statistics["splits"][split] == numbers
        assert outcome.counts[split] == numbers["items"][0]
    assert (artifact / "pictures" / "samples.png").is_file()
    assert not list(artifact.rglob("*.tar"))  # the copies are gone
    assert set(read_index(artifact)["shard"].to_pylist()) == names


def test_overlap_with_training_is_listed_and_counted(
    index, corpus_of, tmp_path, memory
):
    """Equal captions, and frames that look like those of a training sample."""
    splits = ["train", "train", "test", "test", "validation", "validation"]
    rows = []
    for number, (split, text) in enumerate(zip(splits, "abacdb", strict=True)):
        rows.append(
            {"id": f"{number}", "split": split, "captions": (text, f"of {number}")}
        )
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    rows[1]["frames"] = noise
    rows[3]["frames"] = noise
    corpus = corpus_of(tmp_path / "corpus", rows)
    artifact, outcome = index(corpus)
    table = pq.read_table(artifact / "overlap.parquet").to_pylist()
    assert [tuple(row.values()) for row in table] == [
        ("2", "test", True, False),
        ("3", "test", False, True),
        ("5", "validation", True, False),
    ]
    overlap = statistics_of(artifact)["overlap"]["test"]
    assert overlap == {"items": 2, "captions": 1, "compared": 2, "frames": 1}
    assert len(outcome.warnings) == 2  # one of each split
    in_store(corpus / "all.tar")
    there = statistics_of(index(memory, "there")[0])["overlap"]["test"]
    # Frames at a URL would be a request each.
    assert there == overlap | {"compared": 0, "frames": 0}


@pytest.mark.parametrize("place", ["here", "in a store"])
def test_an_unusable_shard_fails_the_stage_with_its_name(shards, index, memory, place):
    """Not that of a temporary copy."""
    one = sorted(shards.iterdir())[0]
    folder = shards if place == "here" else memory
    one.write_bytes(one.read_bytes()[:-30000])
    in_store(one)
    with pytest.raises(
        InputError, match=rf"^{folder}/{one.name}: not a readable shard[^\n]*$"
    ):
        index(folder)
    for missing in (
        f"{folder}/none",
        shards.parent if place == "here" else "memory://bucket",
    ):
        with pytest.raises(InputError, match=r"no shards|No such file"):
            index(missing if place != "here" else Path(missing), "none")
    more = one.with_name("more.tar.gz")
    more.touch()
    in_store(more)
    with pytest.raises(InputError, match=r"^\S+/more\.tar\.gz: a compressed shard"):
        index(folder, "compressed")


def test_a_sample_with_a_corrupt_frame_is_a_reject_within_the_limit(shards, index):
    row = read_index(index(shards)[0]).to_pylist()[1]
    shard = Path(row["shard"])
    content = bytearray(shard.read_bytes())
    middle = row["frame_offsets"][len(row["frame_offsets"]) // 2]
    content[middle : middle + 64] = bytes(64)
    shard.write_bytes(content)

    artifact, outcome = index(shards, "again", max_reject_share=0.5)

    (reject,) = read_rejects(artifact)
    assert reject["id"] == row["id"]
    assert reject["path"] == row["shard"]
    assert reject["reason"] == "unreadable"
    assert reject["detail"].startswith("not a JPEG file")
    assert row["id"] not in read_index(artifact)["id"].to_pylist()
    assert outcome.counts["rejected"] == 1
    samples, items = statistics_of(artifact)["splits"][row["split"]]["items"]
    assert items - samples == 1
    with pytest.raises(InputError, match=r"1 of \d+ items are rejected"):
        index(shards, "strict", max_reject_share=0.001)


def test_duplicate_ids_and_two_frame_sizes_raise_an_error(
    shards, index, corpus_of, tmp_path
):
    first = sorted(shards.iterdir())[0]
    second = shards / "zz.tar"
    shutil.copy(first, second)
    with pytest.raises(InputError, match=rf"{second}: id '.*' is also in {first}"):
        index(shards)
    other = corpus_of(tmp_path / "other", [{"id": "another", "captions": ("a dog",)}])
    shutil.copy(other / "all.tar", second)
    with pytest.raises(
        InputError, match=f"zz.tar: video frames of 8 x 8, but 40 x 40 in {first}"
    ):
        index(shards, "sizes")


@pytest.mark.parametrize("kind", ["video", "image"])
def test_kinds_selects_one_kind_of_samples(index, corpus_of, tmp_path, kind):
    rows = [{"id": k, "kind": k, "captions": ("x",)} for k in ("video", "image")]

    artifact, _ = index(corpus_of(tmp_path / "both", rows), kinds=kind)

    assert read_index(artifact)["id"].to_pylist() == [kind]


def test_the_index_beside_shards_at_a_url_is_copied_once(shards, index, clips, served):
    shutil.copy(clips / "index.parquet", shards)
    url, server = served(shards)
    assert len(list(shards.glob("*.tar"))) > 2

    index(url)

    copies = [
        path for method, path, _ in server.asked if method == "GET" and "index" in path
    ]
    assert len(copies) == 1


@pytest.mark.parametrize("change", ["a frame", "a caption", "a sample"])
def test_what_the_index_beside_the_shards_lists_is_a_sample_or_a_reject(
    shards, index, clips, change
):
    """Not the frame that is decoded for validation; a caption of the same length; the last sample
    of its shard."""
    shutil.copy(clips / "index.parquet", shards)
    rows = read_index(clips).to_pylist()
    first_shard = [row for row in rows if row["shard"] == rows[0]["shard"]]
    row = first_shard[-1 if change == "a sample" else 0]
    content = bytearray((shards / row["shard"]).read_bytes())
    if change == "a frame":
        content[row["frame_offsets"][0] + 300] ^= 1
    elif change == "a caption":
        at = content.index(row["captions"][0].encode(), row["json_offset"])
        content[at] = ord("x")
    else:
        content[min(row["frame_offsets"]) - 512 :] = bytes(1024)
    (shards / row["shard"]).write_bytes(content)

    artifact, outcome = index(shards)

    (reject,) = read_rejects(artifact)
    assert reject["id"] == row["id"]
    assert reject["path"] == f"{shards / row['shard']}"
    assert reject["detail"] == "lost or changed since index.parquet was written"
    assert row["id"] not in read_index(artifact)["id"].to_pylist()
    assert outcome.counts["items"] == len(ShardReader(clips))
    samples, items = statistics_of(artifact)["splits"][row["split"]]["items"]
    assert items - samples == outcome.counts["rejected"] == 1

    (shards / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"index\.parquet: cannot be read: .*; remove it to index"
    ):
        index(shards, out="again")
