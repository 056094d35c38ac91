"""Invalid rows and unusable manifests."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.errors import InputError
from tests.shards.conftest import QUESTION, read_manifest, single_row

BAD_RECORDS: list[tuple[dict | str, str]] = [
    ("{'path': 'b.mp4'}", "not JSON"),
    ('["b.mp4", "x"]', "not a JSON object"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 5000 * "7" + "}", "not JSON: Exceeds the limit"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 100_000 * "[" + 100_000 * "]" + "}", "not JSON: nested too deeply"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 300 * "[" + "1" + 300 * "]" + "}", "nested more than 64 deep"),
    ({"caption": "x"}, "no path"),
    ({"path": 7, "caption": "x"}, "no path"),
    ({"path": ".", "caption": "x"}, "empty name"),
    ({"path": "b\0.mp4", "caption": "x"}, "NUL"),
    ({"path": "b.mp4", "caption": 9 * "\0"}, "NUL"),
    ({"path": "b.mp4", "caption": "x", "start": 2, "end": 2}, "start 2.0 is not before end 2.0"),
    ({"path": "b.mp4", "caption": "x", "start": "soon"}, "start 'soon' is not a time in seconds"),
    ({"path": "b.mp4", "caption": "x", "start": [1]}, "start '[1]' is not a time in seconds"),
    ({"path": "b.mp4", "caption": "x", "start": 3, "end": 2}, "start 3.0 is not before end 2.0"),
    ({"path": "b.mp4", "caption": "x", "start": -1}, "start -1 is not a time in seconds between 0 and 1,000,000"),
    ({"path": "b.mp4", "caption": "x", "start": 1.7e18}, "start 1.7e+18 is not a time in seconds between"),
    ({"path": "b.mp4", "caption": "x", "end": 10**399}, "end '1000"),
    ({"path": "b.mp4", "caption": "x", "end": 0}, "end: Input should be greater than 0"),
    ('{"path": "b.mp4", "caption": "x", "start": NaN}', "start nan is not a time in seconds"),
    ('{"path": "b.mp4", "caption": "x", "end": Infinity}', "end inf is not a time in seconds"),
    ({"path": "b.mp4", "caption": "x", "bytes": "x" * (1 << 23)}, "8,388,6"),
    ({"path": "b.mp4", "caption": "x", "split": "holdout"}, "unknown split 'holdout'; use train, validation, test"),
    ({"path": "b.mp4", "caption": "x", "kind": "audio"}, "kind: "),
    ({"path": "b.mp4", "caption": "x", "kind": 7}, "kind: "),
    ({"path": "b.mp4", "caption": 7}, "captions are not a list of strings"),
    ({"path": "b.mp4", "captions": ["x", 7]}, "captions are not a list of strings"),
    ({"path": "b.mp4", "captions": ["x"], "caption": 7}, "captions are not a list of strings"),
    ({"path": "b.mp4", "questions": {"question": "what?"}}, "questions are not a list"),
    ({"path": "b.mp4", "questions": [QUESTION, {"question": "what?"}]}, "empty question or answer"),
    ({"path": "b.mp4", "questions": [{"question": " ", "answer": "x"}]}, "empty question or answer"),
]


def test_bad_rows_are_rejected_with_a_reason_and_the_others_are_read(write_records):
    records = [r for n, (bad, _) in enumerate(BAD_RECORDS) for r in (bad, {"path": f"{n}.mp4", "caption": "x"})]
    rows, rejects = read_manifest(write_records(*records))
    assert [row.id for row in rows] == [str(number) for number in range(len(BAD_RECORDS))]
    for reject, (_, reason) in zip(rejects, BAD_RECORDS, strict=True):
        assert reject.reason == "bad row"
        assert reason in reject.detail
        assert len(reject.detail) < 200


def test_a_reject_has_its_id_or_its_line(write_records):
    _, rejects = read_manifest(
        write_records("", "{", {"id": "seven", "path": "b.mp4", "caption": 7}, {"path": "c.mp4", "caption": 7})
    )
    assert [(reject.id, reject.path) for reject in rejects] == [("line 2", ""), ("seven", "b.mp4"), ("line 4", "c.mp4")]


LINES = st.sampled_from(
    [
        {"path": "{}.mp4", "caption": "x"},
        {"path": "{}.mp4", "captions": []},
        {"path": "{}.mp4", "captions": [None]},
        {"path": "{}.mp4", "caption": "x", "start": 2, "end": 1},
        {"path": "{}.mp4", "questions": "[{"},
        {"caption": "{}"},
        "{{",
        "3",
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, max_size=12))
def test_every_line_is_a_row_or_a_reject(tmp_path_factory: pytest.TempPathFactory, lines: list[dict | str]):
    lines = [{"path": "first.mp4", "caption": "x"}, *lines]
    path = tmp_path_factory.getbasetemp() / "law.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text.replace("{}", str(number)) + "\n" for number, text in enumerate(texts)))
    rows, rejects = read_manifest(path)
    assert len(rows) + len(rejects) == len(lines)
    assert len({row.id for row in rows}) == len(rows)


def test_an_unusable_manifest_raises_an_error_with_the_cause(write_records):
    for records, parts in (
        ([{"path": "a.mp4", "caption": "x"}, {"path": "a.mp4", "caption": "y"}], ["line 2", "'a'", "line 1"]),
        ([{"file": "a.mp4", "caption": "x"}], ["no column 'path'", "caption, file"]),
        ([{"path": "a.mp4", "title": "x"}], ["no column 'captions'", "path, title"]),
        (
            [{"path": "a.mp4", "caption": "x"}, {"path": "../b.mp4", "caption": "x"}],
            ["line 2", "'../b.mp4'", "outside"],
        ),
        ([{"path": "sub/../../b.mp4", "caption": "x"}], ["is outside the data folder"]),
        ([{"path": "/etc/passwd", "caption": "x"}], ["'/etc/passwd'", "is outside the data folder"]),
        ([], ["no rows"]),
    ):
        with pytest.raises(InputError) as error:
            read_manifest(write_records(*records))
        assert "\n" not in str(error.value)
        assert all(part in str(error.value) for part in parts)


def test_a_relative_manifest_is_restricted_to_its_folder(write_records, tmp_path: Path, monkeypatch):
    path = write_records({"path": "a.mp4", "caption": "x"}, {"path": "../secret.mp4", "caption": "x"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is outside the data folder"):
        read_manifest(Path(path.name))
    write_records({"path": "a.mp4", "caption": "x"})
    assert single_row(Path(path.name)).path == tmp_path / "a.mp4"


def test_an_empty_folder_raises_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="no video or image in this folder"):
        read_manifest(tmp_path)


def test_invalid_utf_8_is_not_a_caption(tmp_path: Path):
    for column, value in (("caption", b"\xff"), ("captions", [b"x", b"\xff"])):
        rows = [{"path": "a.mp4", column: value}, {"path": "b.mp4"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
        (row,), (reject,) = read_manifest(tmp_path / "m.parquet")
        assert (row.id, reject.id, reject.reason) == ("b", "row 1", "bad row")
        assert reject.detail == f"{column}: bytes that are not UTF-8"


def test_a_lone_surrogate_is_replaced(write_records):
    rows, rejects = read_manifest(write_records('{"path": "a.mp4", "caption": "a dog \\ud83d"}'))
    assert len(rows) + len(rejects) == 1
    for row in rows:
        "".join(row.captions).encode()
    (row,), _ = read_manifest(write_records('{"path": "a.mp4", "caption": "x", "a \\ud83d": "b \\ud83d"}'))
    assert row.meta == {"a ?": "b ?"}


def test_cells_without_a_column_make_a_bad_row(tmp_path):
    (tmp_path / "m.csv").write_text("path,caption\na.mp4,a dog, running\nb.mp4,[]\nc.mp4,[1]\n")
    rows, rejects = read_manifest(tmp_path / "m.csv")
    assert [row.captions for row in rows] == [()]
    assert [reject.detail.partition(";")[0] for reject in rejects] == [
        "more cells than columns",
        "captions are not a list of strings",
    ]
