"""Shards: reproducible bytes, member offsets in the index, and errors for invalid members."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.shards.decoding import Clip
from alpro.shards.schema import INDEX, Question, Row
from alpro.shards.writer import ShardWriter, encode_jpeg, index_shard

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


def write(path: Path, samples: list[tuple[Row, Clip]]) -> Path:
    writer = ShardWriter(path, quality=90)
    for row, clip in samples:
        writer.write(row, clip)
    writer.close()
    return path


@pytest.fixture
def samples(make_row: Callable[..., Row], smooth_clip: Callable[..., Clip]) -> list[tuple[Row, Clip]]:
    return [(make_row(name), smooth_clip(seed)) for seed, name in enumerate(["a", "b/c", "ü 雪"])]


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """archive(**members): a tar of files; a TarInfo is a member as it is."""

    def make(members: dict[str, bytes | tarfile.TarInfo]) -> Path:
        with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    tar.addfile(content)
                else:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return tmp_path / "foreign.tar"

    return make


def test_the_same_samples_give_the_same_bytes(samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = write(tmp_path / "one.tar", samples).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)  # another day
    monkeypatch.setattr("os.getpid", lambda: 7)  # another process
    assert write(tmp_path / "two.tar", samples).read_bytes() == first


def test_member_names_have_a_hash_of_the_id_and_the_frame_number(samples, tmp_path: Path):
    with tarfile.open(write(tmp_path / "a.tar", samples)) as tar:
        names = tar.getnames()
    members = ["00.jpg", "01.jpg", "02.jpg", "json"]
    keys = [hashlib.sha256(row.id.encode()).hexdigest()[:32] for row, _ in samples]
    assert names == [f"{key}.{extension}" for key in keys for extension in members]
    # sha256sum of "a"
    assert keys[0] == "ca978112ca1bbdcafac231b39a23dc4d"


def test_a_key_does_not_depend_on_the_shard_or_position(samples, tmp_path: Path):
    keys = [
        dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))
        for table in (
            index_shard(write(tmp_path / "one.tar", samples)),
            index_shard(write(tmp_path / "two.tar", samples[::-1])),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == len(samples)


def test_a_shard_has_its_name_only_when_complete(samples, tmp_path: Path):
    writer = ShardWriter(tmp_path / "a.tar", quality=90)
    writer.write(*samples[0])
    assert not (tmp_path / "a.tar").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_shard_without_samples_is_not_kept(tmp_path: Path):
    write(tmp_path / "a.tar", [])
    assert list(tmp_path.iterdir()) == []


def test_the_index_has_the_member_offsets(samples, tmp_path: Path):
    path = write(tmp_path / "a.tar", samples)
    index = index_shard(path)
    content = path.read_bytes()
    assert index.schema == INDEX
    assert index["id"].to_pylist() == ["a", "b/c", "ü 雪"]
    assert set(index["shard"].to_pylist()) == {"a.tar"}
    for entry, (row, clip) in zip(index.to_pylist(), samples, strict=True):
        about = json.loads(content[entry["json_offset"] : entry["json_offset"] + entry["json_size"]])
        assert about["id"] == row.id
        places = zip(entry["frame_offsets"], entry["frame_sizes"], strict=True)
        jpegs = [content[offset : offset + size] for offset, size in places]
        assert jpegs == [encode_jpeg(frame, 90) for frame in clip.frames]


def test_the_index_has_the_metadata_of_a_sample(make_row, smooth_clip, tmp_path: Path):
    question = Question(question="what?", answer="雪", type="what")
    row = make_row("a", captions=("one", "zwei é"), questions=(question,), split="test", kind="image", group="g")
    (entry,) = index_shard(write(tmp_path / "a.tar", [(row, smooth_clip(0))])).to_pylist()
    known = {name: entry[name] for name in INDEX.names[:10]}
    assert known == {
        "id": "a",
        "split": "test",
        "kind": "image",
        "group": "g",
        "captions": ["one", "zwei é"],
        "questions": [question.model_dump()],
        "duration": 2.5,
        "width": 64,
        "height": 48,
        "source": "a.mp4",
    }


def test_colors_of_small_frames_are_kept(smooth_clip):
    """Without chroma subsampling a single red pixel stays red."""
    frame = smooth_clip(0).frames[0] * 0 + 255
    frame[8, 8] = (255, 0, 0)
    with Image.open(io.BytesIO(encode_jpeg(frame, 95))) as image:
        red, green, blue = image.getpixel((8, 8))
    assert red > 220
    assert max(green, blue) < 60


def test_shards_of_other_tools_are_indexed(archive):
    # Other keys, frames out of order and of other digits, samples in between one another.
    path = archive({"x.1.jpg": b"1", "y.json": JSON, "x.json": JSON, "x.0.jpg": b"00", "y.007.jpg": b"777"})
    x, y = index_shard(path).to_pylist()
    assert (x["key"], x["frame_sizes"]) == ("x", [2, 1])  # frames by number
    assert (y["key"], y["frame_sizes"]) == ("y", [3])


def special(kind: bytes, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_names_may_start_with_a_dot_and_a_slash(archive):
    """As `tar -c .` writes them, with the folder itself."""
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    path = archive({"./": folder, "./x.json": JSON, "./x.00.jpg": b"1", "././y.json": JSON, "y.0.jpg": b"2"})
    assert index_shard(path)["key"].to_pylist() == ["x", "y"]


def test_a_member_that_is_neither_json_nor_frame_raises_an_error_with_its_name(archive):
    for name in (
        "000000.pkl",
        "000000.pickle",
        "000000.pth",
        "000000.json.pkl",
        "000000.00.jpg.pkl",
        "000000.npy",
        "000000.jpg",  # a frame has a number
        "000000.².jpg",
        "000000.mp4",
        "README",
        "folder/000000.json",
        "../000000.json",
        "./../000000.json",
        ".000000.json",
        "/etc/000000.json",
    ):
        path = archive({"000000.json": JSON, "000000.00.jpg": b"x", name: b"\x80\x04."})
        with pytest.raises(InputError, match=r"is neither <key>\.json nor") as error:
            index_shard(path)
        assert repr(name) in str(error.value) or repr(name.lstrip("/")) in str(error.value)
        assert str(path) in str(error.value)


def test_a_link_a_folder_or_a_device_raises_an_error(archive):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        for name in ("000000.00.jpg", "./folder"):
            with pytest.raises(InputError, match=r"is neither <key>\.json nor"):
                index_shard(archive({"000000.json": JSON, name: special(kind, name)}))


def test_an_incomplete_sample_raises_an_error(archive):
    members: dict[str, bytes]
    for members, message in (
        ({"0.json": JSON}, "sample 0 has no json or no frames"),
        ({"0.00.jpg": b"x"}, "sample 0 has no json or no frames"),
        ({"0.json": b"{}", "0.00.jpg": b"x"}, "sample 0: id: Field required"),
        ({"0.json": b"[1]", "0.00.jpg": b"x"}, "sample 0: "),
        ({"0.json": b'{"id": ', "0.00.jpg": b"x"}, "sample 0: : Invalid JSON"),
        ({"0.json": b"\xff\xfe\x00", "0.00.jpg": b"x"}, "sample 0: : Invalid JSON"),
    ):
        with pytest.raises(InputError, match=message) as error:
            index_shard(archive(members))
        assert "\n" not in str(error.value)


def test_missing_and_invalid_fields_raise_an_error(archive):
    def refused(about: dict, field: str) -> None:
        text = json.dumps(about)  # NaN as Python writes it
        with pytest.raises(InputError, match=f"foreign.tar: sample 0: {field}") as error:
            index_shard(archive({"0.json": text.encode(), "0.00.jpg": b"x"}))
        assert "\n" not in str(error.value)

    for field in sorted(ABOUT.keys() - {"version"}):
        refused({name: value for name, value in ABOUT.items() if name != field}, field)
    for field, value in (
        ("version", 2),
        ("duration", "long"),
        ("duration", float("nan")),
        ("duration", float("inf")),
        ("duration", -0.5),
        ("duration", 1e18),
        ("width", 2**40),
        ("height", 2**31),
        ("width", -1),
        ("height", -(2**40)),
        ("captions", "a dog"),
        ("captions", ["a dog", ""]),
        ("captions", [" \n"]),
        ("questions", ["what?"]),
        ("questions", [{"question": "what?", "answer": " ", "type": "what"}]),
        ("split", "dev"),
    ):
        refused(ABOUT | {field: value}, field)
    for field, value in (("duration", 0), ("width", 0), ("captions", [])):  # not known, or nothing
        about = json.dumps(ABOUT | {field: value}).encode()
        assert index_shard(archive({"0.json": about, "0.00.jpg": b"x"})).num_rows == 1


@pytest.mark.parametrize("content", [b"", b"not a tar" * 200, b"\x1f\x8b\x08"], ids=["empty", "text", "gzip"])
def test_a_file_that_is_not_a_tar_raises_an_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match="not a readable shard"):
        index_shard(tmp_path / "a.tar")


def test_a_shard_truncated_inside_a_member_raises_an_error(samples, tmp_path: Path):
    path = write(tmp_path / "a.tar", samples)
    content = path.read_bytes()
    last = index_shard(path).to_pylist()[-1]
    for length in (300, last["json_offset"] + 10, last["frame_offsets"][-1] + 100, last["frame_offsets"][-1] - 300):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="not a readable shard"):
            index_shard(path)


@pytest.mark.parametrize("again", ["x.json", "x.0.jpg", "x.00.jpg"])
def test_a_duplicate_member_raises_an_error(tmp_path: Path, again: str):
    """As where shards with the same keys were joined: one sample would take the place of the other."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("x.json", JSON), ("x.0.jpg", b"1"), ("y.json", JSON), ("y.0.jpg", b"1"), (again, JSON)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match=f"duplicate member '{again}'"):
        index_shard(tmp_path / "a.tar")


