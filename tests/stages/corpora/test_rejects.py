"""Rejects of decode_videos: their reasons, the maximum share, and errors that fail the stage
instead."""

import errno
import json
import os
import resource
import sys
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.clip import DecodeError
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from tests.conftest import decode_data
from tests.stages.conftest import rejects_of

WALL = {"captions": ["a wall"], "split": "train"}


def test_the_maximum_reject_share_is_accepted(decode_rows, capsys):
    rows = [{"id": "captioned", **WALL}, {"id": "silent"}]
    assert decode_rows(rows, max_reject_share=0.5)[0].counts["rejected"] == 1
    assert "1 of 2 items are rejected (1 no text): " in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"1 of 2 items are rejected.*max_reject_share = 0.49.*\(1 no text\)"
    ):
        decode_rows(rows, max_reject_share=0.49)


def decode_with(monkeypatch, errors: dict[str, BaseException]) -> None:
    """Makes the decoding of the images with these names raise an error."""
    original = decode_videos.decode_image

    def decode(path, *args, **options):
        assert (
            sys.platform != "linux" or resource.getrlimit(resource.RLIMIT_DATA)[0] > 0
        )  # the limit of memory
        if path.stem in errors:
            raise errors[path.stem]
        return original(path, *args, **options)

    monkeypatch.setattr(decode_videos, "decode_image", decode)


def test_any_decoding_exception_only_rejects_its_row(decode_rows, monkeypatch):
    errors = {
        "long": OverflowError("int too big"),
        "odd": AssertionError(),
        "io": OSError(5, "Input/output error"),
    }
    decode_with(monkeypatch, errors | {"large": MemoryError()})
    outcome, out = decode_rows(
        [{"id": name, **WALL} for name in (*errors, "large", "good")], max_reject_share=1
    )
    assert (outcome.counts["samples"], outcome.counts["rejected"]) == (1, 4)
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    assert [(row["reason"], row["detail"]) for row in rejects] == [
        ("unexpected error", "OverflowError: int too big"),
        ("unexpected error", "AssertionError"),
        ("unexpected error", "OSError: [Errno 5] Input/output error"),
        ("too much memory", "more than 2048 MiB"),
    ]


@pytest.mark.parametrize("place", ["local_copy", "decode_image"])
@pytest.mark.parametrize(
    "error",
    [InputError("no PyAV"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
)
def test_errors_not_caused_by_the_file_fail_the_stage(decode_rows, monkeypatch, place, error):
    monkeypatch.setattr(decode_videos, place, Mock(side_effect=error))
    with pytest.raises(type(error)):
        decode_rows([{"id": name, **WALL} for name in "abc"])


def test_items_without_texts_do_not_count_as_expected(decode_rows, monkeypatch):
    rows = [
        {"id": "captioned", "captions": ["a wall"]},
        {"id": "silent"},
        {"id": "cut", "captions": ["x", "y"]},
    ]
    decode_with(monkeypatch, {"cut": DecodeError("unreadable")})
    outcome, out = decode_rows([row | {"split": "test"} for row in rows], max_reject_share=1)
    assert outcome.counts["rejected"] == 2
    statistics = read_json(out / "statistics.json")["splits"]["test"]
    assert statistics == {"items": [1, 2], "captions": [1, 3], "questions": [0, 0]}


def test_data_without_texts_or_a_decoder_fails_before_decoding(
    tmp_path, resources, inline_pool, monkeypatch
):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"a video")
    with pytest.raises(InputError, match=r"no captions and no questions; .*\(a\.mp4, a\.txt\)"):
        decode_data(Config(), tmp_path, tmp_path / "out", resources)
    (tmp_path / "b.txt").write_text("a wall")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="no PyAV"):
        decode_data(Config(), tmp_path, tmp_path / "out", resources)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_paths_and_times_that_lead_to_no_file_or_frame(tmp_path, resources, inline_pool, sample):
    data = tmp_path / "data"
    (data / "folder.mp4").mkdir(parents=True)
    for name in ("pipe.mp4", "tube.png"):
        os.mkfifo(data / name)
    (data / "zero.mp4").symlink_to("/dev/zero")
    (data / "loop.mp4").symlink_to("loop.mp4")
    (data / "clip.mp4").symlink_to(next((sample / "videos").glob("train-*.mp4")))
    (data / "linked").symlink_to(sample / "images")  # large folders of videos are often linked
    Image.new("RGB", (20, 10)).save(data / "a.png")
    names = [
        "folder.mp4",
        "pipe.mp4",
        "loop.mp4",
        "a.png/below.mp4",
        300 * "x" + ".mp4",
        "gone.mp4",
        "lost.png",
    ]
    names += ["tube.png", "zero.mp4"]
    rows = [
        {"path": name, **WALL} for name in [*names, "a.png", "clip.mp4", "linked/still-00000.jpg"]
    ]
    rows += [{"path": "clip.mp4", "id": "stamp", "start": 1.7e18, **WALL}]
    rows += [{"path": "clip.mp4", "id": "late", "start": 999_999, **WALL}]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(size=16, frames=2, max_reject_share=1)
    counts = decode_data(config, data / "m.jsonl", tmp_path / "out", resources).counts
    rejects = rejects_of(tmp_path / "out")
    assert (counts["samples"], len(rejects)) == (3, len(names) + 2)
    stamp = f"line {len(rows) - 1}"
    assert (rejects.pop(stamp), rejects.pop("late")) == ("bad row", "no frames")
    assert set(rejects.values()) <= {"missing", "unreadable"}
