"""What columns mean is told: by a published form, by `columns` of the configuration, or by a block
that a check proposes."""

import json
import re
import tomllib

import pytest

from alpro.errors import InputError
from alpro.pipeline.cli.main import execute
from alpro.shards.sources.form import FORMS, Columns
from tests.conftest import one_line
from tests.shards.sources.conftest import write_files

MEDIA = "clips/a.mp4 clips/b.mp4 c.mp4 7.mp4"


def test_every_published_form_has_the_keys_of_columns():
    for form in FORMS:
        told = {
            key: value for key, value in form.model_dump().items() if key in Columns.model_fields
        }
        assert Columns.model_validate(told)
        assert form.has


# Columns of a configuration, a table, and the captions of its files.
TOLD = {
    "a template": (
        {"file": "{dir}/{id}", "captions": "words"},
        [{"dir": "clips", "id": "a", "words": "a dog"}],
        {"clips/a.mp4": ("a dog",)},
    ),
    "the first template that a row can fill": (
        {"file": ["{dir}/{n}", "{n}"]},
        [{"dir": "clips", "n": "a", "text": "a dog"}, {"n": "c", "text": "a cat"}],
        {"clips/a.mp4": ("a dog",), "c.mp4": ("a cat",)},
    ),
    "several captions": (
        {"captions": ["short", "long"]},
        [{"video": "c", "short": "a dog", "long": ["a brown dog", "it runs"]}],
        {"c.mp4": ("a dog", "a brown dog", "it runs")},
    ),
    "a column inside of an object": (
        {"file": "meta.file", "captions": "texts.en"},
        [{"meta": {"file": "c.mp4"}, "texts": [{"en": "a dog"}, {"en": "a pet"}]}],
        {"c.mp4": ("a dog", "a pet")},
    ),
    "a paragraph of a row": (
        {"captions": "s", "paragraph": "row"},
        [{"video": "c", "s": ["a dog.", "it runs."]}, {"video": "c", "s": "a pet."}],
        {"c.mp4": ("a dog. it runs.", "a pet.")},
    ),
    "a paragraph of a file": (
        {"captions": "s", "paragraph": "file"},
        [{"video": "c", "s": "a dog."}, {"video": "c", "s": "it runs."}],
        {"c.mp4": ("a dog. it runs.",)},
    ),
    "records of every key": (
        {"records": "data.*.items", "file": "film"},
        {"data": {"x": {"film": "c.mp4", "items": [{"text": "a dog"}, {"text": "a pet"}]}}},
        {"c.mp4": ("a dog", "a pet")},
    ),
    "records of a list of lists": (
        {"records": "data.*.items", "file": "film"},
        {"data": [{"film": "c.mp4", "items": [{"text": "a dog"}, {"text": "a pet"}]}]},
        {"c.mp4": ("a dog", "a pet")},
    ),
    "texts by their files": (
        {"records": "*", "file": "$key", "captions": "$value"},
        {"c.mp4": "a dog", "clips/a": ["a cat", "a pet"]},
        {"c.mp4": ("a dog",), "clips/a.mp4": ("a cat", "a pet")},
    ),
    "another list of the document": (
        {"records": "notes", "join": {"list": "films", "on": "film", "key": "id"}, "file": "at"},
        {"films": [{"id": 1, "at": "c.mp4"}], "notes": [{"film": 1, "text": "a dog"}]},
        {"c.mp4": ("a dog",)},
    ),
}


@pytest.mark.parametrize("kind", TOLD)
def test_columns_that_a_user_tells_are_read(kind, read):
    columns, table, expected = TOLD[kind]

    imported = read({"x.json": table}, MEDIA, columns=columns)

    assert imported.captions == expected
    assert imported.rejects == []


def test_records_inside_of_json_lines_and_the_lines_of_a_text_are_told(read):
    nested = {"x.jsonl": [{"film": "c.mp4", "parts": [{"text": "a dog"}]}]}
    told = {"records": "parts", "file": "film"}
    line = {"line": r"(?P<file>\S+)\|(?P<text>.+)"}

    assert read(nested, MEDIA, columns=told).captions == {"c.mp4": ("a dog",)}
    imported = read({"x.txt": "c.mp4|a dog\nno line of it\n"}, MEDIA, data="x.txt", columns=line)
    assert imported.captions == {"c.mp4": ("a dog",)}
    assert [reject.id for reject in imported.rejects] == ["line 2"]


def test_a_folder_of_texts_is_told(read):
    imported = read({"words/a.txt": "a dog"}, "clips/a.mp4", columns={"texts": "words"})

    assert imported.captions == {"clips/a.mp4": ("a dog",)}


