"""Each published data set, in the files and folders in which its authors distribute it, and the
rows of its import."""

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.shards.sources.manifest import import_source

LAYOUTS = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text("utf-8"))


def read_rows(manifest):
    """Return the rows of a manifest as layouts.toml writes them: file and part, split, texts."""
    rows = []
    columns = ["path", "split", "start", "end", "captions", "questions"]
    for batch in manifest.batches(columns):
        for row in batch.to_pylist():
            file = Path(row["path"])
            assert file.is_file()
            name = file.name
            if row["end"] is not None:
                name += f"@{row['start']:g}-{row['end']:g}"
            texts = row["captions"]
            texts += [f"{one['question']}: {one['answer']}" for one in row["questions"]]
            rows.append([name, row["split"], texts])
    return sorted(rows)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_data_set_is_read_as_its_authors_distribute_it(layout, tmp_path):
    """Its media are empty files."""
    for file in (*layout["media"], *layout["files"]):
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        content = layout["files"].get(file, "")
        if path.suffix == ".parquet":
            pq.write_table(pa.table(json.loads(content)), path)
        else:
            path.write_text(content, "utf-8")

    manifest = import_source(tmp_path / "data", tmp_path / "cache")

    assert read_rows(manifest) == sorted(layout["rows"])
    assert manifest.about["rejects"] == layout.get("rejects", 0)
