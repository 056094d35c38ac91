"""A text that has no words is no caption; texts and their placeholders are counted."""

import tomllib
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.cli.main import execute
from tests.conftest import one_line
from tests.shards.sources.conftest import write_files

LFS = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32"
    "b1258daaa5e2ca24d17e2393\nsize 605247071\n"
)
STORED_ELSEWHERE = {
    "git-lfs pointer": LFS.encode(),
    "HTML page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "zero-filled file": bytes(4096),
    "XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
}
NO_CAPTIONS = tomllib.loads(
    Path(__file__).with_name("no_captions.toml").read_text("utf-8")
)


@pytest.mark.parametrize("kind", NO_CAPTIONS)
def test_texts_without_words_end_an_import(kind, read):
    with one_line("texts have no word", "a.txt"):
        read({"a.txt": NO_CAPTIONS[kind], "b.txt": NO_CAPTIONS[kind]}, "a.mp4 b.mp4")


def test_a_few_texts_without_words_are_counted_and_are_no_captions(read):
    lines = "\n".join(
        ["a dog runs"] * 9 + ["00:01 - 00:02", "https://me:pw@h.example/a"]
    )

    imported = read({"a.txt": lines}, "a.mp4")

    assert imported.captions == {"a.mp4": ("a dog runs",)}
    assert "(2): '00:01 - 00:02'" in imported.notes
    assert "pw" not in imported.notes


