"""Files of records: an invalid record affects no other, and no row is lost."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.shards.sources.records import read_records
from tests.conftest import one_line

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
        ("line 8", {"path": "e.mp4"}),
    ]
    for name, text in (("m.csv", "path,caption\na,x\n"), ("m.tsv", "path\tcaption\na\tx\n")):  # a byte order mark
        assert read(tmp_path / name, text.encode("utf-8-sig")) == [("line 2", {"path": "a", "caption": "x"})]


def test_tsv_has_no_quoting_but_a_text_that_may_be_quoted_is_a_bad_record(tmp_path):
    """A text that is quoted around a newline would be cut in silence; quotation marks inside a text are kept."""
    good = ['a\t"hello" she says', "b\t'x', \"y\"", "c\tone, two", 'd\tthe "word', 'e\tsize 7"']
    lines = [*good, 'f\t"two', '"three\tlines', 'g\t"', "h\tlast"]
    found = read(tmp_path / "m.tsv", "\r\n".join(["path\tcaption", *lines]).encode())
    assert [where for where, _ in found] == [f"line {number + 2}" for number in range(len(lines))]
    assert [isinstance(record, dict) for _, record in found] == [True] * 5 + [False] * 3 + [True]
    assert [list(record.values()) for _, record in found[:5]] == [line.split("\t") for line in good]


def test_one_bad_line_is_one_bad_record(tmp_path):
    for name, content, where, reason in (
        ("m.jsonl", NEWLINE + b'\n{"path": "b\xff"}\n' + LINE, "line 3", "not UTF-8"),
        ("m.jsonl", NEWLINE + b'{"path": ' + 5000 * b"9" + b"}\n" + LINE, "line 2", "not JSON: Exceeds the limit"),
        ("m.jsonl", NEWLINE + 100_000 * b"[" + b"\n" + LINE, "line 2", "not JSON: nested too deeply"),
        ("m.jsonl", NEWLINE + b"[1]\n" + LINE, "line 2", "not a JSON object"),
        ("m.ndjson.gz", gzip.compress(NEWLINE + b"{\n" + LINE, mtime=0), "line 2", "not JSON"),
        ("m.csv", TABLE % b"b.mp4,\xe4", "line 3", "not UTF-8"),
        ("m.csv", TABLE % (b"b.mp4," + 200_000 * b"x"), "line 3", "field larger than field limit (131072)"),
        ("m.tsv", TABS % b"b.mp4\t\xe4", "line 3", "not UTF-8"),
        ("m.txt", b"a\n\xe4\n\n b \n", "line 2", "not UTF-8"),
    ):
        (_, first), (place, bad), (last_place, last) = read(tmp_path / name, content)
        assert [type(first), type(last)] == [dict, dict]
        assert (place, bad[: len(reason)]) == (where, reason)
        assert int(last_place[5:]) == int(where[5:]) + (2 if name == "m.txt" else 1)


def test_a_list_is_read_entry_by_entry(tmp_path):
    entries = [GOOD, {"path": '[,] \\ " ü', "list": [1, {"a": []}]}, "text", 7, [], GOOD | {"caption": 300 * "y"}]
    expected = [one if isinstance(one, dict) else "not a JSON object" for one in entries]
    for content in (json.dumps(entries), json.dumps(entries, indent=2), f"\n {json.dumps(entries)} \n"):
        found = read(tmp_path / "m.json", content.encode("utf-8-sig"))
        assert found == [(f"entry {n}", record) for n, record in enumerate(expected, 1)]
    assert read(tmp_path / "m.json", b" [ ] ") == []
    line = json.dumps({"meta": {"a": 1}, "path": "a.mp4"}).encode()
    for count in (1, 2):  # JSON Lines, which begin with an object
        found = read(tmp_path / "m.json", (line + b"\n") * count)
        assert [where for where, _ in found] == ["line 1", "line 2"][:count]


OPEN = [b'"open\nc.mp4,y\nd.mp4,z\n', b'"open\nc.mp4,"quoted"\n', b'"open\n' + 3000 * (b"c.mp4," + 50 * b"x" + b"\n")]
LISTS = [b", {]", b"," + LINE, b",]", b" " + LINE + b"]", b"]" + LINE, b"," + 100_000 * b"["]


def test_a_file_whose_next_record_is_unknown_is_refused_in_one_line_with_its_name(tmp_path):
    for name, content, reason in (
        *(("m.csv", b"path,caption\na.mp4,x\nb.mp4," + rest, "line 3: unclosed quotation mark") for rest in OPEN),
        *(("m.json", b"[" + LINE + rest, "not JSON") for rest in LISTS),
        ("m.json", b"[" + 5000 * b"7" + b"]", "not JSON"),
        ("m.json", b'["\xff"]', "not UTF-8"),
        *(("m.csv", text.encode("utf-16"), "UTF-16") for text in ("path,caption\n", "a")),
        ("m.jsonl", '{"path": "a.mp4"}\n'.encode("utf-32-be"), "UTF-16"),
        ("m.csv", b"path,caption,caption\na,x,y\n", "the column 'caption' appears twice"),
        ("m.tsv", b"path\tpath\na\tx\n", "the column 'path' appears twice"),
        ("m.csv", b"path;caption\na.mp4;x\n", "semicolons"),
        ("m.csv", b"path,\xe4\na,x\n", "not UTF-8"),
        ("m.xlsx", b"a.mp4 a dog", "a manifest is a .jsonl, .csv, .tsv or .parquet file"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl.gz", b"not gzip", "cannot be read"),
        ("m.jsonl.gz", gzip.compress(1000 * NEWLINE, mtime=0)[:-20], "cannot be read"),
    ):
        with one_line(str(tmp_path / name), reason):
            read(tmp_path / name, content)


def test_a_parquet_table_is_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("alpro.shards.sources.records.PARQUET_BATCH_ROWS", 2)
    pq.write_table(pa.table({"path": list("abcde")}), tmp_path / "m.parquet")
    assert list(read_records(tmp_path / "m.parquet")) == [(f"row {n}", {"path": c}) for n, c in enumerate("abcde", 1)]
    years = pc.cast(pa.array([0, 4_000_000]), pa.int32()).view(pa.date32())  # the second is after 9999
    for table in (pa.table({"day": years}), pa.Table.from_arrays([pa.array(["a"])] * 2, ["path", "path"])):
        pq.write_table(table, tmp_path / "m.parquet")
        with pytest.raises(InputError, match=r"m\.parquet: cannot be read"):
            list(read_records(tmp_path / "m.parquet"))
