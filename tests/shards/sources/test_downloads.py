"""Shards of video2dataset and img2dataset: each sample, failed download and loss is a row or a
reject."""

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.downloads import scan_downloads
from alpro.shards.sources.scan import Source, scan_source
from tests.conftest import in_store
from tests.shards.conftest import damaged, headers_of, pack, rows_and_rejects


def about(key: str, **more) -> dict:
    columns = {
        "url": f"https://host.example/watch?v={key}",
        "key": key,
        "status": "success",
        "error_message": None,
    }
    return columns | {"videoid": int(key.strip("./").partition("_")[0])} | more


def members(
    key: str, caption: str | None = None, extension: str = "mp4", size: int = 200, **more
) -> dict[str, bytes]:
    text = {} if caption is None else {f"{key}.txt": caption.encode()}
    return {
        f"{key}.{extension}": key.encode() * size,
        **text,
        f"{key}.json": json.dumps(about(key, **more)).encode(),
    }


def scan(folder: Path) -> tuple[dict[str, Row], list[Reject]]:
    source = Source(folder)
    rows, rejects = rows_and_rejects(scan_downloads(folder, source.items))
    return {row.id: row for row in rows}, rejects


@pytest.fixture
def downloads(tmp_path) -> Path:
    """Two shards: three videos, of which one has no caption, and two clips of another; two failed
    downloads."""
    folder = tmp_path / "webvid"
    folder.mkdir()
    keys = [f"00000000{number}" for number in (0, 1, 3)]
    first = [
        members(key, "" if key.endswith("3") else f"caption  of {key}\n", split="train")
        for key in keys
    ]
    (folder / "00000.tar").write_bytes(pack(*(item for sample in first for item in sample.items())))
    secret = {
        "url": "https://me:pw@host.example",
        "status": "failed_to_download",
        "error_message": "HTTP Error 404",
    }
    failed = about("000000004", status="failed_to_subsample", error_message="no cuts")
    table = [*map(about, keys), about("000000002", **secret), failed]
    pq.write_table(pa.Table.from_pylist(table), folder / "00000.parquet")
    clips = [
        members(f"./000010000_{n:03d}", caption="a cut", clips=[[0, 1]], videoid=1)
        for n in range(2)
    ]
    (folder / "00001.tar").write_bytes(pack(*(item for sample in clips for item in sample.items())))
    return folder


def test_captions_statuses_and_clips_are_read(downloads):
    form, _ = scan_source(downloads)
    assert form == "shards of video2dataset or img2dataset"
    rows, rejects = scan(downloads)
    assert {
        name: (row.captions, row.group or row.name, row.split) for name, row in rows.items()
    } == {
        "000000000": (("caption of 000000000",), "000000000", "train"),
        "000000001": (("caption of 000000001",), "000000001", "train"),
        "000000003": ((), "000000003", "train"),
        "000010000_000": (("a cut",), "000010000", ""),
        "000010000_001": (("a cut",), "000010000", ""),
    }
    row = rows["000000001"]
    assert row.meta == {"videoid": 1, "url": "https://host.example/watch?v=000000001"}
    assert (row.file_name, row.kind, row.path) == (
        "000000001.mp4",
        "video",
        downloads / "00000.tar",
    )
    assert row.path.read_bytes()[row.member.offset :][: row.member.size] == b"000000001" * 200
    assert [(r.id, r.path, r.reason, r.detail) for r in rejects] == [
        ("000000002", "", "not fetched", "failed_to_download: HTTP Error 404"),
        (
            "000000004",
            "https://host.example/watch?v=000000004",
            "not fetched",
            "failed_to_subsample: no cuts",
        ),
    ]


def test_shards_at_a_url_give_the_same_rows_although_a_request_fails(
    downloads, memory, monkeypatch
):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", (0,))
    store = fsspec.filesystem("memory")
    in_store(*downloads.iterdir())
    whole = type(store).open
    asked = []

    def flaky(self, path, *how, **more):
        asked.append(path)
        if asked.count(path) == 1:
            raise RuntimeError("lost")
        return whole(self, path, *how, **more)

    monkeypatch.setattr(type(store), "open", flaky)
    here = list(scan_source(downloads)[1])
    there = list(scan_source(memory)[1])
    assert len(here) == len(there) == 7
    for one, other in zip(here, there, strict=True):
        moved = {"path": f"{memory}/{one.path.name}"} if isinstance(one, Row) else {}
        assert other == one.model_copy(update=moved)


