"""Records inside of records, as data sets of clips and annotation programs write them; texts in
several languages; and the messages on tables of unknown columns."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.shards.schema import Row
from alpro.shards.sources.scan import scan_source
from tests.shards.conftest import rows_and_rejects


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b", "c-Scene-001"):
        (tmp_path / f"{name}.mp4").touch()
    return tmp_path


def read(folder: Path, name: str, content: str) -> tuple[list[Row], list[str]]:
    """The rows of a folder with a table, and the notes."""
    (folder / name).write_text(content)
    notes: list[str] = []
    _, source = scan_source(folder, notes=notes)
    rows, rejects = rows_and_rejects(source)
    assert not rejects
    return rows, notes


def texts(rows: list[Row]) -> list[tuple[Any, ...]]:
    """The file, times, captions and answers of each row."""
    found = []
    for row in rows:
        answers = [question.answer for question in row.questions]
        file = Path(row.path).stem
        found.append((file, row.start, row.end, *row.captions, *answers))
    return found


LABEL_STUDIO = {
    "data": {"film": "/data/upload/3/0a1b2c3d-a.mp4"},
    "annotations": [
        {"result": [{"type": "textarea", "from_name": "t", "value": {"text": ["a dog"]}}]},
        {"result": [{"type": "textarea", "from_name": "t", "value": {"text": "x"}}]}
        | {"was_cancelled": True},
    ],
}
VIA_3 = {
    "file": {"1": {"fid": "1", "fname": "a.mp4"}},
    "view": {"7": {"fid_list": ["1"]}},
    "attribute": {"1": {"aname": "caption"}, "2": {"aname": "k", "options": {"0": "x"}}},
    "metadata": {"m": {"vid": "7", "z": [0.5, 2], "av": {"1": "a dog", "2": "0"}}},
}
VIA_2 = {
    "_via_settings": {},
    "_via_img_metadata": {
        "a.mp4-1": {"filename": "a.mp4", "file_attributes": {"caption": "a dog"}}
    },
}
VRIPT = {
    "meta": {"video_id": "c", "num_clips": 1},
    "data": {"c-Scene-001": {"video_id": "c", "caption": {"shot": "wide", "content": "a dog"}}},
}
PERCEPTION = {
    "a": {
        "metadata": {"split": "train"},
        "object_tracking": [{"label": "x"}],
        "mc_question": [
            {"question": "what?", "options": ["a dog", "a cat"], "answer_id": 0},
            {"question": "who?", "options": ["x", "y"], "answer_id": 1},
        ],
    }
}
MOMENTS = [{"start": 0, "end": 1, "caption": "a dog"}, {"start": 1, "end": 2, "caption": "a cat"}]
PARTS = [("a", 0.0, 1.0, "a dog"), ("a", 1.0, 2.0, "a cat")]
SHAREGPT = {
    "video_path": "a.mp4",
    "captions": [{"idx": "1", "content": "a frame"}, {"idx": "-1", "content": "a dog"}],
}
VIDEO_MME = [{"video_id": "001", "videoID": "a", "question": "who?", "answer": "a dog"}]
FORMS = {
    "Label Studio": ([LABEL_STUDIO], [("a", None, None, "a dog")]),
    "its small form": (
        [{"video": "/data/upload/3/0a1b2c3d-a.mp4", "caption": "a dog"}],
        [("a", None, None, "a dog")],
    ),
    "VIA 2": (VIA_2, [("a", None, None, "a dog")]),
    "VIA 2, annotations": (VIA_2["_via_img_metadata"], [("a", None, None, "a dog")]),
    "comments": (
        [{"video": "a", "caption": "a dog", "comments": [{"text": "first"}]}],
        [("a", None, None, "a dog")],
    ),
    "languages of objects": (
        [
            {
                "video": "a",
                "captions": [{"lang": "de", "text": "x"}, {"lang": "en", "text": "a dog"}],
            }
        ],
        [("a", None, None, "a dog")],
    ),
    "VIA 3": (VIA_3, [("a", 0.5, 2.0, "a dog")]),
    "Vript": (VRIPT, [("c-Scene-001", None, None, "a dog")]),
    "Perception Test": (PERCEPTION, [("a", None, None, "a dog", "y")]),
    "segments": ([{"video": "a.mp4", "segments": MOMENTS}], PARTS),
    "segments by video": ({"a": {"events": MOMENTS}}, PARTS),
    "captions with times": ([{"video": "a.mp4", "captions": MOMENTS}], PARTS),
    "clips": (
        [{"video_id": "x", "clips": [{"path": "a.mp4", "caption": "a dog"}]}],
        [("a", None, None, "a dog")],
    ),
    "ShareGPT4Video": ([SHAREGPT], [("a", None, None, "a dog")]),
    "Video-MME": (VIDEO_MME, [("a", None, None, "a dog")]),
    "languages": (
        [{"video": "a", "captions": {"en": ["a dog"], "de": ["ein Hund"]}}],
        [("a", None, None, "a dog")],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_records_inside_of_a_record_are_read(form, folder):
    document, expected = FORMS[form]
    rows, _ = read(folder, "data.json", json.dumps(document))
    assert texts(rows) == expected


@pytest.mark.parametrize("name", ["captions.txt", "moments.txt"])
def test_a_list_that_is_a_table_is_read(name, folder):
    table = "image,caption\na.mp4,a dog\n"
    moments = "a 0.5 2##a dog\n"
    rows, _ = read(folder, name, table if name == "captions.txt" else moments)
    times = (None, None) if name == "captions.txt" else (0.5, 2.0)
    assert texts(rows) == [("a", *times, "a dog")]


def test_lists_of_moments_are_of_the_splits_that_they_name(folder):
    (folder / "charades_sta_test.txt").write_text("b 0 2##a cat\n")
    rows, _ = read(folder, "charades_sta_train.txt", "a 0.5 2##a dog\na 2 3##it runs\n")
    assert {(row.split, row.start, row.captions) for row in rows} == {
        ("train", 0.5, ("a dog",)),
        ("train", 2.0, ("it runs",)),
        ("test", 0.0, ("a cat",)),
    }


def test_of_texts_in_several_languages_the_english_ones_are_read(folder):
    """The columns of MSVD's release."""
    rows, notes = read(
        folder,
        "corpus.csv",
        "VideoID,Language,Description\na,Slovene,x\na,English,a dog\nb,German,ein Hund\n",
    )
    assert texts(rows) == [("a", None, None, "a dog"), ("b", None, None)]
    [note] = [note for note in notes if "English" in note]
    assert "Slovene 1" in note
    assert "German 1" in note


