"""Shards: reproducible bytes, member offsets in the index, and errors for invalid members and
damaged tars."""

import hashlib
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.clip import DecodeError
from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.schema import INDEX, Question
from alpro.shards.sources.downloads import scan_downloads
from alpro.shards.sources.scan import Source
from alpro.shards.tar import BLOCK, DamagedTar, tar_members
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.index_shards import join_checksums
from tests.conftest import one_line
from tests.shards.conftest import damaged, headers_of, pack

ABOUT = {
    "version": 1,
    "id": "a",
    "kind": "video",
    "split": "train",
    "group": "g",
    "captions": ["x"],
    "questions": [],
    "duration": 1.0,
    "width": 2,
    "height": 2,
    "source": "a.mp4",
}
JSON = json.dumps(ABOUT).encode()


def write(path, samples):
    with ShardWriter(path, quality=90) as writer:
        for row, clip in samples:
            writer.write(row, clip)
        assert writer.count == len(samples)
    return path


@pytest.fixture
def samples(make_row, smooth_clip):
    return [
        (make_row(name), smooth_clip(seed))
        for seed, name in enumerate(["a", "b/c", "ü 雪"])
    ]


def special(kind):
    info = tarfile.TarInfo()
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


@pytest.fixture
def archive(tmp_path):
    """archive(members): a tar of other tools, see `pack`."""

    def make(*members):
        (tmp_path / "foreign.tar").write_bytes(pack(*members))
        return tmp_path / "foreign.tar"

    return make


def test_names_of_members_have_a_hash_of_the_id_and_the_frame_number(samples, tmp_path):
    keys = [hashlib.sha256(row.id.encode()).hexdigest()[:32] for row, _ in samples]
    with tarfile.open(write(tmp_path / "a.tar", samples)) as tar:
        names = tar.getnames()

    members = ["00.jpg", "01.jpg", "02.jpg", "json"]
    assert names == [f"{key}.{extension}" for key in keys for extension in members]
    assert index_shard(tmp_path / "a.tar")["key"].to_pylist() == keys
    assert keys[0] == "ca978112ca1bbdcafac231b39a23dc4d"  # sha256sum of "a"


def test_a_shard_is_not_kept_without_samples_or_after_an_error(samples, tmp_path):
    def fail():
        with ShardWriter(tmp_path / "c.tar") as writer:
            writer.write(*samples[0])
            raise ZeroDivisionError

    write(tmp_path / "a.tar", samples[:1])
    write(tmp_path / "b.tar", [])
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_index_has_the_metadata_of_a_sample(make_row, smooth_clip, tmp_path):
    question = Question(question="what?", answer="雪", type="what")
    row = make_row(
        "ü 雪", captions=("one", "é"), questions=(question,), split="test", kind="image"
    )

    index = index_shard(write(tmp_path / "a.tar", [(row, smooth_clip(0))]))

    fields = {"id", "split", "kind", "group", "captions", "questions"}
    about = row.model_dump(mode="json", include=fields)
    about |= {
        "source": row.path.name,
        "duration": 2.5,
        "width": 64,
        "height": 48,
        "shard": "a.tar",
    }
    assert index.schema == INDEX
    assert index.select([*about]).to_pylist() == [about]


def test_a_row_whose_bytes_are_too_many_for_a_reader_is_refused_and_the_shard_goes_on(
    tmp_path, make_row, smooth_clip
):
    """Its characters are not; the shard has no member of it."""
    long = make_row("long", captions=("\U0001f600" * 4_500_000,))
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write(make_row("a"), smooth_clip(0))
        with pytest.raises(DecodeError, match=r"bad row: .* bytes, the limit is"):
            writer.write(long, smooth_clip(1))
        writer.write(make_row("b"), smooth_clip(2))
    assert index_shard(tmp_path / "a.tar")["id"].to_pylist() == ["a", "b"]


def test_shards_of_other_tools_are_indexed(archive):
    """Other keys, frames out of order and of other digits, samples in between one another; names as
    `tar -c .` writes them, with the folder itself."""
    folder = ("./", special(tarfile.DIRTYPE))
    members = [
        folder,
        ("x.1.jpg", b"1"),
        ("y.json", JSON),
        ("./x.json", JSON),
        ("././x.0.jpg", b"00"),
    ]
    x, y = index_shard(archive(*members, ("y.007.jpg", b"777"))).to_pylist()
    assert (x["key"], x["frame_sizes"]) == ("x", [2, 1])  # frames by number
    assert y["key"] == "y"
    assert y["frame_sizes"] == [3]


