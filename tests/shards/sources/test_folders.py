"""Folders of videos as people have them: what is data, what is left out, and where the captions
are."""

import json
import os
from pathlib import Path
from unicodedata import normalize

import pytest

from alpro.errors import InputError
from alpro.shards.file_type import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.annotations import scan_annotations
from alpro.shards.sources.folders import list_folder
from alpro.shards.sources.manifest import import_source
from alpro.shards.sources.scan import scan_media, scan_source
from alpro.shards.video_file import CONTAINERS
from tests.conftest import one_line


def write(folder: Path, files: dict[str, str] | list[str]) -> Path:
    """Files with these texts, or empty ones; a name that ends with a slash is a folder."""
    for name in files:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else "")
    return folder


def scanned(folder: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str], str]:
    """The captions and the splits of the rows of a folder, and the notes."""
    notes: list[str] = []
    rows = [row for row in scan_source(folder, notes=notes)[1] if isinstance(row, Row)]
    names = {row.id: os.path.relpath(row.path, folder) for row in rows}
    return (
        {names[row.id]: row.captions for row in rows},
        {names[row.id]: row.split for row in rows},
        "\n".join(notes),
    )


DOG = ("a dog runs",)
CAT = ("a cat sleeps",)
COMPOSED = normalize("NFC", "café")
DECOMPOSED = normalize("NFD", "café")
FORMS = {
    "extensions in other case": {"IMG_1.MOV": "", "IMG_1.TXT": DOG[0], "b.MP4": "", "b.txt": CAT[0]},
    "names in other case": {"IMG_1.MOV": "", "img_1.txt": DOG[0], "b.mp4": "", "b.txt": CAT[0]},
    "a decomposed name": {f"{DECOMPOSED}.mp4": "", f"{COMPOSED}.txt": DOG[0], "b.mp4": ""}
    | {"b.txt": CAT[0]},
    "kohya": {"a.mp4": "", "a.caption": DOG[0], "b.mp4": "", "b.caption": CAT[0]},
    "the whole name": {"a.mp4": "", "a.mp4.txt": DOG[0], "b.mkv": "", "b.mkv.txt": CAT[0]},
    "sidecars in JSON": {"a.mp4": "", "a.json": json.dumps({"caption": DOG[0], "url": "x"})}
    | {"b.mp4": "", "b.json": json.dumps({"captions": list(CAT)})},
    "a folder of texts": {"videos/a.mp4": "", "labels/a.txt": DOG[0]}
    | {"videos/b.mp4": "", "labels/b.txt": CAT[0]},
    "a folder of texts beside": {"a.mp4": "", "b.mp4": "", "captions/a.txt": DOG[0]}
    | {"captions/b.txt": CAT[0]},
    "finetrainers": {"videos/a.mp4": "", "videos/b.mp4": ""}
    | {"videos.txt": "videos/a.mp4\nvideos/b.mp4\n", "prompts.txt": f"{DOG[0]}\n{CAT[0]}\n"},
    "videofolder": {"a.mp4": "", "b.mp4": "", "metadata.jsonl": "\n".join(
        json.dumps({"file_name": name, "text": text[0]}) for name, text in (("a.mp4", DOG), ("b.mp4", CAT))
    )},
    "a metadata file for each split": {"train/a.mp4": "", "test/b.mp4": ""}
    | {"train/metadata.csv": f"file_name,text\na.mp4,{DOG[0]}\n"}
    | {"test/metadata.csv": f"file_name,text\nb.mp4,{CAT[0]}\n"},
    "a table for each split": {"a.mp4": "", "b.mp4": ""}
    | {"train.csv": f"video,caption\na,{DOG[0]}\n", "test.csv": f"video,caption\nb,{CAT[0]}\n"},
    "a manifest for each split": {"a.mp4": "", "b.mp4": ""}
    | {"train.csv": f"path,caption\na.mp4,{DOG[0]}\n", "val.csv": f"path,caption\nb.mp4,{CAT[0]}\n"},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_captions_in_forms_of_other_tools_are_read(form, tmp_path):
    captions, splits, _ = scanned(write(tmp_path, FORMS[form]))
    assert sorted(captions.values()) == [CAT, DOG]
    expected = {"", "train", "test"} if "split" in form else {""}
    assert set(splits.values()) <= {*expected, "validation"}
    if "split" in form:
        assert "" not in splits.values()
        assert splits[next(name for name, text in captions.items() if text == DOG)] == "train"


def test_folders_named_as_splits_are_splits_or_a_line_says_that_they_are_not(tmp_path):
    both = write(tmp_path / "both", {"Train/a.mp4": "", "Train/a.txt": "x", "dev/b.mp4": ""})
    _, splits, notes = scanned(both)
    assert splits == {"Train/a.mp4": "train", "dev/b.mp4": "validation"}
    assert "train (1), validation (1)" in notes
    one = write(tmp_path / "one", {"test/a.mp4": "", "test/a.txt": "x", "b.mp4": "", "b.txt": "y"})
    _, splits, notes = scanned(one)
    assert set(splits.values()) == {""}
    assert "test are not taken" in notes


LOOKS = {
    "a subtitle": {"a.mp4": "", "a.srt": "1"},
    "a spreadsheet": {"a.mp4": "", "captions.xlsx": ""},
    "a text of another name": {"a.mp4": "", "a_caption.txt": "x"},
    "two tables": {
        "a.mp4": "",
        "one.csv": "video,caption\na,x\n",
        "two.csv": "video,caption\na,x\n",
    },
    "texts of other tools": {"a.mp4": "", "a.tags": "dog", "a.prompt": "a dog"},
    "metadata of a downloader": {"a.mp4": "", "a.info.json": '{"title": "x"}'},
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_like_captions_is_named_with_how_to_name_it(look, tmp_path):
    captions, _, notes = scanned(write(tmp_path, LOOKS[look]))
    assert captions == {"a.mp4": ()}
    assert [name for name in LOOKS[look] if name != "a.mp4" and name not in notes] == []
    assert "a.txt" in notes


def test_what_is_not_data_is_left_out_and_counted(tmp_path):
    data = ["a.mp4", "sub/b.mp4", "notes/artifacts/c.mp4"]
    other = [
        "@eaDir/a.mp4/SYNOVIDEO.jpg",
        "#recycle/d.mp4",
        "$RECYCLE.BIN/e.mp4",
        ".Trash-1000/f.mp4",
    ]
    other += [
        "lost+found/g.mp4",
        "System Volume Information/h.mp4",
        ".thumbnails/i.jpg",
        "@Recycle/j.mp4",
    ]
    other += [
        "._a.mp4",
        "__MACOSX/k.mp4",
        "ws/mlflow.db",
        "ws/artifacts/decode_videos/x/pictures/samples.png",
    ]
    other += ["FOUND.001/n.mp4", "@Recycle Bin/o.mp4", "files_trashbin/p.mp4", "M/THMBNL/q.jpg"]
    other += ["x.mp4.part", "y.mov.crdownload", "z.MP4.tmp", "GL010001.LRV", "GX010001.THM"]
    other += ["early/prefect/", "early/reports/l.png", "export/artifact.json", "export/m.png"]
    write(tmp_path, [*data, *other])
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    (tmp_path / "loop").symlink_to("loop")
    listing = list_folder(tmp_path)
    assert sorted(listing.media) == sorted(data)
    (notes,) = listing.notes()
    for part in (
        "folders of previews or deleted files: 12",
        "unfinished downloads and copies: 3",
        "previews of cameras: 2",
        "folders that alpro writes: 3",
        "links to folders: 1",
        "links that cannot be followed: 1",
        "hidden files: 1",
    ):
        assert part in notes
    # The folder that a person names is data.
    assert list_folder(tmp_path / "#recycle").media == ["d.mp4"]


def test_the_state_of_a_folder_does_not_depend_on_the_workspace_inside(tmp_path):
    """A run in the folder of the videos changes its own workspace, not its data."""
    folder = write(tmp_path / "data", {"a.mp4": "", "a.txt": "a dog"})
    first = import_source(folder, tmp_path / "cache").folder
    write(
        folder,
        ["workspace/mlflow.db", "workspace/artifacts/x/pictures/samples.png", "workspace/a.json"],
    )
    assert import_source(folder, tmp_path / "cache").folder == first


@pytest.mark.parametrize("name", ["lib", "lib/b"])
def test_a_folder_that_cannot_be_listed_is_an_error_with_its_name(name, tmp_path, monkeypatch):
    write(tmp_path, ["lib/a/1.mp4", "lib/b/2.mp4"])
    scandir = os.scandir

    def broken(path):
        if str(path).rstrip("/").endswith("lib/b"):
            raise OSError(116, "Stale file handle", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    for scan in (lambda path: list(scan_source(path)[1]), lambda path: list(scan_media(path))):
        with one_line("lib/b", "Stale file handle"):
            scan(tmp_path / name)
    with pytest.raises(InputError):
        import_source(tmp_path / name, tmp_path / "cache")


def test_every_kind_of_video_and_picture_is_seen_in_any_case(tmp_path):
    names = [f"clip{suffix.upper()}" for suffix in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS]
    assert sorted(list_folder(write(tmp_path, names)).media) == sorted(names)
    known = {name for name in CONTAINERS.split(",") if f".{name}" in VIDEO_EXTENSIONS}
    assert {"mov", "mp4", "3g2", "mj2", "webm", "avi", "flv", "asf", "h264", "hevc"} <= known


def test_other_files_with_a_text_are_counted_and_media_without_a_decoder_are_rejects(tmp_path):
    files = [
        "a.mp4",
        "a.txt",
        "a.wav",
        "b.xyz",
        "b.txt",
        "c.xyz",
        "c.txt",
        "IMG_1.HEIC",
        "IMG_1.txt",
    ]
    write(tmp_path, dict.fromkeys([*files, "IMG_2.HEIC"], "a dog"))
    notes: list[str] = []
    rows = list(scan_source(tmp_path, notes=notes)[1])
    assert [type(row) for row in rows] == [Row, Reject]
    assert rows[1].id == "IMG_1.HEIC"
    assert "2 files with a text are not of a known kind: .xyz" in "\n".join(notes)
    assert "2 .heic files cannot be decoded" in "\n".join(notes)
    with one_line("no video or image", ".heic"):
        list(scan_source(write(tmp_path / "only", ["a.HEIC"]))[1])


def test_names_with_spaces_and_of_a_thumbnail_are_files_and_ids_are_unique(tmp_path):
    files = [" a .mp4", " a .txt", "b.mp4", "b.mkv", "b.mp4.jpg", "b.txt"]
    rows = list(scan_source(write(tmp_path, dict.fromkeys(files, "a dog")))[1])
    assert all(Path(row.path).is_file() for row in rows)
    assert sorted(row.id for row in rows) == [" a ", "b.mkv", "b.mp4", "b.mp4.jpg"]


def test_a_name_that_is_not_utf8_is_a_reject(tmp_path):
    write(tmp_path, {"a.mp4": "", "a.txt": "a dog", os.fsdecode(b"caf\xe9.mp4"): ""})
    _, reject = scan_source(tmp_path)[1]
    assert (reject.reason, "not UTF-8" in reject.detail) == ("bad row", True)


def test_settings_and_logs_beside_the_only_table_are_named(tmp_path):
    files = {"a.mp4": "", "x.csv": "video,caption\na,a dog runs\n"}
    files |= {"config.json": '{"fps": 3}', "log.csv": "", "errors.json": "[]"}
    captions, _, notes = scanned(write(tmp_path, files))
    assert captions == {"a.mp4": DOG}
    assert "not read: config.json, errors.json, log.csv" in notes


def test_only_the_ends_of_lines_separate_captions_of_a_text(tmp_path):
    files = {"a.mp4": "", "a.txt": "a dog\u2028runs\r\na pet\x0bruns\n"}
    assert scanned(write(tmp_path, files))[0] == {"a.mp4": (*DOG, "a pet runs")}


def test_notes_on_names_that_are_not_utf8_can_be_stored(tmp_path):
    data = write(tmp_path / "data", {os.fsdecode(b"caf\xe9.mp4"): ""})
    (data / "x.csv").write_text("video,caption\ncaf,x\n")
    (note,) = import_source(data, tmp_path / "cache").about["notes"]
    assert note.encode()


def test_lists_of_splits_beside_a_table_are_named(tmp_path):
    lists = {"a.mp4": "", "train.txt": "a", "test.txt": "b"}
    _, _, notes = scanned(write(tmp_path, lists | {"x.csv": "video,caption\na,a dog\n"}))
    assert "test.txt, train.txt are not read" in notes


def test_lists_of_different_lengths_are_refused(tmp_path):
    write(tmp_path, {"a.mp4": "", "videos.txt": "a.mp4\nb.mp4", "prompts.txt": "a dog"})
    with one_line("videos.txt has 2 lines", "prompts.txt 1"):
        list(scan_source(tmp_path)[1])
    (tmp_path / "videos.txt").write_text("a.mp4\n", "utf-16")
    assert scanned(tmp_path)[0] == {"a.mp4": ("a dog",)}


def test_an_index_has_all_media_of_a_folder_with_the_captions_of_its_table(tmp_path):
    write(tmp_path, {"a.mp4": "", "b.mp4": "", "data.csv": "video,caption\na,a dog runs\n"})
    rows = list(scan_media(tmp_path))
    assert {row.id: row.captions for row in rows} == {"a": DOG, "b": ()}


def test_questions_and_answers_in_files_of_their_own(tmp_path: Path):
    """As in ActivityNet-QA: also with both files named in a configuration."""
    questions = [
        {"video_name": "abc", "question": "is it a dog", "question_id": "v_abc_0"},
        {"video_name": "abc", "question": "where is it", "question_id": "v_abc_1"},
        {"video_name": "abc", "question": "why", "question_id": "v_abc_2"},
    ]
    answers = [
        {"answer": "outdoors", "type": 4, "question_id": "v_abc_1"},
        {"answer": "yes", "type": 3, "question_id": "v_abc_0"},
    ]
    folder = write(tmp_path / "data", {"videos/v_abc.mp4": "", "videos/def.mp4": ""})
    other = [{"video_name": "def", "question": "who runs", "question_id": "v_def_0"}]
    tables = {
        "train_q.json": questions,
        "train_a.json": answers,
        "test_q.json": other,
        "test_a.json": [{"answer": "man", "type": 5, "question_id": "v_def_0"}],
        "val_q.json": other,  # the answers of a hidden test are not there
    }
    for name, records in tables.items():
        (folder / name).write_text(json.dumps(records))

    read = scan_source(folder, notes=[])[1]
    train_files = {"train": folder / "train_a.json", "train.2": folder / "train_q.json"}
    of_files = list(scan_annotations(folder, train_files))
    rows = {}
    rejects = []
    for row in read:
        if isinstance(row, Row):
            rows[row.split] = row
        else:
            rejects.append(row)

    asked = {
        split: [(question.question, question.answer) for question in row.questions]
        for split, row in rows.items()
    }
    assert asked == {
        "train": [("is it a dog", "yes"), ("where is it", "outdoors")],
        "test": [("who runs", "man")],
    }
    assert [reject.detail for reject in rejects] == ["the question has no answer"]
    assert of_files == [*rejects, rows["train"]]


QUESTION = {"video_name": "abc", "question": "is it a dog", "question_id": 7}
ANSWER = {"question_id": 7.0, "answer": "yes"}  # a number with gaps, as of Parquet


def of_pair(folder: Path, questions: list[dict], answers: list[dict]) -> list[Row | Reject]:
    """The rows of two files of one split, as a configuration names them."""
    write(folder, ["videos/abc.mp4"])
    (folder / "q.json").write_text(json.dumps(questions))
    (folder / "a.json").write_text(json.dumps(answers))
    files = {"train": folder / "q.json", "train.2": folder / "a.json"}
    return list(scan_annotations(folder, files))


@pytest.mark.parametrize(
    ("asked", "answer", "expected"),
    [
        ({}, {}, "yes"),
        ({}, {"video_name": "abc", "caption": "a cat", "start": 1, "end": 2}, "yes"),
        ({"start": 1.0, "end": 2.0}, {}, "yes"),
        ({"question_id": ""}, {"question_id": ""}, None),
        ({"question_id": None}, {"question_id": None}, None),
    ],
)
def test_an_answer_is_that_of_the_same_id(asked, answer, expected, tmp_path: Path):
    records = [QUESTION, {**QUESTION, "question_id": 8, **asked, "question": "who"}]
    *others, row = of_pair(tmp_path, records, [ANSWER, {**ANSWER, "question_id": 8, **answer}])
    of_who = [question.answer for question in row.questions if question.question == "who"]
    assert (of_who or [None]) == [expected]
    # A reject of the second question, or the row of the first: the second is of a part.
    assert len(others) == (expected is None or "start" in asked)
    assert row.captions == ()
    assert (row.start, row.end) == (asked.get("start"), asked.get("end"))


def test_two_answers_to_one_question_are_an_error(tmp_path: Path):
    answers = [ANSWER, {**ANSWER, "answer": "no"}]
    with pytest.raises(
        InputError, match=r"a\.json: entry 2: the question_id '7' has another answer"
    ):
        of_pair(tmp_path, [QUESTION], answers)


def test_manifests_may_have_ids_of_questions(tmp_path: Path):
    table = "id,path,caption,question,question_id,note\n{0},{0}.mp4,a dog,who,{0}1,x\n"
    tables = {"train.csv": table.format("a"), "test.csv": table.format("b")}
    write(tmp_path, {"a.mp4": "", "b.mp4": "", **tables})
    rows = list(scan_source(tmp_path, notes=[])[1])
    assert [(row.id, row.split, row.meta["note"]) for row in rows if isinstance(row, Row)] == [
        ("b", "test", "x"),
        ("a", "train", "x"),
    ]


def test_a_data_set_in_a_subfolder_has_its_questions(tmp_path: Path):
    write(tmp_path / "set", ["videos/abc.mp4"])
    for split in ("train", "test"):
        (tmp_path / "set" / f"{split}_q.json").write_text(json.dumps([QUESTION]))
        (tmp_path / "set" / f"{split}_a.json").write_text(json.dumps([ANSWER]))
    rows = list(scan_source(tmp_path, notes=[])[1])
    assert {row.split for row in rows if isinstance(row, Row) and row.questions} == {
        "train",
        "test",
    }
