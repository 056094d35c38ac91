"""All manifest formats, invalid rows and invalid manifests."""

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

from alpro.errors import InputError
from alpro.shards.manifest import question_type, read_manifest, scan_manifest
from alpro.shards.schema import Row, SampleMetadata

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


def as_table(folder: Path, name: str, delimiter: str, quote: str = "") -> Path:
    columns = ["path", "caption", "start", "end", "split", "source"]
    lines = [columns] + [[f"{quote}{record[c]}{quote}" if c in record else "" for c in columns] for record in RECORDS]
    (folder / name).write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    return folder / name


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "m.parquet")
    return folder / "m.parquet"


FORMS = {
    "jsonl": as_jsonl,
    "jsonl.gz": as_jsonl_gz,
    "csv": lambda folder: as_table(folder, "m.csv", ",", '"'),
    "tsv": lambda folder: as_table(folder, "m.tsv", "\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_all_manifest_formats_give_the_same_rows(form: Callable[[Path], Path], tmp_path: Path):
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


def test_a_folder_of_videos_and_images_with_texts(tmp_path: Path):
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


def test_an_id_defaults_to_the_path_and_the_window(write):
    for record, expected in (
        ({"path": "x/a.mp4"}, "x/a"),
        ({"path": "a.mp4", "start": 2}, "a@2-"),
        ({"path": "a.mp4", "end": 2.25}, "a@0-2.25"),
        ({"path": "a.mp4", "id": "mine"}, "mine"),
        ({"path": "a.mp4", "id": 0}, "0"),
        ({"path": "a.mp4", "id": ""}, "a"),
    ):
        assert only(write(record | {"caption": "x"})).id == expected


def test_a_kind_defaults_to_that_of_the_extension(write):
    for record, kind in (
        ({"path": "a.mkv"}, "video"),
        ({"path": "a.JPEG"}, "image"),
        ({"path": "a.gif"}, "video"),  # it moves
        ({"path": "a.gif", "kind": "image"}, "image"),
        ({"path": "a.jpg", "kind": " Video"}, "video"),
        ({"path": "a.mp4", "kind": "IMAGE"}, "image"),
        ({"path": "a"}, "video"),
    ):
        assert only(write(record | {"caption": "x"})).kind == kind


def test_captions_are_normalised_and_unique(write):
    captions = ["  a  dog\truns ", "a dog runs", "", "A dog runs", "\n"]
    assert only(write({"path": "a.mp4", "captions": captions})).captions == ("a dog runs", "A dog runs")


def test_a_row_has_the_captions_of_both_columns(write):
    record = {"path": "a.mp4", "captions": ["a dog runs", "a dog"], "caption": "it runs"}
    assert only(write(record)).captions == ("a dog runs", "a dog", "it runs")


def test_captions_in_a_table_may_be_a_list(tmp_path: Path):
    (tmp_path / "m.csv").write_text('path,captions\na.mp4,"[""one dog"", ""two, dogs""]"\n')
    assert only(tmp_path / "m.csv").captions == ("one dog", "two, dogs")


def test_questions_are_normalised_and_typed_by_their_first_word(write):
    questions = [QUESTION, {"question": "How many?", "answer": 2, "type": "number"}]
    first, second = only(write({"path": "a.mp4", "questions": questions})).questions
    assert (first.question, first.answer, first.type) == ("what runs?", "dog", "what")
    assert (second.question, second.answer, second.type) == ("How many?", "2", "number")


def test_question_types_are_valid_in_metric_names():
    for text, expected in (
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
    ):
        assert question_type(text) == expected


def test_given_question_types_are_normalised_too(write):
    questions = [{"question": "What's he doing?", "answer": "x"}, {**QUESTION, "type": "How many?"}]
    row = only(write({"path": "a.mp4", "questions": questions}))
    assert [question.type for question in row.questions] == ["what", "how_many"]


def test_every_other_column_is_kept(write):
    row = only(write({"path": "a.mp4", "caption": "x", "licence": "CC0", "score": 0.5, "tags": ["a", {"b": None}]}))
    assert row.meta == {"licence": "CC0", "score": 0.5, "tags": ["a", {"b": None}]}


BAD_RECORDS: list[tuple[dict | str, str]] = [
    ("{'path': 'b.mp4'}", "not JSON"),
    ('["b.mp4", "x"]', "not a JSON object"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 5000 * "7" + "}", "not JSON: Exceeds the limit"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 100_000 * "[" + 100_000 * "]" + "}", "not JSON: nested too deeply"),
    ('{"path": "b.mp4", "caption": "x", "a": ' + 300 * "[" + "1" + 300 * "]" + "}", "nested more than 64 deep"),
    ({"caption": "x"}, "no path"),
    ({"path": 7, "caption": "x"}, "no path"),
    ({"path": ".", "caption": "x"}, "empty name"),
    ({"path": "b\0.mp4", "caption": "x"}, "'b\\x00.mp4' is not a file name"),
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


def test_bad_rows_are_rejected_with_a_reason_and_the_others_are_read(write):
    records = [r for n, (bad, _) in enumerate(BAD_RECORDS) for r in (bad, {"path": f"{n}.mp4", "caption": "x"})]
    rows, rejects = read_manifest(write(*records))
    assert [row.id for row in rows] == [str(number) for number in range(len(BAD_RECORDS))]
    for reject, (_, reason) in zip(rejects, BAD_RECORDS, strict=True):
        assert reject.reason == "bad row"
        assert reason in reject.detail
        assert len(reject.detail) < 200


def test_every_valid_row_can_be_planned_and_written(write):
    """The deepest nesting and the longest numbers that are taken go through JSON again on their way to a shard."""
    deep: list = ["x"]
    for _ in range(62):
        deep = [deep]
    row = only(write({"path": "a.mp4", "caption": 5000 * "7", "deep": deep, "long": 10**400, "start": 1e6}))
    assert Row.model_validate_json(row.model_dump_json()) == row
    assert row.captions == (5000 * "7",)
    about = {"version": 1, "split": "train", "duration": 1.0, "width": 1, "height": 1, "source": "a.mp4"}
    metadata = json.dumps(about | row.model_dump(include={"id", "kind", "group", "captions", "questions", "meta"}))
    assert SampleMetadata.model_validate_json(metadata).meta == row.meta


def test_a_reject_has_its_id_or_its_line(write):
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


def test_an_unusable_manifest_raises_an_error_with_the_cause(write):
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
            read_manifest(write(*records))
        assert "\n" not in str(error.value)
        assert all(part in str(error.value) for part in parts)


def test_a_sibling_folder_with_the_same_prefix_is_outside(tmp_path: Path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "m.jsonl"
    path.write_text(json.dumps({"path": "../data-secret/a.mp4", "caption": "x"}))
    with pytest.raises(InputError, match="is outside the data folder"):
        read_manifest(path)


def test_a_relative_manifest_is_restricted_to_its_folder(write, tmp_path: Path, monkeypatch):
    path = write({"path": "a.mp4", "caption": "x"}, {"path": "../secret.mp4", "caption": "x"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is outside the data folder"):
        read_manifest(Path(path.name))
    write({"path": "a.mp4", "caption": "x"})
    assert only(Path(path.name)).path == tmp_path / "a.mp4"


def test_a_path_inside_the_folder_is_accepted(write, tmp_path: Path):
    for path in ("sub/../a.mp4", "./a.mp4", "{root}/a.mp4"):
        assert only(write({"path": path.format(root=tmp_path), "caption": "x"})).path == tmp_path / "a.mp4"


def test_an_empty_folder_raises_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="no video or image in this folder"):
        read_manifest(tmp_path)


def test_null_equals_a_missing_column(write):
    for column in ("id", "split", "group", "captions"):
        without = only(write({"path": "a.mp4", "caption": "x"}))
        assert only(write({"path": "a.mp4", "caption": "x", column: None})) == without


def test_a_caption_may_start_with_a_bracket(write):
    assert only(write({"path": "a.mp4", "caption": "[music] a man sings"})).captions == ("[music] a man sings",)


def test_parquet_bytes_are_decoded(tmp_path: Path):
    record = {"path": b"a.mp4", "caption": "ein Hündchen".encode(), "captions": [b"a dog"], "split": b"test"}
    record |= {"seen": datetime(2026, 1, 1), "note": "für".encode(), "digest": b"\xff\x00"}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "m.parquet")
    row = only(tmp_path / "m.parquet")
    assert (row.path, row.captions, row.split) == (tmp_path / "a.mp4", ("a dog", "ein Hündchen"), "test")
    assert row.meta == {"seen": "2026-01-01 00:00:00", "note": "für", "digest": "ff00"}


def test_invalid_utf_8_is_not_a_caption(tmp_path: Path):
    for column, value in (("caption", b"\xff"), ("captions", [b"x", b"\xff"])):
        rows = [{"path": "a.mp4", column: value}, {"path": "b.mp4"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
        (row,), (reject,) = read_manifest(tmp_path / "m.parquet")
        assert (row.id, reject.id, reject.reason) == ("b", "row 1", "bad row")
        assert reject.detail == f"{column}: bytes that are not UTF-8"


def test_a_lone_surrogate_is_replaced(write):
    rows, rejects = read_manifest(write('{"path": "a.mp4", "caption": "a dog \\ud83d"}'))
    assert len(rows) + len(rejects) == 1
    for row in rows:
        "".join(row.captions).encode()
    (row,), _ = read_manifest(write('{"path": "a.mp4", "caption": "x", "a \\ud83d": "b \\ud83d"}'))
    assert row.meta == {"a ?": "b ?"}


def test_split_names(write):
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
        "captions are not a list of strings",
    ]


def test_rows_of_a_file_form_one_group_however_its_path_is_spelled(write, tmp_path):
    for path in ("./a.mp4", "x/../a.mp4", "{folder}/a.mp4"):
        named = {"path": path.format(folder=tmp_path), "caption": "x", "id": "other"}
        rows, _ = read_manifest(write({"path": "a.mp4", "caption": "x"}, named))
        assert len({row.group for row in rows}) == 1


def test_a_pattern_gives_the_group_of_rows_without_one(write):
    paths = [
        "tv/star_ABC_0.mp4",
        "tv/star_ABC_1.mp4",
        "star_DE_10.mp4",
        "other.mp4",
        "https://host/star_ABC_2.mp4?sig=x",
    ]
    rows = [{"path": path, "caption": "x"} for path in paths] + [
        {"path": "star_ABC_3.mp4", "caption": "x", "group": "mine"}
    ]
    for pattern, groups in (
        (r"star_(\w+)_\d+", ["ABC", "ABC", "DE", "other.mp4", "ABC", "mine"]),
        (r"star_[A-Z]+", ["star_ABC", "star_ABC", "star_DE", "other.mp4", "star_ABC", "mine"]),
        (r"(.+?)_\d+\.[^.]+$", ["tv/star_ABC", "tv/star_ABC", "star_DE", "other.mp4", "https://host/star_ABC", "mine"]),
        (r"^(tv)/|^\w+_10", ["tv", "tv", "star_DE_10", "other.mp4", "https://host/star_ABC_2.mp4", "mine"]),
        ("", [*paths[:4], "https://host/star_ABC_2.mp4", "mine"]),
    ):
        assert [row.group for row in scan_manifest(write(*rows), pattern)] == groups


def test_a_pattern_without_matches_raises_an_error(write):
    path = write({"path": "a.mp4", "caption": "x"}, {"path": "b.mp4", "caption": "x"})
    with pytest.raises(InputError, match=r"group_pattern = 'star_' matches no file's path, such as 'a.mp4'"):
        list(scan_manifest(path, "star_"))
    path = write({"path": "a.mp4", "caption": "x", "group": "all have one"})
    assert len(list(scan_manifest(path, "star_"))) == 1


def test_a_url_signature_is_not_part_of_an_id(write):
    row = only(write({"path": "https://host/clips/a.mp4?X-Amz-Signature=secret", "caption": "x"}))
    assert (row.id, row.group, row.file_name) == ("host/clips/a", "https://host/clips/a.mp4", "a.mp4")
