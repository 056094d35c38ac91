"""What columns mean is told: by a published form, by `columns` of the configuration, or by a block
that a check proposes."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.cli.main import execute
from alpro.shards.sources.form import FORMS, Columns
from tests.conftest import one_line
from tests.shards.sources.conftest import write_files

CASES = tomllib.loads(Path(__file__).with_name("columns.toml").read_text("utf-8"))
MEDIA = "clips/a.mp4 clips/b.mp4 c.mp4 7.mp4 c_007.mp4"


def test_every_published_form_has_the_keys_of_columns():
    for form in FORMS:
        told = form.model_dump(include=Columns.model_fields.keys())
        assert Columns.model_validate(told)
        assert form.has


@pytest.mark.parametrize("kind", CASES["told"])
def test_columns_that_a_user_tells_are_read(kind, read):
    case = CASES["told"][kind]

    files = {case.get("file", "x.json"): case["table"], **case.get("lists", {})}

    imported = read(files, MEDIA, columns=case["columns"])

    assert {file: [*texts] for file, texts in imported.captions.items()} == case[
        "captions"
    ]
    assert {row.split for row in imported.rows} == {*case.get("splits", [""])}
    assert imported.rejects == []


def test_the_lines_of_a_text_are_told(read):
    line = {"line": r"(?P<file>\S+)\|(?P<text>.+)"}

    imported = read(
        {"x.txt": "c.mp4|a dog\nno line of it\n"}, MEDIA, data="x.txt", columns=line
    )
    assert imported.captions == {"c.mp4": ("a dog",)}
    assert [reject.id for reject in imported.rejects] == ["line 2"]


def test_a_folder_of_texts_is_told(read):
    imported = read({"words/a.txt": "a dog"}, "clips/a.mp4", columns={"texts": "words"})

    assert imported.captions == {"clips/a.mp4": ("a dog",)}


MISTAKES = {
    "an unknown column": ({"file": "films"}, "'films'", "film, words"),
    "a path that leads nowhere": (
        {"records": "data.items"},
        "'data.items'",
        "there are list",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_column_that_no_record_has_is_one_line_with_those_that_there_are(kind, read):
    columns, *parts = MISTAKES[kind]
    table = [{"film": "c.mp4", "words": "a dog"}]

    with one_line(*parts):
        read(
            {"x.json": {"list": table} if "records" in columns else table},
            MEDIA,
            columns=columns,
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("corpora.data.columns.fille=film", "did you mean 'file'?"),
        ("corpora.data.columns.line=(", "corpora.data.columns.line"),
        ("corpora.data.columns.first_option=7", "first_option"),
    ],
)
def test_a_wrong_key_of_columns_is_one_line(change, says, tmp_path, capsys):
    status = execute(["data", "check", str(tmp_path), "--set", change])

    err = capsys.readouterr().err
    assert status == 2
    assert says in err
    assert err.count("\n") == 1


def printed_columns(out):
    """The columns of the block that a check has printed."""
    block = re.search(r"^\[corpora\.data\.columns\]\n(?:\S.*\n)+", out, re.MULTILINE)[0]
    return tomllib.loads(block)["corpora"]["data"]["columns"]


@pytest.mark.parametrize("kind", CASES["unknown"])
def test_the_block_that_a_check_prints_reads_the_table(kind, tmp_path, capsys, read):
    case = CASES["unknown"][kind]
    files = {case["file"]: case["content"]}
    data = write_files(
        tmp_path / "data", {**dict.fromkeys(MEDIA.split(), "x"), **files}
    )

    status = execute(["data", "check", str(data)])

    out = capsys.readouterr().out
    columns = printed_columns(out) | case.get("complete", {})
    imported = read(files, MEDIA, columns=columns)
    texts = {}
    for file, row in zip(imported.captions, imported.rows, strict=True):
        asked = [f"{one.question} {one.answer}" for one in row.questions]
        texts[file] = [*row.captions, *asked]
    assert status == 2
    assert texts == case["texts"]


def test_a_block_reads_the_tables_that_have_its_columns(tmp_path, capsys, read):
    """As of Something-Something: lists of labels and videos lie beside the captions of each split."""
    files = {
        "classes.txt": "c000 Holding something\n",
        "labels.json": {"Holding something": "0"},
    }
    files["test.json"] = [{"id": "b"}]
    for split, name in (("train", "a"), ("validation", "c")):
        files[f"{split}.json"] = [{"id": name, "label": f"a dog in {name}"}]
    data = write_files(tmp_path / "data", {**files, "a.mp4": "x", "c.mp4": "x"})

    execute(["data", "check", str(data)])

    columns = printed_columns(capsys.readouterr().out)
    imported = read(files, "a.mp4 c.mp4", columns=columns)
    assert {row.id: (row.split, row.captions) for row in imported.rows} == {
        "a": ("train", ("a dog in a",)),
        "c": ("validation", ("a dog in c",)),
    }


def test_names_of_columns_that_look_like_templates_are_one_line(read):
    table = {"x.csv": "{file},{text}\nc.mp4,a dog runs\n"}

    with pytest.raises(InputError, match="columns are not known"):
        read(table, MEDIA, data="x.csv")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"where": {"language": "en"}}, "language"),
        ({"where": {"lang": "English"}}, "no rows"),
        ({"texts": "wrds"}, "wrds"),
        ({"join": {"on": "lang"}}, "list"),
    ],
)
def test_what_is_told_and_leads_nowhere_is_one_line(columns, says, read):
    files = {"x.csv": "video,caption,lang\nc.mp4,a dog,en\n"}
    files["words/c.txt"] = "a dog"

    with one_line(says):
        read(files, MEDIA, columns=columns)


def test_a_text_of_any_extension_is_read_by_a_line_that_is_told(read):
    line = {"line": r"(?P<file>\S+)\t(?P<caption>.+)"}

    imported = read({"x.tsv": "c.mp4\ta dog\n"}, MEDIA, columns=line)

    assert imported.captions == {"c.mp4": ("a dog",)}


def test_two_records_of_one_key_are_no_partner(read):
    document = {"films": [{"id": 1, "at": "c.mp4"}, {"id": 1, "at": "7.mp4"}]}
    document["films"] += [{"id": 2, "at": "clips/a.mp4"}]
    document["said"] = [{"film": 2, "text": "a cat"}, {"film": 1, "text": "a dog"}]
    join = {"list": "films", "on": "film", "key": "id"}

    imported = read(
        {"x.json": document},
        MEDIA,
        columns={"records": "said", "join": join, "file": "at"},
    )

    assert imported.captions == {"clips/a.mp4": ("a cat",)}
    assert "two entries" in imported.details[0]


def test_a_first_row_without_names_of_columns_is_told(read):
    with one_line("x.txt", "line 1 is a row"):
        read({"x.txt": "c.mp4\ta dog runs\n"}, MEDIA, data="x.txt")
    with one_line("x.csv: line 1 is a row (c, ...)"):
        read({"x.csv": "c,a dog runs\n7,a cat sits\n"}, MEDIA)


@pytest.fixture
def data(tmp_path):
    """A folder of a video and a table of unknown columns."""
    files = {"c.mp4": "x", "x.csv": "Datei,Beschreibung\nc.mp4,ein Hund\n"}
    return write_files(tmp_path / "data", files)


def test_a_check_prints_what_the_first_rows_become(data, capsys):
    execute(["data", "check", str(data)])

    assert '"captions":["ein Hund"]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("split,said\nc.mp4,a dog runs\n", 'file = "split"'),
        ("video,caption,answer\nc.mp4,a dog runs,1\n", 'captions = ""'),
        (
            "Datei,Inhalt,Frage,Antwort\nc.mp4,Hunde rennen,wer rennt,sie\n",
            'captions = ""',
        ),
    ],
)
def test_a_column_of_another_meaning_than_its_name_is_asked_for(
    table, line, tmp_path, capsys
):
    data = write_files(tmp_path / "data", {"c.mp4": "x", "x.csv": table})

    status = execute(["data", "check", str(data)])

    assert status == 2
    assert line in capsys.readouterr().out


def test_a_run_on_a_table_of_unknown_columns_ends_with_the_same_block(
    data, tmp_path, capsys
):
    block = '\n[corpora.data.columns]\nfile = "Datei"\ncaptions = "Beschreibung"\n'

    for source in (data, data / "x.csv"):
        words = [
            "run",
            "train_tokenizer",
            "--data",
            str(source),
            "--workspace",
            str(tmp_path),
        ]
        status = execute([*words, "--dry-run"])

        assert status == 2
        assert block in capsys.readouterr().err
    assert execute(["data", "check", str(data)]) == 2
    assert block in capsys.readouterr().out


def test_a_block_in_a_file_or_on_the_command_line_reads_the_data(
    data, tmp_path, capsys
):
    config = tmp_path / "mine.toml"
    block = '[corpora.data.columns]\nfile = "Datei"\ncaptions = "Beschreibung"\n'
    config.write_text(f'base = "own_videos"\n{block}')
    changes = [
        "--set",
        "corpora.data.columns.file=Datei",
        "--set",
        "corpora.data.columns.captions=Beschreibung",
    ]

    for how in (["--config", str(config)], changes):
        execute(["data", "check", str(data), *how])

        assert "your columns (x.csv); 1 items" in capsys.readouterr().out


WRONG = [1, "x", None, True, [], {}, [1], [None], {"a": 1}]


def test_a_value_of_another_type_is_a_reject_or_an_input_error(read):
    record = {
        "video": "c.mp4",
        "caption": "a dog",
        "start": 1,
        "end": 2,
        "split": "train",
        "id": "x",
    }
    record |= {
        "question": "what?",
        "answer": "x",
        "questions": [{"question": "x", "answer": "x"}],
    }
    documents = []
    for key in record:
        documents += [[{**record, key: wrong}] for wrong in WRONG]
    documents += [
        {"images": wrong, "annotations": [{"image_id": 1, "caption": "x"}]}
        for wrong in WRONG
    ]
    documents += [{"database": {"a": wrong}} for wrong in WRONG]
    for document in documents:
        try:
            imported = read({"x.json": json.dumps(document)}, "c.mp4")
        except InputError:
            continue
        assert len(imported.rows) + len(imported.rejects) == 1
