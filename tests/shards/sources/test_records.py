"""Files of records: an invalid record affects no other, no row is lost, and long lines do not fill the memory."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.sources import records
from alpro.shards.sources.records import read_records

GOOD = {"path": "a.mp4", "caption": "x"}
LINE = json.dumps(GOOD).encode()


@pytest.fixture
def read(tmp_path: Path):
    """read(name, content): the records of a file, and where each stands."""

    def read_file(name: str, content: bytes) -> list[tuple[str, dict | str]]:
        (tmp_path / name).write_bytes(content)
        return list(read_records(tmp_path / name))

    return read_file


def refusal(read, name: str, content: bytes) -> str:
    with pytest.raises(InputError) as error:
        read(name, content)
    assert "\n" not in str(error.value)
    return str(error.value).partition("cannot be read: ")[2]


def test_a_caption_that_starts_with_a_quotation_mark_loses_no_rows(read):
    rows = ["path\tcaption", 'a.mp4\t"hello" she says', 'b.mp4\t"', "c.mp4\t'x', \"y\"", "d.mp4\tone, two"]
    records = read("m.tsv", "\r\n".join(rows).encode())
    assert [record["caption"] for _, record in records] == ['"hello" she says', '"', "'x', \"y\"", "one, two"]
    assert [where for where, _ in records] == ["line 2", "line 3", "line 4", "line 5"]


def test_invalid_csv_quoting_is_a_bad_row_with_its_line(read):
    text = (
        b'path,caption\na.mp4,"hello" she says\nb.mp4,"two\nlines, ""quoted"""\n\nc.mp4,it is 5" long\nd.mp4,a,b\ne.mp4'
    )
    assert read("m.csv", text) == [
        ("line 2", "',' expected after '\"'"),
        ("line 3", {"path": "b.mp4", "caption": 'two\nlines, "quoted"'}),
        ("line 6", {"path": "c.mp4", "caption": 'it is 5" long'}),
        ("line 7", "more cells than columns; quote texts with commas"),
        ("line 8", {"path": "e.mp4"}),
    ]


def test_an_unclosed_quote_raises_an_error_with_its_line(read):
    head = b"path,caption\na.mp4,x\n"
    for rest in (
        b'b.mp4,"open\nc.mp4,y\nd.mp4,z\n',  # to the end of the file
        b'b.mp4,"open',
        b'b.mp4,"open\nc.mp4,"quoted"\n',  # to the next quotation mark
        b'b.mp4,"open\n' + 3000 * (b"c.mp4," + 50 * b"x" + b"\n"),  # beyond what a cell may hold
        b'b.mp4,"open\nc.mp4,\xff\n',
    ):
        assert refusal(read, "m.csv", head + rest).startswith("line 3: unclosed quotation mark at the start of a text")


def test_one_bad_line_is_one_bad_record(read):
    table = b"path,caption\na.mp4,x\n%s\nc.mp4,x\n"
    for name, content, reason in (
        ("m.jsonl", LINE + b'\n{"path": "b\xff"}\n' + LINE, "not UTF-8: byte 0xff at position 12"),
        ("m.jsonl", LINE + b'\n{"path": ' + 5000 * b"9" + b"}\n" + LINE, "not JSON: Exceeds the limit"),
        ("m.csv", table % b"b.mp4,\xe4", "not UTF-8: byte 0xe4 at position 7"),
        ("m.csv", table % (b"b.mp4," + 200_000 * b"x"), "field larger than field limit (131072)"),
        ("m.tsv", table.replace(b",", b"\t") % b"b.mp4\t\xe4", "not UTF-8: byte 0xe4 at position 7"),
    ):
        (_, first), (where, bad), (_, last) = read(name, content)
        assert isinstance(first, dict)
        assert isinstance(last, dict)
        assert where == ("line 2" if name == "m.jsonl" else "line 3")
        assert bad.startswith(reason)


def test_an_endless_line_is_a_bad_record(read, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    for name, head in (("m.jsonl", b""), ("m.csv", b"path,caption\n"), ("m.tsv", b"path\tcaption\n")):
        for size in (1001, 5000):
            _, (_, bad), _ = read(name, head + LINE + b"\n" + size * b"x" + b"\n" + LINE)
            assert bad == "a line of more than 1,000 bytes"
        assert len(read(name, head + LINE + b"\n" + 999 * b" " + b"\n" + LINE)) in (2, 3)


def test_memory_does_not_grow_with_line_length(tmp_path: Path):
    with gzip.open(tmp_path / "m.jsonl.gz", "wb", compresslevel=1) as file:
        for piece in (LINE, b"\n", *(128 * [(1 << 20) * b"x"]), b"\n", LINE):
            file.write(piece)
    tracemalloc.start()
    try:
        _, (_, bad), _ = read_records(tmp_path / "m.jsonl.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bad == "a line of more than 16,777,216 bytes"
    assert peak < 64 << 20


def test_utf_16_is_named_in_the_error(read):
    text = '{"path": "a.mp4"}\n'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        for name in ("m.jsonl", "m.csv", "m.tsv"):
            assert "UTF-16" in refusal(read, name, text.encode(encoding))
    assert len(read("m.jsonl", text.encode("utf-8-sig"))) == 1


def test_a_byte_order_mark_is_not_part_of_a_column_name(read):
    for name, text in (("m.csv", "path,caption\na,x\n"), ("m.tsv", "path\tcaption\na\tx\n")):
        assert read(name, text.encode("utf-8-sig")) == [("line 2", {"path": "a", "caption": "x"})]


def test_a_duplicate_column_raises_an_error(read, tmp_path: Path):
    for name, text in (("m.csv", "path,caption,caption\na,x,y\n"), ("m.tsv", "path\tcaption\tcaption\na\tx\ty\n")):
        assert refusal(read, name, text.encode()) == "the column 'caption' appears twice"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["path", "path"]), tmp_path / "m.parquet")
    with pytest.raises(InputError, match="the column 'path' appears twice"):
        list(read_records(tmp_path / "m.parquet"))


