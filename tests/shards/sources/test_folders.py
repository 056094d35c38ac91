"""Folders of videos as people have them: what is data, what is left out, where the captions are, and
when they are read again."""

import gzip
import json
import os
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.shards.sources.form import VERSION
from alpro.shards.sources.manifest import Manifest, find_outdated, import_source
from alpro.shards.sources.media import Folder, Notes
from alpro.shards.sources.scan import scan_media
from tests.conftest import one_line
from tests.shards.sources.conftest import write_files

DOG = "a dog runs"
CAT = "a cat sleeps"
TABLE = f"video,caption\na,{DOG}\nb,{CAT}\n"
# Files of two videos, a.mp4 and b.mp4, with their captions.
LAYOUTS = {
    "texts beside": {"a.txt": DOG, "b.txt": CAT},
    "the whole name": {"a.mp4.txt": DOG, "b.mp4.txt": CAT},
    "extensions in another case": {"a.TXT": DOG, "b.Txt": CAT},
    "objects in JSON": {
        "a.json": {"caption": DOG, "id": 1, "start": 2},
        "b.json": {"Description": CAT},
    },
    "a folder of texts": {"labels/a.txt": DOG, "labels/b.txt": CAT},
    "a table beside settings and logs": {
        "x.csv": TABLE,
        "config.json": {"fps": 3},
        "log.csv": "",
        "e.json": [],
    },
    "a table beside metadata of videos": {
        "x.csv": TABLE,
        "a.info.json": {"title": "x"},
    },
    "a table beside a stray text of one video": {"x.csv": TABLE, "a.txt": "a note"},
    "videofolder": {
        "metadata.jsonl": [
            {"file_name": "a.mp4", "text": DOG},
            {"file_name": "b.mp4", "text": CAT},
        ]
    },
    "a table for each split": {
        "train.csv": f"video,caption\na,{DOG}\n",
        "test.jsonl": [{"video": "b", "text": CAT}],
    },
    "a table for each split below": {
        "annotations/train.json": [{"video": "a", "caption": DOG}],
        "annotations/val_1.json": [{"video": "b", "caption": CAT}],
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_are_read_where_other_tools_leave_them(layout, read):
    imported = read(LAYOUTS[layout], "a.mp4 b.mp4")

    assert imported.captions == {"a.mp4": (DOG,), "b.mp4": (CAT,)}
    assert imported.rejects == []
    assert ("train" in {row.split for row in imported.rows}) == ("split" in layout)


@pytest.mark.parametrize(("texts", "expected"), [("a", (DOG,)), ("a b", ("a note",))])
def test_captions_are_those_of_the_texts_if_most_videos_have_one(texts, expected, read):
    """Otherwise those of the table; a note lists what is not read."""
    files = dict.fromkeys((f"{name}.txt" for name in texts.split()), "a note")

    imported = read({**files, "x.csv": TABLE}, "a.mp4 b.mp4")

    assert imported.captions["a.mp4"] == expected
    assert ("a.txt" if texts == "a" else "x.csv") in imported.notes


def test_tables_that_are_not_read_are_noted(read):
    older = {"old/train.csv": "video,caption\nb,x y\na,x y\n"}

    imported = read({"train.csv": f"video,caption\na,{DOG}\n", **older}, "a.mp4 b.mp4")

    assert imported.captions == {"a.mp4": (DOG,)}
    assert "tables are not read" in imported.notes


def test_all_parts_of_a_table_are_read(read):
    parts = {
        f"train-{n:05}-of-00120.csv": f"video,caption\na{n},{DOG}\n" for n in range(120)
    }

    imported = read(parts, " ".join(f"a{n}.mp4" for n in range(120)))

    assert len(imported.rows) == 120
    with one_line("more than 500 tables"):
        read({f"{n}/x.csv": "" for n in range(501)}, "a.mp4")
    metadata = {f"meta/{n}.json": {"fps": 3} for n in range(501)}
    assert len(read({**metadata, "x.csv": TABLE}, "a.mp4 b.mp4").rows) == 2


def test_a_copy_of_a_table_is_refused(read):
    table = f"video,caption\na,{DOG}\n"

    with one_line("train (1).csv", "train.csv"):
        read({"train.csv": table, "train (1).csv": f"{table}b,{CAT}\n"}, "a.mp4 b.mp4")


def test_a_table_and_its_compressed_copy_are_refused(read):
    table = f"video,caption\na,{DOG}\n"

    with one_line("train.csv.gz begins as train.csv does"):
        read(
            {"train.csv": table, "train.csv.gz": gzip.compress(table.encode())}, "a.mp4"
        )


def test_a_published_text_in_a_subfolder_is_a_table_and_others_are_not(read):
    files = {
        "annotations/train.txt": "a 0.0 6.9##a person sits.\n",
        "annotations/notes.txt": "x",
    }

    assert read(files, "videos/a.mp4").captions == {
        "videos/a.mp4@0-6.9": ("a person sits.",)
    }


def test_a_table_of_a_folder_names_files_of_that_folder(read):
    files = {
        f"{name}/metadata.csv": f"file_name,text\na.mp4,a {name}\n"
        for name in ("dog", "cat")
    }

    imported = read(files, "dog/a.mp4 cat/a.mp4")

    assert imported.captions == {"dog/a.mp4": ("a dog",), "cat/a.mp4": ("a cat",)}
    assert {row.id for row in imported.rows} == {"dog/a", "cat/a"}


def test_several_tables_that_name_no_split_are_an_error(read):
    with one_line("several tables (one.csv, two.csv)", "annotations"):
        read({"one.csv": TABLE, "two.csv": TABLE}, "a.mp4 b.mp4")


def test_texts_of_other_kinds_are_no_captions_and_a_note_says_what_to_do(read):
    files = {
        "a.srt": "1",
        "b.xlsx": "x",
        "c.zip": "x",
        "d.HEIC": "x",
        "README.md": "x",
        "e_caption.txt": DOG,
    }

    imported = read(files, "a.mp4")

    assert imported.captions == {"a.mp4": ()}
    for part in (
        ".srt files are not read (subtitles have times",
        ".xlsx",
        "unpack",
        "convert",
        ".txt files",
    ):
        assert part in imported.notes
    assert "README" not in imported.notes
    assert "videos and images have no caption; " in imported.notes


def test_a_text_that_cannot_be_read_is_a_reject_of_its_video(read):
    imported = read({"a.txt": b"caf\xe9", "b.txt": DOG}, "a.mp4 b.mp4")

    assert imported.captions == {"b.mp4": (DOG,)}
    assert "a.txt: not UTF-8" in imported.details[0]


def test_a_name_that_is_not_utf8_is_a_reject(read):
    imported = read({os.fsdecode(b"caf\xe9.mp4"): "", "a.txt": DOG}, "a.mp4")

    assert imported.captions == {"a.mp4": (DOG,)}
    assert "not UTF-8" in imported.details[0]
    assert read(
        {os.fsdecode(b"caf\xe9.mp4"): "", "x.csv": "video,caption\ncaf,x\n"}
    ).notes.encode()


@pytest.mark.parametrize(
    ("media", "splits"),
    [
        ("train/a.mp4 dev/b.mp4", ["train", "validation"]),
        ("Train/x/a.mp4 test/b.mp4 c.mp4", ["", "test", "train"]),
        ("test/a.mp4 b.mp4", ["", ""]),
        ("videos_train/a.mp4 videos_test/b.mp4", ["", ""]),
    ],
)
@pytest.mark.parametrize("is_table", [True, False])
def test_folders_named_as_splits_are_splits_if_no_row_names_one(
    media, splits, is_table, read
):
    names = media.split()
    files = {name.replace(".mp4", ".txt"): DOG for name in names}
    if is_table:
        files = {"x.jsonl": [{"video": name, "caption": DOG} for name in names]}

    imported = read(files, media)

    assert sorted(row.split for row in imported.rows) == splits


def test_a_split_that_a_row_names_is_its_split(read):
    table = [{"video": "train/a.mp4", "caption": DOG, "split": "test"}]

    assert read({"x.jsonl": table}, "train/a.mp4 dev/b.mp4").rows[0].split == "test"


def test_what_is_not_data_is_left_out_and_counted(tmp_path):
    data = ["a.mp4", "notes/artifacts/c.mp4", "sub/b.mp4", "thumb/c.mp4", "trash/d.jpg"]
    system = [
        "@eaDir/a.mp4/SYNO.jpg",
        "#recycle/d.mp4",
        "$RECYCLE.BIN/e.mp4",
        "lost+found/g.mp4",
    ]
    hidden = [".Trash-1000/f.mp4", ".thumbnails/i.jpg", "._a.mp4", ".DS_Store"]
    unfinished = ["x.mp4.part", "y.mov.crdownload"]
    cameras = ["GL010001.LRV", "GX010001.THM"]
    written = [
        "ws/mlflow.db",
        "ws/x.png",
        "e/artifact.json",
        "e/m.png",
    ]
    write_files(
        tmp_path,
        dict.fromkeys([*data, *system, *hidden, *unfinished, *cameras, *written], "x"),
    )
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    (tmp_path / "loop").symlink_to("loop")

    notes = Notes()
    folder = Folder(tmp_path, notes)

    assert [*folder.media] == data
    counts = {
        reason.partition(" are left out")[0]: count
        for reason, count in notes.counts.items()
    }
    assert counts == {
        "folders of NAS and operating systems": 4,
        "hidden files and folders": 4,
        "unfinished downloads": 2,
        "previews of cameras": 2,
        "folders that alpro writes": 2,
        "links to folders": 1,
        "links that lead nowhere": 1,
    }
    # The folder that a person names is data.
    assert [*Folder(tmp_path / "#recycle", Notes()).media] == ["d.mp4"]


@pytest.mark.parametrize("name", ["lib", "lib/b"])
def test_a_folder_that_cannot_be_listed_is_an_error_with_its_name(
    name, tmp_path, monkeypatch
):
    write_files(tmp_path, dict.fromkeys(["lib/a/1.mp4", "lib/b/2.mp4"], "x"))
    scandir = os.scandir

    def broken(path):
        if str(path).rstrip("/").endswith("lib/b"):
            raise OSError(116, "Stale file handle", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    for scan in (
        lambda path: import_source(path, tmp_path / "cache"),
        lambda path: list(scan_media(path)),
    ):
        with one_line("lib/b", "Stale file handle"):
            scan(tmp_path / name)


def test_animated_images_are_videos(read):
    animated = b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\x02\0\0\0"
    still = animated.replace(b"\x02", b"\0")

    rows = read(
        {"a.webp": animated, "b.webp": still, "c.gif": b"GIF89a", "a.txt": DOG}
    ).rows

    assert {row.name: row.kind for row in rows} == {
        "a.webp": "video",
        "b.webp": "image",
        "c.gif": "video",
    }


def test_an_index_has_all_media_of_a_folder_with_the_captions_of_its_table(tmp_path):
    for table, expected in ((TABLE.replace("b,", "z,"), (DOG,)), ("x,y\n1,2\n", ())):
        folder = write_files(
            tmp_path / table[:1], {"a.mp4": "", "b.mp4": "", "data.csv": table}
        )

        rows = list(scan_media(folder))

        assert {row.id: row.captions for row in rows} == {"a": expected, "b": ()}


def test_parts_of_files_are_no_rows_of_an_index(tmp_path):
    write_files(
        tmp_path, {"a.mp4": "", "x.csv": f"video,start,end,caption\na,1,2,{DOG}\n"}
    )

    (row,) = scan_media(tmp_path)

    assert (row.end, row.captions) == (None, ())


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ({"train": "none.csv"}, "No such file"),
        ({"train": "x.csv"}, "x.csv: no rows"),
    ],
)
def test_annotations_that_cannot_be_used_are_one_line(annotations, says, read):
    with one_line(says):
        read({"x.csv": "video,caption\n"}, "a.mp4", annotations=annotations)


def test_lists_of_videos_take_the_texts_of_another_file(read):
    """As of the 1k-A split of MSR-VTT; a list with texts keeps them."""
    sentences = [
        {"video_id": name, "caption": f"a {name}", "sen_id": n}
        for n, name in enumerate("abcd")
    ]
    videos = [{"video_id": name, "split": "train"} for name in "abcd"]
    files = {
        "MSRVTT_data.json": {"videos": videos, "sentences": sentences},
        "train.9k.csv": "video_id\na\nb\n",
        "test.csv": "key,vid_key,video_id,sentence\nret0,msr2,c,a bird\n",
    }
    annotations = {
        "train": "train.9k.csv",
        "test": "test.csv",
        "texts": "MSRVTT_data.json",
    }

    imported = read(files, "a.mp4 b.mp4 c.mp4 d.mp4", annotations=annotations)

    assert "(1): d.mp4" in imported.notes
    splits = {row.id: (row.split, row.captions) for row in imported.rows}
    assert splits == {
        "a": ("train", ("a a",)),
        "b": ("train", ("a b",)),
        "c": ("test", ("a bird",)),
    }
    with pytest.raises(InputError, match=r"several tables"):
        read({**files, "train.7k.csv": "video_id\na\n"}, "a.mp4 b.mp4 c.mp4")
    with pytest.raises(InputError, match=r"train\.9k\.csv: the columns are not known"):
        read(files, "a.mp4", annotations={"train": "train.9k.csv"})
    files.pop("train.9k.csv")
    with pytest.raises(InputError, match=r"several tables"):
        read(files, "a.mp4")


@pytest.mark.parametrize("name", ["train.csv", "val_list.txt"])
def test_a_list_of_a_split_beside_a_table_of_none_is_asked_for(name, read):
    with one_line(f"x.csv, {name}", "`texts` of lists", "annotations"):
        read({"x.csv": TABLE, name: "video\na\n"}, "a.mp4 b.mp4")


def test_lists_find_files_as_the_published_texts_do(read):
    """As of MSVD: lists of names beside a folder of clips, and texts that begin with comments."""
    names = {"train": "mv89psg6zh4_33_46", "val": "lMznyaeimxk_1_10"}
    texts = "".join(f"{name} a bird bathes\n" for name in names.values())
    files = {f"{split}_list.txt": f"{name}\n" for split, name in names.items()}
    media = " ".join(f"YouTubeClips/{name}.avi" for name in names.values())

    imported = read(
        {**files, "AllVideoDescriptions.txt": f"# of MSVD\n\n{texts}"}, media
    )

    assert {row.split: row.captions for row in imported.rows} == {
        "train": ("a bird bathes",),
        "validation": ("a bird bathes",),
    }
    assert imported.rejects == []


def test_answers_of_another_table_are_those_of_the_same_id(read):
    asked = [{"video_name": "a", "question": "who?", "question_id": 7}] * 2
    asked[1] = {**asked[1], "question_id": 8}
    files = {
        "q.json": asked,
        "a.json": [{"question_id": 7.0, "answer": "a dog", "type": 3}],
    }

    imported = read(files, "v_a.mp4", annotations={"train": "q.json a.json"})

    assert imported.answers == ["a dog"]
    assert imported.details == ["empty question or answer"]


def test_a_question_of_two_splits_has_the_answer_of_each(read):
    asked = [{"video_name": "a", "question": "who?", "question_id": 7}]
    files = {"q.json": asked}
    for split, answer in (("train", "a dog"), ("test", "a cat")):
        files[f"{split}.json"] = [{"question_id": 7, "answer": answer, "type": 3}]

    imported = read(
        files,
        "v_a.mp4",
        annotations={"train": "q.json train.json", "test": "q.json test.json"},
    )

    answers = {row.split: row.questions[0].answer for row in imported.rows}
    assert answers == {"train": "a dog", "test": "a cat"}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "x.csv",
            'video,caption\na.mp4,"a dog\nb.mp4,a cat\n',
            "line 2: unclosed quotation",
        ),
        ("x.jsonl", '{"video": "a.mp4", "caption": "a dog"},\n', "line 1: not JSON"),
    ],
)
def test_a_damaged_table_beside_videos_is_told_with_its_reason(
    name, content, problem, read
):
    assert problem in read({name: content}, "a.mp4").notes


