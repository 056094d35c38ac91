"""Tables and JSON documents with the column names and the nesting that other programs use."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.scan import scan_source
from tests.shards.conftest import rows_and_rejects

LINES = '{"video": "a.mp4", "caption": "a dog"}, {"video": "b.mp4", "caption": "a cat"}'
ROWS = f"[{LINES}]"
CAPTIONS = {
    "a list": ("x.json", ROWS),
    "a list as JSON Lines": ("x.jsonl", ROWS),
    "a list under a key": ("x.json", f'{{"info": {{"year": 2016}}, "annotations": {ROWS}}}'),
    "captions by videos": ("x.json", '{"a.mp4": "a dog", "b.mp4": ["a cat"]}'),
    "lists by videos": ("x.json", '{"a": ["a dog"], "b": ["a cat"]}'),
    "records by videos": ("x.json", '{"a": [{"caption": "a dog"}], "b": [{"caption": "a cat"}]}'),
    "columns": ("x.json", '{"video": ["a.mp4", "b.mp4"], "caption": ["a dog", "a cat"]}'),
    "columns of pandas": (
        "x.json",
        '{"video": {"0": "a.mp4", "1": "b.mp4"}, "caption": {"0": "a dog", "1": "a cat"}}',
    ),
    "COCO": (
        "x.json",
        '{"images": [{"id": 1, "file_name": "a.mp4"}, {"id": 2, "file_name": "b.mp4"}], "annotations": '
        '[{"id": 7, "image_id": 1, "caption": "a dog"}, {"id": 8, "image_id": 2, "caption": "a cat"}]}',
    ),
    "capitals": ("x.csv", "Video,Caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "capitals of a manifest": ("x.csv", "Path,Caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "path and text": ("x.csv", "path,text\na.mp4,a dog\nb.mp4,a cat\n"),
    "an extension in capitals": ("X.CSV", "video,caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "names in capitals": ("x.csv", "video,caption\nA.MP4,a dog\nB,a cat\n"),
    "paths in capitals": ("x.csv", "path,caption\nA.MP4,a dog\nB.mp4,a cat\n"),
    "Excel's line": ("x.csv", "sep=;\nvideo;caption\na.mp4;a dog\nb.mp4;a cat\n"),
    "a comment": ("x.csv", "# by a tool\n\nvideo,caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "tabs and quotes": ("x.tsv", '"video"\t"caption"\n"a.mp4"\t"a dog"\n"b.mp4"\t"a cat"\n'),
    "names with spaces": ("x.csv", "Video Path,Video Caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "names with hyphens": ("x.csv", "file-name,blip2_caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "clips": ("x.csv", "clip_id,caption,caption_id\na,a dog,1\nb,a cat,2\n"),
    "numbered captions": ("x.csv", "video,caption_1,caption_2\na,a dog,\nb,,a cat\n"),
    "records under numbers": (
        "x.json",
        '{"0": {"video": "a.mp4", "caption": "a dog"}, "1": {"video": "b.mp4", "caption": "a cat"}}',
    ),
    "pandas' orientation split": (
        "x.json",
        '{"columns": ["video", "caption"], "data": [["a.mp4", "a dog"], ["b.mp4", "a cat"]]}',
    ),
    "JSON in a .csv": ("x.csv", ROWS),
    "JSON Lines in a .csv": ("x.csv", LINES.replace("}, ", "}\n")),
    "lines with commas": ("x.jsonl", LINES.replace("}, ", "},\n") + ",\n"),
    "objects one after another": ("x.json", LINES.replace("}, ", "}").replace(",", ",\n")),
    "other characters of a width": ("x.csv", "\uff56ideo,caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "spaces around names": ("x.csv", 'video,caption\na.mp4 ,a dog\n"b.mp4\t",a cat\n'),
    "two marks": ("x.csv", "\ufeff\ufeffvideo,caption\na.mp4,a dog\nb.mp4,a cat\n"),
    "objects of captions": (
        "x.json",
        '[{"video": "a", "captions": [{"text": "a dog"}]}, {"video": "b", "captions": [null, "a cat"]}]',
    ),
    "Karpathy": (
        "x.json",
        '{"images": [{"filename": "a.mp4", "split": "restval", "sentences": [{"raw": "a dog"}]}, '
        '{"filename": "b.mp4", "split": "test", "sentences": [{"raw": "a cat"}]}]}',
    ),
    "arrays of NumPy": (
        "x.csv",
        "video,captions\na,\"array(['a dog'], dtype=object)\"\nb,\"['a cat']\"\n",
    ),
    "empty cells of pandas": ("x.csv", "path,caption,split\na.mp4,a dog,nan\nb.mp4,a cat,None\n"),
    "a table in a .txt": ("x.txt", "video\tcaption\na.mp4\ta dog\nb.mp4\ta cat\n"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def scanned(data: Path) -> tuple[list[Row], list[Reject]]:
    return rows_and_rejects(scan_source(data)[1])


@pytest.mark.parametrize("form", CAPTIONS)
def test_captions_are_read_in_the_forms_of_other_programs(form, folder):
    name, text = CAPTIONS[form]
    (folder / name).write_text(text)
    rows, rejects = scanned(folder / name)
    assert rejects == []
    assert [(row.path, row.captions) for row in rows] == [
        (folder / "a.mp4", ("a dog",)),
        (folder / "b.mp4", ("a cat",)),
    ]


def test_a_table_in_utf16_with_its_mark_is_read(folder):
    """As Excel saves Unicode text, and Notepad Unicode."""
    (folder / "x.txt").write_text("video\tcaption\r\na\ta dog\r\n", "utf-16")
    ((row,), _) = scanned(folder / "x.txt")
    assert row.captions == ("a dog",)

    (folder / "x.txt").unlink()
    (folder / "a.txt").write_text("a café", "utf-16")
    assert [row.captions for row in scanned(folder)[0]] == [("a café",), ()]


def test_a_document_may_have_a_part_for_each_split(folder):
    for train, test in (
        ([{"video": "a", "caption": "a dog"}], [{"video": "b", "caption": "a cat"}]),
        ({"a": ["a dog"]}, {"b": ["a cat"]}),
    ):
        (folder / "x.json").write_text(json.dumps({"train": train, "testing": test}))
        rows, rejects = scanned(folder / "x.json")
        assert rejects == []
        assert [(row.captions, row.split) for row in rows] == [
            (("a dog",), "train"),
            (("a cat",), "test"),
        ]


def test_videos_of_a_hugging_face_table_are_files_or_rejects(folder):
    videos = [{"path": "a.mp4", "bytes": None}, {"path": "b.mp4", "bytes": b"12"}]
    table = pa.table({"video": videos, "caption": ["a dog", "a cat"]})
    pq.write_table(table, folder / "x.parquet")
    ((row,), (reject,)) = scanned(folder / "x.parquet")
    assert (row.path, row.captions) == (folder / "a.mp4", ("a dog",))
    assert "media are in the table" in reject.detail


def test_the_contents_of_a_table_tell_its_format(folder):
    pq.write_table(pa.table({"video": ["a"], "caption": ["a dog"]}), folder / "x.csv")
    assert [row.captions for row in scanned(folder / "x.csv")[0]] == [("a dog",)]
    (folder / "x.csv").write_bytes(gzip.compress(b"video,caption\na,a dog\n", mtime=0))
    assert [row.captions for row in scanned(folder / "x.csv")[0]] == [("a dog",)]


@pytest.mark.parametrize(
    "first", ["b.mp4", "# a note", '{"video": "b.mp4"}', '[{"video": "b.mp4"}']
)
def test_a_record_without_texts_before_others_is_a_reject(first, folder):
    """A table whose first row is short is no list of names."""
    tables = {
        "{": ("x.jsonl", '\n{"video": "a", "caption": "a dog"}\n'),
        "[": ("x.json", ', {"video": "a", "caption": "a dog"}]'),
    }
    name, rest = tables.get(first[0], ("x.csv", "\na,a dog\n"))
    text = first + rest
    (folder / name).write_text(text if first[0] in tables else f"video,caption\n{text}")
    ((row,), (reject,)) = scanned(folder / name)
    assert (row.captions, reject.detail) == (("a dog",), "no caption")


PARTS = {
    "Panda-70M": (
        "x.csv",
        """video,timestamp,caption\na,"[['0:00:01', '0:00:02'], ['0:00:02', '0:00:03.5']]","""
        """"['a dog', 'a cat']"\n""",
    ),
    "HowTo100M": (
        "x.json",
        '{"a": {"start": [1, 2], "end": [2, 3.5], "text": ["a dog", "a cat"]}}',
    ),
    "tuples of pandas": (
        "x.csv",
        'path,segment,caption\na.mp4,"(1.0, 2.0)",a dog\na.mp4,"(2, 3.5)",a cat\n',
    ),
    "YouCook2": (
        "x.json",
        '{"database": {"a": {"subset": "training", "annotations": ['
        '{"segment": [1, 2], "id": 0, "sentence": "a dog"}, '
        '{"segment": [2, 3.5], "id": 1, "sentence": "a cat"}]}}}',
    ),
}


@pytest.mark.parametrize("form", PARTS)
def test_lists_of_times_and_captions_in_one_record_are_parts(form, folder):
    name, text = PARTS[form]
    (folder / name).write_text(text)
    rows, rejects = scanned(folder / name)
    assert rejects == []
    assert [(row.start, row.end, row.captions) for row in rows] == [
        (1, 2, ("a dog",)),
        (2, 3.5, ("a cat",)),
    ]


def test_times_that_are_no_parts_are_rejects(folder):
    record = {"video": "a", "start": [1, 2, 3], "end": [2, 3], "text": ["a dog", "a cat"]}
    (folder / "x.json").write_text(json.dumps([record, {"video": "b", "text": "a cat"}]))
    ((row,), (reject,)) = scanned(folder / "x.json")
    assert row.captions == ("a cat",)
    assert "a row for each part" in reject.detail


QUESTIONS = {
    "capitals": '[{"Video": "a", "Q": "what?", "A": "dog"}, {"Video": "a", "Q": "who?", "A": 0}]',
    "lists": '[{"video": "a", "question": ["what?", "who?"], "answer": ["dog", 0]}]',
    "by videos": '{"a": {"questions": [{"question": "what?", "answer": "dog"}, '
    '{"question": "who?", "answer": 0}]}}',
    "correct answers": '[{"video": "a", "question": "what?", "correct_answer": "dog"}, '
    '{"video": "a", "question": "who?", "correct_answer": 0}]',
    "several answers": '[{"video": "a", "question": "what?", "answers": ["dog", "cat", "dog"]}, '
    '{"video": "a", "question": "who?", "answers": ["0"]}]',
}


@pytest.mark.parametrize("form", QUESTIONS)
def test_questions_are_read_in_the_forms_of_other_programs(form, folder):
    (folder / "x.json").write_text(QUESTIONS[form])
    ((row,), rejects) = scanned(folder / "x.json")
    answers = [(question.question, question.answer) for question in row.questions]
    assert (answers, rejects) == ([("what?", "dog"), ("who?", "0")], [])


def test_what_is_missing_of_questions_is_named(folder):
    for record, named in (
        ({"video": "a", "question": "what?", "option 0": "x", "option 1": "y"}, "column answer"),
        ({"video": "a", "conversations": [{"from": "gpt", "value": "x"}]}, "conversations"),
    ):
        (folder / "x.json").write_text(json.dumps([record]))
        with pytest.raises(InputError, match=named):
            scanned(folder / "x.json")


def test_an_empty_caption_of_a_program_is_none(folder):
    (folder / "x.csv").write_text("path,caption\na.mp4,NaN\nb.mp4,\u200b\n", "utf-8")
    assert [row.captions for row in scanned(folder / "x.csv")[0]] == [(), ()]


@pytest.mark.parametrize(
    ("column", "name", "split"),
    [
        ("split", "test1k", "test"),
        ("split", "Validation Set", "validation"),
        ("split", "held-out", "test"),
        ("split", "eval", "test"),
        ("split", "train2017", "train"),
        ("Subset", "Testing", "test"),
        ("data_split", "val_1", "validation"),
        ("set", "dev", "validation"),
        ("split", "fold9", None),
        ("subset", "fold9", None),  # another row tells that the column names splits
        ("split", "train_val", None),
        ("split", "not train", None),
    ],
)
def test_other_names_of_splits_are_read_or_rejects(column, name, split, folder):
    (folder / "x.csv").write_text(f"path,caption,{column}\na.mp4,x,train\nb.mp4,y,{name}\n")
    rows, rejects = scanned(folder / "x.csv")
    assert [row.split for row in rows] == (["train", split] if split else ["train"])
    assert len(rejects) == (split is None)


def test_numbers_are_names_and_ids_without_a_decimal_point(folder):
    (folder / "7.mp4").touch()
    for record in ({"video": 7.0}, {"video": "7.0"}, {"path": 7}, {"id": 3.0, "path": "7.mp4"}):
        (folder / "x.json").write_text(json.dumps([record | {"caption": "a dog"}]))
        ((row,), _) = scanned(folder / "x.json")
        assert row.path == folder / "7.mp4"
        assert "." not in row.id or "video" in record


def test_a_compressed_table_in_capitals_and_the_tables_of_splits_are_read(folder):
    (folder / "TRAIN.CSV.GZ").write_bytes(gzip.compress(b"video,caption\na.mp4,a dog\n", mtime=0))
    (folder / "TEST.CSV").write_text("video,caption\nb.mp4,a cat\n")
    rows, _ = scanned(folder)
    assert {row.path.name: row.split for row in rows} == {"a.mp4": "train", "b.mp4": "test"}


def test_annotations_beside_the_folder_of_videos_name_its_files(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_text('[{"video": "a", "caption": "a dog"}]')
    ((row,), _) = scanned(tmp_path)
    assert (row.path, row.split) == (tmp_path / "videos" / "a.mp4", "train")

    (tmp_path / "videos" / "b.mp4").touch()
    (tmp_path / "annotations" / "test.json").write_text('[{"video": "b", "caption": "a cat"}]')
    rows, _ = scanned(tmp_path)
    assert {row.path.name: row.split for row in rows} == {"a.mp4": "train", "b.mp4": "test"}


def test_two_names_that_differ_in_case_are_not_one_file(folder):
    (folder / "x.csv").write_text("path,caption\nA.mp4,a dog\na.MP4,a cat\nb.mp4,a bird\n")
    (folder / "y.csv").write_text("video,caption\nA.mp4,a dog\na.MP4,a cat\nb.mp4,a bird\n")
    for table in ("x.csv", "y.csv"):
        rows, rejects = scanned(folder / table)
        assert [row.captions for row in rows] == [("a dog",), ("a bird",)]
        assert len(rejects) == 1


def test_a_split_is_named_by_a_subset_and_an_answer_by_its_index_or_letter(folder):
    records = [
        {
            "Video": "a.mp4",
            "q": "is it",
            "answer_idx": 0,
            "options": ["x", "y"],
            "subset": "training",
        },
        {
            "Video": "b.mp4",
            "q": "is it",
            "answer": "B",
            "options": {"A": "x", "B": "y"},
            "subset": "val",
        },
    ]
    (folder / "x.json").write_text(json.dumps(records))
    rows, _ = scanned(folder / "x.json")
    assert [(row.split, row.questions[0].answer) for row in rows] == [
        ("train", "x"),
        ("validation", "y"),
    ]


def test_folders_named_like_splits_and_a_list_without_texts_are_named(folder):
    for name in ("videos_train", "videos_test"):
        (folder / name).mkdir()
        (folder / name / "a.mp4").touch()
        (folder / name / "a.txt").write_text("a dog")
    notes: list[str] = []
    rows = list(scan_source(folder, notes=notes)[1])
    assert not any(row.split for row in rows if isinstance(row, Row))
    assert any("videos_train" in note for note in notes)

    (folder / "x.txt").write_text("a.mp4\nb.mp4\n")
    with pytest.raises(InputError, match="list of names"):
        scanned(folder / "x.txt")


def test_a_text_beside_a_video_may_be_a_json_list_or_a_description(folder):
    (folder / "a.json").write_text('["a dog", "a pet"]')
    for text in ('{"description": "a cat"}', '{"Caption": "a cat"}', '{"blip_caption": "a cat"}'):
        (folder / "b.json").write_text(text)
        rows, _ = scanned(folder)
        assert [row.captions for row in rows] == [("a dog", "a pet"), ("a cat",)]
