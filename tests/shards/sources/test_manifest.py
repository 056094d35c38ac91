"""Manifests, files of records and folders: their rows, invalid and unusable ones. All forms are in
test_plan.py."""

import gzip
import json
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.sources.records import read_records
from tests.conftest import one_line
from tests.shards.conftest import read_manifest, single_row


def test_a_folder_of_videos_and_images_with_texts(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / ".trash").mkdir()
    for name in (
        "._b.MP4",
        ".trash/c.mp4",
        "b.MP4",
        "deep/a.webm",
        "deep/still.PNG",
        "deep/both.png",
        "deep/both.mp4",
        "latin.mp4",
        "notes.md",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("one dog\n\n  two   dogs \none dog\n", "utf-8-sig")
    (tmp_path / "deep" / "still.txt").write_text("ein Hündchen\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes("a Café".encode("latin-1"))
    rows, rejects = read_manifest(tmp_path)
    assert {row.id: (row.kind, row.captions) for row in rows} == {
        "b": ("video", ("one dog", "two dogs")),
        "deep/a": ("video", ()),
        "deep/both.mp4": ("video", ()),  # two files of one name
        "deep/both.png": ("image", ()),
        "deep/still": ("image", ("ein Hündchen",)),
    }
    assert [str(row.path.relative_to(tmp_path)) for row in rows][:2] == ["b.MP4", "deep/a.webm"]
    (reject,) = rejects
    assert (reject.id, reject.reason) == ("latin.mp4", "bad row")
    assert "latin.txt: not UTF-8" in reject.detail


ASKED = {"question": "what  runs?", "answer": "dog"}
X = {"path": "a.mp4", "caption": "x"}


def test_the_columns_of_a_row_and_their_defaults(write_records, tmp_path):
    url = "https://host/clips/a.mp4?v=7"
    folder = str(tmp_path)
    texts = ["  a  dog\truns ", "a dog runs", "", "A dog runs", "\n"]
    cases = [
        ("id", {"path": "x/a.mp4"}, "x/a"),
        ("id", {"start": 2}, "a@2-"),
        ("id", {"end": 2.25}, "a@0-2.25"),
    ]
    cases += [
        ("id", {"id": "mine", "start": 1}, "mine"),
        ("id", {"id": 0}, "0"),
        ("id", {"id": ""}, "a"),
    ]
    cases += [
        ("id", {"id": None}, "a"),
        ("id", {"path": url}, "host/clips/a"),
        ("name", {"path": url}, url),
    ]
    cases += [
        ("name", {"path": path}, "a.mp4")
        for path in ("a.mp4", "./a.mp4", "x/../a.mp4", f"{folder}/a.mp4")
    ]
    cases += [("file_name", {"path": "https://host/clips/a%20b.mp4?v=7"}, "a b.mp4")]
    cases += [("file_name", {"path": "s3://bucket/data/what?.mp4"}, "what?.mp4")]
    cases += [
        ("file_name", {"path": "a b.mp4"}, "a b.mp4"),
        ("start", {"start": "0.5", "end": "2"}, 0.5),
    ]
    cases += [
        ("group", {"group": 7}, "7"),
        ("group", {"group": None}, ""),
        ("split", {"split": None}, ""),
    ]
    cases += [("kind", {"path": name}, "video") for name in ("a.mkv", "a.gif", "a")]
    cases += [("kind", {"path": name}, "image") for name in ("a.JPEG", "a.webp")]
    cases += [("kind", {"path": "a.gif", "kind": "image"}, "image")]
    cases += [("kind", {"path": "a.jpg", "kind": " Video"}, "video")]
    cases += [("split", {"split": name}, "train") for name in ("train", "Training")]
    cases += [
        ("split", {"split": name}, "validation") for name in ("val", "valid", "dev", "validation")
    ]
    cases += [("split", {"split": name}, "test") for name in ("TEST", "testing", " test ")]
    cases += [
        ("captions", {"captions": texts, "caption": "it"}, ("a dog runs", "A dog runs", "it"))
    ]
    cases += [("captions", {"caption": "[music] a man sings"}, ("[music] a man sings",))]
    cases += [("captions", {"caption": '["one dog", "two, dogs"]'}, ("one dog", "two, dogs"))]
    cases += [("captions", {"caption": "[]"}, ()), ("captions", {"captions": None}, ("x",))]
    cases += [("captions", {"caption": "x \ud83d"}, ("x ?",))]  # a lone surrogate
    (tmp_path / "e\u0301.mp4").touch()  # an accent as macOS writes it
    cases += [
        ("path", {"path": f"{name}.mp4"}, tmp_path / "e\u0301.mp4")
        for name in ("\u00e9", "e\u0301")
    ]
    meta = {"license": "CC0", "tags": ["a", {"b": None}]}
    for column, values, expected in (*cases, ("meta", meta, meta)):
        assert getattr(single_row(write_records(X | values)), column) == expected, values


def test_questions_are_normalized_and_typed_by_their_first_word(write_records):
    kinds = {
        "How many?": "how_many",
        "(what’s": "what",
        "Yes/No": "yes_no",
        "multi-choice_2": "multi-choice_2",
    }
    questions = [ASKED, {"question": "How many?", "answer": 2, "type": "number"}]
    questions += [
        {"question": "What's he doing?", "answer": "x"},
        *(ASKED | {"type": kind} for kind in (*kinds, "?!")),
    ]
    expected = [
        ("what runs?", "dog", "what"),
        ("How many?", "2", "number"),
        ("What's he doing?", "x", "what"),
    ]
    expected += [("what runs?", "dog", kind) for kind in (*kinds.values(), "other")]
    for value in (questions, json.dumps(questions)):
        read = single_row(write_records({"path": "a.mp4", "questions": value})).questions
        assert [(one.question, one.answer, one.type) for one in read] == expected


def test_parquet_bytes_are_decoded(tmp_path: Path):
    record = {
        "path": b"a.mp4",
        "caption": "ein Hündchen".encode(),
        "captions": [b"a dog"],
        "split": b"test",
    }
    record |= {"seen": datetime(2026, 1, 1), "note": "für".encode()}
    bad = {"path": b"b.mp4", "captions": [b"x", b"\xff"]}
    pq.write_table(pa.Table.from_pylist([record, bad]), tmp_path / "m.parquet")
    (row,), (reject,) = read_manifest(tmp_path / "m.parquet")
    assert (row.path, row.captions, row.split) == (
        tmp_path / "a.mp4",
        ("a dog", "ein Hündchen"),
        "test",
    )
    assert row.meta == {"seen": "2026-01-01 00:00:00", "note": "für"}
    assert (reject.id, reject.reason) == ("row 2", "bad row")
    assert "'utf-8' codec can't decode byte 0xff" in reject.detail


B = {"path": "b.mp4", "caption": "x"}
BAD_RECORDS: list[tuple[dict | str, str]] = [
    ("{'path': 'b.mp4'}", "not JSON"),
    ({"caption": "x"}, "no path"),
]
BAD_RECORDS += [
    (
        '{"path": "b.mp4", "caption": "x", "a": ' + 300 * "[" + "1" + 300 * "]" + "}",
        "recursion limit",
    )
]
BAD_RECORDS += [
    (B | {"path": True}, "no path"),
    (B | {"path": "."}, "empty name"),
    (B | {"path": "b\0.mp4"}, "NUL"),
]
BAD_RECORDS += [(B | {"caption": 9 * "\0"}, "NUL"), (B | {"bytes": "x" * (1 << 23)}, "8,388,6")]
BAD_RECORDS += [
    (B | {"start": 2, "end": 2}, "start 2.0 is not before end 2.0"),
    (B | {"start": "soon"}, "'soon'"),
]
BAD_RECORDS += [
    (B | {"start": 3, "end": 2}, "start 3.0 is not before end 2.0"),
    (B | {"end": 10**399}, "too large"),
]
BAD_RECORDS += [(B | {"start": [1]}, "[1] is not a time")]
BAD_RECORDS += [(B | {"start": -1}, "start: Input should be greater than or equal to 0")]
BAD_RECORDS += [(B | {"start": 1.7e18}, "start: Input should be less than or equal to 1000000")]
BAD_RECORDS += [(B | {"end": 0}, "end: Input should be greater than 0")]
BAD_RECORDS += [('{"path": "b.mp4", "caption": "x", "end": Infinity}', "end: ")]
BAD_RECORDS += [(B | {"split": "fold9"}, "unknown split 'fold9'; use train, validation, test")]
BAD_RECORDS += [(B | {"kind": kind}, "kind: ") for kind in ("audio", 7)]
BAD_RECORDS += [
    (B | texts, "captions are not a list of strings")
    for texts in ({"caption": 7}, {"captions": ["x", 7]})
]
BAD_RECORDS += [({"path": "b.mp4", "questions": {"question": "what?"}}, "questions are not a list")]
EMPTY = ([ASKED, {"question": "what?"}], [{"question": " ", "answer": "x"}])
BAD_RECORDS += [
    ({"path": "b.mp4", "questions": asked}, "empty question or answer") for asked in EMPTY
]


def test_bad_rows_are_rejected_with_a_reason_and_their_id_or_line_and_the_others_are_read(
    write_records,
):
    records = [
        r
        for n, (bad, _) in enumerate(BAD_RECORDS)
        for r in (bad, {"path": f"{n}.mp4", "caption": "x"})
    ]
    rows, rejects = read_manifest(write_records(*records))
    assert [row.id for row in rows] == [str(number) for number in range(len(BAD_RECORDS))]
    for reject, (_, reason) in zip(rejects, BAD_RECORDS, strict=True):
        assert reject.reason == "bad row"
        assert reason in reject.detail
        assert len(reject.detail) < 200
    seven = {"id": "seven", "path": "b.mp4", "caption": 7}
    _, rejects = read_manifest(write_records("", "{", seven, {"path": "c.mp4", "caption": 7}))
    assert [(reject.id, reject.path) for reject in rejects] == [
        ("line 2", ""),
        ("seven", "b.mp4"),
        ("line 4", "c.mp4"),
    ]


def test_an_unusable_manifest_raises_a_one_line_error_with_the_cause(
    write_records, tmp_path, monkeypatch
):
    for records, parts in (
        ([X, X], ["line 2", "'a'", "line 1"]),
        (
            [{"file": "a.mp4", "caption": "x"}, {"note": 1}],
            ["no column path", "caption, file, note"],
        ),
        ([{"path": "a.mp4", "title": "x"}], ["no column caption", "path, title"]),
        ([X, X | {"path": "../b.mp4"}], ["line 2", "'../b.mp4'", "outside"]),
        ([X | {"path": "/etc/passwd"}], ["'/etc/passwd'", "is outside the data folder"]),
        ([], ["no rows"]),
    ):
        path = write_records(*records)
        with monkeypatch.context() as patch:
            for source in (path, Path(path.name)):  # relative to its folder
                with pytest.raises(InputError) as error:
                    read_manifest(source)
                assert "\n" not in str(error.value)
                assert all(part in str(error.value) for part in parts)
                patch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.mp4").touch()
    reasons = {
        "empty": "no video or image in this folder",
        "none.csv": "no such file or folder",
        "one.mp4": "a single",
    }
    for source, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            read_manifest(tmp_path / source)


GOOD = {"path": "a.mp4", "caption": "x"}
LINE = json.dumps(GOOD).encode()
NEWLINE = LINE + b"\n"
TABLE = b"path,caption\na.mp4,x\n%s\nc.mp4,x\n"
TABS = TABLE.replace(b",", b"\t")


def read(path: Path, content: bytes) -> list[tuple[str, dict | str]]:
    path.write_bytes(content)
    return list(read_records(path))


def test_csv_is_read_with_its_line_numbers_and_invalid_quoting_is_a_bad_row(tmp_path):
    text = b'path,caption\na.mp4,"hello" she says\nb.mp4,"two\nlines, ""quoted"""\n\nc.mp4,it is 5" long\n'
    assert read(tmp_path / "m.csv", text + b"d.mp4,a,b\ne.mp4") == [
        ("line 2", "',' expected after '\"'"),
        ("line 3", {"path": "b.mp4", "caption": 'two\nlines, "quoted"'}),
        ("line 6", {"path": "c.mp4", "caption": 'it is 5" long'}),
        ("line 7", "more cells than columns; quote texts with commas"),
        ("line 8", {"path": "e.mp4", "caption": ""}),
    ]
    for name, text in (
        ("m.csv", "path,caption\na,x\n"),
        ("m.tsv", "path\tcaption\na\tx\n"),
    ):  # a byte order mark
        assert read(tmp_path / name, text.encode("utf-8-sig")) == [
            ("line 2", {"path": "a", "caption": "x"})
        ]


def test_tsv_has_no_quoting_but_a_text_that_may_be_quoted_is_a_bad_record(tmp_path):
    """A text that is quoted around a newline would be cut in silence; quotation marks inside a text
    are kept."""
    good = ['a\t"hello" she says', "b\t'x', \"y\"", "c\tone, two", 'd\tthe "word', 'e\tsize 7"']
    lines = [*good, 'f\t"two', '"three\tlines', 'g\t"', "h\tlast"]
    found = read(tmp_path / "m.tsv", "\r\n".join(["path\tcaption", *lines]).encode())
    assert [where for where, _ in found] == [f"line {number + 2}" for number in range(len(lines))]
    assert [isinstance(record, dict) for _, record in found] == [True] * 5 + [False] * 3 + [True]
    assert [list(record.values()) for _, record in found[:5]] == [line.split("\t") for line in good]


def test_one_bad_line_is_one_bad_record(tmp_path):
    for name, content, where, reason in (
        ("m.jsonl", NEWLINE + b'\n{"path": "b\xff"}\n' + LINE, "line 3", "not UTF-8"),
        (
            "m.jsonl",
            NEWLINE + b'{"path": ' + 5000 * b"9" + b"}\n" + LINE,
            "line 2",
            "not JSON: Exceeds the limit",
        ),
        (
            "m.jsonl",
            NEWLINE + 100_000 * b"[" + b"\n" + LINE,
            "line 2",
            "not JSON: nested too deeply",
        ),
        ("m.jsonl", NEWLINE + b"[1]\n" + LINE, "line 2", "not a JSON object"),
        ("m.ndjson.gz", gzip.compress(NEWLINE + b"{\n" + LINE, mtime=0), "line 2", "not JSON"),
        ("m.csv", TABLE % b"b.mp4,\xe4", "line 3", "not UTF-8"),
        (
            "m.csv",
            TABLE % (b"b.mp4," + (MAX_JSON_BYTES // 2 + 1) * b"x"),
            "line 3",
            "field larger than field limit (8388608)",
        ),
        ("m.tsv", TABS % b"b.mp4\t\xe4", "line 3", "not UTF-8"),
        ("m.txt", b"a\n\xe4\n\n b \n", "line 2", "not UTF-8"),
    ):
        (_, first), (place, bad), (last_place, last) = read(tmp_path / name, content)
        assert [type(first), type(last)] == [dict, dict]
        assert (place, bad[: len(reason)]) == (where, reason)
        assert int(last_place[5:]) == int(where[5:]) + (2 if name == "m.txt" else 1)


def test_a_list_is_read_entry_by_entry(tmp_path):
    entries = [
        GOOD,
        {"path": '[,] \\ " ü', "list": [1, {"a": []}]},
        "text",
        7,
        [],
        GOOD | {"caption": 300 * "y"},
    ]
    expected = [one if isinstance(one, dict) else "not a JSON object" for one in entries]
    for content in (
        json.dumps(entries),
        json.dumps(entries, indent=2),
        f"\n {json.dumps(entries)} \n",
    ):
        found = read(tmp_path / "m.json", content.encode("utf-8-sig"))
        assert found == [(f"entry {n}", record) for n, record in enumerate(expected, 1)]
    assert read(tmp_path / "m.json", b" [ ] ") == []
    line = json.dumps({"meta": {"a": 1}, "path": "a.mp4"}).encode()
    for count in (1, 2):  # JSON Lines, which begin with an object
        found = read(tmp_path / "m.json", (line + b"\n") * count)
        assert [where for where, _ in found] == ["line 1", "line 2"][:count]


OPEN = [
    b'"open\nc.mp4,y\nd.mp4,z\n',
    b'"open\nc.mp4,"quoted"\n',
    b'"open\n' + 3000 * (b"c.mp4," + 50 * b"x" + b"\n"),
]
LISTS = [b", {]", b"," + LINE, b",]", b" " + LINE + b"]", b"]" + LINE, b"," + 100_000 * b"["]


def test_a_file_whose_next_record_is_unknown_is_refused_in_one_line_with_its_name(tmp_path):
    for name, content, reason in (
        *(
            ("m.csv", b"path,caption\na.mp4,x\nb.mp4," + rest, "line 3: unclosed quotation mark")
            for rest in OPEN
        ),
        *(("m.json", b"[" + LINE + rest, "not JSON") for rest in LISTS),
        ("m.json", b"[" + 5000 * b"7" + b"]", "not JSON"),
        ("m.json", b'["\xff"]', "not UTF-8"),
        *(("m.csv", text.encode("utf-16-le"), "UTF-16") for text in ("path,caption\n", "a")),
        ("m.jsonl", '{"path": "a.mp4"}\n'.encode("utf-32-be"), "UTF-16"),
        ("m.csv", b"path,caption,caption\na,x,y\n", "the column 'caption' appears twice"),
        ("m.tsv", b"path\tpath\na\tx\n", "the column 'path' appears twice"),
        ("m.csv", b"a.mp4,a dog\nb.mp4,a cat\n", "line 1 is a row ('a.mp4')"),
        ("m.csv", b"path,\xe4\na,x\n", "not UTF-8"),
        ("m.xlsx", b"a.mp4 a dog", "a manifest is a .jsonl, .csv, .tsv or .parquet file"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl.gz", b"not gzip", "cannot be read"),
        ("m.jsonl.gz", gzip.compress(1000 * NEWLINE, mtime=0)[:-20], "cannot be read"),
    ):
        with one_line(str(tmp_path / name), reason):
            read(tmp_path / name, content)


def test_a_parquet_table_is_read_in_batches(tmp_path):
    pq.write_table(pa.table({"path": list("abcde")}), tmp_path / "m.parquet")
    assert list(read_records(tmp_path / "m.parquet")) == [
        (f"row {n}", {"path": c}) for n, c in enumerate("abcde", 1)
    ]
    years = pc.cast(pa.array([0, 4_000_000]), pa.int32()).view(
        pa.date32()
    )  # the second is after 9999
    for table in (
        pa.table({"day": years}),
        pa.Table.from_arrays([pa.array(["a"])] * 2, ["path", "path"]),
    ):
        pq.write_table(table, tmp_path / "m.parquet")
        with pytest.raises(InputError, match=r"m\.parquet: cannot be read"):
            list(read_records(tmp_path / "m.parquet"))
