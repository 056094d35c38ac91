"""A source is imported once into a table; every record of it is a row or a reject of the table."""

import csv
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.shards.schema import Row
from alpro.shards.sources import manifest
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan

pytestmark = pytest.mark.usefixtures("small_row_groups")

GOOD, BAD, QUESTION, IMAGE = "good", "bad", "asked", "image"
KINDS = st.lists(st.sampled_from([GOOD, BAD, QUESTION, IMAGE]), min_size=1, max_size=20)
COLUMNS = ["path", "caption", "start", "end", "split", "source", "questions"]
ASKED = [{"question": "what?", "answer": "a dog", "type": "what"}]


def records(kinds: list[str], folder: Path) -> Iterator[tuple[dict, Row | None]]:
    """Records, each with the row that it means: windows of videos, ones with a question, images, and empty windows."""
    for number, kind in enumerate(kinds):
        name, end = (f"{number}.jpg", "") if kind == IMAGE else (f"{number}.mp4", "@1.5-3")
        texts = {"split": "test" if number % 2 else "train", "source": "tv", "caption": f'a "dog", {number} — läuft'}
        window = {} if kind == IMAGE else {"start": 1.5, "end": 1.5 if kind == BAD else 3.0}
        asked = {"questions": ASKED} if kind == QUESTION else {}
        row = None
        if kind != BAD:
            files = {"id": f"{number}{end}", "path": folder / name, "name": name, "group": name}
            said = {"captions": (texts["caption"],), "split": texts["split"], "meta": {"source": "tv"}}
            row = Row(kind="image" if kind == IMAGE else "video", **files, **said, **window, **asked)
        yield {"path": name, **texts, **window} | {key: json.dumps(value) for key, value in asked.items()}, row


def write(folder: Path, form: str, kinds: list[str]) -> Path:
    path, rows = folder / f"m.{form}", [record for record, _ in records(kinds, folder)]
    if form.startswith("json"):
        lines = json.dumps(rows) if form == "json" else "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_bytes(gzip.compress(lines.encode()) if form.endswith("gz") else lines.encode())
        return path
    table = [{column: row.get(column) for column in COLUMNS} for row in rows]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=3)
        return path
    with path.open("w", newline="") as file:
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        writer = csv.DictWriter(file, COLUMNS, **plain if form == "tsv" else {})
        writer.writeheader()
        writer.writerows(table)
    return path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
@settings(max_examples=15, deadline=None)
@given(kinds=KINDS)
def test_rows_of_every_form_are_samples_or_rejects(form, kinds):
    with TemporaryDirectory() as name:
        imported = import_source(write(Path(name), form, kinds), Path(name) / "manifests")
        plan, about = DecodePlan(imported), imported.about
        assert (about["rows"], about["rejects"]) == (len(kinds) - kinds.count(BAD), kinds.count(BAD))
        assert about["questions"] == (QUESTION in kinds)
        rows = {row.id: row for unit in plan.units() for row in unit.rows}
        assert rows == {row.id: row for _, row in records(kinds, Path(name)) if row}
        assert len(list(plan.rejects())) == kinds.count(BAD)


def imported_again(monkeypatch, source: Path, first: Manifest, **how) -> bool:
    """Whether a second import reads the records again."""
    read = []
    scan = manifest.scan_source
    monkeypatch.setattr(manifest, "scan_source", lambda *place: (read.append(place), scan(*place))[1])
    again = import_source(source, first.folder.parent, **how)
    monkeypatch.undo()
    assert (again.folder == first.folder) == (not read)
    assert [folder.name for folder in first.folder.parent.iterdir()] == [again.folder.name]  # no earlier one stays
    return bool(read)


def test_an_unchanged_source_is_imported_once_and_an_unusable_one_leaves_nothing(tmp_path, monkeypatch):
    source = write(tmp_path, "jsonl", [GOOD, QUESTION])
    first = import_source(source, tmp_path / "manifests")
    assert not imported_again(monkeypatch, source, first)
    (tmp_path / "other.mp4").touch()  # rows of a manifest name their files
    assert not imported_again(monkeypatch, source, first)
    digest = first.about["digest"]
    os.utime(source, ns=(1, 1))
    assert imported_again(monkeypatch, source, first)
    again = import_source(source, tmp_path / "manifests")
    assert again.about["digest"] == digest  # equal rows
    (tmp_path / "importer.py").write_text("another importer")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "__file__", str(tmp_path / "importer.py"))
        assert import_source(source, tmp_path / "new").folder.name != again.folder.name
    moved = source.rename(tmp_path / "moved.jsonl")
    assert import_source(moved, tmp_path / "others").about["digest"] == digest
    moved.write_text(moved.read_text().replace("1.mp4", "0.mp4"))
    with pytest.raises(InputError, match="line 2: id '0"):
        import_source(moved, tmp_path / "unusable")
    assert list((tmp_path / "unusable").iterdir()) == []


def test_a_changed_folder_is_imported_again(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "deep/c.mp4", "a.txt", "deep/c.txt"):
        (folder / name).write_text("a dog")
    for name in ("deep/c.txt", "b.txt", "deep/d.mp4", ""):  # a changed text, a new one, a new video, a removed one
        first = import_source(folder, tmp_path / "manifests")
        assert not imported_again(monkeypatch, folder, first)
        (folder / name).write_text("another one") if name else (folder / "deep" / "c.mp4").unlink()
        assert imported_again(monkeypatch, folder, first)


def test_annotations_are_imported_again_with_another_file_video_or_root(tmp_path, monkeypatch):
    videos, table = tmp_path / "videos", tmp_path / "train.jsonl"
    videos.mkdir()
    (videos / "a.webm").touch()
    table.write_text('{"clip_name": "a", "caption": "a dog"}\n{"clip_name": "b", "caption": "a cat"}\n')
    first = import_source(videos, tmp_path / "manifests", {"train": table})
    assert not imported_again(monkeypatch, videos, first, annotations={"train": table})
    (videos / "b.webm").touch()
    assert imported_again(monkeypatch, videos, first, annotations={"train": table})
    for how in ({"annotations": {"test": table}}, {"annotations": {"train": table}, "root": videos}):
        assert import_source(videos, tmp_path / "manifests", **how).folder.name[:16] != first.folder.name[:16]
    beside = import_source(table, tmp_path / "manifests")
    (tmp_path / "a.mp4").touch()  # the videos of a file of a data set lie beside it
    assert import_source(table, tmp_path / "manifests").folder != beside.folder
