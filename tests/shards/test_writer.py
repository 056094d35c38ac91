"""Shards: reproducible bytes, member offsets in the index, and errors for invalid members."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from alpro.shards.decoding import Clip
from alpro.shards.reader import ShardReader
from alpro.shards.schema import INDEX, Question, Row
from alpro.shards.writer import ShardWriter, encode_jpeg, index_shard
from tests.conftest import one_line
from tests.shards.conftest import pack

ABOUT = {"version": 1, "id": "a", "kind": "video", "split": "train", "group": "g", "captions": ["x"], "questions": []}
ABOUT |= {"duration": 1.0, "width": 2, "height": 2, "source": "a.mp4"}
JSON = json.dumps(ABOUT).encode()


def write(path: Path, samples: list[tuple[Row, Clip]]) -> Path:
    with ShardWriter(path, quality=90) as writer:
        for row, clip in samples:
            writer.write(row, clip)
    return path


@pytest.fixture
def samples(make_row: Callable[..., Row], smooth_clip: Callable[..., Clip]) -> list[tuple[Row, Clip]]:
    return [(make_row(name), smooth_clip(seed)) for seed, name in enumerate(["a", "b/c", "ü 雪"])]


def special(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """archive(members): a tar of other tools, see `pack`."""

    def make(*members) -> Path:
        (tmp_path / "foreign.tar").write_bytes(pack(*members))
        return tmp_path / "foreign.tar"

    return make


def test_the_bytes_depend_on_the_samples_alone_and_member_names_have_a_hash_of_the_id(samples, tmp_path, monkeypatch):
    """And the frame number; not the shard or the position in it."""
    first = write(tmp_path / "one.tar", samples).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)  # another day
    monkeypatch.setattr("os.getpid", lambda: 7)  # another process
    assert write(tmp_path / "two.tar", samples).read_bytes() == first
    for order in (samples, samples[::-1]):
        with tarfile.open(write(tmp_path / "a.tar", order)) as tar:
            names = tar.getnames()
        members = ["00.jpg", "01.jpg", "02.jpg", "json"]
        keys = [hashlib.sha256(row.id.encode()).hexdigest()[:32] for row, _ in order]
        assert names == [f"{key}.{extension}" for key in keys for extension in members]
        assert index_shard(tmp_path / "a.tar")["key"].to_pylist() == keys
    assert keys[-1] == "ca978112ca1bbdcafac231b39a23dc4d"  # sha256sum of "a"


def test_a_shard_has_its_name_only_when_complete_and_is_not_kept_without_samples(samples, tmp_path: Path):
    with ShardWriter(tmp_path / "a.tar", quality=90) as writer:
        writer.write(*samples[0])
        assert not (tmp_path / "a.tar").exists()
    write(tmp_path / "b.tar", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_index_has_the_metadata_and_the_places_of_the_members(make_row, samples, tmp_path: Path):
    question = Question(question="what?", answer="雪", type="what")
    row = make_row("a", captions=("one", "zwei é"), questions=(question,), split="test", kind="image", group="g")
    samples[0] = (row, samples[0][1])
    path = write(tmp_path / "a.tar", samples)
    index, content = index_shard(path), path.read_bytes()
    assert index.schema == INDEX
    assert index["id"].to_pylist() == ["a", "b/c", "ü 雪"]
    assert set(index["shard"].to_pylist()) == {"a.tar"}
    about = {"id": "a", "split": "test", "kind": "image", "group": "g", "source": "a.mp4"}
    about |= {"captions": ["one", "zwei é"], "questions": [question.model_dump()]}
    about |= {"duration": 2.5, "width": 64, "height": 48}
    assert {name: index[name][0].as_py() for name in INDEX.names[:10]} == about
    for entry, (row, clip) in zip(index.to_pylist(), samples, strict=True):
        about = json.loads(content[entry["json_offset"] : entry["json_offset"] + entry["json_size"]])
        assert (about["id"], about["frames"]) == (row.id, 3)
        places = zip(entry["frame_offsets"], entry["frame_sizes"], strict=True)
        jpegs = [content[offset : offset + size] for offset, size in places]
        assert jpegs == [encode_jpeg(frame, 90) for frame in clip.frames]


def test_colors_of_small_frames_are_kept(smooth_clip):
    """Without chroma subsampling a single red pixel stays red."""
    frame = smooth_clip(0).frames[0] * 0 + 255
    frame[8, 8] = (255, 0, 0)
    with Image.open(io.BytesIO(encode_jpeg(frame, 95))) as image:
        red, green, blue = image.getpixel((8, 8))
    assert red > 220
    assert max(green, blue) < 60


def test_shards_of_other_tools_are_indexed(archive):
    """Other keys, frames out of order and of other digits, samples in between one another; names as `tar -c .` writes
    them, with the folder itself."""
    folder = ("./", special(tarfile.DIRTYPE))
    members = [folder, ("x.1.jpg", b"1"), ("y.json", JSON), ("./x.json", JSON), ("././x.0.jpg", b"00")]
    x, y = index_shard(archive(*members, ("y.007.jpg", b"777"))).to_pylist()
    assert (x["key"], x["frame_sizes"]) == ("x", [2, 1])  # frames by number
    assert (y["key"], y["frame_sizes"]) == ("y", [3])


SAMPLE = (("0.json", JSON), ("0.00.jpg", b"x"))
NEITHER = "is neither <key>.json nor"
NAMES = ["0.pkl", "0.pickle", "0.json.pkl", "0.00.jpg.pkl", "0.npy", "0.jpg", "0.².jpg", "0.mp4", "README"]
NAMES += ["folder/0.json", "../0.json", "./../0.json", ".0.json", "/etc/0.json"]
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)


def test_an_invalid_member_raises_a_one_line_error_with_the_shard(archive):
    for members, message in (
        *(((*SAMPLE, (name, b"\x80\x04.")), f"{name[-5:]}' {NEITHER}") for name in NAMES),
        *(((*SAMPLE, (name, special(kind))), NEITHER) for kind in LINKS for name in ("1.00.jpg", "./folder")),
        ((*SAMPLE, ("0.mp4", b"1")), "set `data` instead of `shards`"),  # raw downloads
        *(((*SAMPLE, (name, JSON)), f"duplicate member '{name}'") for name in ("0.json", "0.00.jpg", "0.0.jpg")),
        (SAMPLE[:1], "sample 0 has no json or no frames"),
        (SAMPLE[1:], "sample 0 has no json or no frames"),
        *(((("0.json", text), SAMPLE[1]), "sample 0: ") for text in (b"[1]", b'{"id": ', b"\xff\xfe\x00")),
        ((("0.json", JSON.ljust((1 << 24) + 1)), SAMPLE[1]), "0.json' has 16777217 bytes, the limit is 16777216"),
    ):
        path = archive(*members)
        with one_line(str(path), message):
            index_shard(path)


def test_missing_and_invalid_fields_raise_an_error_and_unknown_values_are_allowed(archive):
    cases = [(name, None) for name in sorted(ABOUT.keys() - {"version"})]  # missing
    cases += [("duration", value) for value in ("long", float("nan"), float("inf"), -0.5, 1e18)]
    cases += [("width", 2**40), ("height", 2**31), ("width", -1), ("height", -(2**40)), ("version", 2)]
    cases += [("captions", value) for value in ("a dog", ["a dog", ""], [" \n"])]
    cases += [("questions", ["what?"]), ("questions", [{"question": "what?", "answer": " ", "type": "what"}])]
    for field, value in (*cases, ("split", "dev"), ("frames", 2)):  # of which one is there
        about = {name: old for name, old in (ABOUT | {field: value}).items() if old is not None}
        path = archive(("0.json", json.dumps(about).encode()), SAMPLE[1])  # NaN as Python writes it
        with one_line("foreign.tar: sample 0", "has 1 of 2 frames" if field == "frames" else f": {field}"):
            index_shard(path)
    for more in ({"duration": 0}, {"width": 0}, {"captions": []}, {"frames": 0}, {"frames": 1}):
        assert index_shard(archive(("0.json", json.dumps(ABOUT | more).encode()), SAMPLE[1])).num_rows == 1


def test_webdataset_reads_metadata_and_frames(clips):
    import webdataset

    shards, reader = sorted(map(str, clips.glob("train-*.tar"))), ShardReader(clips, "train")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert len(samples) == len(reader)
    assert [sample["json"] for sample in samples] == [reader[number].about for number in range(len(reader))]
    frames = sorted(key for key in samples[0] if key.endswith(".jpg"))
    assert len(frames) == len(reader[0]) == 8
    assert all((reader[0].frames([n])[0] == samples[0][frames[n]]).all() for n in (0, 7))