MISTAKES = {
    "an unknown column": ({"file": "films"}, "'films'", "film, words"),
    "a path that leads nowhere": ({"records": "data.items"}, "'data.items'", "there are list"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_column_that_no_record_has_is_one_line_with_those_that_there_are(kind, read):
    columns, *parts = MISTAKES[kind]
    table = [{"film": "c.mp4", "words": "a dog"}]

    with one_line(*parts):
        read({"x.json": {"list": table} if "records" in columns else table}, MEDIA, columns=columns)


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


# Tables of unknown columns, and the texts that their files have with the block that is proposed.
UNKNOWN = {
    "Chinese": (
        {"x.csv": "文件,描述\nc.mp4,一只狗在跑\n7.mp4,猫在睡觉\n"},
        {"c.mp4": ("一只狗在跑",), "7.mp4": ("猫在睡觉",)},
    ),
    # The number 7 is a key, and no file.
    "two lists": (
        {
            "x.json": {
                "clips": [{"id": 7, "title": "c.mp4"}, {"id": 8, "title": "7.mp4"}],
                "texts": [
                    {"clip_id": 7, "said": "a dog runs"},
                    {"clip_id": 8, "said": "a cat sits"},
                ],
            }
        },
        {"c.mp4": ("a dog runs",), "7.mp4": ("a cat sits",)},
    ),
    "German headers": (
        {
            "x.csv": "Datei;Beschreibung;Teil\nc.mp4;ein Hund läuft;Training\n7;eine Katze schläft;Test\n"
        },
        {"c.mp4": ("ein Hund läuft",), "7.mp4": ("eine Katze schläft",)},
    ),
    "German questions": (
        {
            "x.csv": "Nr,Film,Frage,Antwort,Art\n1,c.mp4,Was läuft?,Hund,was\n2,7,Wer schläft?,eine Katze,wer\n"
        },
        {"c.mp4": ("Was läuft? Hund",), "7.mp4": ("Wer schläft? eine Katze",)},
    ),
    "questions with options": (
        {
            "x.csv": "film,q1,k,o_a,o_b,o_c\nc.mp4,what runs,1,cat,dog,bird\n7,who sleeps,0,man,boy,girl\n"
        },
        {"c.mp4": ("what runs dog",), "7.mp4": ("who sleeps man",)},
    ),
    "nested JSON": (
        {
            "x.json": {
                "info": {"year": 1},
                "data": {"k": {"src": "c.mp4", "items": [{"t": "a dog runs"}]}},
            }
        },
        {"c.mp4": ("a dog runs",)},
    ),
    "JSON by file": (
        {"x.json": {"c": {"said": "a dog runs"}, "7": {"said": "a cat sits"}}},
        {"c.mp4": ("a dog runs",), "7.mp4": ("a cat sits",)},
    ),
    "captions by file": (
        {"x.json": {"c.mp4": ["a dog runs", "it barks"], "7.mp4": "a cat sits"}},
        {"c.mp4": ("a dog runs", "it barks"), "7.mp4": ("a cat sits",)},
    ),
    "names of a folder": (
        {"x.jsonl": [{"ref": "a", "said": "a dog runs"}, {"ref": "b", "said": "a cat sits"}]},
        {"clips/a.mp4": ("a dog runs",), "clips/b.mp4": ("a cat sits",)},
    ),
    "times": (
        {
            "x.csv": "wo,von,bis,was\nc.mp4,0:01,0:02.5,ein Hund läuft\nc.mp4,0:03,0:05,er bellt laut\n"
        },
        {"c.mp4@1-2.5": ("ein Hund läuft",), "c.mp4@3-5": ("er bellt laut",)},
    ),
    "a span": (
        {"x.jsonl": [{"wo": "c.mp4", "wann": [1, 2.5], "was": "ein Hund läuft"}]},
        {"c.mp4@1-2.5": ("ein Hund läuft",)},
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_the_block_that_a_check_prints_reads_the_table(kind, tmp_path, capsys, read):
    files, expected = UNKNOWN[kind]
    data = write_files(tmp_path / "data", {**dict.fromkeys(MEDIA.split(), "x"), **files})

    status = execute(["data", "check", str(data)])

    out = capsys.readouterr().out
    block = re.search(r"^\[corpora\.data\.columns\]\n(?:\S.*\n)+", out, re.MULTILINE)[0]
    columns = tomllib.loads(block)["corpora"]["data"]["columns"]
    imported = read(files, MEDIA, columns=columns)
    texts = {}
    for row in imported.rows:
        file = next(
            file for file, captions in imported.captions.items() if captions == row.captions
        )
        asked = tuple(f"{one.question} {one.answer}" for one in row.questions)
        texts[file if row.captions else row.name] = row.captions + asked
    assert status == 2
    assert texts == expected
    # What the first rows would become.
    assert next(iter(next(iter(expected.values())))).split()[0] in out.partition(block)[2]


def test_a_run_on_a_table_of_unknown_columns_ends_with_the_same_block(tmp_path, capsys):
    files = {"c.mp4": "x", "x.csv": "Datei,Beschreibung\nc.mp4,ein Hund\n"}
    data = write_files(tmp_path / "data", files)
    block = '\n[corpora.data.columns]\nfile = "Datei"\ncaptions = "Beschreibung"\n'

    for source in (data, data / "x.csv"):
        status = execute(
            ["run", "train_tokenizer", "--data", str(source), "--workspace", str(tmp_path)]
        )

        assert status == 2
        assert block in capsys.readouterr().err
    assert execute(["data", "check", str(data)]) == 2
    assert block in capsys.readouterr().out


def test_a_block_in_a_file_or_on_the_command_line_reads_the_data(tmp_path, capsys):
    files = {"c.mp4": "x", "x.csv": "Datei,Beschreibung\nc.mp4,ein Hund\n"}
    data = write_files(tmp_path / "data", files)
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
    record |= {"question": "what?", "answer": "x", "questions": [{"question": "x", "answer": "x"}]}
    documents = []
    for key in record:
        documents += [[{**record, key: wrong}] for wrong in WRONG]
    documents += [
        {"images": wrong, "annotations": [{"image_id": 1, "caption": "x"}]} for wrong in WRONG
    ]
    documents += [{"database": {"a": wrong}} for wrong in WRONG]
    for document in documents:
        try:
            imported = read({"x.json": json.dumps(document)}, "c.mp4")
        except InputError:
            continue
        assert len(imported.rows) + len(imported.rejects) == 1
