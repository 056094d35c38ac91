"""Corpora that lie elsewhere: in shards of video2dataset and img2dataset, and at URLs."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.shards.schema import Member, Row
from alpro.shards.sources.scan import scan_source
from alpro.stages import decode_videos
from tests.conftest import decode_data, in_store, read_lines, write_lines
from tests.shards.conftest import pack
from tests.shards.sources.test_downloads import about
from tests.stages.conftest import rejects_of


@pytest.fixture
def files(sample):
    """Two videos, one of which has no caption, and a picture, by their names."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "JPEG")
    videos = [sample / "videos" / f"train-0000{number}.mp4" for number in (0, 1)]
    return {
        "000000000.mp4": videos[0].read_bytes(),
        "000000003.mp4": videos[1].read_bytes(),
        "000000004.jpg": picture.getvalue(),
    }


CAPTIONS = {"000000000": "a caption", "000000003": "", "000000004": "red"}
FAILED = about(
    "000000002", status="failed_to_download", error_message="HTTP Error 404: Not Found"
)


@pytest.fixture
def downloads(files, tmp_path):
    """The files as a shard of video2dataset, with a video whose download failed."""
    folder = tmp_path / "webvid"
    folder.mkdir()
    members = [*files.items()]
    for key, caption in CAPTIONS.items():
        members.append((f"{key}.txt", caption.encode()))
        members.append((f"{key}.json", json.dumps(about(key, split="train")).encode()))
    (folder / "00000.tar").write_bytes(pack(*members))
    pq.write_table(pa.Table.from_pylist([FAILED]), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 4, "successes": 3}')
    return folder


def test_downloads_are_decoded_as_the_same_files_in_a_folder(
    downloads, files, tmp_path, inline_pool, resources
):
    out = tmp_path / "out"
    loose = tmp_path / "loose"
    loose.mkdir()
    lines = []
    for row in scan_source(downloads)[1]:
        if isinstance(row, Row):
            (loose / row.file_name).write_bytes(files[row.file_name])
            line = {"path": row.file_name, "group": row.group or row.name, **row.meta}
            lines.append(line | row.model_dump(include={"id", "captions", "split"}))
    write_lines(loose / "manifest.jsonl", lines)

    shards, rejected = decoded(downloads, out, resources)

    assert rejected == {"000000002": "not fetched", "000000003": "no text"}
    assert not [*out.rglob("*.mp4"), *out.rglob(".fetched.*")]
    assert decoded(loose / "manifest.jsonl", tmp_path / "other", resources)[0] == shards


def test_a_member_beyond_the_end_of_its_shard_is_a_reject(downloads):
    member = Member(name="a.mp4", offset=512, size=1 << 30)

    with (
        pytest.raises(decode_videos.DecodeError, match=r"unreadable: .*ends inside a"),
        decode_videos.fetch(downloads / "00000.tar", 1 << 40, downloads, member),
    ):
        pass

    assert not list(downloads.glob(".fetched.*"))


@pytest.fixture
def manifest(sample, tmp_path):
    """Some rendered clips and a manifest of them, in a folder of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = read_lines(sample / "clips.jsonl")[:3]
    for number, row in enumerate(rows):
        name = f"a b #{number}.mp4"  # as it stands in no URL
        (folder / name).write_bytes((sample / row["path"]).read_bytes())
        row.update(path=name, id=f"{number}", split="train")
    rows.append(
        {"path": "gone.mp4", "id": "gone", "caption": "nothing", "split": "train"}
    )
    return write_lines(folder / "manifest.jsonl", rows)


def decoded(source, out, resources, **config):
    """The shards by their names, and the reasons of rejects by their ids."""
    settings = decode_videos.Config(frames=4, size=32, max_reject_share=0.8, **config)
    decode_data(settings, source, out, resources)
    return {shard.name: shard.read_bytes() for shard in out.glob("*.tar")}, rejects_of(
        out
    )


@pytest.fixture
def here(manifest, tmp_path, inline_pool, resources):
    """The shards and the rejects of the local manifest."""
    return decoded(manifest, tmp_path / "here", resources)


@pytest.mark.parametrize("store", ["http", "memory"])
def test_a_remote_manifest_gives_the_same_shards(
    store, here, manifest, tmp_path, served, memory, resources
):
    in_store(*manifest.parent.iterdir())
    url = served(manifest.parent)[0] if store == "http" else memory

    assert decoded(f"{url}/manifest.jsonl", tmp_path / "there", resources) == here


def test_an_unresponsive_store_and_a_large_file_only_reject_their_own_rows(
    tmp_path, free_port, served, inline_pool, resources, monkeypatch
):
    """Of a local manifest that names remote files, as the tables of large data sets do."""
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for name in ("here", "there"):
        (tmp_path / f"{name}.png").write_bytes(bytes(10_001))
    url = served(tmp_path)[0]
    reasons = {
        f"http://127.0.0.1:{free_port()}/a.png": "not fetched",
        "http://no.such.host.invalid/b.mp4": "not fetched",
        "here.png": "too large",
        f"{url}/there.png": "too large",
    }
    rows = [
        {"id": path, "path": path, "caption": "x", "split": "train"} for path in reasons
    ]
    rows.append({"id": "a", "path": f"{url}/a.png", "caption": "x", "split": "train"})
    manifest = write_lines(tmp_path / "m.jsonl", rows)

    shards, rejected = decoded(manifest, tmp_path / "out", resources, max_bytes=10_000)

    assert len(shards) == 1
    assert rejected == reasons
