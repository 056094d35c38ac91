"""Shards of earlier corpora are linked if their rows, files and settings are the same."""

import errno
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alpro.files import checksum
from alpro.shards.reader import ShardReader
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Outcome, Resources
from tests.conftest import decode_data
from tests.stages.conftest import contents, write_manifest


def decode_images(
    rows: list[dict], folder: Path, resources: Resources, **config
) -> tuple[Outcome, Path]:
    """Decode images of the rows, as an artifact of a workspace.

    Of a row, `touched` (the modification time of its file) and `more` (bytes after the image) are
    not in the manifest.
    """
    stage = folder / "artifacts" / "decode_videos"
    out = stage / f"run {len(list(stage.glob('*')))}"
    out.mkdir(parents=True)
    files = [
        {key: row.get(key, other) for key, other in (("touched", 1), ("more", b""))} for row in rows
    ]
    source = write_manifest(
        folder / "data", [{k: v for k, v in row.items() if k not in files[0]} for row in rows]
    )
    for row, file in zip(rows, files, strict=True):  # unchanged images keep their time
        path = folder / "data" / f"{row['id']}.png"
        path.write_bytes(path.read_bytes() + file["more"])
        os.utime(path, (file["touched"], file["touched"]))
    settings = {"size": 16, "samples_per_shard": 4, **config}
    return decode_data(Config.model_validate(settings), source, out, resources), out


def shards(folder: Path) -> dict[str, tuple[str, ...]]:
    """The ids of each shard, by the SHA-256 of its file."""
    table = pq.read_table(folder / "index.parquet").to_pylist()
    return {
        checksum(path): tuple(row["id"] for row in table if row["shard"] == path.name)
        for path in folder.glob("*.tar")
    }


def refuse_link(*_) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


WALLS = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]
SILENT = {"id": "silent", "split": "train"}


@pytest.mark.parametrize(
    ("rows", "linked", "links"),
    [
        ([*WALLS, {"id": "new", "captions": ["a new wall"], "split": "train"}, SILENT], 16, True),
        ([*WALLS[:5], *WALLS[6:], SILENT], 16, False),
        ([*WALLS[:5], WALLS[5] | {"captions": ["changed"]}, *WALLS[6:], SILENT], 20, True),
        ([*WALLS[:5], WALLS[5] | {"color": "white", "touched": 7}, *WALLS[6:], SILENT], 20, True),
        ([*WALLS, SILENT], 24, False),
        ([*WALLS, SILENT], 24, True),
    ],
    ids=[
        "a new row",
        "a removed row",
        "another caption",
        "another picture",
        "no links",
        "the same",
    ],
)
def test_only_shards_with_new_or_changed_rows_are_decoded(
    rows, linked, links, tmp_path, resources, inline_pool, monkeypatch
):
    """Also across file systems. Rejects are reused with their shard."""
    _, old = decode_images([*WALLS, SILENT], tmp_path, resources)
    before = contents(old)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse_link)
    outcome, new = decode_images(rows, tmp_path, resources)
    assert outcome.sha256 == {path.name: checksum(path) for path in new.glob("*.tar")}
    same = len(rows) > 25 or rows == [*WALLS, SILENT]
    assert linked <= outcome.counts["linked"] <= (24 if same else 23)
    assert outcome.counts["rejected"] == 1
    assert sorted(ShardReader(new).column("id").to_pylist()) == sorted(
        row["id"] for row in rows if row != SILENT
    )
    assert (
        sum(len(ids) for sha, ids in shards(new).items() if sha in shards(old))
        == outcome.counts["linked"]
    )
    assert contents(old) == before
    alone, apart = decode_images(rows, tmp_path / "apart", resources)
    assert alone.counts["linked"] == 0
    # Only the keys of units depend on the location of the files.
    finished = {
        name: sha
        for name, sha in contents(apart).items()
        if "parts/" not in name and "units" not in name
    }
    assert finished.items() <= contents(new).items()


OTHER_SETTINGS = {"frames": 8, "size": 20, "timeout": 30.0, "max_bytes": 10**6}
WITHOUT_EFFECT = {
    "validation": 0.3,
    "test": 0.3,
    "seed": 7,
    "max_reject_share": 1.0,
    "kinds": "image",
}


def test_what_a_shard_depends_on(tmp_path, resources, inline_pool, monkeypatch):
    """Each setting is changed separately; the time and the size of a file; the version of the
    stage; and nothing."""
    rows = WALLS[:4]
    assert OTHER_SETTINGS.keys() == decode_videos.UNIT_SETTINGS
    _, old = decode_images(rows, tmp_path, resources)
    for changes, linked in ((OTHER_SETTINGS, 0), (WITHOUT_EFFECT, 4)):
        for name, value in changes.items():
            assert (
                decode_images(rows, tmp_path, resources, **{name: value})[0].counts["linked"]
                == linked
            ), name
    manifest = (tmp_path / "data" / "items.jsonl").read_text()
    for change in ({"touched": 2}, {"more": b"more"}):
        outcome, new = decode_images([rows[0] | change, *rows[1:]], tmp_path, resources)
        assert (tmp_path / "data" / "items.jsonl").read_text() == manifest
        assert outcome.counts["linked"] == 0
        assert shards(new) == shards(old)  # the picture is the same, and so are the bytes
    with monkeypatch.context() as patch:
        patch.setattr(decode_videos, "VERSION", decode_videos.VERSION + 1)
        assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 0
    assert decode_images(rows, tmp_path, resources)[0].counts["linked"] == 4
