"""Damaged tars: every sample is read as it was written, or counted as lost. Never is one missing without a word."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.downloads import scan_downloads
from alpro.shards.tar import DamagedTar, tar_members
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.index_shards import check_frames

BLOCK = 512


def pack(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT, **header) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = dict(header)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def damaged(content: bytes, headers: list[int]) -> Iterator[bytes]:
    """The tar with flipped bits (in the headers, and anywhere), holes of zeros, cut at blocks and members, joined."""
    rng = random.Random(0)
    places = [at + byte for at in headers for byte in (0, 3, 101, 124, 135, 148, 156, 257, 400)]
    for at in places + [rng.randrange(len(content)) for _ in range(40)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    for at in range(0, len(content), 3 * BLOCK):
        yield content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]
        yield content[:at]
    yield from (content[: at + extra] for at in headers for extra in (0, 100, BLOCK, 700))
    yield from (content + content, content + bytes(20_000), content + b"x" * BLOCK, b"", b"x" * 600)


def headers_of(content: bytes) -> list[int]:
    return [member.offset - BLOCK for member in tar_members(io.BytesIO(content))]


@pytest.fixture
def corpus(make_row: Callable[..., Row], smooth_clip, tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "a.tar", quality=90) as writer:
        for seed in range(4):
            writer.write(make_row(f"v{seed}"), smooth_clip(seed, 3))
    pq.write_table(index_shard(tmp_path / "a.tar"), tmp_path / "index.parquet")
    return tmp_path


def test_a_sample_of_a_damaged_shard_is_as_it_was_written_or_an_error(corpus):
    shard = corpus / "a.tar"
    content, reader = shard.read_bytes(), ShardReader(corpus)
    expected = [(sample.about, sample.frames()) for sample in map(reader.__getitem__, range(4))]
    read, lost = 0, 0
    for number, changed in enumerate(damaged(content, headers_of(content))):
        shard = corpus / f"{number}.tar"
        shard.write_bytes(changed)
        reader = ShardReader(corpus)
        reader._shards = [shard]
        for number, (about, frames) in enumerate(expected):
            try:
                sample = reader[number]
                assert sample.about == about
                assert np.array_equal(sample.frames(), frames)
                read += 1
            except Unreadable:
                lost += 1
    assert read > 0
    assert lost > 100


def test_a_damaged_shard_has_all_samples_of_its_index_or_rejects_or_raises_an_error(corpus):
    content, known = (corpus / "a.tar").read_bytes(), index_shard(corpus / "a.tar")
    whole, rejected, refused = 0, 0, 0
    for changed in damaged(content, headers_of(content)):
        (corpus / "a.tar").write_bytes(changed)
        try:
            index = index_shard(corpus / "a.tar")
        except InputError:
            refused += 1
            continue
        good, rejects, numbers = check_frames(index, known, corpus / "a.tar", corpus / "a.tar")
        assert good.num_rows + len(rejects) == numbers["expected"]["train"]["items"] == 4
        ids = good["id"].to_pylist() + [reject["id"] for reject in rejects]
        assert sorted(ids) == ["v0", "v1", "v2", "v3"]
        for row in good.to_pylist():  # what is accepted has the bytes of the first index
            (same,) = (old for old in known.to_pylist() if old["id"] == row["id"])
            assert row == same
        whole, rejected = whole + (good.num_rows == 4), rejected + bool(rejects)
    assert refused > 200
    assert whole > 0
    assert rejected > 5


@pytest.mark.parametrize("beside", ["table", "statistics", "nothing"])
def test_a_damaged_download_keeps_or_counts_every_sample(tmp_path, beside):
    """Flips in the bytes of media may stay unseen, so that the media are compared only where the headers are hit."""
    parts: list[tuple[str, bytes]] = []
    for number in range(4):
        about = {"key": f"{number:05d}", "status": "success", "caption": f"c{number}", "split": "test"}
        files = {"mp4": bytes([number + 1]) * 5000, "txt": f"c{number}".encode(), "json": json.dumps(about).encode()}
        parts += [(f"{number:05d}.{extension}", data) for extension, data in files.items()]
    content = pack(*parts)
    shard = tmp_path / "00000.tar"
    if beside == "table":
        table = pa.Table.from_pylist([{"key": f"{n:05d}", "status": "success"} for n in range(4)])
        pq.write_table(table, tmp_path / "00000.parquet")
    elif beside == "statistics":
        (tmp_path / "00000_stats.json").write_text('{"count": 7, "successes": 4}')
    headers = headers_of(content)
    ranges = (range(at + 512, at + 512 + len(data)) for at, (_, data) in zip(headers, parts, strict=True))
    in_data = {byte for place in ranges for byte in place}
    for changed in damaged(content, headers):
        shard.write_bytes(changed)
        records = list(scan_downloads(tmp_path))
        rows = [record for record in records if isinstance(record, Row)]
        rejects = [record for record in records if isinstance(record, Reject)]
        differ = {at for at, (a, b) in enumerate(zip(content, changed, strict=False)) if a != b}
        if differ and differ <= in_data and len(changed) == len(content):
            assert len(records) >= 4  # not JSON, or not visible
            continue
        for row in rows:
            number = int(row.id)
            assert (row.captions, row.split) == ((f"c{number}",), "test")
            assert changed[row.member.offset :][: row.member.size] == bytes([number + 1]) * 5000
        if len(rows) < 4:
            assert rejects
            assert beside == "nothing" or len(rows) + len(rejects) >= 4


def test_the_error_names_the_byte_and_the_reason():
    content = pack(("a.json", b"{}"), ("b.json", b"[]"))
    whole = list(tar_members(io.BytesIO(content)))
    assert [(member.name, member.offset, member.size) for member in whole] == [("a.json", 512, 2), ("b.json", 1536, 2)]
    flipped = bytearray(content)
    flipped[1024] ^= 1
    cases = [
        (bytes(flipped), r"byte 1024: not a header \(bad checksum\)"),
        (content[:1024], "byte 1024: it ends without two blocks of zeros"),
        (content[: 2048 + 512], "byte 2048: it ends without two blocks of zeros"),
        (content[:513], r"byte 0: 'a.json' of 2 bytes, of a file of 513"),
        (content + content, "byte 2048: a hole of zeros, or the end of a first archive: 18432 bytes follow"),
        (content[:3072] + b"x", "byte 2048: a hole of zeros"),
        (content + bytes(20_000), "byte 2048: a hole of zeros"),
        (content[:1024] + bytes(512) + content[1024:2048], "byte 1024: a hole of zeros"),
    ]
    for changed, message in cases:
        with pytest.raises(DamagedTar, match=f"damaged at {message}"):
            list(tar_members(io.BytesIO(changed)))
    assert list(tar_members(io.BytesIO(content[:3072]))) == whole  # two blocks of zeros are enough


def test_names_and_sizes_of_every_format_are_those_of_tarfile():
    name = "folder/" + "ü" * 200 + ".json"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [("x" * 90 + ".json" if form == tarfile.USTAR_FORMAT else name, b"1" * 700), ("b", b""), ("c", b"3")]
        content = pack(*members, form=form)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            expected = [(member.name, member.offset_data, member.size) for member in tar]
        found = list(tar_members(io.BytesIO(content)))
        assert [(member.name, member.offset, member.size) for member in found] == expected
        assert [member.read(io.BytesIO(content)) for member in found] == [data for _, data in members]


@pytest.mark.parametrize("size", [2**63, 2**63 - 1, 10**20, -1, "x", "9" * 5000])
def test_a_member_of_absurd_size_is_an_error(size, tmp_path):
    """In the header, as a binary number, or in the extended header of the format pax."""
    contents = [pack(("00000.mp4", b"1"), size=str(size))]
    if isinstance(size, int) and size < 2**70:
        header = tarfile.TarInfo("00000.mp4")
        header.size = size
        contents.append(header.tobuf(tarfile.GNU_FORMAT) + bytes(1536))
    for content in contents:
        with pytest.raises(DamagedTar, match="damaged at byte"):
            list(tar_members(io.BytesIO(content)))
        (tmp_path / "00000.tar").write_bytes(content)
        (reject,) = scan_downloads(tmp_path)
        assert (reject.reason, reject.id) == ("unreadable", "00000.tar")


def test_samples_of_one_key_are_rejects_and_not_merged(tmp_path):
    one = [("0.mp4", b"1"), ("0.txt", b"a dog"), ("0.json", b'{"status": "success"}')]
    other = [("1.mp4", b"1"), ("1.txt", b"a cat"), ("1.json", b"{}")]
    for count in (2, 3):
        (tmp_path / "00000.tar").write_bytes(pack(*one, *other, *(count - 1) * one))
        *rejects, row = sorted(scan_downloads(tmp_path), key=lambda record: record.id)
        assert (row.id, row.captions) == ("1", ("a cat",))
        assert [(reject.id, reject.reason) for reject in rejects] == [("0", "bad row")] * count
        assert f"0.json is in the shard {count} times" in rejects[0].detail


@pytest.mark.parametrize("content", [b"", bytes(1024), bytes(10_240)])
def test_a_tar_without_samples_is_a_reject(content, tmp_path, make_row, smooth_clip):
    (tmp_path / "00000.tar").write_bytes(content)
    (tmp_path / "00001.tar").write_bytes(pack(("0.mp4", b"1"), ("0.txt", b"a dog")))
    reject, row = scan_downloads(tmp_path)
    assert (reject.id, reject.reason, row.id) == ("00000.tar", "unreadable", "0")
    with pytest.raises(InputError, match=r"00000\.tar"):
        index_shard(tmp_path / "00000.tar")


def test_zeros_at_the_end_of_an_own_shard_lose_no_frames_in_silence(tmp_path, make_row, smooth_clip):
    """The last record of a tar may end with ten kilobytes of zeros."""
    with ShardWriter(tmp_path / "a.tar", quality=90) as writer:
        for seed in range(3):
            writer.write(make_row(f"v{seed}"), smooth_clip(seed, 4))
    content = (tmp_path / "a.tar").read_bytes()
    for at in headers_of(content)[-4:]:  # the frames of the last sample
        (tmp_path / "a.tar").write_bytes(content[:at] + bytes(min(10_240, len(content) - at)))
        with pytest.raises(InputError, match=r"a\.tar: sample"):
            index_shard(tmp_path / "a.tar")


def test_a_caption_that_is_not_utf8_is_a_reject(tmp_path):
    one = [("0.mp4", b"1"), ("0.txt", "Café".encode("latin-1")), ("0.json", b"{}")]
    (tmp_path / "00000.tar").write_bytes(pack(*one))
    (reject,) = scan_downloads(tmp_path)
    assert "0.txt: not UTF-8" in reject.detail


def test_only_files_have_data():
    """A link has none whatever its header says; a sparse file has other bytes than its data."""
    link, sparse = tarfile.TarInfo("link"), tarfile.TarInfo("sparse")
    link.type, link.size = tarfile.SYMTYPE, 700
    sparse.type = tarfile.GNUTYPE_SPARSE
    content = link.tobuf() + sparse.tobuf() + pack(("a.json", b"{}"), **{"GNU.sparse.major": "1"})
    members = list(tar_members(io.BytesIO(content)))
    assert [(member.name, member.size, member.is_file) for member in members] == [
        ("link", 0, False),
        ("sparse", 0, False),
        ("a.json", 2, False),
    ]


def test_a_name_of_megabytes_is_an_error():
    content = pack(("x" * (2 << 20), b""), form=tarfile.GNU_FORMAT)
    with pytest.raises(DamagedTar, match="damaged at byte 0"):
        list(tar_members(io.BytesIO(content)))


def test_statistics_beside_a_shard_count_videos(tmp_path, monkeypatch):
    """Two clips are of one video. A shard that has all has no rejects; absurd statistics do not fill a disk."""
    monkeypatch.setattr("alpro.shards.sources.downloads.MAX_LOST", 3)
    about = b'{"caption": "a dog", "clips": [[0, 1]]}'
    names = ["00_000", "00_001", "01_000"]
    (tmp_path / "0.tar").write_bytes(pack(*((f"{n}.{e}", about) for n in names for e in ("mp4", "json"))))
    for successes, lost in (("2", 0), ("3", 1), ("1000000000000", 3), ('"x"', 0)):
        (tmp_path / "0_stats.json").write_text(f'{{"successes": {successes}}}')
        records = list(scan_downloads(tmp_path))
        assert [record.id for record in records[:3]] == names
        assert [(record.reason, record.id) for record in records[3:]] == [
            ("unreadable", f"0.tar lost {number}") for number in range(lost)
        ]


def test_what_is_kept_of_a_sample_of_a_download(tmp_path):
    """The video rather than a picture of it; short columns; the group of a clip only if the sample says that it is."""
    about = json.dumps({"caption": "a dog", "note": "x" * 1001, "title": "x" * 1000}).encode()
    (tmp_path / "0.tar").write_bytes(pack(("00_000.mp4", b"1"), ("00_000.jpg", b"2"), ("00_000.json", about)))
    (row,) = scan_downloads(tmp_path)
    assert (row.file_name, row.kind, row.group, row.name) == ("00_000.mp4", "video", "", "00_000")
    assert list(row.meta) == ["title"]
