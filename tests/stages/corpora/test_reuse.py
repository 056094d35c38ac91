"""Shards of earlier corpora are linked if their rows, files and settings are the same."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from alpro.files import checksum
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config
from tests.conftest import decode_data
from tests.stages.conftest import contents, write_manifest


def decode_images(rows, folder, resources, **config):
    """Decode images of the rows, as an artifact of a workspace.

    Of a row, `touched` (the modification time of its file) and `more` (bytes after the image) are
    not in the manifest.
    """
    stage = folder / "artifacts" / "decode_videos"
    out = stage / f"run {len(list(stage.glob('*')))}"
    out.mkdir(parents=True)
    written = [
        {key: row[key] for key in row.keys() - {"touched", "more"}} for row in rows
    ]
    source = write_manifest(folder / "data", written)
    for row in rows:
        path = source.with_name(f"{row['id']}.png")
        path.write_bytes(path.read_bytes() + row.get("more", b""))
        touched = row.get("touched", 1)  # unchanged images keep their time
        os.utime(path, (touched, touched))

    settings = {"size": 16, "samples_per_shard": 4, **config}
    return decode_data(Config.model_validate(settings), source, out, resources), out


def shards(folder):
    """The ids of each shard, by the SHA-256 of its file."""
    ids = {}
    for row in pq.read_table(folder / "index.parquet").to_pylist():
        ids.setdefault(checksum(folder / row["shard"]), []).append(row["id"])
    return ids


WALLS = [
    {"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)
]
SILENT = {"id": "silent", "split": "train"}
ALL = [*WALLS, SILENT]
NEW = {"id": "new", "captions": ["a new wall"], "split": "train"}


def without(number, *replacement):
    """All rows with another one, or none, in the place of a wall."""
    return [*WALLS[:number], *replacement, *WALLS[number + 1 :], SILENT]


@pytest.mark.parametrize(
    ("rows", "linked"),
    [
        pytest.param([*ALL, NEW], range(16, 25), id="a new row"),
        pytest.param(without(5), range(16, 24), id="a removed row"),
        pytest.param(
            without(5, WALLS[5] | {"captions": ["changed"]}), [20], id="a caption"
        ),
        pytest.param(
            without(5, WALLS[5] | {"color": "white", "touched": 7}),
            [20],
            id="a picture",
        ),
        pytest.param(ALL, [24], id="the same"),
    ],
)
def test_only_shards_with_new_or_changed_rows_are_decoded(
    rows, linked, tmp_path, resources, inline_pool
):
    """Rejects are reused with their shard."""
    _, old = decode_images(ALL, tmp_path, resources)
    before = contents(old)

    outcome, new = decode_images(rows, tmp_path, resources)

    assert outcome.counts["linked"] in linked
    same = [ids for sha256, ids in shards(new).items() if sha256 in shards(old)]
    assert sum(map(len, same)) == outcome.counts["linked"]
    assert outcome.sha256 == {path.name: checksum(path) for path in new.glob("*.tar")}
    assert contents(old) == before
    _, alone = decode_images(rows, tmp_path / "apart", resources)
    assert corpus(new) == corpus(alone)


def corpus(folder):
    """The contents of a corpus, without `parts` and the keys of units, which depend on the place of
    the files."""
    files = contents(folder)
    return {
        name: files[name] for name in files if not name.startswith(("parts/", "units."))
    }


def test_a_disk_without_links_has_copies(tmp_path, resources, inline_pool, monkeypatch):
    _, old = decode_images(ALL, tmp_path, resources)
    no_links = OSError(errno.EXDEV, "Invalid cross-device link")
    monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=no_links))

    outcome, new = decode_images(ALL, tmp_path, resources)

    assert outcome.counts["linked"] == len(WALLS)
    assert corpus(new) == corpus(old)


# Another value of each setting, and how many of four samples are linked then.
SETTINGS = {
    "frames": (8, 0),
    "size": (20, 0),
    "timeout": (30.0, 0),
    "max_bytes": (10**6, 0),
    "validation": (0.3, 4),
    "test": (0.3, 4),
    "seed": (7, 4),
    "max_reject_share": (1.0, 4),
    "kinds": ("image", 4),
}


@pytest.fixture
def count_linked(tmp_path, resources, inline_pool):
    """count_linked(change, **settings): the samples that a corpus of four walls shares with one that
    exists, after a change of the first row or of the settings."""
    decode_images(WALLS[:4], tmp_path, resources)

    def count(change, **settings):
        rows = [WALLS[0] | change, *WALLS[1:4]]
        return decode_images(rows, tmp_path, resources, **settings)[0].counts["linked"]

    return count


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shard_depends_on_the_settings_of_units_alone(name, count_linked):
    value, linked = SETTINGS[name]

    assert count_linked({}, **{name: value}) == linked


@pytest.mark.parametrize(
    ("change", "versions"), [({"touched": 2}, 0), ({"more": b"more"}, 0), ({}, 1)]
)
def test_a_shard_depends_on_its_files_and_the_version_of_the_stage(
    change, versions, count_linked, monkeypatch
):
    """On the time and the size of each file."""
    monkeypatch.setattr(decode_videos, "VERSION", decode_videos.VERSION + versions)
    assert count_linked(change) == 0
