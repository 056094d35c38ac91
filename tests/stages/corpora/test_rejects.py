"""Rejects of decode_videos: their reasons, the maximum share, and errors that fail the stage
instead."""

import errno
import os
import sys
from contextlib import nullcontext
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.clip import DecodeError
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from tests.conftest import decode_data, write_lines
from tests.stages.conftest import rejects_of

WALL = {"captions": ["a wall"], "split": "train"}


def test_the_maximum_reject_share_is_accepted(decode_rows):
    rows = [{"id": "captioned", **WALL}, {"id": "silent"}]

    outcome, _ = decode_rows(rows, max_reject_share=0.5)

    assert outcome.counts["rejected"] == 1
    with pytest.raises(
        InputError, match=r"1 of 2 items .*max_reject_share = 0.49.*\(1 no text\)"
    ):
        decode_rows(rows, max_reject_share=0.49)


def decode_with(monkeypatch, errors):
    """Makes the decoding of the images with these names raise an error."""
    original = decode_videos.decode_image

    def decode(path, *args, **options):
        if path.stem in errors:
            raise errors[path.stem]
        return original(path, *args, **options)

    monkeypatch.setattr(decode_videos, "decode_image", decode)


ODD = {
    "long": (
        OverflowError("int too big"),
        "unexpected error",
        "OverflowError: int too big",
    ),
    "odd": (AssertionError(), "unexpected error", "AssertionError"),
    "io": (OSError(5, "Failed"), "unexpected error", "OSError: [Errno 5] Failed"),
    "large": (MemoryError(), "too much memory", "more than 2048 MiB"),
}


def test_any_decoding_exception_only_rejects_its_row(decode_rows, monkeypatch):
    decode_with(monkeypatch, {name: error for name, (error, *_) in ODD.items()})
    rows = [{"id": name, **WALL} for name in [*ODD, "good"]]

    outcome, out = decode_rows(rows, max_reject_share=1)

    assert outcome.counts["samples"] == 1
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    reasons = {row["id"]: (row["reason"], row["detail"]) for row in rejects}
    assert reasons == {
        name: (reason, detail) for name, (_, reason, detail) in ODD.items()
    }


@pytest.mark.parametrize(
    "place", ["shards.decoding.local_copy", "stages.decode_videos.decode_image"]
)
@pytest.mark.parametrize(
    "error",
    [
        InputError("no PyAV"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_errors_not_caused_by_the_file_fail_the_stage(
    decode_rows, monkeypatch, place, error
):
    monkeypatch.setattr(f"alpro.{place}", Mock(side_effect=error))
    with pytest.raises(type(error)):
        decode_rows([{"id": name, **WALL} for name in "abc"])


def test_items_without_texts_do_not_count_as_expected(decode_rows, monkeypatch):
    """A question is a text."""
    rows = [
        {"id": "captioned", "captions": ["a wall"]},
        {"id": "asked", "questions": [{"question": "what is it?", "answer": "a wall"}]},
        {"id": "silent"},
        {"id": "cut", "captions": ["x", "y"]},
    ]
    decode_with(monkeypatch, {"cut": DecodeError("unreadable")})

    _, out = decode_rows([row | {"split": "test"} for row in rows], max_reject_share=1)

    assert rejects_of(out) == {"silent": "no text", "cut": "unreadable"}
    statistics = read_json(out / "statistics.json")["splits"]["test"]
    assert statistics == {"items": [2, 3], "captions": [1, 3], "questions": [1, 1]}
    with pytest.raises(InputError, match="no rows of these kinds"):
        decode_rows(rows, kinds="video")


def test_data_without_texts_or_a_decoder_fails_before_decoding(
    tmp_path, resources, inline_pool, monkeypatch
):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "a.png")
    (data / "b.mp4").write_bytes(b"a video")
    with pytest.raises(
        InputError, match=r"no captions and no questions; .*\(a\.mp4, a\.txt\)"
    ):
        decode_data(Config(), data, tmp_path / "out", resources)
    (data / "b.txt").write_text("a wall")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="no PyAV"):
        decode_data(Config(), data, tmp_path / "out", resources)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_file_that_is_out_of_reach_after_the_import_is_a_reject(
    decode_rows, tmp_path, monkeypatch
):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    monkeypatch.setattr(
        "alpro.shards.decoding.local_copy", lambda *_: nullcontext(loop)
    )

    _, out = decode_rows([{"id": "loop", **WALL}], max_reject_share=1)

    assert rejects_of(out).keys() == {"loop"}


@pytest.fixture
def odd_files(tmp_path, sample):
    """A folder of files that are none, and of some that are."""
    folder = tmp_path / "data"
    (folder / "folder.mp4").mkdir(parents=True)
    for name in ("pipe.mp4", "tube.png"):
        os.mkfifo(folder / name)
    links = {"zero.mp4": "/dev/zero", "loop.mp4": "loop.mp4"}
    # Large folders of videos are often linked.
    links |= {
        "linked": sample / "images",
        "clip.mp4": sample / "videos" / "train-00000.mp4",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    return folder


NO_FILES = [
    "folder.mp4",
    "pipe.mp4",
    "tube.png",
    "zero.mp4",
    "loop.mp4",
    "gone.mp4",
    "lost.png",
]
NO_FILES += ["a.png/below.mp4", 300 * "x" + ".mp4"]
FILES = ["a.png", "clip.mp4", "linked/still-00000.jpg"]


def test_paths_and_times_that_lead_to_no_file_or_frame(
    odd_files, resources, inline_pool
):
    rows = [{"path": name, "id": name} for name in [*NO_FILES, *FILES]]
    rows += [{"path": "clip.mp4", "id": "stamp", "start": 1.7e18}]
    rows += [{"path": "clip.mp4", "id": "late", "start": 999_999}]
    manifest = write_lines(odd_files / "m.jsonl", [row | WALL for row in rows])
    out = odd_files.with_name("out")

    counts = decode_data(
        Config(size=16, frames=2, max_reject_share=1), manifest, out, resources
    )

    rejects = rejects_of(out)
    assert counts.counts["samples"] == len(FILES)
    assert rejects.pop("late") == "no frames"
    assert rejects.pop(f"line {len(rows) - 1}") == "bad row"  # the stamp
    assert rejects.keys() == {*NO_FILES}
    assert set(rejects.values()) <= {"missing", "unreadable"}