SAMPLE = (("0.json", JSON), ("0.00.jpg", b"x"))
NEITHER = "is neither <key>.json nor"
NAMES = [
    "0.pkl",
    "0.00.jpg.pkl",
    "0.².jpg",
    "README",
    "../0.json",
    ".0.json",
    "/etc/0.json",
]
LINKS = (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)

MEMBERS = [
    *(((*SAMPLE, (name, b"\x80\x04.")), NEITHER) for name in NAMES),
    *(((*SAMPLE, ("1.00.jpg", special(kind))), NEITHER) for kind in LINKS),
    ((*SAMPLE, ("0.mp4", b"1")), "set `data` instead of `shards`"),  # raw downloads
    *(
        ((*SAMPLE, (name, b"1")), "with a key without a dot")
        for name in ("a/0.00.jpg", "a.1.00.jpg")
    ),
    *(((*SAMPLE, (name, JSON)), "duplicate member") for name in ("0.json", "0.0.jpg")),
    (SAMPLE[:1], "sample 0 has no json or no frames"),
    (SAMPLE[1:], "sample 0 has no json or no frames"),
    *(
        ((("0.json", text), SAMPLE[1]), "sample 0: ")
        for text in (b"[1]", b'{"id": ', b"\xff\xfe")
    ),
    (
        (("0.json", JSON.ljust((1 << 24) + 1)), SAMPLE[1]),
        "has 16777217 bytes, the limit is",
    ),
]


@pytest.mark.parametrize(("members", "message"), MEMBERS)
def test_an_invalid_member_raises_a_one_line_error_with_the_shard(
    archive, members, message
):
    path = archive(*members)

    with one_line(str(path), message):
        index_shard(path)


INVALID = [
    *((name, None) for name in sorted(ABOUT.keys() - {"version"})),  # missing
    *(("duration", value) for value in ("long", float("nan"), -0.5, 1e18)),
    ("width", 2**40),
    ("height", -1),
    ("version", 2),
    ("captions", "a dog"),
    ("captions", [" \n"]),
    ("questions", [{"question": "what?", "answer": " ", "type": "what"}]),
    ("split", "dev"),
]


@pytest.mark.parametrize(("field", "value"), INVALID)
def test_a_missing_or_invalid_field_raises_an_error(archive, field, value):
    about = {
        name: old for name, old in (ABOUT | {field: value}).items() if old is not None
    }
    path = archive(("0.json", json.dumps(about).encode()), SAMPLE[1])

    with one_line("foreign.tar: sample 0", f": {field}"):
        index_shard(path)


def test_a_sample_has_the_frames_that_it_counts_if_it_counts_any(archive):
    def index(frames):
        about = json.dumps(ABOUT | {"frames": frames, "duration": 0, "captions": []})
        return index_shard(archive(("0.json", about.encode()), SAMPLE[1]))

    assert index(0).num_rows == index(1).num_rows == 1
    with one_line("has 1 of 2 frames"):
        index(2)


def test_webdataset_reads_metadata_and_frames(clips):
    import webdataset

    shards = sorted(map(str, clips.glob("train-*.tar")))
    reader = ShardReader(clips, "train")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    expected = [reader[number].metadata for number in range(len(reader))]
    assert [sample["json"] for sample in samples] == expected
    names = sorted(key for key in samples[0] if key.endswith(".jpg"))
    frames = [np.asarray(samples[0][name]) for name in names]
    assert np.array_equal(frames, reader[0].frames())


@pytest.fixture
def corpus(make_row, smooth_clip, tmp_path):
    counts = [3, 3, 1, 1]  # frames: the last shards are below 10 KB
    clips = [
        (make_row(f"v{n}"), smooth_clip(n, count)) for n, count in enumerate(counts)
    ]
    write(tmp_path / "a.tar", clips)
    pq.write_table(index_shard(tmp_path / "a.tar"), tmp_path / "index.parquet")
    return tmp_path


def test_a_sample_of_a_damaged_shard_is_as_it_was_written_or_an_error(corpus):
    shard = corpus / "a.tar"
    content = shard.read_bytes()
    whole = ShardReader(corpus)
    expected = [(whole[number].metadata, whole[number].frames()) for number in range(4)]
    results = Counter()

    for changed in damaged(content, headers_of(content)):
        shard.write_bytes(changed)
        reader = ShardReader(corpus)
        for number, (about, frames) in enumerate(expected):
            try:
                sample = reader[number]
                assert sample.metadata == about
                assert np.array_equal(sample.frames(), frames)
                results["read"] += 1
            except Unreadable:
                results["lost"] += 1

    assert results["read"] > 0
    assert results["lost"] > 100