@pytest.mark.parametrize("beside", ["table", "nothing"])
def test_a_damaged_download_keeps_or_counts_every_sample(tmp_path, beside):
    """Flips in the bytes of media may stay unseen, so that the media are compared only where the
    headers are hit."""
    keys = [f"{number:05d}" for number in range(4)]
    parts = [
        item
        for key in keys
        for item in members(key, f"cut {int(key)}", size=2000, split="test").items()
    ]
    content = pack(*parts)
    shard = tmp_path / "00000.tar"
    if beside == "table":
        table = pa.Table.from_pylist([{"key": key, "status": "success"} for key in keys])
        pq.write_table(table, shard.with_suffix(".parquet"))
    headers = headers_of(content)
    ranges = (
        range(at + 512, at + 512 + len(data)) for at, (_, data) in zip(headers, parts, strict=True)
    )
    in_data = {byte for place in ranges for byte in place}
    for changed in damaged(content, headers):
        shard.write_bytes(changed)
        rows, rejects = scan(tmp_path)
        differ = {at for at, (a, b) in enumerate(zip(content, changed, strict=False)) if a != b}
        if differ and differ <= in_data and len(changed) == len(content):
            assert len(rows) + len(rejects) >= 4  # not JSON, or not visible
            continue
        for key, row in rows.items():
            assert (row.captions, row.split) == ((f"cut {int(key)}",), "test")
            assert changed[row.member.offset :][: row.member.size] == key.encode() * 2000
        if len(rows) < 4:
            assert rejects
            assert beside == "nothing" or len(rows) + len(rejects) >= 4


@pytest.mark.parametrize(("lost", "reason"), [(3, "unreadable"), (1, "bad row")])
def test_members_lost_in_the_last_record_are_noticed(downloads, lost, reason):
    """Zeros from a header on look like the end of the tar: the whole sample, by the table, or its
    JSON."""
    content = (downloads / "00000.tar").read_bytes()
    at = headers_of(content)[-lost]
    (downloads / "00000.tar").write_bytes(content[:at] + bytes(1024))
    rows, rejects = scan(downloads)
    assert [name for name in rows if name.startswith("00000")] == ["000000000", "000000001"]
    assert (rejects[0].id, rejects[0].reason) == ("000000003", reason)


def test_a_tar_without_samples_is_a_reject(tmp_path):
    (tmp_path / "00001.tar").write_bytes(pack(("0.mp4", b"1"), ("0.txt", b"a dog")))
    for content in (b"", b"no tar", bytes(1024), bytes(10_240)):
        (tmp_path / "00000.tar").write_bytes(content)
        assert scan_source(tmp_path)[0] == "shards of video2dataset or img2dataset"
        reject, row = scan_source(tmp_path)[1]
        assert (reject.id, reject.reason, row.id) == ("00000.tar", "unreadable", "0")


def test_samples_of_one_key_are_rejects_and_not_merged(tmp_path):
    one, other = (members(key, f"a {key}").items() for key in "01")
    for count in (2, 3):
        (tmp_path / "00000.tar").write_bytes(pack(*one, *other, *(count - 1) * [*one]))
        (row,), rejects = scan(tmp_path)[0].values(), scan(tmp_path)[1]
        assert (row.id, row.captions) == ("1", ("a 1",))
        assert [(reject.id, reject.reason) for reject in rejects] == [("0", "bad row")] * count
        assert f"in the shard {count} times" in rejects[0].detail
    (tmp_path / "00000.tar").write_bytes(pack(*one))
    (tmp_path / "00001.tar").write_bytes(pack(*one))
    with pytest.raises(InputError, match=r"00001\.tar.*the id '0' is also that of .*00000\.tar"):
        scan(tmp_path)


