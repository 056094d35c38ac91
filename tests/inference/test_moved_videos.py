"""An index whose videos moved keeps their embeddings, and what is wrong with an index is one
line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.inference.index import PART, Index
from alpro.inference.index_videos import add_videos, settings
from alpro.inference.model import Model


@pytest.fixture(scope="module")
def model(folders) -> Model:
    return Model.load(folders["retrieval"], device="cpu")


@pytest.fixture
def add(tmp_path, folders, model):
    """add(folder, window, stride): adds its videos to the index; the counts."""

    def run(videos: Path, *windows: float):
        about = settings(tmp_path / "index", folders["retrieval"], *windows)
        return add_videos(tmp_path / "index", model, about, videos, lambda line: None)

    return run


@pytest.fixture
def films(tmp_path, videos) -> Path:
    (folder := tmp_path / "films").mkdir()
    for number in range(3):
        shutil.copy(videos[number], folder / f"{number}.mp4")
        os.utime(folder / f"{number}.mp4", ns=(0, 10**18 + number))
    return folder


def rows(tmp_path: Path) -> dict[str, list[np.ndarray]]:
    index = Index.open(tmp_path / "index")
    found: dict[str, list[np.ndarray]] = {}
    for number in range(len(index)):
        found.setdefault(index.item(number)["path"], []).append(index.embeddings[number])
    return found


@pytest.mark.parametrize("windows", [(), (0.5, 0.5)])
def test_videos_that_moved_keep_their_embeddings(windows, add, films, tmp_path):
    first = add(films, *windows)
    before = rows(tmp_path)
    moved = films.rename(tmp_path / "archive")
    (moved / "1.mp4").write_bytes((moved / "0.mp4").read_bytes())  # another file of this name

    counts = add(moved, *windows)
    after = rows(tmp_path)
    assert {Path(path).parent for path in after} >= {moved}
    for name in ("0.mp4", "2.mp4"):
        np.testing.assert_array_equal(after[f"{moved / name}"], before[f"{films / name}"])
        assert f"{films / name}" not in after
    assert 0 < counts.embedded < first.embedded
    assert add(moved, *windows).embedded == 0


def test_a_copy_is_another_clip(add, films, tmp_path):
    add(films)
    shutil.copytree(films, tmp_path / "copy")  # with its times
    assert add(tmp_path / "copy").embedded == 3
    assert len(rows(tmp_path)) == 6


def write_part(folder: Path, **columns: list) -> None:
    """Adds a part with two clips to an index."""
    values = {name: [None, None] for name in PART.names}
    values |= {"id": ["a", "b"], "path": ["/a", "/b"], "embedding": [[0.5], [0.5]]}
    pq.write_table(pa.table(values | columns, PART), folder / "more.parquet")
    about = json.loads((folder / "index.json").read_text())
    about["parts"].append("more")
    (folder / "index.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "columns",
    [
        {},  # of another width than the first part
        {"embedding": [[0.5], [0.5, 0.5]]},
        {"embedding": [[0.5], None]},
        {"embedding": [[0.5], [None]]},
        {"path": ["/a", None]},
    ],
)
def test_a_part_that_no_run_writes_is_one_line(columns, add, films, tmp_path):
    add(films)
    write_part(tmp_path / "index", **columns)
    with pytest.raises(InputError, match="corrupt"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/part", "a/b", ""])
def test_parts_of_other_folders_are_not_read(name, add, films, tmp_path):
    add(films)
    file = tmp_path / "index" / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parts": [name]}))
    with pytest.raises(InputError, match=r"index\.json: cannot be read"):
        Index.open(tmp_path / "index")


def test_an_index_that_may_not_be_read_is_not_to_be_deleted(add, films, tmp_path, monkeypatch):
    add(films)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match="Permission denied") as raised:
        Index.open(tmp_path / "index")
    assert "delete" not in str(raised.value)
