"""Files that end the process that decodes them cost their own units alone."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from alpro.errors import InputError
from alpro.pool import Died, in_this_process
from alpro.shards.reader import ShardReader, read_index
from alpro.stages import decode_videos
from alpro.stages.corpora import units
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Resources
from tests.conftest import decode_data
from tests.stages.conftest import rejects_of, write_manifest
from tests.stages.corpora.dying_decoder import (
    DyingDecoder,
    count_tries,
    decode_image,
    decode_video,
    each_in_this_process,
)

SETTINGS = {"size": 16, "frames": 2, "samples_per_shard": 6, "max_reject_share": 1}
IMAGES = ["unlucky", *(f"{n:02d}" for n in range(20)), "crashes", "hangs", "last"]
VIDEO = "crashes-pyav.mp4"
TEXT = {"captions": ["a wall"], "split": "train"}
TWO = Resources(workers=2, device="cpu")


class Run(NamedTuple):
    manifest: Path
    out: Path


PROCESSES = ["in this process", pytest.param("in processes", marks=pytest.mark.long)]


@contextmanager
def processes_that_die(where):
    """Let units run in processes of a pool, or where their ends are imagined."""
    if where == "in processes":
        yield
        return
    with pytest.MonkeyPatch.context() as patch, in_this_process():
        for module in (decode_videos, units):
            patch.setattr(module, "each", each_in_this_process)
        patch.setattr(decode_videos, "decode_image", decode_image)
        patch.setattr(decode_videos, "decode_video", decode_video)
        yield


@pytest.fixture(scope="module", params=PROCESSES)
def run(tmp_path_factory, sample, request):
    """Decoded images and a video, some of which end the process that decodes them."""
    rows = [{"id": name, **TEXT} for name in IMAGES]
    manifest = write_manifest(tmp_path_factory.mktemp("data"), rows)
    shutil.copy(sample / "videos" / "train-00000.mp4", manifest.with_name(VIDEO))
    with open(manifest, "a") as lines:
        print(json.dumps({"id": VIDEO, "path": VIDEO, **TEXT}), file=lines)

    out = tmp_path_factory.mktemp("out")
    with processes_that_die(request.param):
        decode_data(DyingDecoder(**SETTINGS), manifest, out, TWO)
    return Run(manifest, out)


def test_only_the_items_that_end_their_process_are_rejected(run):
    assert rejects_of(run.out) == {"crashes": "crashed", "hangs": "too slow"}


def test_all_others_are_samples_in_the_order_of_the_manifest(run):
    expected = [name for name in IMAGES if name not in ("crashes", "hangs")]

    assert ShardReader(run.out, kind="image").column("id").to_pylist() == expected


def test_a_crash_costs_its_own_unit_alone(run):
    """Each item is decoded once, and those of the units with a death once more."""
    items = len(IMAGES) + 1

    # Three images end processes, so at most three units of images have deaths; and the video, which
    # is a unit of its own. Two images end three processes.
    most = items + 3 * SETTINGS["samples_per_shard"] + 1 + 2
    assert count_tries(run.manifest.parent) <= most


def test_a_video_that_crashes_pyav_is_decoded_by_ffmpeg(run):
    assert ShardReader(run.out, kind="video").column("id").to_pylist() == [VIDEO]


def test_a_unit_whose_process_died_by_chance_has_the_same_bytes(run, tmp_path):
    """As after a kill, or when memory is short for a moment."""
    index = read_index(run.out).to_pylist()
    (shard,) = (row["shard"] for row in index if row["id"] == "unlucky")

    with in_this_process():
        decode_data(Config(**SETTINGS), run.manifest, tmp_path, TWO)

    assert (run.out / shard).read_bytes() == (tmp_path / shard).read_bytes()


def test_a_unit_that_always_dies_as_a_whole_is_joined_from_its_items(run, tmp_path):
    """As if memory is too short for all of its items in one process."""

    def each(tasks, work, *_):
        for task in tasks:
            yield task, work(task) if len(task) == 1 else Died("its process ended")

    with pytest.MonkeyPatch.context() as patch, in_this_process():
        decode_data(Config(**SETTINGS), run.manifest, tmp_path / "whole", TWO)
        for module in (decode_videos, units):
            patch.setattr(module, "each", each)
        decode_data(Config(**SETTINGS), run.manifest, tmp_path / "apart", TWO)

    names = sorted(path.name for path in (tmp_path / "whole").glob("*.tar"))
    names += ["index.parquet", "rejects.parquet", "statistics.json"]
    for name in names:
        whole, apart = (tmp_path / folder / name for folder in ("whole", "apart"))
        assert whole.read_bytes() == apart.read_bytes()


@pytest.mark.parametrize("where", PROCESSES)
def test_a_machine_that_ends_every_process_is_a_line(where, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_videos, "MAX_DEATHS", 2)
    rows = [{"id": f"crashes-{n}", **TEXT} for n in range(3)]
    manifest = write_manifest(tmp_path / "data", rows)

    with (
        processes_that_die(where),
        pytest.raises(InputError, match=r"3 items in succession end.*memory is short"),
    ):
        decode_data(DyingDecoder(**SETTINGS), manifest, tmp_path / "out", TWO)
