"""The annotation files of data sets in their own forms, alone or beside the videos."""

import gzip
import json
import os
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.manifest import scan_source

CAPTIONS = Path(os.environ.get("ALPRO_CAPTIONS", Path(__file__).parents[4] / "shared" / "captions"))


@pytest.fixture
def videos(tmp_path) -> Path:
    """A folder of empty videos with the names of each data set."""
    folder = tmp_path / "videos"
    for name in ("video0", "video1", "video2", "0001/77", "v_abc", "def", "-x_1_000003_000013", "12@N02_ef.m4v"):
        path = folder / (name if name.endswith("m4v") else f"{name}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def rows_of(data: Path, annotations: dict[str, Path] | None = None) -> dict[str, Row]:
    """The rows of a source without rejects, by their ids."""
    records = list(scan_source(data, annotations))
    assert [r for r in records if isinstance(r, Reject)] == []
    return {r.id: r for r in records if isinstance(r, Row)}


def write_json(path: Path, value) -> Path:
    text = json.dumps(value, indent=1 if path.name.startswith("pretty") else None).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


VIDEOINFO = {
    "info": {"year": "2016", "description": "MSR-VTT"},
    "videos": [
        {"video_id": "video0", "split": "train", "category": 9, "start time": 137.72, "end time": 149.44, "id": 0},
        {"video_id": "video1", "split": "validate", "category": 3, "url": "https://host.example/1"},
        {"video_id": "video2", "split": "test", "category": 3, "url": "https://host.example/2"},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
        {"caption": "a dog  runs", "video_id": "video2", "sen_id": 2},
        {"caption": "a group drives", "video_id": "video0", "sen_id": 1},
        {"caption": "a man sings", "video_id": "video1", "sen_id": 3},
    ],
}


@pytest.mark.parametrize("name", ["videodatainfo.json", "pretty.json", "videodatainfo.json.gz"])
def test_msrvtt_has_its_own_splits(name, videos, capsys):
    rows = rows_of(write_json(videos / name, VIDEOINFO))
    assert {row.id: (row.split, row.captions) for row in rows.values()} == {
        "video0": ("train", ("a car is shown", "a group drives")),
        "video1": ("validation", ("a man sings",)),
        "video2": ("test", ("a dog runs",)),
    }
    assert all(row.path.is_file() for row in rows.values())
    assert "read as MSR-VTT (videodatainfo)" in capsys.readouterr().err


def test_a_split_of_an_msrvtt_file_is_selected(videos, tmp_path):
    file = write_json(tmp_path / "train_val_videodatainfo.json", {**VIDEOINFO, "videos": VIDEOINFO["videos"][:2]})
    rows = rows_of(videos, {"train": file, "validation": file})
    # Sentences of a video that is not listed have no split: they stay with the first file.
    assert {name: row.split for name, row in rows.items() if "video2" not in name} == {
        "video0": "train",
        "video1": "validation",
    }
    only = {"videos": VIDEOINFO["videos"][:2], "sentences": VIDEOINFO["sentences"][::3]}
    with pytest.raises(InputError, match="no video of the split test; its videos are of train and validation"):
        rows_of(videos, {"test": write_json(tmp_path / "train_val.json", {"info": {}, **only})})


def test_the_1ka_split_lists_videos_whose_texts_are_in_another_file(videos, tmp_path):
    texts = write_json(tmp_path / "MSRVTT_data.json", VIDEOINFO)
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    test = tmp_path / "MSRVTT_JSFUSION_test.csv"
    test.write_text("key,vid_key,video_id,sentence\nret0,msr2,video2,a dog is running\n")
    files = {"texts": texts, "train": tmp_path / "MSRVTT_train.9k.csv", "test": test}
    rows = rows_of(videos, files)
    assert [(row.id, row.split, row.captions) for row in rows.values()] == [
        ("video0", "train", ("a car is shown", "a group drives")),
        ("video1", "train", ("a man sings",)),
        ("video2", "test", ("a dog is running",)),  # its own text
    ]
    (tmp_path / "train_list.txt").write_text("video0\n\nvideo1\n")  # as of MSVD
    assert list(rows_of(videos, {"texts": texts, "train": tmp_path / "train_list.txt"})) == ["video0", "video1"]
    with pytest.raises(InputError, match=r"set `annotations\.texts`"):
        rows_of(videos, {"train": tmp_path / "MSRVTT_train.9k.csv"})


def test_activitynet_sentences_are_a_paragraph(videos):
    video = {"duration": 82.7, "timestamps": [[0.8, 19.9], [17.4, 60.8]], "sentences": ["A man sits. ", " He plays."]}
    file = write_json(videos / "train.json", {"v_abc": video, "v_def": {**video, "sentences": ["A cat."]}})
    rows = rows_of(file)
    assert rows["v_abc"].captions == ("A man sits. He plays.",)
    assert [row.path.name for row in rows.values()] == ["v_abc.mp4", "def.mp4"]  # with or without v_


def test_didemo_descriptions_of_a_video_are_a_paragraph(videos):
    moment = {"annotation_id": 1, "video": "12@N02_ef.m4v", "times": [[4, 4], [0, 0]], "num_segments": 6}
    texts = ["someone kicks the bug.", "the bug is seen."]
    file = write_json(videos / "test_data.json", [moment | {"description": text} for text in texts])
    (row,) = rows_of(file).values()
    assert (row.captions, row.path.name) == (("someone kicks the bug. the bug is seen.",), "12@N02_ef.m4v")


def test_numbers_of_questions_are_videos(videos):
    """As in the files of MSRVTT-QA."""
    asked = {"answer": "dog", "category_id": 14, "id": 158581, "question": "what runs?", "video_id": 1}
    (row,) = rows_of(write_json(videos / "train_qa.json", [asked])).values()
    assert (row.path.name, [(q.answer, q.type) for q in row.questions]) == ("video1.mp4", [("dog", "what")])


def test_vatex_has_several_captions(videos):
    record = {"videoID": "-x_1_000003_000013", "enCap": ["A boy jumps.", "A child jumps."], "chCap": ["一个"]}
    (row,) = rows_of(write_json(videos / "vatex_training_v1.0.json", [record])).values()
    assert (row.captions, row.path.is_file()) == (("A boy jumps.", "A child jumps."), True)


WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n"
    '77,https://host.example/77.mp4,PT00H00M19S,0001,"Sea, waves"\n'
    "78,https://host.example/78.mp4,PT00H00M09S,0001,A dog\n"
)


