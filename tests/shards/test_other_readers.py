"""Other programs read our shards: WebDataset."""

import pytest

from alpro.shards.reader import ShardReader


@pytest.fixture(scope="module")
def shards(clips) -> list[str]:
    return [str(path) for path in sorted(clips.glob("train-*.tar"))]


@pytest.fixture(scope="module")
def expected(clips) -> dict[str, dict]:
    """The metadata of the training samples by their ids."""
    reader = ShardReader(clips, "train")
    return {reader[n].about["id"]: reader[n].about for n in range(len(reader))}


def test_webdataset_reads_metadata_and_frames(shards, expected, clips):
    import webdataset

    samples = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        samples[sample["json"]["id"]] = sample
    assert {name: sample["json"] for name, sample in samples.items()} == expected
    reader = ShardReader(clips, "train")
    frames = sorted(key for key in samples[reader[0].about["id"]] if key.endswith(".jpg"))
    assert len(frames) == len(reader[0]) == 8
    first = samples[reader[0].about["id"]][frames[0]]
    assert (first.mode, first.size) == ("RGB", (40, 40))
    assert (reader[0].frames([0])[0] == first).all()
