"""The annotation files of data sets: their forms, the videos that their names mean, and a row for
each video."""

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.annotations import keyed, scan_annotations
from alpro.shards.sources.media_files import MediaFiles
from alpro.shards.sources.scan import scan_source
from tests.conftest import one_line
from tests.shards.conftest import rows_and_rejects


def touch(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def videos(tmp_path) -> Path:
    """A folder of empty media with the names of each data set."""
    names = [
        "video0.mp4",
        "video1.mp4",
        "video2.webm",
        "0001/77.mp4",
        "v_abc.mp4",
        "def.mp4",
        "image1.jpg",
        "vid3.avi",
    ]
    return touch(tmp_path / "videos", [*names, "-x_1_000003_000013.mp4", "12@N02_ef.m4v"])


def write(path: Path, value: Any) -> Path:
    """A file of the form that its name ends with: JSON, JSON Lines or a table."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(value)
        return path
    is_lines = ".jsonl" in path.name
    text = "".join(json.dumps(one) + "\n" for one in value) if is_lines else json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def scan(
    videos: Path, files: dict[str, Path], root: Path | None = None
) -> tuple[list[Row], list[Reject]]:
    """The rows and the rejects of annotation files."""
    return rows_and_rejects(scan_annotations(videos, files, root))


VIDEOINFO = {
    "info": {"year": "2016", "description": "MSR-VTT"},
    "videos": [
        {
            "video_id": "video0",
            "split": "train",
            "category": 9,
            "start time": 137.72,
            "end time": 149.44,
            "id": 0,
        },
        {"video_id": "video1", "split": "validate", "category": 3, "url": "https://host.example/1"},
        {"video_id": "video2", "split": "test", "category": 3, "url": "https://host.example/2"},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
        {"caption": "a dog  runs", "video_id": "video2", "sen_id": 2},
        {"caption": "a group drives", "video_id": "video0", "sen_id": 1},
        {"caption": "a man sings", "video_id": "video1", "sen_id": 3},
        {"caption": None, "video_id": "video1", "sen_id": 4},
    ],
}
VIDEO = {
    "duration": 82.7,
    "timestamps": [[0.8, 19.9], [17.4, 60.8]],
    "sentences": ["A man sits. ", " He plays."],
}
MOMENT = {
    "annotation_id": 1,
    "video": "12@N02_ef.m4v",
    "times": [[4, 4], [0, 0]],
    "num_segments": 6,
}
QUESTION = {"question": "what  runs?", "answer": "dog", "video_id": "video1"}
WEBVID = [
    ["videoid", "contentUrl", "duration", "page_dir", "name"],
    ["77", "https://host.example/77.mp4", "PT00H00M19S", "0001", "Sea, waves"],
    ["78", "https://host.example/78.mp4", "PT00H00M09S", "0001", "A dog"],
]

# By the form: a file, what it holds, and its rows: id, split, file, captions (or a question's
# answer and type).
FORMS: dict[str, tuple] = {
    "MSR-VTT (videodatainfo)": (
        "videodatainfo.json",
        VIDEOINFO,
        ("video0", "train", "video0.mp4", "a car is shown", "a group drives"),
        ("video1", "validation", "video1.mp4", "a man sings"),
        ("video2", "test", "video2.webm", "a dog runs"),
    ),
    "ActivityNet Captions": (
        "train.json",
        {"v_abc": VIDEO, "v_def": {**VIDEO, "sentences": ["A cat."]}},  # with or without v_
        ("v_abc", "", "v_abc.mp4", "A man sits. He plays."),
        ("v_def", "", "def.mp4", "A cat."),
    ),
    "DiDeMo": (
        "test_data.json.gz",
        [MOMENT | {"description": text} for text in ("someone kicks the bug.", "the bug is seen.")],
        ("12@N02_ef.m4v", "", "12@N02_ef.m4v", "someone kicks the bug. the bug is seen."),
    ),
    "VATEX": (
        "vatex_training_v1.0.json",
        [
            {
                "videoID": "-x_1_000003_000013",
                "enCap": ["A boy jumps.", "A child jumps."],
                "chCap": ["一个"],
            }
        ],
        ("-x_1_000003_000013", "", "-x_1_000003_000013.mp4", "A boy jumps.", "A child jumps."),
    ),
    "WebVid": (
        "results_2M_val.csv",
        WEBVID,
        ("77", "", "77.mp4", "Sea, waves"),
        ("78", "", "no 78.mp4", "A dog"),
    ),
    "ALPRO's own lists": (
        "train.jsonl.gz",
        [
            *(
                {"caption": text, "clip_name": "video1"}
                for text in ("a man talks", "someone  speaks", "a man talks")
            ),
            {"caption": ["a man sits.", "he stands up."], "clip_name": "video0"},
            {"caption": "a cat", "clip_name": "video9"},
        ],
        (
            "video1",
            "",
            "video1.mp4",
            "a man talks",
            "someone speaks",
            "a man talks",
        ),  # as many as the file has
        ("video0", "", "video0.mp4", "a man sits. he stands up."),
        ("video9", "", "no video9.mp4", "a cat"),
    ),
    "questions": (
        "train_qa.json",
        [
            QUESTION
            | {
                "video_id": 1,
                "category_id": 14,
                "id": 158581,
            },  # a number, as in the files of MSRVTT-QA
            QUESTION | {"video_id": 0, "question": "Who's it", "answer_type": None},
            QUESTION | {"answer_type": "How many?", "answer": 2},
            QUESTION | {"video_id": 3},  # of MSVD-QA
            *[QUESTION | {"video_id": 3, "caption": "a cat"}] * 2,
        ],
        ("1", "", "video1.mp4", ("what runs?", "dog", "what"), ("what runs?", "2", "how_many")),
        ("0", "", "video0.mp4", ("Who's it", "dog", "who")),
        ("3", "", "vid3.avi", "a cat", *[("what runs?", "dog", "what")] * 3),
    ),
    "captions": (
        "labels.csv",
        [
            ["video_id", "name", "file_name", "text", "split"],  # the columns that say most
            [7, "no. 1", "video0.mp4", "a cat", "train"],
            [8, "no. 2", "0001/77", "['a sea', \"it's blue\"]", "dev"],  # as pandas writes a list
        ],
        ("video0.mp4", "train", "video0.mp4", "a cat"),
        ("0001/77", "validation", "77.mp4", "a sea", "it's blue"),
    ),
    "captions of CC3M": (
        "cc3m.json",
        [
            {"image": "image1.jpg", "caption": ["a cat", "an animal"]},
            {"image": "none.jpg", "caption": '["x", "y"]'},
        ],
        ("image1.jpg", "", "image1.jpg", "a cat", "an animal"),
        ("none.jpg", "", "no none.jpg", "x", "y"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_by_its_columns_and_named(form, videos, capsys):
    name, content, *expected = FORMS[form]
    what, records = scan_source(write(videos / name, content))
    rows = list(records)
    for row, (id, split, file, *texts) in zip(rows, expected, strict=True):
        found = row.path.name if row.path.is_file() else f"no {row.path.name}"
        asked = [(question.question, question.answer, question.type) for question in row.questions]
        assert (row.id, row.split, found, [*row.captions, *asked]) == (id, split, file, texts)
    assert {row.kind == "image" for row in rows} == {form == "captions of CC3M"}
    title = form.removesuffix(" of CC3M")
    assert what == f"{name}: {title}"
    assert f"read as {title}; its videos are looked up in {videos}" in capsys.readouterr().err


def test_a_webvid_table_is_beside_its_videos_or_alone(videos, tmp_path):
    touch(videos, ["0002/77.mp4"])  # of the same name in another folder: page_dir decides
    _, records = scan_source(write(videos / "results.csv", WEBVID))
    assert [record.path for record in records] == [videos / "0001" / "77.mp4", videos / "78.mp4"]
    (tmp_path / "alone").mkdir()
    table = [WEBVID[0], WEBVID[1], ["78", "file:///etc/78.mp4", *WEBVID[2][2:]]]
    _, records = scan_source(write(tmp_path / "alone" / "results.csv", table))
    row, reject = records
    assert (row.id, row.path, row.kind) == ("77", "https://host.example/77.mp4", "video")
    assert "is outside the data folder" in reject.detail


def test_a_folder_with_one_table_is_read_by_it(videos):
    table = write(videos / "labels.csv", FORMS["captions"][1])
    assert [row.id for row in scan_source(videos)[1]] == ["video0.mp4", "0001/77"]
    write(table, [["path", "caption"], ["video0.mp4", "a cat"]])
    what, records = scan_source(videos)
    assert (what, [row.id for row in records]) == ("a manifest, labels.csv", ["video0"])
    (videos / "video1.txt").write_text("a man\n")  # texts beside the videos come first
    assert scan_source(videos)[0] == "a folder of videos with texts"


def test_a_split_of_an_msrvtt_file_is_selected(videos, tmp_path):
    file = write(
        tmp_path / "train_val_videodatainfo.json", {**VIDEOINFO, "videos": VIDEOINFO["videos"][:2]}
    )
    rows, rejects = scan(videos, {"train": file, "validation": file})
    # Sentences of a video that is not listed have no split: they stay with each file.
    assert {row.id: row.split for row in rows if "video2" not in row.id} == {
        "video0": "train",
        "video1": "validation",
    }
    assert rejects == []
    only = {"videos": VIDEOINFO["videos"][:2], "sentences": VIDEOINFO["sentences"][::3]}
    with pytest.raises(
        InputError, match="no video of the split test; its videos are of train and validation"
    ):
        scan(videos, {"test": write(tmp_path / "train_val.json", only)})


def test_lists_of_videos_take_the_texts_of_another_file(videos, tmp_path):
    """As of the 1k-A split of MSR-VTT, and of MSVD; a list with texts keeps them."""
    texts = write(tmp_path / "MSRVTT_data.json", VIDEOINFO)
    train = write(tmp_path / "MSRVTT_train.9k.csv", [["video_id"], ["video0"], ["video1"]])
    columns = ["key", "vid_key", "video_id", "sentence"]
    test = write(tmp_path / "test.csv", [columns, ["ret0", "msr2", "video2", "a dog is running"]])
    rows, _ = scan(videos, {"train": train, "test": test, "texts": texts})
    assert [(row.id, row.split) for row in rows] == [
        ("video0", "train"),
        ("video1", "train"),
        ("video2", "test"),
    ]
    captions = [("a car is shown", "a group drives"), ("a man sings",), ("a dog is running",)]
    assert [row.captions for row in rows] == captions
    (tmp_path / "train_list.txt").write_text("video0\n\nvideo1\n")
    rows, _ = scan(videos, {"texts": texts, "train": tmp_path / "train_list.txt"})
    assert [(row.id, len(row.captions)) for row in rows] == [("video0", 2), ("video1", 1)]
    with pytest.raises(InputError, match=r"`annotations\.texts`"):
        scan(videos, {"train": train})


def test_several_files_of_a_split_are_joined_by_video(videos, tmp_path):
    """The captions and the questions of MSRVTT: a video that both have is one row with both, also
    where only one of them names its extension; a video of two splits is two rows."""
    captions = write(
        tmp_path / "ret.jsonl",
        [{"caption": f"of {n}", "clip_name": n} for n in ("video1", "video2")],
    )
    asked = [QUESTION | {"video_id": n} for n in ("video2.webm", "video1.mp4", "video3")]
    qa = write(tmp_path / "qa.jsonl", asked)
    test = write(tmp_path / "test.jsonl", [QUESTION])
    files = keyed({"train": [str(captions), str(qa)], "test": [str(test)]})
    assert list(files) == ["train", "train.2", "test"]
    rows, rejects = scan(videos, files)
    assert rejects == []
    assert [
        (row.id, row.name, row.path.name, row.split, row.captions, len(row.questions))
        for row in rows
    ] == [
        ("train/video1", "video1", "video1.mp4", "train", ("of video1",), 1),
        ("video2", "video2", "video2.webm", "train", ("of video2",), 1),
        ("video3", "video3", "video3.mp4", "train", (), 1),
        ("test/video1", "video1", "video1.mp4", "test", (), 1),
    ]


def test_an_invalid_record_is_a_reject_with_its_line(videos, tmp_path):
    good = {"caption": "x", "video": "video1"}
    for record, reason in (
        (QUESTION | {"answer": " "}, "empty question or answer"),
        ({"caption": [" ", None], "clip_name": "video1"}, "no caption"),
        ({"caption": [" "], "clip_name": "video1"}, "no caption"),
        ({"video": "video1", "caption": 7}, "captions are not a list of strings"),
        ({"video": "video1", "caption": "b", "split": "fold9"}, "unknown split 'fold9'"),
        *(
            ({"video": name, "caption": "x"}, "names no file in the folder of videos")
            for name in ("../video1", "", ".", "0001/..", "0001/../../etc/x", None)
        ),
        ({"video": "/etc/passwd", "caption": "x"}, "'/etc/passwd' is an absolute path outside"),
        ({"video": "video1\0", "caption": "x"}, "NUL"),
        ("{", "not JSON"),
    ):
        lines = (one if isinstance(one, str) else json.dumps(one) for one in (good, record, good))
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        reject, row = scan_annotations(videos, {"": tmp_path / "a.jsonl"})
        assert (reject.id, reject.reason, row.id, len(row.captions)) == (
            "a.jsonl line 2",
            "bad row",
            "video1",
            2,
        )
        assert reason in reject.detail


def test_an_unusable_source_raises_a_one_line_error_with_the_columns(videos, tmp_path):
    unknown = (
        ["videoid", "contentUrl", "duration"],
        ["clip", "label"],
        [f"c{n:02}" for n in range(90)],
    )
    downloaded = ["url", "caption", "key", "status", "error_message", "videoid", "name"]
    for data, table, cause in (
        (videos, None, "no such annotation file"),
        (tmp_path / "none", None, "no such folder"),
        (videos, [["video", "caption"]], "no annotations"),
        *(
            (videos, [columns, ["1"] * len(columns)], ", ".join(sorted(columns)[:20]))
            for columns in unknown
        ),
        (videos, [["video", "caption", "group"], ["a", "x", "1"]], "files `path`"),
        (videos, [downloaded, ["1"] * 7], f"use the folder of its shards, {tmp_path}"),
    ):
        with one_line(cause) as error:
            scan(
                data,
                {"train": write(tmp_path / "a.csv", table) if table else tmp_path / "none.jsonl"},
            )
        assert len(str(error.value)) < 500


# Files, a name, and which of the files it means. A name with a folder matches only in it.
NAMES = [("B/0001.mp4", "A/0001.mp4", None), ("B/0001.mp4", "A/0001", None)]
NAMES += [
    ("A/0001.MP4 B/0001.mp4", "A/0001", "A/0001.MP4"),
    ("A/0001.webm", "A/0001.mp4", "A/0001.webm"),
]
NAMES += [("B/0001.mp4", "0001.mp4", "B/0001.mp4"), ("B/0001.webm", "0001.mp4", "B/0001.webm")]
NAMES += [
    ("0001.webm B/0001.mp4", "0001", "0001.webm")
]  # the folder itself comes before subfolders
NAMES += [
    ("77.jpg 77.mp4", "77", "77.mp4"),
    ("A/77.jpg B/77.mp4", "77", "B/77.mp4"),
]  # a thumbnail is not the video
NAMES += [("77.jpg", "77.mp4", None), ("77.mp4", "77.jpg", None)]
NAMES += [("A/77.png", "77.jpg", "A/77.png"), ("A/77.jpg", "77", "A/77.jpg")]
NAMES += [("x.mov.mp4", "x.mov", "x.mov.mp4"), ("A/x.mov.mp4", "x.mov", "A/x.mov.mp4")]
NAMES += [
    ("A/x.mov.mp4", "A/x.mov", "A/x.mov.mp4"),
    ("A/x.mov.mp4 B/x.mkv", "x.mov", "A/x.mov.mp4"),
]
# a name without its folder's own folders, and one that begins with the folder of videos itself
NAMES += [("V/A/1.mp4 V/B/1.mp4", "A/1", "V/A/1.mp4"), ("V/A/1.mp4", "B/1", None)]
NAMES += [("1.mp4", "videos/1", "1.mp4"), ("1.mp4", "other/1", None)]
NAMES += [("A/7.mp4 B/7.webm", "7.webm", "B/7.webm")]  # the whole name comes before its stem
NAMES += [("A/7.mkv A/7.webm", "7", "A/7.mkv"), ("", 300 * "x", None)]
# é, and e with an accent, as macOS writes it
NFC = "B\u00e9"
NFD = "Be\u0301"
NAMES += [
    (f"{a}/{a}.mp4", name, f"{a}/{a}.mp4")
    for a in (NFC, NFD)
    for b in (NFC, NFD)
    for name in (b, f"{b}/{b}.mp4")
]


@pytest.mark.parametrize(("files", "name", "expected"), NAMES)
def test_a_name_matches_only_its_own_file(files, name, expected, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    touch(folder, files.split())
    path = MediaFiles(folder).find(name)
    assert path.parent == (folder / (expected or name)).parent
    assert (
        path.relative_to(folder).as_posix() if len(name) < 300 and path.is_file() else None
    ) == expected


def test_an_ambiguous_name_is_rejected_and_one_below_a_root_is_resolved_once(videos, tmp_path):
    """A file at the path of the folder twice is another video."""
    touch(videos, ["0002/77.webm"])
    file = write(
        tmp_path / "a.jsonl", [{"caption": "x", "clip_name": name} for name in ("77", "0001/77")]
    )
    (row,), (reject,) = scan(videos, {"test": file})
    assert row.path == videos / "0001/77.mp4"
    assert (reject.id, reject.detail) == ("77", "the name could mean 0001/77.mp4 or 0002/77.webm")
    touch(videos, ["0001/0001/77.mp4"])
    file = write(tmp_path / "a.jsonl", [{"caption": "x", "clip_name": "77.mp4"}])
    assert [row.path for row in scan(videos, {"train": file}, root=videos / "0001")[0]] == [
        row.path
    ]


def test_absolute_names_below_the_folder_or_the_root_are_resolved(videos, tmp_path):
    """As in lists of CC3M from other machines. A file that is named in several ways is one row."""
    for names, root in (
        ([f"{videos}/image1.jpg", f"{videos}/0001/77", "video1"], None),
        (
            ["/export/share/cc3m/image1.jpg", "/export/share/cc3m/0001/77", f"{videos}/video1"],
            "/export/share/cc3m",
        ),
        (["/export/./cc3m/image1.jpg", "0001/77.mp4", "sub/../video1"], "/export/x/../cc3m/"),
        (
            ["videos/image1.jpg", "./videos/0001/77", "videos/video1.mp4"],
            tmp_path,
        ),  # from a folder above
    ):
        file = write(
            tmp_path / "a.jsonl", [{"caption": "x", "image": name} for name in [*names, names[0]]]
        )
        rows, rejects = scan(videos, {"train": file}, Path(root) if root else None)
        assert rejects == []
        assert [row.path.relative_to(videos).as_posix() for row in rows] == [
            "image1.jpg",
            "0001/77.mp4",
            "video1.mp4",
        ]
        assert [row.id.partition(".")[0] for row in rows] == ["image1", "0001/77", "video1"]
        assert [len(row.captions) for row in rows] == [2, 1, 1]
    with pytest.raises(
        InputError, match=r"a\.jsonl line 1: name '/else/a\.jpg' .* set `root` of the corpus"
    ):
        scan(
            videos,
            {"train": write(tmp_path / "a.jsonl", [{"caption": "x", "image": "/else/a.jpg"}])},
        )
