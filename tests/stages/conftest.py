"""Shared by the tests of stages: corpora of small images, the contents of a folder, and power
failures."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.artifact import read_record
from alpro.files import checksum
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.checksums import describe_contents
from alpro.stages.decode_videos import Config
from alpro.stages.execution.interface import Outcome, Resources
from tests.conftest import decode_data, write_lines
from tests.power_cut import cut_everywhere


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by its path."""
    return {
        str(p.relative_to(folder)): checksum(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def write_manifest(folder: Path, rows: list[dict]) -> Path:
    """A manifest of images, one for each row: black, or of the row's `color`."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        Image.new("RGB", (20, 10), row.pop("color", "black")).save(
            folder / f"{row['id']}.png"
        )
        row["path"] = f"{row['id']}.png"
    return write_lines(folder / "items.jsonl", rows)


def run_stage(
    stage: Any, inputs: dict[str, Path], out: Path, resources: Resources, **config: Any
) -> Outcome:
    """Run a stage with these folders and these values of its configuration."""
    out.mkdir(exist_ok=True)
    settings = stage.Config.model_validate(config)
    return stage.run(settings, stage.Inputs.of(inputs), out, resources)


def rejects_of(out: Path) -> dict[str, str]:
    """The reasons of the rejects by their ids."""
    return {
        row["id"]: row["reason"]
        for row in pq.read_table(out / "rejects.parquet").to_pylist()
    }


@pytest.fixture
def power_cuts(tmp_path, monkeypatch, record_property):
    """power_cuts(step, make, every): the step is made as if the power had not been cut, by contents
    and metrics.

    Returns the number of file operations. Of the contents, those of `names` if there are any."""

    def cut(step, make, every, names=()):
        store = Store(tmp_path / "disk" / "artifacts")
        # It takes seconds, for all the runs.
        monkeypatch.setattr("alpro.pipeline.store.artifacts.package_versions", dict)

        def job():
            with store.lock(step):
                if store.find(step) is None:
                    store.make(step, make, {})

        def result():
            folder = store.folder(step)
            record = read_record(folder)
            assert record is not None
            assert record.contents == describe_contents(folder, {})
            contents = {
                name: record.contents[name] for name in names or record.contents
            }
            return contents, dict(record.metrics)

        counts = cut_everywhere(tmp_path / "disk", job, result, monkeypatch, every)
        record_property(step.stage, counts)
        return counts["operations"]

    return cut


@pytest.fixture
def decode_rows(tmp_path, inline_pool, resources):
    """decode_rows(rows, **config) decodes images of the rows and returns the outcome and the
    folder."""

    def decode(rows, **config):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        source = write_manifest(tmp_path / "data", rows)
        return decode_data(Config(size=16, **config), source, out, resources), out

    return decode
