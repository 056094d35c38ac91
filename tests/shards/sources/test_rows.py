"""One builder makes rows: what a record keeps, what is joined, and why a record is a reject."""

import json

import pytest

from alpro.errors import InputError
from alpro.shards.sources.scan import Source
from tests.conftest import one_line

A = {"video": "a.mp4", "caption": "a dog"}
ASKED = {"question": "what  runs?", "answer": "dog"}
URL = "https://host.example/clips/a.mp4?v=7"
# Further cells of a record, a field of its row, and its value, as JSON.
FIELDS = r"""
{} | id | "a"
{"video": "x/c"} | id | "x/c"
{"start": 2} | id | "a@2-"
{"end": 2.25} | id | "a@0-2.25"
{"id": "mine", "start": 1} | id | "mine"
{"id": 0} | id | "0"
{"id": 3.0} | id | "3"
{"id": null} | id | "a"
{"video": "https://host.example/clips/a.mp4?v=7"} | id | "host.example/clips/a?v=7"
{"video": "https://host.example/clips/a.mp4?v=7"} | name | "https://host.example/clips/a.mp4?v=7"
{"video": "./x/../a.mp4"} | name | "a.mp4"
{"group": 7} | group | "7"
{"group": null} | group | ""
{"split": "train"} | split | "train"
{"split": "Training"} | split | "train"
{"subset": "val"} | split | "validation"
{"split": " test "} | split | "test"
{"split": null} | split | ""
{"split": ""} | split | ""
{"kind": " Image"} | kind | "image"
{"video": "still.JPEG"} | kind | "image"
{"start": "0.5", "end": "01:02:03.5"} | end | 3723.5
{"start": "1:02", "end": "nan"} | start | 62
{"caption": ["  a  dog\truns ", "a dog runs", "", null, "it"]} | captions | ["a dog runs", "it"]
{"caption": "[\"one dog\", \"two, dogs\"]"} | captions | ["one dog", "two, dogs"]
{"caption": "a dog \ud83d"} | captions | ["a dog ?"]
{"caption": "a \\u0000 b"} | captions | ["a \\u0000 b"]
{"color": "red", "tags": ["a", {"b": null}], "empty": ""} | meta | {"color": "red", "tags": ["a", {"b": null}]}
{"entities": ["dog"]} | meta | {"entities": ["dog"]}
"""


@pytest.mark.parametrize("column", ["video", "path", "File-Name", "clip"])
@pytest.mark.parametrize("line", FIELDS.strip().splitlines())
def test_a_record_keeps_what_its_columns_say_under_any_header(line, column, read):
    cells, field, expected = line.split(" | ")
    record = {**A, **json.loads(cells)}
    record = {column: record.pop("video"), **record}

    (row,) = read({"x.jsonl": [record]}, "a.mp4 x/c.mp4 still.JPEG").rows

    assert row.model_dump(mode="json")[field] == json.loads(expected)