def test_a_list_is_read_entry_by_entry(read, monkeypatch):
    entries = [GOOD, {"path": '[,] \\ " ü', "list": [1, {"a": []}]}, "text", 7, [], GOOD | {"caption": 300 * "y"}]
    expected = [one if isinstance(one, dict) else "not a JSON object" for one in entries]
    for chunk in (1, 2, 7, 100, 1 << 20):
        monkeypatch.setattr(records, "CHUNK", chunk)
        for content in (json.dumps(entries), json.dumps(entries, indent=2), f"\n {json.dumps(entries)} \n"):
            entries_read = read("m.json", content.encode("utf-8-sig"))
            assert [record for _, record in entries_read] == expected
            assert [where for where, _ in entries_read] == [f"entry {n}" for n in range(1, 7)]
        assert read("m.json", b" [ ] ") == []


def test_an_invalid_list_entry_is_named_in_the_error(read, monkeypatch):
    for content, reason in (
        (b"[" + LINE + b", {]", "entry 2: not JSON"),
        (b"[" + LINE + b"," + LINE, "entry 2: no comma or bracket after it"),
        (b"[" + LINE + b",]", "entry 2: not JSON"),
        (b"[" + LINE + b" " + LINE + b"]", "entry 1: no comma or bracket after it"),
        (b"[" + LINE + b"]" + LINE, "text after the end of the list"),
        (b"[]7", "text after the end of the list"),
        (b"[" + 100_000 * b"[", "entry 1: not JSON: nested too deeply"),
        (b"[" + 5000 * b"7" + b"]", "entry 1: not JSON: Exceeds the limit"),
        (b'["\xff"]', "'utf-8' codec can't decode byte 0xff"),
    ):
        assert refusal(read, "m.json", content).startswith(reason)
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(records, "CHUNK", 100)
    assert refusal(read, "m.json", b"[" + LINE + b', "' + 5000 * b"x") == "entry 2: more than 1,000 characters"


def test_an_unrepresentable_parquet_row_is_a_bad_record(tmp_path: Path):
    days = pc.cast(pa.array([0, 4_000_000, 1]), pa.int32()).view(pa.date32())
    texts = pa.array([b"x", b"y", b"\xff"]).cast(pa.binary()).view(pa.binary())
    table = pa.table({"path": ["a", "b", "c"], "day": days, "caption": texts})
    pq.write_table(table, tmp_path / "m.parquet")
    (_, first), (where, bad), (_, third) = read_records(tmp_path / "m.parquet")
    assert (first["path"], third["path"], where) == ("a", "c", "row 2")
    assert "year 12921" in bad or "out of range" in bad


def test_an_unsupported_file_is_named_in_the_error(read, tmp_path: Path):
    for name, content, reason in (
        ("m.txt", b"a.mp4 a dog", "a manifest is a .jsonl, .csv, .tsv or .parquet file"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl.gz", b"not gzip", "cannot be read"),
        ("m.jsonl.gz", gzip.compress(1000 * (LINE + b"\n"))[:-20], "cannot be read"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            read(name, content)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "lines", "good"),
    [
        # A text over two and three lines, in the last column, in the first, and in the middle.
        ("path\tcaption", ['a.mp4\t"two', 'lines"', "b.mp4\tone"], [2]),
        ("path\tcaption", ['a.mp4\t"now', "three", 'lines"', "b.mp4\tone"], [3]),
        ("caption\tpath", ['"two', 'lines"\ta.mp4', "one\tb.mp4"], [2]),
        ("path\tcaption\tsplit", ['a.mp4\t"two', 'lines"\ttest', "b.mp4\tone\ttest"], [2]),
        # Not quoted around a newline: a text may have quotation marks, and start or end with them.
        (
            "path\tcaption",
            ['a.mp4\t"quoted"', 'b.mp4\tthe "word', 'c.mp4\t"a" and "b"', 'd.mp4\tsize 7"'],
            [0, 1, 2, 3],
        ),
        ("path\tcaption", ['a.mp4\t"unclosed', "b.mp4\tone", "c.mp4\ttwo"], [0, 1, 2]),
        ("caption\tpath", ['"unclosed\ta.mp4', "one\tb.mp4"], [0, 1]),
    ],
)
def test_a_tsv_text_that_is_quoted_around_a_newline_is_invalid(read, columns, lines, good):
    records = read("m.tsv", "\n".join([columns, *lines]).encode())
    assert [where for where, _ in records] == [f"line {number + 2}" for number in range(len(lines))]
    valid = [number for number, (_, record) in enumerate(records) if isinstance(record, dict)]
    assert valid == good
    for number in good:
        assert list(records[number][1].values()) == lines[number].split("\t")
