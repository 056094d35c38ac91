"""Shards of earlier artifacts are reused if their rows, files and settings are the same."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.files import checksum
from alpro.shards.decoding import DecodeError
from alpro.shards.reader import ShardReader
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Outcome, Resources
from tests.stages.conftest import contents, write_manifest


def decode_images(rows: list[dict], folder: Path, resources: Resources, **config) -> tuple[Outcome, Path]:
    """Decodes images of the rows, as an artifact beside earlier ones of the same folder.

    Of a row, `touched` (the modification time of its file) and `more` (bytes after the image) are not in the manifest.
    """
    out = folder / "artifacts" / f"run {len(list(folder.glob('artifacts/*')))}"
    out.mkdir(parents=True)
    files = [{key: row.get(key, other) for key, other in (("touched", 1), ("more", b""))} for row in rows]
    source = write_manifest(folder / "data", [{k: v for k, v in row.items() if k not in files[0]} for row in rows])
    for row, file in zip(rows, files, strict=True):  # unchanged images keep their time
        path = folder / "data" / f"{row['id']}.png"
        path.write_bytes(path.read_bytes() + file["more"])
        os.utime(path, (file["touched"], file["touched"]))
    settings = {"size": 16, "samples_per_shard": 4, **config}
    outcome = decode_videos.run(Config.model_validate(settings), {"data": source}, out, resources)
    (out / "artifact.json").write_text("{}")
    return outcome, out


def shards(folder: Path) -> dict[str, tuple[str, ...]]:
    """The ids of each shard, by the SHA-256 of its file."""
    table = pq.read_table(folder / "index.parquet").to_pylist()
    return {
        checksum(path): tuple(row["id"] for row in table if row["shard"] == path.name) for path in folder.glob("*.tar")
    }


WALLS = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]


@pytest.mark.parametrize(
    ("rows", "linked"),
    [
        ([*WALLS, {"id": "new", "captions": ["a new wall"], "split": "train"}], 16),
        (WALLS[:5] + WALLS[6:], 16),
        ([*WALLS[:5], WALLS[5] | {"captions": ["changed"]}, *WALLS[6:]], 20),
        ([*WALLS[:5], WALLS[5] | {"color": "white", "touched": 7}, *WALLS[6:]], 20),
        (WALLS, 24),
    ],
    ids=["a new row", "a removed row", "another caption", "another picture", "the same"],
)
def test_only_shards_with_new_or_changed_rows_are_decoded(rows, linked, tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path, resources)
    before = contents(old)
    outcome, new = decode_images(rows, tmp_path, resources)
    assert outcome.sha256 == {path.name: checksum(path) for path in new.glob("*.tar")}
    assert linked <= outcome.counts["linked"] <= (24 if len(rows) > 24 or rows == WALLS else 23)
    assert sorted(ShardReader(new).column("id").to_pylist()) == sorted(row["id"] for row in rows)
    assert sum(len(ids) for sha, ids in shards(new).items() if sha in shards(old)) == outcome.counts["linked"]
    assert contents(old) == before
    alone, apart = decode_images(rows, tmp_path / "apart", resources)
    assert alone.counts["linked"] == 0
    # Only units.parquet depends on the location of the files.
    finished = {name: sha for name, sha in contents(apart).items() if "parts/" not in name and "units" not in name}
    assert finished.items() <= contents(new).items()


OTHER_SETTINGS = {
    "frames": 8,
    "size": 20,
    "timeout": 30.0,
    "max_bytes": 10**6,
}


def test_shards_are_not_reused_with_other_settings(tmp_path, resources, inline_pool):
    """Each setting is changed separately. Settings that do not affect frames do not cause decoding."""
    rows = WALLS[:4]
    assert OTHER_SETTINGS.keys() == decode_videos.UNIT_SETTINGS
    assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 0
    for name, value in OTHER_SETTINGS.items():
        assert decode_images(rows, tmp_path, resources, **{name: value})[0].counts["linked"] == 0, name
    for name, value in {"validation": 0.3, "test": 0.3, "seed": 7, "max_reject_share": 1.0, "kinds": "image"}.items():
        assert decode_images(rows, tmp_path, resources, **{name: value})[0].counts["linked"] == 4, name


def test_shards_of_another_version_are_not_reused(tmp_path, resources, inline_pool, monkeypatch):
    rows = WALLS[:4]
    decode_images(rows, tmp_path, resources)
    with monkeypatch.context() as patch:
        patch.setattr(decode_videos, "VERSION", decode_videos.VERSION + 1)
        assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 0


def test_shards_with_a_changed_file_are_not_reused(tmp_path, resources, inline_pool):
    """The rows are equal: another modification time with the same size, and another size with the same time."""
    rows = WALLS[:4]
    _, old = decode_images(rows, tmp_path, resources)
    manifest = (tmp_path / "data" / "items.jsonl").read_text()
    for change in ({"touched": 2}, {"more": b"more"}):
        outcome, new = decode_images([rows[0] | change, *rows[1:]], tmp_path, resources)
        assert (tmp_path / "data" / "items.jsonl").read_text() == manifest
        assert outcome.counts["linked"] == 0
        assert shards(new) == shards(old)  # the picture is the same, and so are the bytes
    assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 4


def test_corrupt_shards_are_not_reused(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path, resources)
    corrupt = old / "train-image-00001.tar"
    corrupt.write_bytes(corrupt.read_bytes()[:-1] + b"x")
    outcome, new = decode_images(WALLS, tmp_path, resources)
    assert 0 < outcome.counts["linked"] < 24
    assert checksum(new / corrupt.name) != checksum(corrupt)


def test_rejects_are_reused_with_their_shard(tmp_path, resources, inline_pool):
    rows = [*WALLS, {"id": "silent", "split": "train"}]
    first, old = decode_images(rows, tmp_path, resources)
    second, new = decode_images(rows, tmp_path, resources)
    assert (first.counts["rejected"], second.counts["rejected"], second.counts["linked"]) == (1, 1, 24)
    assert (old / "rejects.parquet").read_bytes() == (new / "rejects.parquet").read_bytes()


def test_nothing_is_decoded_again_if_more_rejects_are_accepted(tmp_path, resources, inline_pool, capsys):
    rows = [*WALLS, *({"id": f"silent {n}", "split": "train"} for n in range(6))]
    with pytest.raises(InputError, match=r"6 of 30 items are rejected, more than max_reject_share = 0.1 allows"):
        decode_images(rows, tmp_path, resources, max_reject_share=0.1)
    outcome, _ = decode_images(rows, tmp_path, resources, max_reject_share=0.3)
    assert (outcome.counts["rejected"], outcome.counts["linked"]) == (6, 24)
    assert "6 of 30 items are rejected (6 no text): " in capsys.readouterr().err


def test_transient_rejects_are_retried(tmp_path, resources, inline_pool, monkeypatch):
    def slow(*_, **__):
        raise DecodeError("too slow")

    monkeypatch.setattr(decode_videos, "decode_image", slow)
    first, _ = decode_images(WALLS, tmp_path, resources, max_reject_share=1)
    monkeypatch.undo()
    second, _ = decode_images(WALLS, tmp_path, resources, max_reject_share=1)
    assert (first.counts["rejected"], second.counts["rejected"]) == (24, 0)


def test_corrupt_earlier_artifacts_and_unknown_folders_are_ignored(tmp_path, resources, inline_pool):
    _, old = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    (old / "units.parquet").write_bytes(b"")
    outcome, _ = decode_images(WALLS, tmp_path / "w#1 ?%20", resources)
    assert outcome.counts["samples"] == 24