BAD = {
    "no file": ({"video": ""}, "no name of a file"),
    "the folder": ({"video": "."}, "names no file"),
    "options": ({"question": "what? A. cat B. dog", "answer": "B"}, "`options`"),
    "bytes in base64": ({"video": "iVBORw0K" * 200}, "1,600 characters names no file"),
    "a hole in a name": ({"video": "b\0.mp4"}, "NUL"),
    "media": ({"bytes": "x" * (1 << 23)}, "8,388,6"),
    "a large text": ({"caption": "\N{DOG FACE}" * (1 << 21)}, "bytes"),
    "nested deeply": ({"x": json.loads(300 * "[" + 300 * "]")}, "recursion limit"),
    "no time": ({"start": "soon"}, "'soon' is not a time"),
    "times in the wrong order": (
        {"start": 3, "end": 2},
        "start 3.0 is not before end 2.0",
    ),
    "a negative time": (
        {"start": -1},
        "start: Input should be greater than or equal to 0",
    ),
    "a timestamp": (
        {"start": 1.7e18},
        "start: Input should be less than or equal to 1000000",
    ),
    "a kind that is none": ({"kind": "imgae"}, "kind: 'imgae'"),
    "a split that is none": ({"split": "fold9"}, "unknown split 'fold9'; use train"),
    "a number for a text": ({"caption": 7}, "captions are not a list of strings"),
    "questions that are no list": (
        {"questions": {"question": "what?"}},
        "questions are not a list",
    ),
    "questions that are texts": (
        {"questions": ["what is a quail?"]},
        "questions are not a list",
    ),
    "questions in lists": ({"questions": [["q", "a"]]}, "questions are not a list"),
    "a question without an answer": (
        {"questions": [ASKED, {"question": "x"}]},
        "empty question or",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_a_reject_with_its_line_and_the_others_are_read(kind, read):
    cells, reason = BAD[kind]
    table = {"x.jsonl": [A, {**A, **cells}, {**A, "video": "b.mp4"}]}

    imported = read(table, "a.mp4 b.mp4")

    assert [*imported.captions] == ["a.mp4", "b.mp4"]
    (reject,) = imported.rejects
    assert (reject.id, reject.reason) == ("line 2", "bad row")
    assert reason in reject.detail
    assert len(reject.detail) < 200


def test_records_of_a_file_its_part_and_a_split_are_one_row(read):
    table = [
        {
            "video": "a.mp4",
            "caption": "a dog",
            "id": "first",
            "color": "red",
            "group": "g",
        },
        {"video": "b.mp4", "caption": "a bird"},
        {"video": "a", "caption": "a pet", "id": "second", "size": 3},
        {"video": "a.mp4", "start": 1, "end": 2, "caption": "a part"},
        {"video": "a.mp4", "caption": "a dog"},
    ]

    imported = read({"x.jsonl": table}, "a.mp4 b.mp4")

    assert imported.captions == {
        "a.mp4": ("a dog", "a pet", "a dog"),
        "b.mp4": ("a bird",),
        "a.mp4@1-2": ("a part",),
    }
    row = imported.rows[0]
    assert (row.id, row.group, row.meta) == ("first", "g", {"color": "red", "size": 3})


def test_captions_and_questions_of_several_tables_of_a_split_are_joined(read):
    captions = [
        {"video": "a.mp4", "caption": "a dog"},
        {"video": "a.mp4", "caption": "a pet"},
    ]
    asked = [
        {"video": "a", "caption": "a dog", **ASKED, "type": "what"} for _ in range(2)
    ]

    imported = read(
        {"c.jsonl": captions, "q.jsonl": asked},
        "a.mp4",
        annotations={"train": "c.jsonl q.jsonl"},
    )

    (row,) = imported.rows
    assert (row.captions, row.split, len(row.questions)) == (
        ("a dog", "a pet"),
        "train",
        2,
    )


@pytest.mark.parametrize("column", ["path", "video"])
def test_ids_of_a_file_in_two_splits_are_made_in_one_way(column, read):
    text = f"{column},caption,id\na.mp4,a dog,{{}}\n"
    for ids, expected in (
        (("", ""), ["test/a", "train/a"]),
        (("x", "x"), ["test/x", "train/x"]),
    ):
        tables = {"train.csv": text.format(ids[0]), "test.csv": text.format(ids[1])}

        assert [row.id for row in read(tables, "a.mp4").rows] == expected


def test_ids_that_begin_again_in_each_split_have_it_in_front(read):
    table = "video,caption,id\n{},a dog,0\n"
    tables = {"train.csv": table.format("a"), "test.csv": table.format("b")}

    assert [row.id for row in read(tables, "a.mp4 b.mp4").rows] == ["test/0", "train/0"]


def test_ids_of_files_of_one_name_have_the_extension(read):
    files = dict.fromkeys(["b.txt"], "a dog")

    imported = read(files, "b.mp4 b.mkv b.mp4.jpg sub/b.mp4")

    assert sorted(row.id for row in imported.rows) == [
        "b.mkv",
        "b.mp4",
        "b.mp4.jpg",
        "sub/b",
    ]


def test_ids_of_addresses_of_one_name_are_the_addresses(read):
    urls = [
        f"{start}://h.example/a.{end}"
        for start, end in (("http", "mp4"), ("https", "mp4"), ("http", "mkv"))
    ]

    imported = read({"x.jsonl": [{"video": url, "caption": "a dog"} for url in urls]})

    assert [row.id for row in imported.rows] == urls


def test_an_id_of_two_files_is_an_error(read):
    table = "video,caption,id\na.mp4,a dog,x\nb.mp4,a cat,x\n"

    with one_line("line 3", "'x'", "line 2"):
        read({"x.csv": table}, "a.mp4 b.mp4")


def test_a_url_with_a_password_ends_an_import(read):
    for cells in (
        {"video": "https://me:pw@host.example/a.mp4"},
        {"page": "https://me:pw@host.example"},
        {"split": "https://me:pw@host.example"},
        {"end": "https://me:pw@host.example"},
    ):
        with one_line("line 1", "password"):
            read({"x.jsonl": [{**A, **cells}]}, "a.mp4")


@pytest.mark.parametrize("column", ["id", "group"])
def test_a_url_with_a_password_in_a_column_that_is_only_stored_ends_an_import(
    column, read
):
    record = {**A, column: "https://me:pw@host.example"}

    with one_line("line 1", "password"):
        read({"x.jsonl": [record]}, "a.mp4", columns={column: ""})


def test_rows_that_are_not_wanted_are_counted(read):
    table = "video,caption,split,lang\na.mp4,a dog,train,en\nb.mp4,ein Hund,test,de\n"
    tables = {"x.csv": table}
    annotations = {"train": "x.csv"}

    wanted = read(tables, "a.mp4 b.mp4", columns={"where": {"lang": "en"}})
    of_split = read(tables, "a.mp4 b.mp4", annotations=annotations)

    assert "rows are left out by `where` (1): line 3" in wanted.notes
    assert "rows are of another split than train (1): line 3" in of_split.notes
    with one_line("no rows", "rows are left out by `where` (2)"):
        read(tables, "a.mp4 b.mp4", columns={"where": {"lang": "fr"}})


def test_a_table_of_several_splits_is_read_for_each(read):
    table = '{"video": "a.mp4", "caption": "a dog", "split": "test"}\nno JSON\n'
    annotations = {"train": "x.jsonl", "test": "x.jsonl"}

    imported = read({"x.jsonl": table}, "a.mp4", annotations=annotations)

    assert [row.split for row in imported.rows] == ["test"]
    assert [reject.id for reject in imported.rejects] == ["x.jsonl line 2"] * 2


def test_a_form_is_that_of_the_first_records_together(read):
    """As of VATEX."""
    records = [
        {"videoID": "a", "chCap": ["一只狗"]},
        {"videoID": "a", "chCap": [], "enCap": ["a dog"]},
    ]

    for name in ("x.json", "x.jsonl"):
        assert read({name: records}, "a.mp4").captions == {"a.mp4": ("a dog",)}


def test_a_text_of_comments_has_no_rows(read):
    with one_line("no rows"):
        read({"x.txt": "# a dog\n# a cat\n"}, "a.mp4", data="x.txt")


def test_numbers_of_rows_are_no_answers(read):
    names = ("Film", "Nr", "Frage", "A1", "A2", "Loesung")
    rows = [
        ("a.mp4", 1, "What runs?", "a dog", "a cat", "B"),
        ("b.mp4", 2, "What sits?", "a fox", "an owl", "A"),
    ]
    table = [dict(zip(names, row, strict=True)) for row in rows]

    with pytest.raises(InputError, match="# answer ="):
        read({"x.jsonl": table}, "a.mp4 b.mp4")


SEVERAL = [
    ("span", {"when": [[0, 1.5], [2, 3]]}),
    ("span", {"when": "[[0, 1.5], [2, 3]]"}),
    ("start end", {"start": [0, 2], "end": [1.5, 3]}),
]


@pytest.mark.parametrize(("keys", "cells"), SEVERAL)
def test_lists_of_times_and_captions_are_parts(keys, cells, read):
    columns = {"span": "when"} if keys == "span" else {}
    record = {"video": "a.mp4", "caption": ["a dog", "a cat"], **cells}
    uneven = {**record, "video": "b.mp4", "caption": ["a dog"]}

    imported = read({"x.jsonl": [record, uneven]}, "a.mp4 b.mp4", columns=columns)

    assert imported.captions == {"a.mp4@0-1.5": ("a dog",), "a.mp4@2-3": ("a cat",)}
    assert [row.id for row in imported.rows] == ["a@0-1.5", "a@2-3"]
    assert "as many captions as times" in imported.details[0]


@pytest.mark.parametrize(
    "cell",
    [
        "[0, 1.5]",
        [0, 1.5],
        "0:00 - 0:01.5",
        "(0, 1.5)",
        "00:00:00,000 --> 00:00:01,500",
    ],
)
def test_a_span_is_a_start_and_an_end(cell, read):
    table = [{"video": "a.mp4", "caption": "a dog", "when": cell}]

    imported = read({"x.jsonl": table}, "a.mp4", columns={"span": "when"})

    assert imported.captions == {"a.mp4@0-1.5": ("a dog",)}


def test_a_full_disk_of_temporary_files_is_an_error_of_the_system(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = "".join(f"a.mp4,{number},a dog runs\n" for number in range(500))
    (tmp_path / "x.csv").write_text(f"video,start,caption\n{rows}")
    source = Source(tmp_path)
    source.items._parts.execute("PRAGMA max_page_count = 3")

    with pytest.raises(OSError, match="full"):
        list(source.scan()[1])


TIMES = "video,start_time,end_time,caption\na.mp4,1.5,2,a dog\na.mp4,2,3.5,a cat\n"


def test_times_that_are_told_or_left_out_are_read_as_told(read):
    told = {"start": "start_time", "end": "end_time"}

    parts = read({"x.csv": TIMES}, "a.mp4", columns=told)
    whole = read({"x.csv": TIMES}, "a.mp4", columns={"captions": "caption"})

    assert parts.captions == {"a.mp4@1.5-2": ("a dog",), "a.mp4@2-3.5": ("a cat",)}
    assert whole.captions == {"a.mp4": ("a dog", "a cat")}


def test_answers_in_a_list_that_may_name_options_are_rejects(read):
    asked = [{"question": "what?", "options": ["a cat", "a dog"], "answer": 1}]
    table = {"x.json": [{"video": "a.mp4", "questions": asked}]}
    told = {"records": "questions", "options": "options", "first_option": "0"}

    assert "`options`" in read(table, "a.mp4").details[0]
    assert read(table, "a.mp4", columns=told).answers == ["a dog"]


@pytest.mark.parametrize(
    "columns",
    [
        "width,height",
        "likes,views",
        "starts_at,weekend",
        "duration,offset",
        "views,start_frame",
    ],
)
def test_two_columns_of_numbers_are_no_times(read, columns):
    table = f"video,{columns},caption\na.mp4,1,2,a dog\nb.mp4,2,3,a cat\n"

    imported = read({"x.csv": table}, "a.mp4 b.mp4")

    assert len(imported.rows) == 2


ANSWERS = [
    (0, "0"),
    (2.0, "2"),
    ("2.0", "2"),
    (False, "false"),
    ("no", "no"),
    (["dog", "dog", "puppy"], "dog"),
    ("['cat', 'dog', 'dog']", "dog"),
    ([{"answer": "yes"}, {"answer": "no"}], "yes"),
    ("Tom &amp; Jerry", "Tom & Jerry"),
    (None, None),
    ([], None),
    ({"a": "b"}, None),
]


@pytest.mark.parametrize("column", ["path", "video"])
@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_an_answer_is_a_text_a_number_or_the_most_frequent_of_several(
    answer, expected, column, read
):
    table = [
        {column: "a.mp4", "question": "what is it?", "answer": answer},
        {column: "a.mp4", **ASKED},
    ]

    imported = read({"x.jsonl": table}, "a.mp4")

    assert imported.answers == ([expected, "dog"] if expected else ["dog"])
    assert len(imported.rejects) == (expected is None)


def test_questions_are_typed_by_a_column_or_their_first_word(read):
    kinds = {
        "How many?": "how_many",
        "(what’s": "what",
        "Yes/No": "yes_no",
        "?!": "other",
        "": "what",
    }
    asked = [{**ASKED, "type": kind} for kind in kinds]
    for questions in (asked, json.dumps(asked)):
        (row,) = read(
            {"x.jsonl": [{"video": "a.mp4", "questions": questions}]}, "a.mp4"
        ).rows

        assert [one.type for one in row.questions] == [*kinds.values()]
        assert row.questions[0].question == "what runs?"


TEXTS = ["a ball", "a spoon", "a rope"]
OPTIONS = [
    (
        {"0": "a ball", "1": "a spoon", "2": "a rope"},
        ["0", "1", "2"],
        "0",
        [0, "2"],
        ["a ball", "a rope"],
    ),
    (
        {"o1": "a ball", "o2": "a spoon"},
        ["o1", "o2"],
        "1",
        [1, "2"],
        ["a ball", "a spoon"],
    ),
    ({"o": TEXTS}, "o", "A", ["B", "(A)", "c"], ["a spoon", "a ball", "a rope"]),
    ({"o": ["A. a ball", "B. a spoon"]}, "o", "A", ["B"], ["a spoon"]),
    ({"o": json.dumps(TEXTS)}, "o", "0", [1], ["a spoon"]),
    ({"o": {"A": "a ball", "B": "a spoon"}}, "o", "A", ["A"], ["a ball"]),
    ({"o": TEXTS}, "o", "", ["A Rope."], ["a rope"]),
]


@pytest.mark.parametrize(("cells", "options", "first", "answers", "expected"), OPTIONS)
def test_the_option_that_an_answer_names_is_its_text(
    cells, options, first, answers, expected, read
):
    table = [
        {"video": "a.mp4", "question": "what?", "answer": answer, **cells}
        for answer in answers
    ]
    table.append({**table[0], "answer": "9"})

    imported = read(
        {"x.jsonl": table}, "a.mp4", columns={"options": options, "first_option": first}
    )

    assert imported.answers == expected
    assert "none of the" in imported.details[0]