def test_a_column_about_the_videos_chooses_no_texts(folder):
    rows, notes = read(folder, "x.csv", "video,language,caption\na,en,a dog\nb,de,a cat\n")
    assert texts(rows) == [("a", None, None, "a dog"), ("b", None, None, "a cat")]
    assert any("several languages" in note for note in notes)


def test_of_columns_for_languages_the_english_one_is_read(folder):
    rows, notes = read(folder, "x.csv", "video,caption_de,caption_en\na,ein Hund,a dog\n")
    assert texts(rows) == [("a", None, None, "a dog")]
    assert any("caption_de" in note for note in notes)


def test_columns_about_the_captions_are_no_languages(folder):
    _, notes = read(folder, "x.csv", "video,caption,caption_id,text_len\na,a dog,1,5\n")
    assert not notes


def test_the_language_of_a_column_that_later_records_have(folder):
    records = [
        {"video": "b", "caption": "a cat"},
        {"video": "a", "caption": "x", "language": "de"},
        {"video": "a", "caption": "a dog", "language": "en"},
    ]
    rows, _ = read(folder, "x.jsonl", "\n".join(map(json.dumps, records)))
    assert sorted(texts(rows)) == [("a", None, None, "a dog"), ("b", None, None, "a cat")]


WRONG = [1, "x", None, True, [], {}, [1], [None], {"a": 1}]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values inside of a JSON document."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield (*path, key)
            yield from places(value[key], (*path, key))


@pytest.mark.parametrize("form", FORMS)
def test_a_value_of_another_type_is_a_reject_or_one_line(form, folder):
    for path in places(FORMS[form][0]):
        for wrong in WRONG:
            document = copy.deepcopy(FORMS[form][0])
            parent = document
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = wrong
            (folder / "data.json").write_text(json.dumps(document))
            with contextlib.suppress(InputError):
                _, source = scan_source(folder, notes=[])
                rows_and_rejects(source)


UNKNOWN = {
    "names under another name": (
        {"id": "a", "script": "a dog runs"},
        ("`id` names files", "`script` may be"),
    ),
    "no texts": ({"video": "a", "label": 3}, ("no column caption",)),
    "conversations": (
        {"video": "a.mp4", "conversations": [{"from": "gpt", "value": "a dog"}]},
        ("`conversations`", "question and answer"),
    ),
    "messages": ({"messages": [], "videos": ["a.mp4"]}, ("`messages`",)),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_table_of_unknown_columns_says_which_to_rename(kind, folder):
    record, says = UNKNOWN[kind]
    with pytest.raises(InputError) as error:
        read(folder, "x.json", json.dumps([record]))
    message = str(error.value)
    assert "\n" not in message
    assert all(text in message for text in says)