def test_an_oversized_json_raises_an_error(archive, monkeypatch):
    monkeypatch.setattr("alpro.shards.writer.MAX_JSON_BYTES", 100)
    with pytest.raises(InputError, match=r"0\.json' has 400 bytes, the limit is 100"):
        index_shard(archive({"0.json": JSON.ljust(400), "0.0.jpg": b"x"}))


def at_url(path: Path) -> str:
    fsspec.filesystem("memory").pipe_file(f"/bucket/corpus/{path.name}", path.read_bytes())
    return f"memory://bucket/corpus/{path.name}"


def test_a_shard_at_a_url_has_the_same_index_and_names_its_url(samples, tmp_path: Path, memory: str):
    path = write(tmp_path / "a.tar", samples)
    here, there = index_shard(path), index_shard(at_url(path))
    assert there.drop(["shard"]) == here.drop(["shard"])
    assert set(there["shard"].to_pylist()) == {f"{memory}/a.tar"}


def test_an_error_of_a_remote_shard_names_its_url(archive, memory: str):
    with pytest.raises(InputError, match=r"memory://bucket/corpus/foreign.tar: member .* is neither <key>"):
        index_shard(at_url(archive({"0.json": JSON, "0.0.jpg": b"x", "0.pkl": b"\x80\x04."})))
    with pytest.raises(InputError, match=r"none.tar: not a readable shard: .*No such file"):
        index_shard(f"{memory}/none.tar")