def test_a_damaged_shard_has_all_samples_of_its_index_or_raises_an_error(
    corpus,
):
    content = (corpus / "a.tar").read_bytes()
    known = index_shard(corpus / "a.tar")
    headers = headers_of(content)
    rows = {row["id"]: row for row in known.to_pylist()}
    blocks = range(0, len(content), BLOCK)
    # Zeros to the end.
    ended = [content[:at] + bytes(len(content) - at) for at in blocks]
    results = Counter()

    for changed in (*damaged(content, headers), *ended):
        (corpus / "a.tar").write_bytes(changed)
        try:
            index = index_shard(corpus / "a.tar")
        except InputError:
            results["refused"] += 1
            continue
        assert index.num_rows == 4 or changed not in ended  # also without an index
        same = pc.is_in(join_checksums(known), join_checksums(index))
        if not pc.all(same).as_py():
            results["changed"] += 1
            continue

        # What is accepted has the bytes of the first index.
        assert {row["id"]: row for row in index.to_pylist()} == rows
        results["whole"] += 1

    assert results["refused"] > 200
    assert results["whole"] > 0
    assert results["changed"] > 5


TAR = pack(("a.json", b"{}"), ("b.json", b"[]"))
FLIPPED = TAR[:1024] + bytes([TAR[1024] ^ 1]) + TAR[1025:]
DAMAGED = [
    (FLIPPED, "byte 1024: a bad header"),
    (TAR[:1024], "byte 1024: a bad header, .*, or an end without two blocks of zeros"),
    (TAR[:513], "byte 0: 'a.json' of 2 bytes, of a file of 513"),
    (TAR + TAR, "byte 2048: .* a hole of zeros"),
    (TAR[:3072] + b"x", "byte 2048"),
    *(
        (TAR[:2048] + bytes(zeros), "byte 2048")
        for zeros in (512, 2048, 10_752, 18_432)
    ),
    (TAR[:1024] + bytes(512) + TAR[1024:2048], "byte 1024"),
    # A name of megabytes.
    (pack(("x" * (2 << 20), b""), form=tarfile.GNU_FORMAT), "byte 0"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_the_error_of_a_damaged_tar_names_the_byte_and_the_reason(content, message):
    with pytest.raises(DamagedTar, match=f"damaged at {message}"):
        list(tar_members(io.BytesIO(content)))


@pytest.mark.parametrize("zeros", [1024, 1536, 8192])
def test_a_tar_ends_with_two_blocks_of_zeros_or_a_whole_record(zeros):
    members = tar_members(io.BytesIO(TAR[:2048] + bytes(zeros)))

    places = [(member.name, member.offset, member.size) for member in members]
    assert places == [("a.json", 512, 2), ("b.json", 1536, 2)]


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_names_and_sizes_of_every_format_are_those_of_tarfile(form):
    long = 90 if form == tarfile.USTAR_FORMAT else 200
    content = pack(
        ("x" * long + ".json", b"1" * 700), ("b", b""), ("c", b"3"), form=form
    )
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]

    members = list(tar_members(io.BytesIO(content)))

    assert [(member.name, member.offset, member.size) for member in members] == expected
    assert [len(member.read(io.BytesIO(content))) for member in members] == [700, 0, 1]


def test_a_link_has_no_data_and_a_sparse_file_is_no_file():
    link = special(tarfile.SYMTYPE)
    link.size = 700
    sparse = special(tarfile.GNUTYPE_SPARSE)

    content = link.tobuf() + sparse.tobuf() + bytes(2 * BLOCK)
    members = tar_members(io.BytesIO(content))

    assert [(member.size, member.is_file) for member in members] == [
        (0, False),
        (0, False),
    ]


SIZES = (2**63, -1)


def binary_size(size):
    header = tarfile.TarInfo("00000.mp4")
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1536)


@pytest.mark.parametrize(
    "content",
    [
        *map(binary_size, SIZES),
        *(
            pack(("00000.mp4", b"1"), size=str(size))
            for size in (*SIZES, "x", "9" * 5000)
        ),
    ],
    ids=range(6),
)
def test_a_member_of_absurd_size_is_an_error(tmp_path, content):
    """In the header, as a binary number, or in the extended header of the format pax."""
    (tmp_path / "00000.tar").write_bytes(content)

    reject, *_ = scan_downloads(tmp_path, Source(tmp_path).items)

    assert reject.reason == "unreadable"
    assert reject.id == "00000.tar"
    with pytest.raises(DamagedTar, match="damaged at byte"):
        list(tar_members(io.BytesIO(content)))
