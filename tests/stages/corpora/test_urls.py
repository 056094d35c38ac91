"""A corpus whose manifest and videos are at a URL becomes the same shards as one on this machine."""

import json
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.pipeline.plan.digests import Digests, digest_data
from alpro.shards.schema import Row
from alpro.shards.storage import Location
from alpro.stages import decode_videos
from alpro.stages.execution.interface import Resources


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


def decoded(source: Location, out: Path, resources: Resources) -> tuple[dict[str, bytes], list[dict]]:
    config = decode_videos.Config(frames=4, size=32, max_reject_share=0.5)
    decode_videos.run(config, {"data": source}, out, resources)
    shards = {shard.name: shard.read_bytes() for shard in out.glob("*.tar")}
    return shards, pq.read_table(out / "rejects.parquet").to_pylist()


def test_a_remote_manifest_gives_the_same_shards(manifest, tmp_path, served, memory, inline_pool, resources):
    for file in manifest.parent.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/bucket/corpus/{file.name}", file.read_bytes())
    here, rejected = decoded(manifest, tmp_path / "here", resources)
    assert len(here) == 1
    assert [(r["id"], r["reason"]) for r in rejected] == [("gone", "missing")]
    for number, place in enumerate((f"{served(manifest.parent)[0]}/manifest.jsonl", f"{memory}/manifest.jsonl")):
        there, rejected = decoded(place, tmp_path / f"there{number}", resources)
        assert there == here
        assert [(r["id"], r["reason"]) for r in rejected] == [("gone", "missing")]


@pytest.mark.long
def test_real_workers_fetch_videos_over_http(manifest, tmp_path, served):
    here, there = (
        decoded(source, tmp_path / name, Resources(workers=2))[0]
        for name, source in (("here", manifest), ("there", f"{served(manifest.parent)[0]}/manifest.jsonl"))
    )
    assert here == there
    assert len(here) == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (Path("/data/a b.mp4"), "a b.mp4"),
        ("s3://bucket/data/what?.mp4", "what?.mp4"),
        ("https://host/data/a%20b.mp4?v=secret/of.mine", "a b.mp4"),
        ("filecache::https://host/a%20b.mp4", "a b.mp4"),
        ("zip://in/a.mp4::s3://bucket/b.zip", "a.mp4"),
    ],
)
def test_a_file_name_does_not_depend_on_its_location(path, name):
    assert Row(id="a", path=path, kind="video").file_name == name


def test_a_local_manifest_may_refer_to_remote_videos(manifest, tmp_path, served, inline_pool, resources):
    """As the tables of large data sets do."""
    url = served(manifest.parent)[0]
    rows = [{"path": f"{url}/a%20b%20%23{n}.mp4", "caption": "a clip", "split": "train"} for n in range(2)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shards, rejected = decoded(tmp_path / "table.jsonl", tmp_path / "out", resources)
    assert len(shards) == 1
    assert rejected == []


@pytest.mark.parametrize("path", ["../a.mp4", "file:///etc/passwd", "/etc/passwd", "zip://a::file:///etc/x.zip"])
def test_a_remote_manifest_cannot_open_local_files(path, tmp_path, memory, inline_pool, resources):
    text = json.dumps({"path": path, "caption": "x"})
    fsspec.filesystem("memory").pipe_file("/bucket/corpus/manifest.jsonl", text.encode())
    with pytest.raises(InputError, match="is outside the data folder"):
        decoded(f"{memory}/manifest.jsonl", tmp_path / "out", resources)


def test_a_changed_video_at_a_url_changes_the_fingerprint(manifest, tmp_path, memory):
    store, digests = fsspec.filesystem("memory"), Digests(tmp_path / "digests.sqlite")
    for file in manifest.parent.iterdir():
        store.pipe_file(f"/bucket/corpus/{file.name}", file.read_bytes())
    before = digest_data(f"{memory}/manifest.jsonl", digests)
    assert digest_data(f"{memory}/manifest.jsonl", digests) == before
    store.pipe_file("/bucket/corpus/a b #1.mp4", b"another")
    assert digest_data(f"{memory}/manifest.jsonl", digests) != before


def test_an_unresponsive_store_only_rejects_its_own_rows(tmp_path, free_port, inline_pool, resources, monkeypatch):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    paths = [f"http://127.0.0.1:{free_port()}/a.png", "http://no.such.host.invalid/b.mp4", "a.png"]
    rows = [{"id": str(n), "path": path, "caption": "x", "split": "train"} for n, path in enumerate(paths)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = decode_videos.Config(size=16, max_reject_share=1)
    counts = decode_videos.run(config, {"data": tmp_path / "m.jsonl"}, tmp_path / "out", resources).counts
    assert (counts["samples"], counts["rejected"]) == (1, 2)
    assert pq.read_table(tmp_path / "out" / "rejects.parquet")["reason"].to_pylist() == ["not fetched"] * 2
    assert digest_data(tmp_path / "m.jsonl", Digests(tmp_path / "digests.sqlite"))
