"""Rejects of decode_videos: their reasons, the maximum share, and errors that fail the stage instead."""

import errno
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.decoding import DecodeError, decode_image
from alpro.shards.reader import ShardReader
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import EXIT_TIMEOUT
from tests.stages.conftest import write_manifest


def test_too_many_rejects_fail_the_stage(decode_rows):
    rows = [{"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}, {"id": "mute"}]
    with pytest.raises(InputError, match=r"2 of 3 items are rejected.*max_reject_share = 0.5.*no text"):
        decode_rows(rows, max_reject_share=0.5)


def test_the_maximum_reject_share_is_accepted(decode_rows):
    outcome, _ = decode_rows([{"id": "captioned", "captions": ["a wall"]}, {"id": "silent"}], max_reject_share=0.5)
    assert outcome.counts["rejected"] == 1


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
    original = decode_videos.decode_image

    def decode(path, *args, **options):
        if path.stem in errors:
            raise errors[path.stem]
        return original(path, *args, **options)

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


def decode_or_die(path: Path, *args, **options):
    """decode_image, except that an image named `kills` kills its process, and `hangs` exits as after a timeout."""
    if path.stem == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.stem == "hangs":
        os._exit(EXIT_TIMEOUT)
    return decode_image(path, *args, **options)


class DyingDecoder(decode_videos.Config):
    """A configuration that replaces `decode_image` in the process that unpickles it."""

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        decode_videos.decode_image = decode_or_die


def test_a_hanging_item_exits_its_process(decode_rows, monkeypatch):
    limits, inside = [], [False]

    @contextmanager
    def watch(seconds: float):
        limits.append(seconds)
        inside[0] = True
        yield
        inside[0] = False

    original = decode_videos.decode_image
    monkeypatch.setattr(decode_videos, "exit_after", watch)
    monkeypatch.setattr(
        decode_videos, "decode_image", lambda *args, **options: original(*args, **options) if inside[0] else None
    )
    outcome, _ = decode_rows([{"id": name, "captions": ["a wall"]} for name in "abc"], timeout=7)
    assert (outcome.counts["samples"], limits) == (3, [7 + 30] * 3)


def test_only_the_item_that_kills_or_hangs_its_process_is_rejected(tmp_path):
    rows = [{"id": name, "captions": ["a wall"], "split": "train"} for name in ("a", "kills", "b", "hangs", "c")]
    source, out = write_manifest(tmp_path / "data", rows), tmp_path / "out"
    config = DyingDecoder(size=16, samples_per_shard=4, max_reject_share=0.5)
    decode_videos.run(config, {"data": source}, out, Resources(workers=2, device="cpu"))
    rejects = {row["id"]: row["reason"] for row in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert rejects == {"kills": "crashed", "hangs": "too slow"}
    assert ShardReader(out).column("id").to_pylist() == ["a", "b", "c"]