CAPTIONS = {
    "entities": ("Tom &amp; Jerry&#39;s &quot;house&quot;", 'Tom & Jerry\'s "house"'),
    "tags": ("<p>a <b>brown</b> dog<br/>runs</p>", "a brown dog runs"),
    "signs": ("a &lt; b and 5 < 6", "a < b and 5 < 6"),
    "signs like tags": ("if a<b, c>d and x<y>z", "if a<b, c>d and x<y>z"),
    "a name like a tag": ("<PERSON> in the <i>garden</i>", "<PERSON> in the garden"),
    "tags with attributes": (
        '<p class="x">a <a href="u">dog</a><!-- 2 --></p>',
        "a dog",
    ),
    "a list of Python": ("['a dog']", "a dog"),
    "another script": ("一只狗在跑", "一只狗在跑"),
    "numbers in Chinese": (
        "2023年12月24日 一只狗和2只猫",
        "2023年12月24日 一只狗和2只猫",
    ),
    "numbers in Japanese": ("2人の男性", "2人の男性"),
    "a date and a time": (
        "On 24.12.2023 at 10:30 2 dogs",
        "On 24.12.2023 at 10:30 2 dogs",
    ),
    "entities escaped twice": ("Tom &amp;amp; Jerry", "Tom & Jerry"),
    "a number in words": ("un 747 décolle", "un 747 décolle"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_a_caption_is_the_text_that_a_person_reads(kind, read):
    cell, expected = CAPTIONS[kind]

    imported = read({"x.jsonl": [{"video": "a.mp4", "caption": cell}]}, "a.mp4")

    assert imported.captions == {"a.mp4": (expected,)}


@pytest.mark.parametrize(
    "cell",
    [
        7,
        "['a dog', nan]",
        [["a dog"]],
        {"raw": "a dog"},
        '{"text": "a dog"}',
        "['a dog' 'a cat']",
    ],
)
def test_what_is_no_clear_caption_is_a_reject(cell, read):
    good = {"video": "b.mp4", "caption": "a cat"}

    imported = read(
        {"x.jsonl": [{"video": "a.mp4", "caption": cell}, good]}, "a.mp4 b.mp4"
    )

    assert imported.captions == {"b.mp4": ("a cat",)}
    assert [reject.reason for reject in imported.rejects] == ["bad row"]


def test_objects_with_times_are_no_texts_of_the_whole_file(read):
    texts = [
        {"start": 0, "end": 1, "text": "a dog"},
        {"start": 2, "end": 3, "text": "a cat"},
    ]
    table = {"x.json": [{"video": "a.mp4", "captions": texts}]}

    assert "start, end, text" in read(table, "a.mp4").details[0]
    assert read(table, "a.mp4", columns={"records": "captions"}).captions == {
        "a.mp4@0-1": ("a dog",),
        "a.mp4@2-3": ("a cat",),
    }
    assert "start, end, text" in read({"a.json": texts}, "a.mp4").details[0]


def test_a_key_of_an_object_is_named_with_a_dot(read):
    table = {
        "x.jsonl": [{"video": "a.mp4", "caption": {"en": "a dog", "de": "ein Hund"}}]
    }

    assert read(table, "a.mp4", columns={"captions": "caption.de"}).captions == {
        "a.mp4": ("ein Hund",)
    }


@pytest.mark.parametrize("kind", STORED_ELSEWHERE)
@pytest.mark.parametrize(
    "name", ["x.csv", "x.jsonl", "x.json", "x.parquet", "x.tsv", "x.csv.gz"]
)
def test_a_table_that_is_stored_elsewhere_is_named(kind, name, read):
    for data in ("", name):
        with one_line(name, kind):
            read({name: STORED_ELSEWHERE[kind]}, "a.mp4", data=data)


@pytest.mark.parametrize("kind", STORED_ELSEWHERE)
def test_a_tar_that_is_stored_elsewhere_is_named(kind, read):
    with one_line("0.tar", kind):
        read({"0.tar": STORED_ELSEWHERE[kind]})


@pytest.mark.parametrize("kind", STORED_ELSEWHERE)
def test_texts_and_videos_that_are_stored_elsewhere_are_counted(kind, tmp_path, capsys):
    files = {
        "a.mp4": "x",
        "a.txt": STORED_ELSEWHERE[kind],
        "b.txt": STORED_ELSEWHERE[kind],
    }
    data = write_files(tmp_path / "data", files | {"b.mp4": STORED_ELSEWHERE[kind]})

    execute(["data", "check", str(data)])

    out = capsys.readouterr().out
    assert f"texts are {kind}s" in out
    assert f" {kind}: " in out.partition("b: unreadable:")[2]
    assert "ready to run" not in out


def test_texts_whose_videos_are_missing_are_counted(read):
    files = {f"{name}.txt": "a dog runs" for name in "abcde"}

    imported = read(
        {**files, "README.txt": "of the data", ".e.mp4.icloud": "x"}, "a.mp4 b.mp4"
    )

    assert [*imported.captions] == ["a.mp4", "b.mp4"]
    assert {(reject.id, reject.reason) for reject in imported.rejects} == {
        (f"{name}.txt", "missing") for name in "cde"
    }
    assert (
        "files that a cloud has not downloaded are left out (1): .e.mp4.icloud"
        in imported.notes
    )


def test_json_among_texts_is_no_text_without_its_video(read):
    files = {f"{name}.json": {"caption": "a dog runs"} for name in "abc"}
    table = [{"video": "a.mp4", "caption": "a cat"}]
    others = {"dataset.json": table, "settings.json": {"fps": 30}}

    imported = read({**files, **others}, "a.mp4 b.mp4")

    assert imported.rejects == []


def test_objects_in_a_text_are_rejects(read):
    texts = [{"caption": "a dog"}]

    imported = read({"a.json": texts, "b.json": {"captions": texts}}, "a.mp4 b.mp4")

    assert imported.captions == {}
    assert all("a caption is an object" in detail for detail in imported.details)


def test_texts_alone_are_no_table(read):
    with one_line("no video or image", ".txt files"):
        read({"a.txt": "a dog runs", "b.txt": "a cat"})


def test_placeholders_of_a_cloud_alone_are_named(read):
    with pytest.raises(
        InputError, match=r"no video or image.*files that a cloud has not downloaded.*2"
    ):
        read({".IMG_1.MOV.icloud": "", "IMG_2.MOV.online": ""})


@pytest.mark.parametrize(
    "columns", [["video", "caption"], ["mp4", "caption", "key", "status"], ["frames"]]
)
def test_media_inside_of_a_parquet_table_are_one_line(columns, read):
    video = b"\0\0\0 ftypisom"
    cells = {
        "video": {"bytes": video, "path": "a.mp4"},
        "mp4": video,
        "caption": "a dog",
    }
    cells["frames"] = [{"bytes": b"GIF89a\xff"}]
    # The first row may lack its media.
    table = [{"caption": "a cat"}, {name: cells.get(name, "x") for name in columns}]
    table[0] |= dict.fromkeys(columns)

    for data in ("", "data/train-00000-of-00001.parquet"):
        with one_line("inside of the table", repr(columns[0])):
            read({"data/train-00000-of-00001.parquet": table}, data=data)
