"""A corpus whose manifest and videos are at a URL becomes the same shards as one on this machine."""

import json
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from alpro.pipeline.plan.digests import Digests, digest_data
from alpro.shards.storage import Location
from alpro.stages import decode_videos
from alpro.stages.execution.interface import Resources
from tests.conftest import in_store
from tests.stages.conftest import rejects_of


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


def decoded(source: Location, out: Path, resources: Resources, **config) -> tuple[dict[str, bytes], dict[str, str]]:
    """The shards by their names, and the reasons of rejects by their ids."""
    settings = decode_videos.Config(frames=4, size=32, max_reject_share=0.8, **config)
    decode_videos.run(settings, {"data": source}, out, resources)
    return {shard.name: shard.read_bytes() for shard in out.glob("*.tar")}, rejects_of(out)


def test_a_remote_manifest_gives_the_same_shards(manifest, tmp_path, served, memory, inline_pool, resources):
    """So does a local one with remote videos, as the tables of large data sets have. A changed video changes the
    fingerprint."""
    in_store(*manifest.parent.iterdir())
    url, rows = served(manifest.parent)[0], [json.loads(line) for line in manifest.read_text().splitlines()]
    links = [row | {"path": f"{url}/{row['path'].replace(' ', '%20').replace('#', '%23')}"} for row in rows]
    (tmp_path / "links.jsonl").write_text("\n".join(map(json.dumps, links)))
    here = decoded(manifest, tmp_path / "here", resources)
    assert (len(here[0]), here[1]) == (1, {"gone": "missing"})
    for number, place in enumerate((f"{url}/manifest.jsonl", f"{memory}/manifest.jsonl")):
        assert decoded(place, tmp_path / f"there{number}", resources) == here
    shards, rejected = decoded(tmp_path / "links.jsonl", tmp_path / "links", resources)
    assert (list(shards), rejected) == (list(here[0]), {"gone": "missing"})
    digests = Digests(tmp_path / "digests.sqlite")
    before = digest_data(f"{memory}/manifest.jsonl", digests)
    assert digest_data(f"{memory}/manifest.jsonl", digests) == before
    fsspec.filesystem("memory").pipe_file("/bucket/corpus/a b #1.mp4", b"another")
    assert digest_data(f"{memory}/manifest.jsonl", digests) != before


def test_an_unresponsive_store_and_a_large_file_only_reject_their_own_rows(
    tmp_path, free_port, served, inline_pool, resources, monkeypatch
):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    for name in ("here", "there"):
        (tmp_path / f"{name}.png").write_bytes(bytes(10_001))
    paths = {
        "not fetched": [f"http://127.0.0.1:{free_port()}/a.png", "http://no.such.host.invalid/b.mp4"],
        "too large": ["here.png", f"{served(tmp_path)[0]}/there.png"],
        "": ["a.png"],
    }
    expected = {path: reason for reason, some in paths.items() for path in some}
    rows = [{"id": path, "path": path, "caption": "x", "split": "train"} for path in expected]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards, rejected = decoded(tmp_path / "m.jsonl", tmp_path / "out", resources, max_bytes=10_000)
    assert (len(shards), rejected) == (1, {path: reason for path, reason in expected.items() if reason})
    assert digest_data(tmp_path / "m.jsonl", Digests(tmp_path / "digests.sqlite"))
