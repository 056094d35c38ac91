"""The official annotation files of the data sets."""

import gzip
import json
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.annotations import MediaFiles, keyed, scan_annotations


def scan(videos: Path, files: dict[str, Path], root: Path | None = None) -> tuple[list[Row], list[Reject]]:
    """The rows and the rejects of annotation files."""
    records = list(scan_annotations(videos, files, root))
    return [r for r in records if isinstance(r, Row)], [r for r in records if isinstance(r, Reject)]


@pytest.fixture
def videos(tmp_path):
    """A folder of empty media files."""
    folder = tmp_path / "videos"
    for name in ("video1.mp4", "video2.webm", "0001/77.mp4", "image1.jpg", "12@N02_ef.mov"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def lines(path, *records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_msrvtt_rows_are_grouped_by_video_with_all_captions(tmp_path, videos):
    records = [
        ("video1", "a man talks"),
        ("video2", "a dog runs"),
        ("video1", "someone  speaks"),
        ("video1", "a man talks"),
    ]
    train = lines(tmp_path / "train.jsonl.gz", *({"caption": c, "clip_name": n} for n, c in records))
    test = lines(tmp_path / "test.jsonl", {"caption": "a cat", "clip_name": "video9"})
    rows, rejects = scan(videos, {"train": train, "test": test})
    assert rejects == []
    assert [(row.id, row.split, row.captions) for row in rows] == [
        ("video1", "train", ("a man talks", "someone speaks", "a man talks")),  # as many examples as the file has
        ("video2", "train", ("a dog runs",)),
        ("video9", "test", ("a cat",)),
    ]
    assert [row.path.name for row in rows] == ["video1.mp4", "video2.webm", "video9.mp4"]


def test_several_files_of_a_split_are_joined_by_video(tmp_path, videos):
    """The captions and the questions of MSRVTT: a video that both have is one row with both, also where only one of
    them names its extension; the splits of the two may differ."""
    captions = lines(tmp_path / "ret.jsonl", *({"caption": f"of {n}", "clip_name": n} for n in ("video1", "video2")))
    asked = ({"question": "who?", "answer": "a man", "video_id": n} for n in ("video2.webm", "video1.mp4", "video3"))
    questions = lines(tmp_path / "qa.jsonl", *asked)
    tested = lines(tmp_path / "test.jsonl", {"question": "what?", "answer": "ball", "video_id": "video1"})
    files = keyed({"train": [str(captions), str(questions)], "test": [str(tested)]})
    assert list(files) == ["train", "train.2", "test"]
    rows, rejects = scan(videos, files)
    assert rejects == []
    assert [(row.id, row.split, row.captions, len(row.questions)) for row in rows] == [
        ("train/video1", "train", ("of video1",), 1),
        ("video2", "train", ("of video2",), 1),
        ("video3", "train", (), 1),
        ("test/video1", "test", (), 1),
    ]
    assert [row.path.name for row in rows] == ["video1.mp4", "video2.webm", "video3.mp4", "video1.mp4"]


def test_didemo_sentences_form_one_query(tmp_path, videos):
    file = lines(tmp_path / "a.jsonl", {"caption": ["a man sits.", "he stands up."], "clip_name": "12@N02_ef"})
    (row,), _ = scan(videos, {"test": file})
    assert row.captions == ("a man sits. he stands up.",)
    assert row.path.name == "12@N02_ef.mov"


def test_questions_have_their_answer_type(tmp_path, videos):
    asked = {"question": "what is it", "answer": "dog", "video_id": "video1", "answer_type": "what", "question_id": 1}
    file = lines(
        tmp_path / "a.jsonl", asked, {**asked, "answer_type": None, "question": "Who's it"}, {**asked, "answer": ""}
    )
    (row,), (reject,) = scan(videos, {"train": file})
    assert [(q.question, q.answer, q.type) for q in row.questions] == [
        ("what is it", "dog", "what"),
        ("Who's it", "dog", "who"),
    ]
    assert "line 3" in reject.id
    assert "empty question or answer" in reject.detail


def test_a_list_of_cc3m(tmp_path, videos):
    listing = tmp_path / "cc3m.json"
    listing.write_text(
        json.dumps([{"image": "image1.jpg", "caption": ["a cat", "an animal"]}, {"image": "none.jpg", "caption": "x"}])
    )
    rows, _ = scan(videos, {"train": listing})
    assert [(row.kind, row.captions, row.path.is_file()) for row in rows] == [
        ("image", ("a cat", "an animal"), True),
        ("image", ("x",), False),
    ]


def test_a_video_of_two_splits_is_two_rows(tmp_path, videos):
    file = lines(tmp_path / "a.jsonl", {"caption": "x", "clip_name": "video1"})
    rows, _ = scan(videos, {"train": file, "test": file})
    assert [(row.id, row.name) for row in rows] == [("train/video1", "video1"), ("test/video1", "video1")]


def test_a_name_matches_only_its_own_file(tmp_path):
    for number, (files, name, expected) in enumerate(
        (
            ("B/0001.mp4", "A/0001.mp4", None),  # a name with a folder matches only in it
            ("B/0001.mp4", "A/0001", None),
            ("A/0001.MP4 B/0001.mp4", "A/0001", "A/0001.MP4"),
            ("B/0001.mp4", "0001.mp4", "B/0001.mp4"),
            ("B/0001.webm", "0001.mp4", "B/0001.webm"),
            ("0001.webm B/0001.mp4", "0001", "0001.webm"),  # the folder itself comes before subfolders
            ("77.jpg 77.mp4", "77", "77.mp4"),  # a thumbnail is not the video
            ("A/77.jpg B/77.mp4", "77", "B/77.mp4"),
            ("77.jpg", "77.mp4", None),
            ("77.mp4", "77.jpg", None),
            ("A/77.png", "77.jpg", "A/77.png"),
            ("A/77.jpg", "77", "A/77.jpg"),
            ("x.mov.mp4", "x.mov", "x.mov.mp4"),
            ("A/x.mov.mp4", "x.mov", "A/x.mov.mp4"),
            ("A/x.mov.mp4", "A/x.mov", "A/x.mov.mp4"),
            ("A/7.mp4 B/7.webm", "7.webm", "B/7.webm"),  # the whole name comes before its stem
        )
    ):
        folder = tmp_path / str(number)
        for file in files.split():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        path = MediaFiles(folder).find(name)
        assert (str(path.relative_to(folder)) if path.is_file() else None) == expected


def test_an_ambiguous_name_is_rejected(tmp_path, videos):
    (videos / "0002").mkdir()
    (videos / "0002/77.webm").touch()
    records = [{"caption": "x", "clip_name": name} for name in ("77", "0001/77")]
    (row,), (reject,) = scan(videos, {"test": lines(tmp_path / "a.jsonl", *records)})
    assert row.path == videos / "0001/77.mp4"
    assert (reject.id, reject.detail) == ("77", "the name could mean 0001/77.mp4 or 0002/77.webm")


def test_numeric_names_are_accepted(tmp_path, videos):
    (videos / "0.mp4").touch()
    asked = {"question": "what is it", "answer": "dog", "video_id": 0}
    (row,), rejects = scan(videos, {"train": lines(tmp_path / "a.jsonl", asked)})
    assert (row.path, rejects) == (videos / "0.mp4", [])


def test_an_overlong_name_is_a_missing_file(tmp_path, videos):
    records = {"caption": "x", "clip_name": 300 * "x"}
    rows, _ = scan(videos, {"train": lines(tmp_path / "a.jsonl", records)})
    assert rows[0].path.parent == videos


def test_a_relative_folder_gives_the_same_rows(tmp_path, videos, monkeypatch):
    file = lines(tmp_path / "a.jsonl", {"caption": "x", "clip_name": "video1"}, {"caption": "x", "clip_name": "none"})
    rows = scan(videos, {"train": file})
    monkeypatch.chdir(videos)
    assert scan(Path(), {"train": file}) == rows


def test_a_name_outside_the_folder_is_rejected(tmp_path, videos):
    good = {"caption": "x", "clip_name": "video1"}
    bad = ["../video1", "/etc/passwd", "", ".", "video1\0", "0001/..", "0001/../../etc/x"]
    records = [record for name in bad for record in (good, {**good, "clip_name": name})]
    rows, rejects = scan(videos, {"train": lines(tmp_path / "a.jsonl", *records)})
    assert [row.id for row in rows] == ["video1"]
    assert len(rejects) == len(bad)
    for reject in rejects:
        reasons = ("names no file", "'/etc/passwd' is an absolute path outside", "NUL")
        assert any(reason in reject.detail for reason in reasons)


def test_absolute_names_below_the_folder_or_the_root_are_resolved(tmp_path, videos):
    """As in lists of CC3M from other machines."""
    (tmp_path / "link").symlink_to(videos)
    for names, root in (
        ([f"{videos}/image1.jpg", f"{videos}/0001/77", "video1"], None),
        ([f"{tmp_path}/link/image1.jpg", f"{tmp_path}/link/0001/77.mp4", "video1.mp4"], None),
        (["/export/share/cc3m/image1.jpg", "/export/share/cc3m/0001/77", f"{videos}/video1"], "/export/share/cc3m"),
        (["/export/./cc3m/image1.jpg", "0001/77.mp4", "sub/../video1"], "/export/x/../cc3m/"),
        (["videos/image1.jpg", "./videos/0001/77", "videos/video1.mp4"], tmp_path),  # from a folder above
    ):
        file = lines(tmp_path / "a.jsonl", *({"caption": "x", "image": name} for name in names))
        rows, rejects = scan(videos, {"train": file}, Path(root) if root else None)
        assert rejects == []
        assert [row.path.relative_to(videos).as_posix() for row in rows] == ["image1.jpg", "0001/77.mp4", "video1.mp4"]
        assert [row.id.partition(".")[0] for row in rows] == ["image1", "0001/77", "video1"]


def test_a_root_in_the_folder_of_videos_is_resolved_once(tmp_path, videos):
    """A file at the path of the folder twice is another video."""
    file = lines(tmp_path / "a.jsonl", {"caption": "x", "clip_name": "77.mp4"})
    (videos / "0001" / "0001").mkdir()
    (videos / "0001" / "0001" / "77.mp4").write_bytes(b"")
    rows, _ = scan(videos, {"train": file}, root=videos / "0001")
    assert [row.path for row in rows] == [videos / "0001" / "77.mp4"]


def test_a_file_named_in_several_ways_is_one_row(tmp_path, videos):
    train = lines(tmp_path / "a.jsonl", *({"caption": n, "image": n} for n in ("image1.jpg", "/cc3m/image1.jpg")))
    test = lines(tmp_path / "b.jsonl", {"caption": "z", "image": f"{videos}/image1.jpg"})
    rows, _ = scan(videos, {"train": train, "test": test}, Path("/cc3m"))
    assert [(row.id, row.name, len(row.captions)) for row in rows] == [
        ("train/image1.jpg", "image1.jpg", 2),
        ("test/image1.jpg", "image1.jpg", 1),
    ]


def test_absolute_names_outside_raise_an_error_with_the_setting(tmp_path, videos):
    outside = [{"caption": "x", "image": f"/export/cc3m/{n}.jpg"} for n in range(3)]
    inside = [{"caption": "x", "image": "image1.jpg"}, {"caption": "x", "image": "video1"}]
    with pytest.raises(InputError) as error:
        scan(videos, {"train": lines(tmp_path / "a.jsonl", *outside, *inside)})
    assert str(error.value) == (
        f"{tmp_path}/a.jsonl: 3 of 5 names are absolute paths outside {videos}, such as '/export/cc3m/2.jpg'; "
        f"set `root` of the corpus to the folder in them that corresponds to {videos}"
    )
    with pytest.raises(InputError, match="outside /export/wds"):
        scan(videos, {"train": tmp_path / "a.jsonl"}, Path("/export/wds"))
    rows, rejects = scan(videos, {"train": lines(tmp_path / "b.jsonl", *outside[:2], *inside)})
    assert (len(rows), len(rejects)) == (2, 2)  # some are rejects with a reason


def test_an_invalid_annotation_file_raises_a_one_line_error(tmp_path, videos):
    with pytest.raises(InputError, match="no such annotation file"):
        scan(videos, {"train": tmp_path / "none.jsonl"})
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "none", {})
    with pytest.raises(InputError, match="unknown annotation format"):
        scan(videos, {"train": lines(tmp_path / "b.jsonl", {"text": "x", "file": "y"})})
