"""Tables and answers as people write them: separators, headers, times, paths; options, numbers and
several answers."""

import json

import pytest

from alpro.shards.schema import MAX_JSON_BYTES, Row
from alpro.shards.sources.answers import first_option, question_of
from alpro.shards.sources.rows import scan_manifest
from alpro.shards.sources.scan import scan_source
from tests.conftest import one_line

TABLES = {
    "tabs in a .csv": ("m.csv", "path\tcaption\na.mp4\ta dog, running\n"),
    "commas in a .tsv": ("m.tsv", 'path,caption\na.mp4,"a dog, running"\n'),
    "semicolons": ("m.csv", "path;caption\na.mp4;a dog, running\n"),
    "bars": ("m.csv", "path|caption\na.mp4|a dog, running\n"),
    "spaces after commas": ("m.csv", 'path, caption\na.mp4, "a dog, running"\n'),
    "spaces in the header": ("m.csv", ' path ,caption \na.mp4,"a dog, running"\n'),
    "a column without a name": ("m.csv", ',path,caption\n0,a.mp4,"a dog, running"\n'),
    "empty cells at the end": ("m.csv", 'path,caption,,\na.mp4,"a dog, running",,\n'),
    "more empty cells than columns": ("m.csv", 'path,caption\na.mp4,"a dog, running",,\n'),
    "lines of an old Mac": ("m.csv", 'path,caption\ra.mp4,"a dog, running"\r'),
    "lines of Windows": ("m.csv", 'path,caption\r\na.mp4,"a dog, running"\r\n'),
    "JSON lines of an old Mac": ("m.jsonl", '{"path": "a.mp4", "caption": "a dog, running"}\r'),
    "NaN": ("m.jsonl", '{"path": "a.mp4", "caption": "a dog, running", "start": NaN, "note": NaN}'),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_as_other_programs_write_them_are_read(form, tmp_path):
    name, text = TABLES[form]
    (tmp_path / name).write_bytes(text.encode())
    (row,) = scan_manifest(tmp_path / name)
    assert isinstance(row, Row)
    assert (row.path.name, row.captions) == ("a.mp4", ("a dog, running",))


def test_times_are_seconds_or_hours_minutes_and_seconds_and_paths_may_be_those_of_windows(tmp_path):
    (tmp_path / "m.csv").write_text(
        "path,caption,start,end\nclips\\a.mp4,x,00:01:02.5,01:00:00\nclips/b.mp4,x,1:02,nan\n"
        "clips/c.mp4,x,1:2:3:4,\n"
    )
    first, second, third = scan_manifest(tmp_path / "m.csv")
    assert (first.path, first.start, first.end) == (tmp_path / "clips" / "a.mp4", 62.5, 3600)
    assert (second.start, second.end) == (62, None)
    assert "is not a time" in third.detail


def test_a_row_counts_in_bytes_and_a_written_escape_is_no_nul(tmp_path):
    """A row of four-byte characters must be a reject: its sample would not fit into a shard."""
    emoji = "\N{DOG FACE}" * (MAX_JSON_BYTES // 8 + 1)
    records = [{"path": "a.mp4", "caption": emoji}, {"path": "b.mp4", "caption": r"a \u0000 b"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    long, written = scan_manifest(tmp_path / "m.jsonl")
    assert "bytes" in long.detail
    assert written.captions == (r"a \u0000 b",)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0, "0"),
        (2.0, "2"),
        ("2.0", "2"),
        (False, "false"),
        (True, "true"),
        ("no", "no"),
        (["dog", "dog", "puppy"], "dog"),
        ("['cat', 'dog', 'dog']", "dog"),
        ([{"answer": "yes"}, {"answer": "no"}], "yes"),
        ([0], "0"),
        (None, None),
        ([], None),
        (float("nan"), None),
        ({"dog": 2, "cat": 3}, "cat"),
        ({"a": "b"}, None),
    ],
)
def test_an_answer_is_a_text_a_number_or_the_most_frequent_of_several(answer, expected):
    record = {"question": "what is it?", "answer": answer}
    if expected is None:
        with pytest.raises(ValueError, match="answer"):
            question_of(record, "type")
    else:
        assert question_of(record, "type")["answer"] == expected


TEXTS = ["a ball", "a spoon", "a rope", "a book", "a leaf"]
ZERO = {f"a{number}": text for number, text in enumerate(TEXTS)}
ONE = {f"a{number}": text for number, text in enumerate(TEXTS, 1)}


@pytest.mark.parametrize(
    ("options", "answers", "expected"),
    [
        (ZERO, [3, "1"], ["a book", "a spoon"]),  # NExT-QA
        (ONE, [0, 4], ["a ball", "a leaf"]),  # TGIF-QA counts from 0
        (ONE, [1, 5], ["a ball", "a leaf"]),
        (ONE, [2, 3], None),  # one or the other
        (ZERO, [5], None),
        (ZERO, ["a rope", "A Rope"], ["a rope", "a rope"]),
        ({"options": ["A. a ball", "B. a spoon"]}, ["B", "(A)"], ["a spoon", "a ball"]),
        ({"candidates": TEXTS}, ["a leaf"], ["a leaf"]),
        ({f"mc_option_{n}": text for n, text in enumerate(TEXTS)}, [0, 4], ["a ball", "a leaf"]),
        ({"option_a": "a ball", "option_b": "a rope"}, ["b", "A"], ["a rope", "a ball"]),
        ({"A": "a ball", "B": "a rope", "C": "a book"}, ["C"], ["a book"]),
        ({"answerA": "a ball", "answerB": "a rope"}, ["B"], ["a rope"]),
        ({"options": "A. a ball; B. a rope"}, ["B"], ["a rope"]),
        ({"options": "A. a ball\nB. a rope"}, ["(A)"], ["a ball"]),
        ({"options": "['a ball' 'a rope']"}, ["B"], ["a rope"]),
        ({"options": {"0": "a ball", "1": "a rope"}}, [0], ["a ball"]),
        ({"options": ["2", "3", "5"]}, ["3"], ["3"]),
        ({"options": "a ball, a rope"}, ["B"], None),
        ({"opa": "a ball", "opb": "a rope"}, ["b", 0], ["a rope", "a ball"]),
        ({"option1": "a ball", "option2": "a rope"}, ["option2"], ["a rope"]),
        ({"options": ["a ball", "a rope"]}, ["A rope."], ["a rope"]),
        ({"options": ["yes", "no"]}, [False, True], ["no", "yes"]),
        ({"options": ["a ball", "a rope"]}, ["A, B"], None),
        ({"options": ["a ball", "a rope"]}, [-1], None),
        ({"options": "a ball, a rope"}, ["a rope"], ["a rope"]),
        ({f"option {n}": text for n, text in enumerate(TEXTS)}, [4.0], ["a leaf"]),  # EgoSchema
        ({"choices": [{"choice_id": 0, "choice": "one."}, {"choice": "two."}]}, ["two."], ["two."]),
    ],
)
def test_options_and_the_number_of_the_right_one_are_its_text_or_refused(
    options, answers, expected
):
    records = [{"question": "what is it?", "answer": answer} | options for answer in answers]
    first = first_option(records)
    if expected is None:
        with pytest.raises(ValueError, match="option"):
            question_of(records[0], "type", first)
    else:
        assert [question_of(each, "type", first)["answer"] for each in records] == expected


def test_a_table_of_questions_with_options_is_read(tmp_path):
    (tmp_path / "1.mp4").touch()
    (tmp_path / "qa.csv").write_text(
        "video,question,answer,a0,a1,a2\n1,what is it,0,a dog,a cat,a car\n1,and now,2,x,y,z\n"
    )
    (row,) = scan_source(tmp_path)[1]
    assert [question.answer for question in row.questions] == ["a dog", "z"]


def test_a_header_that_is_a_row_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("a.mp4,a dog\n")
    with one_line("line 1 is a row", "a.mp4"):
        list(scan_manifest(tmp_path / "m.csv"))
