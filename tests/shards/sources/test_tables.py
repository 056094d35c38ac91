"""The records of tables: every line is a record or a reject, and no text is read in silence that may
be two."""

import gzip
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.schema import MAX_JSON_BYTES
from alpro.shards.sources.tables import Table
from tests.conftest import one_line

LINE = b'{"path": "a.mp4", "caption": "x"}'
NEWLINE = LINE + b"\n"
ROWS = b"path,caption\na.mp4,x\n%s\nc.mp4,x\n"
TABS = ROWS.replace(b",", b"\t")


def read(path, content: bytes) -> list[tuple[str, dict | str]]:
    path.write_bytes(content)
    return list(Table(path).records)


def test_csv_has_line_numbers_and_invalid_quoting_is_a_bad_row(tmp_path):
    text = b'path,caption\na.mp4,"hello" she says\nb.mp4,"two\nlines, ""quoted"""\n , \nc.mp4,it is 5" long\n'

    assert read(tmp_path / "m.csv", text + b"d.mp4,a,b\ne.mp4") == [
        ("line 2", "',' expected after '\"'"),
        ("line 3", {"path": "b.mp4", "caption": 'two\nlines, "quoted"'}),
        ("line 6", {"path": "c.mp4", "caption": 'it is 5" long'}),
        ("line 7", "more cells than columns; quote texts with commas"),
        ("line 8", {"path": "e.mp4", "caption": ""}),
    ]


def test_tsv_has_no_quoting_but_a_text_that_may_be_quoted_is_a_bad_record(tmp_path):
    good = [
        'a\t"hello" she says',
        "b\t'x', \"y\"",
        "c\tone, two",
        'd\tthe "word',
        'e\tsize 7"',
    ]
    lines = [*good, 'f\t"two', '"three\tlines', 'g\t"', "h\tlast"]

    found = read(tmp_path / "m.tsv", "\r\n".join(["path\tcaption", *lines]).encode())

    assert [where for where, _ in found] == [
        f"line {number + 2}" for number in range(len(lines))
    ]
    assert [isinstance(record, dict) for _, record in found] == [True] * 5 + [
        False
    ] * 3 + [True]
    assert [list(record.values()) for _, record in found[:5]] == [
        line.split("\t") for line in good
    ]


