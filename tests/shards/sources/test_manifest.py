"""Manifests in all formats, and folders: their rows."""

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.shards.schema import Row, SampleMetadata
from alpro.shards.sources.forms import question_type
from tests.shards.conftest import QUESTION, read_manifest, single_row

RECORDS = [
    {"path": "a.mp4", "caption": "a dog, running", "start": 1.5, "end": 3.0, "split": "train", "source": "tv"},
    {"path": "b.jpg", "caption": "ein Hund — läuft", "split": "test", "source": "web"},
]


def as_jsonl(folder: Path) -> Path:
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, RECORDS)) + "\n\n")
    return folder / "m.jsonl"


def as_jsonl_gz(folder: Path) -> Path:
    (folder / "m.jsonl.gz").write_bytes(gzip.compress(as_jsonl(folder).read_bytes()))
    return folder / "m.jsonl.gz"


def as_table(folder: Path, name: str, delimiter: str, quote: str = "") -> Path:
    columns = ["path", "caption", "start", "end", "split", "source"]
    lines = [columns] + [[f"{quote}{record[c]}{quote}" if c in record else "" for c in columns] for record in RECORDS]
    (folder / name).write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    return folder / name


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "m.parquet")
    return folder / "m.parquet"


FORMS = {
    "jsonl": as_jsonl,
    "jsonl.gz": as_jsonl_gz,
    "csv": lambda folder: as_table(folder, "m.csv", ",", '"'),
    "tsv": lambda folder: as_table(folder, "m.tsv", "\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_all_manifest_formats_give_the_same_rows(form: Callable[[Path], Path], tmp_path: Path):
    rows, rejects = read_manifest(form(tmp_path))
    assert rejects == []
    assert rows == [
        Row(
            id="a@1.5-3",  # the file without its extension, and the window
            path=tmp_path / "a.mp4",
            kind="video",
            captions=("a dog, running",),
            start=1.5,
            end=3.0,
            split="train",
            name="a.mp4",
            meta={"source": "tv"},
        ),
        Row(
            id="b",
            path=tmp_path / "b.jpg",
            kind="image",
            captions=("ein Hund — läuft",),
            split="test",
            name="b.jpg",
            meta={"source": "web"},
        ),
    ]


def test_a_folder_of_videos_and_images_with_texts(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("b.MP4", "deep/a.webm", "deep/still.PNG", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("one dog\n\n  two   dogs \none dog\n", "utf-8-sig")
    (tmp_path / "deep" / "still.txt").write_text("ein Hündchen\n", "utf-8")
    rows, rejects = read_manifest(tmp_path)
    assert rejects == []
    assert {row.id: (row.kind, row.captions) for row in rows} == {
        "b": ("video", ("one dog", "two dogs")),
        "deep/a": ("video", ()),
        "deep/still": ("image", ("ein Hündchen",)),
    }
    assert {row.path for row in rows} == {tmp_path / "b.MP4", tmp_path / "deep/a.webm", tmp_path / "deep/still.PNG"}


def test_an_id_defaults_to_the_path_and_the_window(write_records):
    for record, expected in (
        ({"path": "x/a.mp4"}, "x/a"),
        ({"path": "a.mp4", "start": 2}, "a@2-"),
        ({"path": "a.mp4", "end": 2.25}, "a@0-2.25"),
        ({"path": "a.mp4", "id": "mine"}, "mine"),
        ({"path": "a.mp4", "id": 0}, "0"),
        ({"path": "a.mp4", "id": ""}, "a"),
    ):
        assert single_row(write_records(record | {"caption": "x"})).id == expected


def test_a_kind_defaults_to_that_of_the_extension(write_records):
    for record, kind in (
        ({"path": "a.mkv"}, "video"),
        ({"path": "a.JPEG"}, "image"),
        ({"path": "a.gif"}, "video"),  # it moves
        ({"path": "a.gif", "kind": "image"}, "image"),
        ({"path": "a.jpg", "kind": " Video"}, "video"),
        ({"path": "a.mp4", "kind": "IMAGE"}, "image"),
        ({"path": "a"}, "video"),
    ):
        assert single_row(write_records(record | {"caption": "x"})).kind == kind


def test_captions_are_normalized_and_unique(write_records, tmp_path: Path):
    for record, expected in (
        ({"captions": ["  a  dog\truns ", "a dog runs", "", "A dog runs", "\n"]}, ("a dog runs", "A dog runs")),
        ({"captions": ["a dog runs", "a dog"], "caption": "it runs"}, ("a dog runs", "a dog", "it runs")),
        ({"caption": "[music] a man sings"}, ("[music] a man sings",)),
    ):
        assert single_row(write_records({"path": "a.mp4"} | record)).captions == expected
    (tmp_path / "m.csv").write_text('path,captions\na.mp4,"[""one dog"", ""two, dogs""]"\n')
    assert single_row(tmp_path / "m.csv").captions == ("one dog", "two, dogs")


def test_questions_are_normalized_and_typed_by_their_first_word(write_records):
    questions = [
        QUESTION,
        {"question": "How many?", "answer": 2, "type": "number"},
        {"question": "What's he doing?", "answer": "x"},
        {**QUESTION, "type": "How many?"},
    ]
    read = single_row(write_records({"path": "a.mp4", "questions": questions})).questions
    assert [(one.question, one.answer, one.type) for one in read] == [
        ("what runs?", "dog", "what"),
        ("How many?", "2", "number"),
        ("What's he doing?", "x", "what"),
        ("what runs?", "dog", "how_many"),
    ]


def test_question_types_are_valid_in_metric_names():
    for text, expected in (
        ("what", "what"),
        ("What's", "what"),
        ("what’s", "what"),
        ("(what", "what"),
        ("'what'", "what"),
        ("Yes/No", "yes_no"),
        ("how many", "how_many"),
        ("multi-choice_2", "multi-choice_2"),
        ("?!", "other"),
        ("什么", "other"),
    ):
        assert question_type(text) == expected


def test_every_other_column_is_kept(write_records):
    row = single_row(
        write_records({"path": "a.mp4", "caption": "x", "license": "CC0", "score": 0.5, "tags": ["a", {"b": None}]})
    )
    assert row.meta == {"license": "CC0", "score": 0.5, "tags": ["a", {"b": None}]}


def test_every_valid_row_can_be_planned_and_written(write_records):
    """The deepest nesting and the longest numbers that are accepted can be written to JSON and read again."""
    deep: list = ["x"]
    for _ in range(62):
        deep = [deep]
    row = single_row(
        write_records({"path": "a.mp4", "caption": 5000 * "7", "deep": deep, "long": 10**400, "start": 1e6})
    )
    assert Row.model_validate_json(row.model_dump_json()) == row
    assert row.captions == (5000 * "7",)
    about = {"version": 1, "split": "train", "duration": 1.0, "width": 1, "height": 1, "source": "a.mp4"}
    metadata = json.dumps(about | row.model_dump(include={"id", "kind", "group", "captions", "questions", "meta"}))
    assert SampleMetadata.model_validate_json(metadata).meta == row.meta


def test_null_equals_a_missing_column(write_records):
    for column in ("id", "split", "group", "captions"):
        without = single_row(write_records({"path": "a.mp4", "caption": "x"}))
        assert single_row(write_records({"path": "a.mp4", "caption": "x", column: None})) == without


def test_parquet_bytes_are_decoded(tmp_path: Path):
    record = {"path": b"a.mp4", "caption": "ein Hündchen".encode(), "captions": [b"a dog"], "split": b"test"}
    record |= {"seen": datetime(2026, 1, 1), "note": "für".encode(), "digest": b"\xff\x00"}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "m.parquet")
    row = single_row(tmp_path / "m.parquet")
    assert (row.path, row.captions, row.split) == (tmp_path / "a.mp4", ("a dog", "ein Hündchen"), "test")
    assert row.meta == {"seen": "2026-01-01 00:00:00", "note": "für", "digest": "ff00"}


def test_split_names(write_records):
    names = ["train", "Training", "val", "valid", "dev", "validation", "TEST", "testing", " test ", ""]
    rows, rejects = read_manifest(
        write_records(*({"path": f"{i}.mp4", "caption": "x", "split": s} for i, s in enumerate(names)))
    )
    assert rejects == []
    assert [row.split for row in rows] == ["train"] * 2 + ["validation"] * 4 + ["test"] * 3 + [""]


def test_rows_of_a_file_form_one_group_however_its_path_is_spelled(write_records, tmp_path):
    for path in ("./a.mp4", "x/../a.mp4", "{folder}/a.mp4"):
        named = {"path": path.format(folder=tmp_path), "caption": "x", "id": "other"}
        rows, _ = read_manifest(write_records({"path": "a.mp4", "caption": "x"}, named))
        assert len({row.name for row in rows}) == 1


def test_a_query_is_not_part_of_an_id(write_records):
    row = single_row(write_records({"path": "https://host/clips/a.mp4?v=7", "caption": "x"}))
    assert (row.id, row.name, row.file_name) == ("host/clips/a", "https://host/clips/a.mp4?v=7", "a.mp4")


def test_a_text_beside_a_video_that_is_not_utf8_is_a_reject(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "a.txt").write_bytes("a Café".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("a Café".encode())
    (row,), (reject,) = read_manifest(tmp_path)
    assert (row.id, row.captions) == ("b", ("a Café",))
    assert (reject.id, reject.reason) == ("a.mp4", "bad row")
    assert "a.txt: not UTF-8: byte 0xe9 at position 6" in reject.detail
