"""Damaged tars: every sample is read as it was written, or counted as lost. Never is one missing without a word."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.schema import Reject
from alpro.shards.sources.downloads import scan_downloads
from alpro.shards.tar import BLOCK, DamagedTar, tar_members
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.index_shards import check_frames
from tests.shards.conftest import damaged, headers_of, pack


@pytest.fixture
def corpus(make_row, smooth_clip, tmp_path) -> Path:
    with ShardWriter(tmp_path / "a.tar", quality=90) as writer:
        for seed in range(4):
            writer.write(make_row(f"v{seed}"), smooth_clip(seed, 3 - 2 * (seed > 1)))  # the last are below 10 KB
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
    headers = headers_of(content)
    ended = [content[:at] + bytes(len(content) - at) for at in range(0, len(content), BLOCK)]  # zeros to the end
    whole, rejected, refused = 0, 0, 0
    for changed in (*damaged(content, headers), *ended):
        (corpus / "a.tar").write_bytes(changed)
        try:
            index = index_shard(corpus / "a.tar")
        except InputError:
            refused += 1
            continue
        assert index.num_rows == 4 or changed not in ended  # also without an index
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


def test_a_file_without_samples_is_no_shard(tmp_path):
    for content in (b"", bytes(1024), bytes(10_240), b"not a tar" * 200, b"\x1f\x8b\x08"):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.tar: (it has no samples|not a readable shard)"):
            index_shard(tmp_path / "a.tar")


def test_the_error_names_the_byte_and_the_reason():
    content = pack(("a.json", b"{}"), ("b.json", b"[]"))
    whole = list(tar_members(io.BytesIO(content)))
    assert [(member.name, member.offset, member.size) for member in whole] == [("a.json", 512, 2), ("b.json", 1536, 2)]
    flipped = bytearray(content)
    flipped[1024] ^= 1
    for changed, message in (
        (bytes(flipped), "byte 1024: a bad header"),
        (content[:1024], "byte 1024: a bad header, .*, or an end without two blocks of zeros"),
        (content[: 2048 + 512], "byte 2048"),
        (content[:513], "byte 0: 'a.json' of 2 bytes, of a file of 513"),
        (content + content, "byte 2048: .* a hole of zeros"),
        (content[:3072] + b"x", "byte 2048"),
        *((content[:2048] + bytes(zeros), "byte 2048") for zeros in (512, 2048, 10_752, 18_432)),
        (content[:1024] + bytes(512) + content[1024:2048], "byte 1024"),
        (pack(("x" * (2 << 20), b""), form=tarfile.GNU_FORMAT), "byte 0"),  # a name of megabytes
    ):
        with pytest.raises(DamagedTar, match=f"damaged at {message}"):
            list(tar_members(io.BytesIO(changed)))
    for zeros in (1024, 1536, 8192):  # two blocks are enough; a whole record is possible
        assert list(tar_members(io.BytesIO(content[:2048] + bytes(zeros)))) == whole


def test_names_and_sizes_of_every_format_are_those_of_tarfile():
    name = "folder/" + "ü" * 200 + ".json"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [("x" * 90 + ".json" if form == tarfile.USTAR_FORMAT else name, b"1" * 700), ("b", b""), ("c", b"3")]
        content = pack(*members, form=form)
        content = pack(*members, form=form)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            expected = [(member.name, member.offset_data, member.size) for member in tar]
        found = list(tar_members(io.BytesIO(content)))
        assert [(member.name, member.offset, member.size) for member in found] == expected
        assert [member.read(io.BytesIO(content)) for member in found] == [data for _, data in members]
    # A link has no data whatever its header says; a sparse file has other bytes than its data.
    link, sparse = tarfile.TarInfo("link"), tarfile.TarInfo("sparse")
    link.type, link.size = tarfile.SYMTYPE, 700
    sparse.type = tarfile.GNUTYPE_SPARSE
    content = link.tobuf() + sparse.tobuf() + pack(("a.json", b"{}"))[: 4 * BLOCK]
    members = [(member.name, member.size, member.is_file) for member in tar_members(io.BytesIO(content))]
    assert members == [("link", 0, False), ("sparse", 0, False), ("a.json", 2, True)]


def test_a_member_of_absurd_size_is_an_error(tmp_path):
    """In the header, as a binary number, or in the extended header of the format pax."""
    sizes = (2**63, 2**63 - 1, 10**20, -1)
    contents = [pack(("00000.mp4", b"1"), size=str(size)) for size in (*sizes, "x", "9" * 5000)]
    for size in sizes:
        header = tarfile.TarInfo("00000.mp4")
        header.size = size
        contents.append(header.tobuf(tarfile.GNU_FORMAT) + bytes(1536))
    for content in contents:
        with pytest.raises(DamagedTar, match="damaged at byte"):
            list(tar_members(io.BytesIO(content)))
        (tmp_path / "00000.tar").write_bytes(content)
        reject = next(record for record in scan_downloads(tmp_path) if isinstance(record, Reject))
        assert (reject.reason, reject.id) == ("unreadable", "00000.tar")