def test_a_webvid_table_is_beside_its_videos_or_alone(videos, tmp_path):
    (videos / "0002").mkdir()
    (videos / "0002" / "77.mp4").touch()  # of the same name in another folder: page_dir decides
    (videos / "results.csv").write_text(WEBVID)
    records = list(scan_source(videos / "results.csv"))
    assert [record.path for record in records] == [videos / "0001" / "77.mp4", videos / "78.mp4"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "results.csv").write_text(WEBVID.replace("https://host.example/78", "file:///etc/78"))
    row, reject = scan_source(tmp_path / "alone" / "results.csv")
    assert (row.id, row.path, row.kind, row.captions) == ("77", "https://host.example/77.mp4", "video", ("Sea, waves",))
    assert "is outside the data folder" in reject.detail


def test_a_folder_with_one_table_is_read_by_it(videos):
    (videos / "labels.csv").write_text("file_name,text,split\nvideo0.mp4,a cat,train\n0001/77.mp4,a sea,test\n")
    rows = rows_of(videos)
    assert [(row.id, row.split, row.captions) for row in rows.values()] == [
        ("video0.mp4", "train", ("a cat",)),
        ("0001/77.mp4", "test", ("a sea",)),
    ]
    (videos / "labels.csv").write_text("path,caption\nvideo0.mp4,a cat\n")  # a manifest
    assert list(rows_of(videos)) == ["video0"]
    (videos / "video1.txt").write_text("a man\n")  # texts beside the videos come first
    assert len(rows_of(videos)) > 1


def test_unknown_columns_get_a_hint(videos, tmp_path):
    (tmp_path / "a.csv").write_text("videoid,contentUrl,duration\n77,x,y\n")
    with pytest.raises(InputError, match=r"annotations\.texts|this looks like WebVid without the column name"):
        rows_of(videos, {"train": tmp_path / "a.csv"})
    (tmp_path / "b.csv").write_text("clip,label,enCap\n1,2,3\n")
    with pytest.raises(InputError, match=r"no column 'path' .*this looks like VATEX without the column videoID"):
        rows_of(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("url,caption,key,status,error_message,videoid,name\nu,c,000000001,success,,7,c\n")
    with pytest.raises(InputError, match="the metadata of video2dataset or img2dataset; use the folder"):
        rows_of(videos, {"train": tmp_path / "c.csv"})


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        ("clip_file,words\n1,2\n", "; name the column of the files path, or video, and that of the texts caption"),
        ("path;caption\n1;2\n", " (columns of a .csv are separated by commas, not by ';')"),
        (",".join(f"c{n:02}" for n in range(90)) + "\n" + "1," * 89 + "1\n", ", c19, ...); name the column"),
    ],
    ids=["other names", "another delimiter", "many columns"],
)
def test_unknown_columns_get_advice(table, advice, tmp_path):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path / "a.csv")
    assert advice in str(caught.value)


def test_captions_of_a_list_stay_apart_and_columns_that_are_not_used_are_named(videos, capsys):
    record = {"video": "video0", "caption": ["a dog", "a cat"], "questions": [], "camera": 3}
    (videos / "a.json").write_text(json.dumps([record]))
    (row,) = rows_of(videos / "a.json").values()
    assert row.captions == ("a dog", "a cat")
    assert "read as captions without its columns questions, camera, which only a manifest" in capsys.readouterr().err


def test_an_unknown_split_is_a_reject(videos):
    (videos / "a.csv").write_text("video,caption,split\nvideo0,a,train\nvideo1,b,holdout\n")
    _, reject = sorted(scan_source(videos / "a.csv"), key=lambda record: isinstance(record, Reject))
    assert "unknown split 'holdout'" in reject.detail


def test_json_lines_that_begin_with_an_object_are_lines(videos):
    lines = [{"meta": {"a": 1}, "path": f"video{number}.mp4", "caption": "x"} for number in range(2)]
    for count in (1, 2):
        (videos / "m.json").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        assert len(rows_of(videos / "m.json")) == count


@pytest.mark.skipif(not CAPTIONS.is_dir(), reason=f"no annotation files in {CAPTIONS}; set ALPRO_CAPTIONS")
def test_the_real_moments_of_didemo_are_its_paragraphs(tmp_path):
    def read(file: Path) -> list[dict]:
        return [json.loads(line) for line in gzip.open(file)]

    moments = write_json(tmp_path / "test_data.json", read(CAPTIONS / "didemo_test_moments.jsonl.gz"))
    rows = rows_of(tmp_path, {"test": moments})
    paragraphs = read(CAPTIONS / "didemo_test_paragraph.jsonl.gz")
    assert len(rows) == 1037
    for record in paragraphs:
        assert rows[record["clip_name"]].captions == (" ".join(record["caption"].split()),)
