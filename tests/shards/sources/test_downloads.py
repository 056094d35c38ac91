"""Shards of video2dataset and img2dataset: each sample, failed download and loss is a row or a
reject."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.downloads import scan_downloads
from alpro.shards.sources.form import Columns
from alpro.shards.sources.scan import DOWNLOADS, Source, scan_source
from tests.conftest import in_store, one_line
from tests.shards.conftest import damaged, headers_of, pack, rows_and_rejects


def about(key: str, **more) -> dict:
    url = f"https://host.example/watch?v={key}"
    return {"url": url, "key": key, "status": "success", "error_message": None} | more


def members(
    key: str, caption: str = "", extension: str = "mp4", **more
) -> dict[str, bytes]:
    return {
        f"{key}.{extension}": 200 * key.encode(),
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(about(key, **more)).encode(),
    }


def pack_samples(*samples: Mapping[str, bytes]) -> bytes:
    return pack(*(member for sample in samples for member in sample.items()))


def write_table(shard: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), shard.with_suffix(".parquet"))


def scan(folder: Path) -> tuple[dict[str, Row], list[Reject]]:
    rows, rejects = rows_and_rejects(scan_downloads(folder, Source(folder).items))
    return {row.id: row for row in rows}, rejects


@pytest.fixture
def downloads(tmp_path) -> Path:
    """Two shards: three videos, of which one has no caption, and two clips of another; two failed
    downloads."""
    folder = tmp_path / "webvid"
    folder.mkdir()
    first = folder / "00000.tar"
    captions = {"000": "\ufeffthe  first\n", "001": "the second", "003": ""}
    samples = [
        members(key, caption, split="train") for key, caption in captions.items()
    ]
    first.write_bytes(pack_samples(*samples))
    secret = about(
        "002", url="https://me:pw@host", status="failed", error_message="HTTP Error 404"
    )
    write_table(first, [*map(about, captions), secret, about("004", status="no cuts")])
    clips = [members(f"./010_{n:03d}", "a cut", clips=[[0, 1]]) for n in range(2)]
    (folder / "00001.tar").write_bytes(pack_samples(*clips))
    return folder


def test_captions_and_clips_are_read(downloads):
    form, _ = scan_source(downloads)
    rows, _ = scan(downloads)

    assert form == DOWNLOADS
    assert {key: (row.captions, row.group, row.split) for key, row in rows.items()} == {
        "000": (("the first",), "", "train"),
        "001": (("the second",), "", "train"),
        "003": ((), "", "train"),
        "010_000": (("a cut",), "010", ""),
        "010_001": (("a cut",), "010", ""),
    }


def test_a_row_says_where_its_video_is(downloads):
    row = scan(downloads)[0]["001"]

    content = row.path.read_bytes()[row.member.offset :]
    assert (row.file_name, row.kind, row.path) == (
        "001.mp4",
        "video",
        downloads / "00000.tar",
    )
    assert content[: row.member.size] == 200 * b"001"


def test_failed_downloads_are_rejects_without_secrets(downloads):
    _, rejects = scan(downloads)

    url = "https://host.example/watch?v=004"
    assert [(reject.id, reject.path, reject.detail) for reject in rejects] == [
        ("002", "", "failed: HTTP Error 404"),
        ("004", url, "no cuts"),
    ]
    assert {reject.reason for reject in rejects} == {"not fetched"}


def test_shards_at_a_url_give_the_same_rows_although_a_request_fails(
    downloads, memory, monkeypatch
):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", (0,))
    store = type(fsspec.filesystem("memory"))
    in_store(*downloads.iterdir())
    whole = store.open
    asked = []

    def flaky(self, path, *how, **more):
        asked.append(path)
        if asked.count(path) == 1:
            raise RuntimeError("lost")
        return whole(self, path, *how, **more)

    monkeypatch.setattr(store, "open", flaky)
    here, rejects = scan(downloads)
    there, rejects_there = scan(memory)

    assert rejects_there == rejects
    assert there == {
        key: row.model_copy(update={"path": f"{memory}/{row.path.name}"})
        for key, row in here.items()
    }


@pytest.mark.parametrize("has_table", [True, False])
def test_a_damaged_download_keeps_or_counts_every_sample(tmp_path, has_table):
    """Flips in the bytes of media may stay unseen."""
    keys = ["00000", "00001", "00002", "00003"]
    media = {f"{key}.mp4": 400 * key.encode() for key in keys}
    content = pack_samples(
        *(
            members(key, f"cut {key}") | {f"{key}.mp4": media[f"{key}.mp4"]}
            for key in keys
        )
    )
    shard = tmp_path / "00000.tar"
    if has_table:
        write_table(shard, [about(key) for key in keys])
    for changed in damaged(content, headers_of(content)):
        shard.write_bytes(changed)

        rows, rejects = scan(tmp_path)

        assert len(rows) == 4 or rejects
        assert not has_table or len(rows) + len(rejects) >= 4
        for key, row in rows.items():
            video = changed[row.member.offset :][: row.member.size]
            flipped = sum(
                a != b for a, b in zip(video, media[f"{key}.mp4"], strict=True)
            )
            assert flipped <= 1
            assert len(changed) == len(content) or row.captions == (f"cut {key}",)


@pytest.mark.parametrize(("lost", "reason"), [(3, "unreadable"), (1, "bad row")])
def test_members_lost_in_the_last_record_are_noticed(downloads, lost, reason):
    """Zeros from a header on look like the end of the tar: the whole sample, by the table, or its
    JSON."""
    shard = downloads / "00000.tar"
    content = shard.read_bytes()
    at = headers_of(content)[-lost]
    shard.write_bytes(content[:at] + bytes(1024))

    rows, rejects = scan(downloads)

    assert [key for key in rows if key.startswith("00")] == ["000", "001"]
    assert (rejects[0].id, rejects[0].reason) == ("003", reason)


@pytest.mark.parametrize("content", [b"", b"no tar", bytes(1024), bytes(10_240)])
def test_a_tar_without_samples_is_a_reject(tmp_path, content):
    (tmp_path / "00000.tar").write_bytes(content)
    (tmp_path / "00001.tar").write_bytes(pack_samples(members("0", "a dog")))

    rows, (reject,) = scan(tmp_path)

    assert [*rows] == ["0"]
    assert (reject.id, reject.reason) == ("00000.tar", "unreadable")


def test_the_pointer_of_a_shard_is_named_with_its_remedy(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10240\n"
    (tmp_path / "00000.tar").write_bytes(pointer)
    (tmp_path / "00001.tar").write_bytes(pack_samples(members("0", "a dog")))

    _, (reject,) = scan(tmp_path)

    assert "git lfs pull" in reject.detail


@pytest.mark.parametrize("count", [2, 3])
def test_samples_of_one_key_are_rejects_and_not_merged(tmp_path, count):
    same = members("0", "a 0")
    (tmp_path / "0.tar").write_bytes(pack_samples(members("1", "a 1"), *count * [same]))

    rows, rejects = scan(tmp_path)

    assert {key: row.captions for key, row in rows.items()} == {"1": ("a 1",)}
    assert [reject.id for reject in rejects] == ["0"] * count
    assert f"in the shard {count} times" in rejects[0].detail


def test_a_key_of_two_shards_is_an_error(tmp_path):
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(pack_samples(members("0")))

    with one_line("1.tar", "the id '0' is also the id of", "0.tar"):
        scan(tmp_path)


INVALID = [
    (members("0", status="no cuts"), "not fetched", "no cuts"),
    ({"0.json": b'{"status": "success"}'}, "not fetched", "no media in the shard"),
    (members("0") | {"0.txt": b"caf\xe9"}, "bad row", "0.txt: 'utf-8' codec"),
    (members("0") | {"0.json": b'{"status": '}, "bad row", "0.json: "),
    (members("0", note="a\0"), "bad row", "0.json: a NUL character"),
    (members("0") | {"0.webm": b"2"}, "bad row", "0.webm: "),
    (members("0", split="fold9"), "bad row", "unknown split"),
    (
        members("0") | {"0.txt": b"x" * (1 << 24) + b"x"},
        "bad row",
        "0.txt: 16777217 bytes",
    ),
]


@pytest.mark.parametrize(("sample", "reason", "detail"), INVALID)
def test_an_invalid_sample_is_a_reject(tmp_path, sample, reason, detail):
    (tmp_path / "0.tar").write_bytes(pack_samples(sample, members("1", "a cat")))

    rows, (reject,) = scan(tmp_path)

    assert ([*rows], reject.id, reject.reason) == (["1"], "0", reason)
    assert reject.detail.startswith(detail)


def test_the_video_of_a_sample_is_read_rather_than_a_picture_of_it(tmp_path):
    pictures = [{"0.jpg": b"2"}, members("0"), {"0.png": b"3"}]
    (tmp_path / "0.tar").write_bytes(
        pack_samples(*pictures, members("1", extension="JPG"))
    )

    rows, _ = scan(tmp_path)

    names = {key: (row.file_name, row.kind) for key, row in rows.items()}
    assert names == {"0": ("0.mp4", "video"), "1": ("1.JPG", "image")}


def test_an_animated_image_of_a_sample_is_a_video(tmp_path):
    animated = b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\x02\0\0\0"
    still = animated.replace(b"\x02", b"\0")
    (tmp_path / "0.tar").write_bytes(
        pack_samples({"0.webp": animated}, {"1.webp": still})
    )

    rows, _ = scan(tmp_path)

    assert {key: row.kind for key, row in rows.items()} == {"0": "video", "1": "image"}


def test_short_columns_of_a_sample_are_stored_and_any_that_the_user_names(tmp_path):
    sample = members(
        "0",
        captions=["a dog  runs", "a cat"],
        page="https://me:pw@host/a",
        note="x" * 1001,
        title="x" * 1000,
        list=[1],
        sha256="0",
        fps=25,
    )
    (tmp_path / "0.tar").write_bytes(pack_samples(sample))

    columns = Columns(captions=("captions", "note"))
    [row] = Source(tmp_path, columns=columns).scan()[1]

    assert (row.captions, [*row.meta]) == (
        ("a dog runs", "a cat", "x" * 1001),
        ["url", "title", "fps", "caption"],
    )


def test_compressed_shards_are_named(tmp_path):
    content = gzip.compress(pack_samples(members("1", "a cat")))
    for name in ("1.tar.gz", "2.tgz", "3.tar"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"gunzip.*1\.tar\.gz.*2\.tgz.*3\.tar"):
        list(scan_source(tmp_path)[1])

    (tmp_path / "0.tar").write_bytes(pack_samples(members("0", "a dog")))
    (tmp_path / "1.tar").write_bytes(gzip.decompress(content))  # as by `gunzip --keep`
    rows, rejects = scan(tmp_path)

    assert [*rows] == ["0", "1"]
    assert [reject.id for reject in rejects] == ["3.tar", "2.tgz"]
    assert all("gunzip" in reject.detail for reject in rejects)


@pytest.mark.parametrize(
    ("keys", "ids", "count"), [("a.1 b.1", ["a", "b"], 0), ("c.1 c.2", [], 2)]
)
def test_a_key_ends_at_the_first_dot(tmp_path, keys, ids, count):
    samples = [{f"{key}.mp4": b"1", f"{key}.txt": b"a dog"} for key in keys.split()]
    (tmp_path / "0.tar").write_bytes(pack_samples(*samples))

    rows, rejects = scan(tmp_path)

    assert [*rows] == ids
    assert [reject.reason for reject in rejects] == ["bad row"] * count


def test_a_tar_of_decoded_frames_is_no_download(tmp_path):
    (tmp_path / "0.tar").write_bytes(pack(("a.00.jpg", b"x"), ("a.json", b"{}")))

    with pytest.raises(InputError, match=r"`shards`.*: 0\.tar"):
        list(scan_source(tmp_path)[1])
