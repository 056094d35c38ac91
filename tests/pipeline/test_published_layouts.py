"""Each published data set, in the files and folders in which its authors distribute it, and the
rows of its import."""

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.shards.sources.manifest import Manifest, import_source

LAYOUTS = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text("utf-8"))


@pytest.fixture
def write_layout(tmp_path):
    """write_layout(name) writes the files of a data set, its media empty, and returns the
    folder."""

    def write(name: str) -> Path:
        for file in (*LAYOUTS[name]["media"], *LAYOUTS[name]["files"]):
            path = tmp_path / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            content = LAYOUTS[name]["files"].get(file, "")
            if path.suffix == ".parquet":
                pq.write_table(pa.table(json.loads(content)), path)
            else:
                path.write_text(content, "utf-8")
        return tmp_path / "data"

    return write


def read_rows(manifest: Manifest) -> list[list]:
    """Return the rows of a manifest as layouts.toml writes them: file and part, split, texts."""
    rows = []
    for batch in manifest.batches(["path", "split", "start", "end", "captions", "questions"]):
        for row in batch.to_pylist():
            file = Path(row["path"])
            assert file.is_file()
            part = "" if row["end"] is None else f"@{row['start']:g}-{row['end']:g}"
            asked = [f"{one['question']}: {one['answer']}" for one in row["questions"]]
            rows.append([f"{file.name}{part}", row["split"], [*row["captions"], *asked]])
    return sorted(rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_is_read_as_its_authors_distribute_it(name, write_layout, tmp_path):
    manifest = import_source(write_layout(name), tmp_path / "cache")

    assert read_rows(manifest) == sorted(LAYOUTS[name]["rows"])
    assert manifest.about["rejects"] == 0