@pytest.mark.parametrize(
    ("name", "content", "where", "reason"),
    [
        ("m.jsonl", NEWLINE + b'\n{"path": "b\xff"}\n' + LINE, 3, "not UTF-8"),
        (
            "m.jsonl",
            NEWLINE + b'{"path": ' + 5000 * b"9" + b"}\n" + LINE,
            2,
            "not JSON: Exceeds",
        ),
        (
            "m.jsonl",
            NEWLINE + 100_000 * b"[" + b"\n" + LINE,
            2,
            "not JSON: maximum recursion depth",
        ),
        ("m.jsonl", NEWLINE + b"[1]\n" + LINE, 2, "not a JSON object"),
        ("m.ndjson.gz", gzip.compress(NEWLINE + b"{\n" + LINE, mtime=0), 2, "not JSON"),
        ("m.csv", ROWS % b"b.mp4,\xe4", 3, "not UTF-8"),
        (
            "m.csv",
            ROWS % (b"b.mp4," + (MAX_JSON_BYTES // 2 + 1) * b"x"),
            3,
            "field larger",
        ),
        ("m.tsv", TABS % b"b.mp4\t\xe4", 3, "not UTF-8"),
        ("m.txt", b"a\n\xe4\n\n b \n", 2, "not UTF-8"),
    ],
)
def test_one_bad_line_is_one_bad_record(name, content, where, reason, tmp_path):
    (_, first), (place, bad), (_, last) = read(tmp_path / name, content)

    assert [type(first), type(last)] == [dict, dict]
    assert place == f"line {where}"
    assert bad.startswith(reason)


OPEN = [
    b'"open\nc.mp4,y\nd.mp4,z\n',
    b'"open\nc.mp4,"quoted"\n',
    b'"open\n' + 3000 * (b"c.mp4," + 50 * b"x" + b"\n"),
]
LISTS = [
    b", {]",
    b"," + LINE,
    b",]",
    b" " + LINE + b"]",
    b"]" + LINE,
]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *(
            ("m.csv", b"path,caption\na,x\nb.mp4," + rest, "line 3: unclosed quotation")
            for rest in OPEN
        ),
        *(("m.json", b"[" + LINE + rest, "not JSON") for rest in LISTS),
        ("m.json", b"[" + 5000 * b"7" + b"]", "not JSON"),
        ("m.json", 100_000 * b"[", "recursion"),
        ("m.csv", b"path,caption\ra.mp4,a dog\r", "\\r alone"),
        ("m.token", b"a.jpg#0\ta dog\rb.jpg#0\ta cat\r", "\\r alone"),
        ("m.json", b'["\xff"]', "not UTF-8"),
        (
            "m.json",
            b'{"a.mp4": "x", "b.mp4": "y", "a.mp4": "z"}',
            "the key 'a.mp4' appears twice",
        ),
        *(
            ("m.csv", text.encode(coding), "UTF-16")
            for text, coding in (("path,caption\n", "utf-16"), ("a", "utf-16-le"))
        ),
        ("m.jsonl", '{"path": "a.mp4"}\n'.encode("utf-32-be"), "UTF-16"),
        ("m.csv", b"path,caption,caption\na,x,y\n", "'caption' appears twice"),
        ("m.tsv", b"path\tpath\na\tx\n", "'path' appears twice"),
        ("m.csv", b"a.mp4,a dog\nb.mp4,a cat\n", "line 1 is a row"),
        ("m.csv", NEWLINE, "name it .json"),
        ("m.csv", b"path,\xe4\na,x\n", "not UTF-8"),
        ("m.xlsx", b"a.mp4 a dog", "unsupported format"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl.gz", gzip.compress(1000 * NEWLINE, mtime=0)[:-20], "cannot be read"),
    ],
)
def test_a_file_whose_next_record_is_unknown_is_refused_in_one_line(
    name, content, reason, tmp_path
):
    with one_line(str(tmp_path / name), reason):
        read(tmp_path / name, content)


def test_a_parquet_table_is_read_in_batches(tmp_path):
    pq.write_table(pa.table({"path": list("abcde")}), tmp_path / "m.parquet")

    records = list(Table(tmp_path / "m.parquet").records)

    assert records == [(f"row {n}", {"path": c}) for n, c in enumerate("abcde", 1)]


def test_a_parquet_table_with_dates_that_nobody_reads_or_columns_of_one_name_is_refused(
    tmp_path,
):
    # The second day is after the year 9999.
    years = pc.cast(pa.array([0, 4_000_000]), pa.int32()).view(pa.date32())
    same = pa.Table.from_arrays([pa.array(["a"])] * 2, ["path", "path"])
    for table in (pa.table({"day": years}), same):
        pq.write_table(table, tmp_path / "m.parquet")
        with pytest.raises(InputError, match=r"m\.parquet: cannot be read"):
            list(Table(tmp_path / "m.parquet").records)


DOG = ("a dog, running",)
TABLES = {
    "tabs in a .csv": ("m.csv", "path\tcaption\na.mp4\ta dog, running\n"),
    "commas in a .tsv": ("m.tsv", 'path,caption\na.mp4,"a dog, running"\n'),
    "semicolons": ("m.csv", "path;caption\na.mp4;a dog, running\n"),
    "spaces after commas": ("m.csv", 'path, caption\na.mp4, "a dog, running"\n'),
    "a column without a name": ("m.csv", ',path,caption\n0,a.mp4,"a dog, running"\n'),
    "more empty cells than columns": (
        "m.csv",
        'path,caption\na.mp4,"a dog, running",,\n',
    ),
    "blank lines before the header": (
        "m.csv",
        '\n\npath,caption\na.mp4,"a dog, running"\n',
    ),
    "capitals": ("M.CSV", 'Path,CAPTION\na.mp4,"a dog, running"\n'),
    "other characters of a width": (
        "m.csv",
        '\uff50ath,caption\na.mp4,"a dog, running"\n',
    ),
    "a byte order mark": ("m.csv", '\ufeffpath,caption\na.mp4,"a dog, running"\n'),
    "comments before the header": (
        "m.txt",
        "# of 2024\n\npath\tcaption\na.mp4\ta dog, running\n",
    ),
    "a table in a .txt": ("m.txt", "path\tcaption\na.mp4\ta dog, running\n"),
    "gzip": (
        "m.csv",
        gzip.compress(b'path,caption\na.mp4,"a dog, running"\n', mtime=0),
    ),
    "JSON Lines in a .json": (
        "m.json",
        '{"path": "a.mp4", "caption": "a dog, running"}\n' * 2,
    ),
    "one JSON object": (
        "m.json",
        json.dumps({"path": "a.mp4", "caption": DOG}, indent=1),
    ),
    "a Parquet of lists": ("m.parquet", [{"path": "a.mp4", "caption": [*DOG]}]),
    "a path without bytes": (
        "m.parquet",
        [{"video": {"path": "a.mp4", "bytes": None}, "text": DOG[0]}],
    ),
    "NaN": (
        "m.jsonl",
        '{"path": "a.mp4", "caption": "a dog, running", "start": NaN, "note": NaN}',
    ),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_as_other_programs_write_them_are_read(form, read):
    name, content = TABLES[form]

    imported = read({name: content}, "a.mp4", data=name)

    assert imported.rejects == []
    assert {captions[:1] for captions in imported.captions.values()} == {DOG}
    assert all(row.path.name == "a.mp4" for row in imported.rows)