def test_an_invalid_sample_is_a_reject(tmp_path):
    for sample, reason, detail in (
        (members("0", status="failed_to_subsample"), "not fetched", "failed_to_subsample"),
        ({"0.json": b'{"status": "success"}'}, "not fetched", "no media in the shard"),
        (members("0") | {"0.txt": "Café".encode("latin-1")}, "bad row", "0.txt: 'utf-8' codec"),
        (members("0") | {"0.json": b'{"status": '}, "bad row", "0.json: "),
        (members("0", note="a\0"), "bad row", "0.json: a NUL character"),
        (members("0", split="fold9"), "bad row", "unknown split"),
        (members("0") | {"0.txt": b"x" * (1 << 24) + b"x"}, "bad row", "0.txt: 16777217 bytes"),
    ):
        (tmp_path / "0.tar").write_bytes(pack(*sample.items(), *members("1", "a cat").items()))
        rows, (reject,) = scan(tmp_path)
        assert (list(rows), reject.id, reject.reason) == (["1"], "0", reason)
        assert reject.detail.startswith(detail)


def test_what_is_kept_of_a_sample(tmp_path):
    """The video rather than a picture of it; short columns; the group of a clip only if the sample
    says that it is."""
    more = {
        "note": "x" * 1001,
        "title": "x" * 1000,
        "list": [1],
        "page": "https://me:pw@host/a",
        "sha256": "0",
    }
    sample = (
        {"00_000.jpg": b"2"} | members("00_000", caption="a dog", **more) | {"00_000.png": b"3"}
    )
    (tmp_path / "0.tar").write_bytes(pack(*sample.items(), *members("1", "a cat", "JPG").items()))
    row, image = scan(tmp_path)[0].values()
    assert (row.file_name, row.kind, row.group, row.name) == ("00_000.mp4", "video", "", "00_000")
    assert (row.captions, list(row.meta)) == (("a dog",), ["url", "videoid", "title"])
    assert (image.file_name, image.kind) == ("1.JPG", "image")


def test_compressed_shards_beside_others_are_rejects_and_alone_they_are_named(tmp_path):
    content = gzip.compress(pack(*members("1", "a cat").items()))
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in ("1.tar.gz", "2.tgz", "3.tar"):
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"gunzip.*1\.tar\.gz.*2\.tgz.*3\.tar"):
        list(scan_source(folder)[1])

    (folder / "0.tar").write_bytes(pack(*members("0", "a dog").items()))
    rows, rejects = scan(folder)
    assert list(rows) == ["0"]
    assert [(reject.id, reject.reason) for reject in rejects] == [
        ("3.tar", "unreadable"),
        ("1.tar.gz", "unreadable"),
        ("2.tgz", "unreadable"),
    ]
    assert all("gunzip" in reject.detail for reject in rejects)
    for name in ("1.tar", "2.tar", "3.tar"):  # as by `gunzip --keep`
        key = name.removesuffix(".tar")
        (folder / name).write_bytes(pack(*members(key, "a cat").items()))
    rows, rejects = scan(folder)
    assert (list(rows), rejects) == (["0", "1", "2", "3"], [])


def test_keys_with_dots_end_at_the_first_and_what_no_reader_takes_is_named(tmp_path):
    for number, keys in enumerate((("a.1", "b.1"), ("clip.1", "clip.2"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        parts = [(f"{key}.{kind}", b"a dog") for key in keys for kind in ("mp4", "txt")]
        (folder / "0.tar").write_bytes(pack(*parts))
    assert scan_source(tmp_path / "0")[0] == "shards of video2dataset or img2dataset"
    rows, _ = scan(tmp_path / "0")
    assert {key: row.captions for key, row in rows.items()} == {"a": ("a dog",), "b": ("a dog",)}
    rows, rejects = scan(tmp_path / "1")
    assert (rows, {reject.reason for reject in rejects}) == ({}, {"bad row"})

    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.tar").write_bytes(pack(("a.00.jpg", b"x"), ("a.json", b"{}")))
    with pytest.raises(InputError, match=r"`shards`.*: 0\.tar"):
        list(scan_source(frames)[1])
