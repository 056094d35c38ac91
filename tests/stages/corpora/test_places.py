"""Corpora that lie elsewhere: in shards of video2dataset and img2dataset, and at URLs."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.shards.schema import Member, Row
from alpro.shards.sources.scan import scan_source
from alpro.shards.storage import Location
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Resources
from tests.conftest import decode_data, in_store
from tests.shards.conftest import pack
from tests.shards.sources.test_downloads import about
from tests.stages.conftest import rejects_of

CONFIG = Config(frames=4, size=32, max_reject_share=0.5)


@pytest.fixture
def downloads(sample, tmp_path) -> Path:
    """Two shards of video2dataset: two videos, one without a caption and one whose download failed;
    two pictures."""
    folder = tmp_path / "webvid"
    members = []
    folder.mkdir()
    rows = [json.loads(line) for line in (sample / "clips.jsonl").read_text().splitlines()]
    for number in (0, 1, 3):
        key = f"00000000{number}"
        caption = "" if number == 3 else f"caption  of {number}"
        members += [
            (f"{key}.mp4", (sample / rows[number]["path"]).read_bytes()),
            (f"{key}.txt", caption.encode()),
        ]
        members += [(f"{key}.json", json.dumps(about(key, split="train")).encode())]
    (folder / "00000.tar").write_bytes(pack(*members))
    failed = about(
        "000000002", status="failed_to_download", error_message="HTTP Error 404: Not Found"
    )
    pq.write_table(pa.Table.from_pylist([failed]), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 4, "successes": 3}')
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "JPEG")
    pictures = [
        (f"10000{n}.{end}", data)
        for n in "01"
        for end, data in (("jpg", buffer.getvalue()), ("txt", b"red"))
    ]
    (folder / "00001.tar").write_bytes(pack(*pictures))
    return folder


def test_downloads_are_decoded_as_the_same_files_in_a_folder(
    downloads, tmp_path, inline_pool, resources
):
    out = tmp_path / "out"
    other = tmp_path / "other"
    counts = decode_data(CONFIG, downloads, out, resources).counts
    assert [counts[name] for name in ("items", "videos", "images", "rejected")] == [6, 2, 2, 2]
    assert rejects_of(out) == {"000000002": "not fetched", "000000003": "no text"}
    assert not [*out.rglob("*.mp4"), *out.rglob(".fetched.*")]

    loose = tmp_path / "loose"
    lines = []
    loose.mkdir()
    for row in (row for row in scan_source(downloads)[1] if isinstance(row, Row)):
        (loose / row.file_name).write_bytes(
            row.path.read_bytes()[row.member.offset :][: row.member.size]
        )
        known = row.model_dump(include={"id", "captions", "split"})
        lines.append({"path": row.file_name, **known, **row.meta, "group": row.group or row.name})
    (loose / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    decode_data(CONFIG, loose / "manifest.jsonl", other, resources)
    assert [p.read_bytes() for p in sorted(out.glob("*.tar"))] == [
        p.read_bytes() for p in sorted(other.glob("*.tar"))
    ]


def test_a_member_beyond_the_end_of_its_shard_is_a_reject(downloads):
    member = Member(name="a.mp4", offset=512, size=1 << 30)
    whole = Row(id="a", path=downloads / "00000.tar", member=member, kind="video")
    for limit, reason in ((1 << 40, r"unreadable: .*ends inside a\.mp4"), (100, "too large")):
        with (
            pytest.raises(decode_videos.DecodeError, match=reason),
            decode_videos.fetched(whole, limit, downloads),
        ):
            pass
    assert not list(downloads.glob(".fetched.*"))


@pytest.fixture
def manifest(sample: Path, tmp_path: Path) -> Path:
    """Some rendered clips and a manifest of them, in a folder of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.loads(line) for line in (sample / "clips.jsonl").read_text().splitlines()][:3]
    for number, row in enumerate(rows):
        name = f"a b #{number}.mp4"  # as it stands in no URL
        (folder / name).write_bytes((sample / row["path"]).read_bytes())
        row.update(path=name, id=f"{number}", split="train")
    rows.append({"path": "gone.mp4", "id": "gone", "caption": "nothing", "split": "train"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.jsonl"


def decoded(
    source: Location, out: Path, resources: Resources, **config
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The shards by their names, and the reasons of rejects by their ids."""
    settings = decode_videos.Config(frames=4, size=32, max_reject_share=0.8, **config)
    decode_data(settings, source, out, resources)
    return {shard.name: shard.read_bytes() for shard in out.glob("*.tar")}, rejects_of(out)


def test_a_remote_manifest_gives_the_same_shards(
    manifest, tmp_path, served, memory, inline_pool, resources
):
    """So does a local one with remote videos, as the tables of large data sets have."""
    in_store(*manifest.parent.iterdir())
    url = served(manifest.parent)[0]
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    links = [
        row | {"path": f"{url}/{row['path'].replace(' ', '%20').replace('#', '%23')}"}
        for row in rows
    ]
    (tmp_path / "links.jsonl").write_text("\n".join(map(json.dumps, links)))
    here = decoded(manifest, tmp_path / "here", resources)
    assert (len(here[0]), here[1]) == (1, {"gone": "missing"})
    for number, place in enumerate((f"{url}/manifest.jsonl", f"{memory}/manifest.jsonl")):
        assert decoded(place, tmp_path / f"there{number}", resources) == here
    shards, rejected = decoded(tmp_path / "links.jsonl", tmp_path / "links", resources)
    assert (list(shards), rejected) == (list(here[0]), {"gone": "missing"})


def test_an_unresponsive_store_and_a_large_file_only_reject_their_own_rows(
    tmp_path, free_port, served, inline_pool, resources, monkeypatch
):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for name in ("here", "there"):
        (tmp_path / f"{name}.png").write_bytes(bytes(10_001))
    paths = {
        "not fetched": [
            f"http://127.0.0.1:{free_port()}/a.png",
            "http://no.such.host.invalid/b.mp4",
        ],
        "too large": ["here.png", f"{served(tmp_path)[0]}/there.png"],
        "": ["a.png"],
    }
    expected = {path: reason for reason, some in paths.items() for path in some}
    rows = [{"id": path, "path": path, "caption": "x", "split": "train"} for path in expected]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards, rejected = decoded(tmp_path / "m.jsonl", tmp_path / "out", resources, max_bytes=10_000)
    assert (len(shards), rejected) == (
        1,
        {path: reason for path, reason in expected.items() if reason},
    )
