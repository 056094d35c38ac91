"""Files of records: an invalid record affects no other, no row is lost, and long lines do not fill the memory."""

import gzip
import json
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
        b'b.mp4,"open\nc.mp4,"quoted"\n',  # to the next quotation mark
        b'b.mp4,"open\n' + 3000 * (b"c.mp4," + 50 * b"x" + b"\n"),  # beyond what a cell may hold
        b'b.mp4,"open\nc.mp4,\xff\n',
    ):
        assert refusal(read, "m.csv", head + rest).startswith("line 3: unclosed quotation mark at the start of a text")


def test_one_bad_line_is_one_bad_record(read):
    table = b"path,caption\na.mp4,x\n%s\nc.mp4,x\n"
    for name, content, reason in (
        ("m.jsonl", LINE + b'\n{"path": "b\xff"}\n' + LINE, "not UTF-8: byte 0xff"),
        ("m.jsonl", LINE + b'\n{"path": ' + 5000 * b"9" + b"}\n" + LINE, "not JSON: Exceeds the limit"),
        ("m.csv", table % b"b.mp4,\xe4", "not UTF-8: byte 0xe4"),
        ("m.csv", table % (b"b.mp4," + 200_000 * b"x"), "field larger than field limit (131072)"),
        ("m.tsv", table.replace(b",", b"\t") % b"b.mp4\t\xe4", "not UTF-8: byte 0xe4"),
    ):
        (_, first), (where, bad), (_, last) = read(name, content)
        assert isinstance(first, dict)
        assert isinstance(last, dict)
        assert where == ("line 2" if name == "m.jsonl" else "line 3")
        assert bad.startswith(reason)


def test_an_endless_line_is_a_bad_record(read, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    for name, head in (("m.jsonl", b""), ("m.tsv", b"path\tcaption\n")):
        for size in (1001, 5000):
            _, (_, bad), _ = read(name, head + LINE + b"\n" + size * b"x" + b"\n" + LINE)
            assert bad == "a line of more than 1,000 characters"
        assert len(read(name, head + LINE + b"\n" + 999 * b" " + b"\n" + LINE)) in (2, 3)


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


def test_a_list_is_read_entry_by_entry(read):
    entries = [GOOD, {"path": '[,] \\ " ü', "list": [1, {"a": []}]}, "text", 7, [], GOOD | {"caption": 300 * "y"}]
    expected = [one if isinstance(one, dict) else "not a JSON object" for one in entries]
    for content in (json.dumps(entries), json.dumps(entries, indent=2), f"\n {json.dumps(entries)} \n"):
        entries_read = read("m.json", content.encode("utf-8-sig"))
        assert [record for _, record in entries_read] == expected
        assert [where for where, _ in entries_read] == [f"entry {n}" for n in range(1, 7)]
    assert read("m.json", b" [ ] ") == []


@pytest.mark.parametrize(
    "content",
    [
        b"[" + LINE + b", {]",
        b"[" + LINE + b"," + LINE,
        b"[" + LINE + b",]",
        b"[" + LINE + b" " + LINE + b"]",
        b"[" + LINE + b"]" + LINE,
        b"[" + 100_000 * b"[",
        b"[" + 5000 * b"7" + b"]",
        b'["\xff"]',
    ],
)
def test_an_invalid_list_is_refused(read, content):
    assert refusal(read, "m.json", content).startswith("not ")


def test_a_list_that_is_too_long_is_refused(read, monkeypatch):
    monkeypatch.setattr(records, "MAX_DOCUMENT", 1000)
    assert "1,000 characters" in refusal(read, "m.json", b"[" + LINE + b', "' + 5000 * b"x" + b'"]')


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
        ("m.xlsx", b"a.mp4 a dog", "a manifest is a .jsonl, .csv, .tsv or .parquet file"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl.gz", b"not gzip", "cannot be read"),
        ("m.jsonl.gz", gzip.compress(1000 * (LINE + b"\n"))[:-20], "cannot be read"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            read(name, content)
        assert str(tmp_path / name) in str(error.value)


def test_a_tsv_text_that_may_be_quoted_is_a_bad_record(read):
    """A text that is quoted around a newline would be cut in silence; quotation marks inside a text are kept."""
    good = ['a\t"hello" she says', "b\t'x', \"y\"", "c\tone, two", 'd\tthe "word', 'e\tsize 7"']
    bad = ['f\t"two', '"three\tlines', 'g\t"']
    lines = [*good, *bad, "h\tlast"]
    found = read("m.tsv", "\r\n".join(["path\tcaption", *lines]).encode())
    assert [where for where, _ in found] == [f"line {number + 2}" for number in range(len(lines))]
    assert [isinstance(record, dict) for _, record in found] == [True] * 5 + [False] * 3 + [True]
    assert [list(record.values()) for _, record in found[:5]] == [line.split("\t") for line in good]
