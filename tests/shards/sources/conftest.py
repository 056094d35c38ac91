"""Shared by the tests of sources: files, and what an import makes of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.shards.schema import Reject, Row
from alpro.shards.sources.form import Columns
from alpro.shards.sources.manifest import import_source
from tests.conftest import write_lines

Contents = Mapping[str, Any]


def write_files(folder: Path, files: Contents) -> Path:
    """Files by their names: texts, bytes, or what a name's extension writes: JSON, JSON Lines or
    Parquet. A name that ends with a slash is a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), path)
        elif isinstance(content, str):
            path.write_text(content, "utf-8")
        elif name.endswith(".jsonl"):
            write_lines(path, content)
        else:
            path.write_text(json.dumps(content))
    return folder


class Imported:
    """What an import has made of a source: rows, rejects and notes."""

    def __init__(self, manifest: Any, folder: Path):
        table = pq.read_table(manifest.file).to_pylist()
        self.folder = folder
        self.about = manifest.about
        self.rows = [
            Row.model_validate(row | {"meta": json.loads(row["meta"])}) for row in table
        ]
        self.rejects = [
            Reject.model_validate(row) for row in manifest.rejects().to_pylist()
        ]
        self.notes = "\n".join(manifest.about["notes"])

    @property
    def captions(self) -> dict[str, tuple[str, ...]]:
        """The captions by file, with its part."""
        captions = {}
        for row in self.rows:
            file = str(row.path).removeprefix(f"{self.folder}/")
            part = "" if row.end is None else f"@{row.start:g}-{row.end:g}"
            captions[f"{file}{part}"] = row.captions
        return captions

    @property
    def answers(self) -> list[str]:
        return [asked.answer for row in self.rows for asked in row.questions]

    @property
    def details(self) -> list[str]:
        """Why records are rejected."""
        return [reject.detail or reject.reason for reject in self.rejects]


Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read(files, data="", columns=..., ...): the import of a folder of these files, or of one of
    them. `media` are the names of empty videos and images."""
    number = 0

    def read(
        files: Contents,
        media: str = "",
        data: str = "",
        columns: Contents | None = None,
        **more: Any,
    ) -> Imported:
        nonlocal number
        number += 1
        folder = write_files(
            tmp_path / f"data {number}", {**dict.fromkeys(media.split(), "x"), **files}
        )
        told = Columns.model_validate(columns) if columns else None
        annotations: dict[str, Sequence[Path]] = {
            split: [folder / name for name in names.split()]
            for split, names in more.pop("annotations", {}).items()
        }
        source = folder / data if data else folder
        manifest = import_source(
            source, tmp_path / "cache", annotations, columns=told, **more
        )
        return Imported(manifest, folder)

    return read
