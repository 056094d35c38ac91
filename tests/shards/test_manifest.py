"""Manifests in every form that people have them, and what is wrong with a row or with the whole."""

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.manifest import question_type, read_manifest
from shards.schema import InputError, Row

QUESTION = {"question": "what  runs?", "answer": "dog"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(*records): a manifest in JSON Lines; a text is a line as it is."""

    def lines(*records: dict | str) -> Path:
        path = tmp_path / "clips.jsonl"
        path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
        return path

    return lines


def only(source: Path) -> Row:
    (row,), rejects = read_manifest(source)
    assert rejects == []
    return row


def reason(source: Path) -> str:
    """Why the second row is rejected; the first and the third are good and go on."""
    rows, (reject,) = read_manifest(source)
    assert [row.id for row in rows] == ["a", "c"]
    assert reject.reason == "bad row"
    return reject.detail


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


def as_table(folder: Path, name: str, delimiter: str) -> Path:
    columns = ["path", "caption", "start", "end", "split", "source"]
    lines = [columns] + [[f'"{record[c]}"' if c in record else "" for c in columns] for record in RECORDS]
    (folder / name).write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    return folder / name


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "m.parquet")
    return folder / "m.parquet"


FORMS = {
    "jsonl": as_jsonl,
    "jsonl.gz": as_jsonl_gz,
    "csv": lambda folder: as_table(folder, "m.csv", ","),
    "tsv": lambda folder: as_table(folder, "m.tsv", "\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_manifest_of_every_form_gives_the_same_rows(form: Callable[[Path], Path], tmp_path: Path):
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
            group="a.mp4",
            meta={"source": "tv"},
        ),
        Row(
            id="b",
            path=tmp_path / "b.jpg",
            kind="image",
            captions=("ein Hund — läuft",),
            split="test",
            group="b.jpg",
            meta={"source": "web"},
        ),
    ]


def test_a_folder_is_its_videos_and_images_with_their_texts(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("b.MP4", "deep/a.webm", "deep/still.PNG", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("one dog\n\n  two   dogs \none dog\n")
    (tmp_path / "deep" / "still.txt").write_bytes("ein H\xfcndchen\n".encode("latin-1"))
    rows, rejects = read_manifest(tmp_path)
    assert rejects == []
    assert {row.id: (row.kind, row.captions) for row in rows} == {
        "b": ("video", ("one dog", "two dogs")),
        "deep/a": ("video", ()),
        "deep/still": ("image", ("ein H\ufffdndchen",)),  # a text that is not UTF-8 loses its letter and no more
    }
    assert {row.path for row in rows} == {tmp_path / "b.MP4", tmp_path / "deep/a.webm", tmp_path / "deep/still.PNG"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"path": "x/a.mp4"}, "x/a"),
        ({"path": "a.mp4", "start": 2}, "a@2-"),
        ({"path": "a.mp4", "end": 2.25}, "a@0-2.25"),
        ({"path": "a.mp4", "id": "mine"}, "mine"),
        ({"path": "a.mp4", "id": 0}, "0"),
        ({"path": "a.mp4", "id": ""}, "a"),
    ],
)
def test_an_id_is_that_given_or_the_path_and_the_window(write, record: dict, expected: str):
    assert only(write(record | {"caption": "x"})).id == expected


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"path": "a.mkv"}, "video"),
        ({"path": "a.JPEG"}, "image"),
        ({"path": "a.gif"}, "video"),  # it moves
        ({"path": "a.gif", "kind": "image"}, "image"),
        ({"path": "a"}, "video"),
    ],
)
def test_a_kind_is_that_given_or_the_extensions(write, record: dict, kind: str):
    assert only(write(record | {"caption": "x"})).kind == kind


def test_captions_are_folded_and_told_once(write):
    captions = ["  a  dog\truns ", "a dog runs", "", "A dog runs", "\n"]
    assert only(write({"path": "a.mp4", "captions": captions})).captions == ("a dog runs", "A dog runs")


def test_captions_in_a_table_may_be_a_list(tmp_path: Path):
    (tmp_path / "m.csv").write_text('path,captions\na.mp4,"[""one dog"", ""two, dogs""]"\n')
    assert only(tmp_path / "m.csv").captions == ("one dog", "two, dogs")


def test_questions_are_folded_and_typed_by_their_first_word(write):
    questions = [QUESTION, {"question": "How many?", "answer": 2, "type": "number"}]
    first, second = only(write({"path": "a.mp4", "questions": questions})).questions
    assert (first.question, first.answer, first.type) == ("what runs?", "dog", "what")
    assert (second.question, second.answer, second.type) == ("How many?", "2", "number")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
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
    ],
)
def test_a_type_can_stand_in_a_metrics_name(text: str, expected: str):
    assert question_type(text) == expected


def test_types_that_are_given_are_reduced_too(write):
    questions = [{"question": "What's he doing?", "answer": "x"}, {**QUESTION, "type": "How many?"}]
    row = only(write({"path": "a.mp4", "questions": questions}))
    assert [question.type for question in row.questions] == ["what", "how_many"]


def test_every_other_column_is_kept(write):
    row = only(write({"path": "a.mp4", "caption": "x", "licence": "CC0", "score": 0.5, "tags": ["a", {"b": None}]}))
    assert row.meta == {"licence": "CC0", "score": 0.5, "tags": ["a", {"b": None}]}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{'path': 'b.mp4'}", "not JSON"),
        ('["b.mp4", "x"]', "not a JSON object"),
        ({"caption": "x"}, "no path"),
        ({"path": 7, "caption": "x"}, "no path"),
        ({"path": ".", "caption": "x"}, "empty name"),
        ({"path": "b\0.mp4", "caption": "x"}, "'b\\x00.mp4' names no file"),
        ({"path": "b.mp4", "caption": "x", "start": "soon"}, "'soon' is not a time in seconds"),
        ({"path": "b.mp4", "caption": "x", "start": 3, "end": 2}, "start 3.0 is not before end 2.0"),
        ({"path": "b.mp4", "caption": "x", "start": -1}, "start: "),
        ('{"path": "b.mp4", "caption": "x", "start": NaN}', "nan is not a time in seconds"),
        ('{"path": "b.mp4", "caption": "x", "end": Infinity}', "inf is not a time in seconds"),
        ({"path": "b.mp4", "caption": "x", "bytes": "x" * (1 << 23)}, "8388"),
        ({"path": "b.mp4", "caption": "x", "split": "holdout"}, "'holdout' is none of train, validation, test"),
        ({"path": "b.mp4", "caption": "x", "kind": "audio"}, "kind: "),
        ({"path": "b.mp4", "caption": 7}, "captions are not a list of texts"),
        ({"path": "b.mp4", "captions": ["x", 7]}, "captions are not a list of texts"),
        ({"path": "b.mp4", "questions": {"question": "what?"}}, "questions are not a list"),
        ({"path": "b.mp4", "questions": [QUESTION, {"question": "what?"}]}, "a question without a text or an answer"),
        ({"path": "b.mp4", "questions": [{"question": " ", "answer": "x"}]}, "a question without a text or an answer"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason_and_the_rest_goes_on(write, record: dict | str, said: str):
    given = reason(write({"path": "a.mp4", "caption": "x"}, record, {"path": "c.mp4", "caption": "x"}))
    assert said in given


def test_a_reject_is_named_by_its_id_or_its_line(write):
    _, rejects = read_manifest(
        write("", "{", {"id": "seven", "path": "b.mp4", "caption": 7}, {"path": "c.mp4", "caption": 7})
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


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"path": "a.mp4", "caption": "x"}, {"path": "a.mp4", "caption": "y"}], ["line 2", "'a'", "line 1"]),
        ([{"file": "a.mp4", "caption": "x"}], ["no column 'path'", "caption, file"]),
        ([{"path": "a.mp4", "title": "x"}], ["no column 'captions'", "path, title"]),
        ([{"path": "a.mp4", "caption": "x"}, {"path": "../b.mp4", "caption": "x"}], ["line 2", "'../b.mp4'", "leaves"]),
        ([{"path": "sub/../../b.mp4", "caption": "x"}], ["leaves the data folder"]),
        ([{"path": "/etc/passwd", "caption": "x"}], ["'/etc/passwd'", "leaves the data folder"]),
        ([], ["no rows"]),
    ],
)
def test_what_makes_a_whole_manifest_unusable_is_said(write, records: list[dict], said: list[str]):
    with pytest.raises(InputError) as error:
        read_manifest(write(*records))
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in said)


def test_a_folder_beside_that_begins_with_the_same_name_is_outside(tmp_path: Path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "m.jsonl"
    path.write_text(json.dumps({"path": "../data-secret/a.mp4", "caption": "x"}))
    with pytest.raises(InputError, match="leaves the data folder"):
        read_manifest(path)


def test_a_manifest_named_from_where_one_stands_keeps_to_its_folder(write, tmp_path: Path, monkeypatch):
    path = write({"path": "a.mp4", "caption": "x"}, {"path": "../secret.mp4", "caption": "x"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="leaves the data folder"):
        read_manifest(Path(path.name))
    write({"path": "a.mp4", "caption": "x"})
    assert only(Path(path.name)).path == tmp_path / "a.mp4"


@pytest.mark.parametrize("path", ["sub/../a.mp4", "./a.mp4", "{root}/a.mp4"])
def test_a_path_that_stays_in_the_folder_is_taken(write, tmp_path: Path, path: str):
    assert only(write({"path": path.format(root=tmp_path), "caption": "x"})).path == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.jsonl", None, "no such file or folder"),
        ("m.txt", b"a.mp4 a dog", "a manifest is a .jsonl, .csv, .tsv or .parquet file"),
        ("m.csv", b"", "no rows"),
        ("m.csv", b"path,caption\n", "no rows"),
        ("m.parquet", b"PAR1 and nothing more", "cannot be read"),
        ("m.jsonl", b"\xff\xfe\x00", "cannot be read"),
        ("m.jsonl.gz", b"not gzip", "cannot be read"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, name: str, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_manifest(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no video or image in this folder"):
        read_manifest(tmp_path)


def test_a_gzip_cut_short_is_refused(tmp_path: Path):
    whole = gzip.compress(b"".join(b'{"path": "%d.mp4", "caption": "x"}\n' % i for i in range(500)))
    (tmp_path / "m.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "m.jsonl.gz")


@pytest.mark.parametrize(
    "more", [{"id": None}, {"split": None}, {"group": None}, {"captions": None}], ids=lambda more: next(iter(more))
)
def test_null_is_as_if_the_column_were_not_there(write, more: dict):
    assert only(write({"path": "a.mp4", "caption": "x"} | more)) == only(write({"path": "a.mp4", "caption": "x"}))


def test_a_caption_may_begin_with_a_bracket(write):
    assert only(write({"path": "a.mp4", "caption": "[music] a man sings"})).captions == ("[music] a man sings",)


def test_a_table_saved_by_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path):
    (tmp_path / "m.csv").write_text("path,caption\na.mp4,x\n", encoding="utf-8-sig")
    assert only(tmp_path / "m.csv").id == "a"


def test_what_a_row_holds_can_be_written_as_json(tmp_path: Path):
    record = {"path": "a.mp4", "caption": "x", "seen": datetime(2026, 1, 1), "digest": b"\xff"}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "m.parquet")
    rows, rejects = read_manifest(tmp_path / "m.parquet")
    assert len(rows) + len(rejects) == 1
    for row in rows:
        json.dumps(row.meta)


def test_half_a_surrogate_pair_does_not_get_through(write):
    rows, rejects = read_manifest(write('{"path": "a.mp4", "caption": "a dog \\ud83d"}'))
    assert len(rows) + len(rejects) == 1
    for row in rows:
        "".join(row.captions).encode()
    (row,), _ = read_manifest(write('{"path": "a.mp4", "caption": "x", "a \\ud83d": "b \\ud83d"}'))
    assert row.meta == {"a ?": "b ?"}


def test_the_names_of_splits_that_are_understood(write):
    names = ["train", "Training", "val", "valid", "dev", "validation", "TEST", "testing", " test ", ""]
    rows, rejects = read_manifest(
        write(*({"path": f"{i}.mp4", "caption": "x", "split": s} for i, s in enumerate(names)))
    )
    assert rejects == []
    assert [row.split for row in rows] == ["train"] * 2 + ["validation"] * 4 + ["test"] * 3 + [""]


def test_cells_without_a_column_make_a_bad_row(tmp_path):
    (tmp_path / "m.csv").write_text("path,caption\na.mp4,a dog, running\nb.mp4,[]\nc.mp4,[1]\n")
    rows, rejects = read_manifest(tmp_path / "m.csv")
    assert [row.captions for row in rows] == [()]
    assert [reject.detail.partition(";")[0] for reject in rejects] == [
        "more cells than columns",
        "captions are not a list of texts",
    ]


@pytest.mark.parametrize("path", ["./a.mp4", "x/../a.mp4", "{folder}/a.mp4"])
def test_rows_of_one_file_are_one_group_however_it_is_named(write, tmp_path, path: str):
    named = {"path": path.format(folder=tmp_path), "caption": "x", "id": "other"}
    rows, _ = read_manifest(write({"path": "a.mp4", "caption": "x"}, named))
    assert len({row.group for row in rows}) == 1


def test_a_signature_in_a_url_is_no_part_of_a_name(write):
    row = only(write({"path": "https://host/clips/a.mp4?X-Amz-Signature=secret", "caption": "x"}))
    assert (row.id, row.group, row.file_name) == ("host/clips/a", "https://host/clips/a.mp4", "a.mp4")