def import_again(folder: Path, cache: Path) -> tuple[Manifest, bool]:
    """An import, and whether it has read the source."""
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*/about.json")}
    manifest = import_source(folder, cache)
    after = {path: path.stat().st_mtime_ns for path in cache.glob("*/about.json")}
    return manifest, before != after


CHANGES = {
    "a changed text": {"a.txt": "another one"},
    "a new text": {"b.txt": DOG},
    "a new video": {"deep/c.mp4": "x"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_is_read_again_if_it_has_changed(change, tmp_path):
    folder = write_files(tmp_path / "data", {"a.mp4": "x", "a.txt": DOG, "b.mp4": "x"})
    cache = tmp_path / "cache"
    import_again(folder, cache)

    assert not import_again(folder, cache)[1]
    write_files(folder, {"workspace/mlflow.db": "", "workspace/artifacts/x.png": ""})
    assert not import_again(folder, cache)[1]
    write_files(folder, CHANGES[change])
    assert import_again(folder, cache)[1]


def test_a_table_is_read_again_if_a_name_that_had_no_file_has_one(tmp_path):
    files = {"a.mp4": "x", "x.csv": f"video,caption\na,{DOG}\n"}
    table = write_files(tmp_path / "data", files) / "x.csv"
    cache = tmp_path / "cache"
    import_again(table, cache)

    write_files(table.parent, {"x.csv": f"video,caption\na.mp4,{DOG}\nb.mp4,{CAT}\n"})
    assert import_again(table, cache)[0].about["rejects"] == 1
    write_files(table.parent, {"b.mp4": "x"})
    manifest, is_read = import_again(table, cache)
    assert (manifest.about["rows"], is_read) == (2, True)


@pytest.mark.parametrize("file", ["about.json", "manifest.parquet", "rejects.parquet"])
def test_a_damaged_import_is_made_again(file, tmp_path):
    folder = write_files(tmp_path / "data", {"a.mp4": "x", "a.txt": DOG})
    cache = tmp_path / "cache"
    (import_source(folder, cache).folder / file).write_text("[1]")

    assert [row.captions for row in import_source(folder, cache).rows()] == [(DOG,)]
    assert not import_again(folder, cache)[1]


def test_a_run_keeps_the_manifest_that_it_reads_until_it_is_collected(tmp_path):
    folder = write_files(tmp_path / "data", {"a.mp4": "x", "a.txt": DOG})
    cache = tmp_path / "cache"
    states = [import_source(folder, cache)]
    for change in CHANGES.values():
        write_files(folder, change)
        states.append(import_source(folder, cache))
    for number, state in enumerate(states):
        os.utime(state.folder, (number, number))

    assert all(state.file.is_file() for state in states)
    assert find_outdated(cache) == [state.folder for state in states[:-1]]


def test_what_is_known_of_a_source_has_the_splits_that_its_rows_name(read):
    asked = [{"question": "who?", "answer": answer} for answer in ("dog", "dog", "cat")]
    table = [
        {"video": "a.mp4", "captions": [DOG, CAT], "split": "train"},
        {"video": "b.mp4", "questions": asked, "split": "test"},
        {"video": "c.mp4", "caption": "", "split": "test"},
    ]

    about = read({"x.jsonl": table}, "a.mp4 b.mp4 c.mp4").about

    assert about["splits"] == ["test", "train"]
    assert about["has_questions"]
    assert json.dumps(about)


@pytest.mark.parametrize(
    ("name", "says"), [("none.csv", "No such file"), ("a.mp4", "name the folder")]
)
def test_a_source_that_is_none_is_one_line(name, says, read):
    with one_line(says):
        read({}, "a.mp4", data=name)


def test_a_source_of_another_version_of_the_reader_is_read_again(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "data", {"a.mp4": "x", "a.txt": DOG})
    import_again(folder, tmp_path / "cache")

    monkeypatch.setattr("alpro.shards.sources.manifest.VERSION", VERSION + 1)

    assert import_again(folder, tmp_path / "cache")[1]


def test_a_table_of_several_splits_is_read_for_one(read):
    table = {"all.csv": "video,caption,split\na,a dog,train\nb,a cat,val\n"}

    imported = read(
        table, "a.mp4 b.mp4", annotations={"train": "all.csv", "validation": "all.csv"}
    )

    splits = {row.id: row.split for row in imported.rows}
    assert splits == {"a": "train", "b": "validation"}
