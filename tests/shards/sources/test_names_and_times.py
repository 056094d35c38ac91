"""Tables whose names are not quite those of the files, and tables with times: what is unambiguous
is read, and a note tells of the rest."""

from pathlib import Path

import pytest

from alpro.pipeline.plan.check_data import check_data
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.manifest import import_source
from alpro.shards.sources.scan import scan_media, scan_source
from alpro.stages.decode_videos import Config


def scanned(folder: Path, media: str, table: str, name: str = "x.csv") -> tuple[list, str]:
    """The rows of a table (id, file relative to `folder`, start, end, captions), or the details of
    rejects, and the notes."""
    for file in [*media.split(), name]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / name).write_text(table)

    notes: list[str] = []
    rows: list[tuple | str] = []
    for row in scan_source(folder / name, notes=notes)[1]:
        if isinstance(row, Reject):
            rows.append(row.detail)
            continue
        path = Path(row.path)
        file = path.relative_to(folder).as_posix() if path.is_file() else None
        rows.append((row.id, file, row.start, row.end, row.captions))
    return rows, "\n".join(notes)


# The media of a folder, a name in its table, and the file that the name means.
NAMES = {
    "without an extension": ("video7.mp4 video70.mp4", "video7", "video7.mp4"),
    "without an extension, with a dot": ("clip.1.mp4 clip.2.mp4", "clip.2", "clip.2.mp4"),
    "another extension": ("a.webm b.mp4", "a.mp4", "a.webm"),
    "without its folder": ("sub/a.mp4 sub/b.mp4", "a.mp4", "sub/a.mp4"),
    "of a folder beside the table": ("videos/sub/a.mp4 videos/a.mp4", "sub/a", "videos/sub/a.mp4"),
    "in two folders": ("A/a.mp4 B/a.mp4", "a", "the name could mean A/a.mp4 or B/a.mp4"),
    "of another folder": ("B/a.mp4", "A/a.mp4", None),
}


@pytest.mark.parametrize("column", ["path", "video"])
@pytest.mark.parametrize("case", NAMES)
def test_a_name_of_one_file_is_read_in_every_kind_of_table(case, column, tmp_path):
    media, name, expected = NAMES[case]
    (row,), notes = scanned(tmp_path, media, f"{column},caption\n{name},a dog\n")
    assert expected == (row if isinstance(row, str) else row[1])
    assert bool(notes) == (expected is None)


@pytest.mark.parametrize("column", ["path", "video"])
def test_a_name_does_not_take_the_file_that_another_row_names_with_its_folder(column, tmp_path):
    """a.mp4 is missing: its caption is not that of sub/a.mp4."""
    table = f"{column},caption\na.mp4,a dog\nsub/a.mp4,a cat\n"
    rows, notes = scanned(tmp_path, "sub/a.mp4", table)
    assert [(row[1], row[4]) for row in rows] == [(None, ("a dog",)), ("sub/a.mp4", ("a cat",))]
    assert "a.mp4 (sub/a.mp4)" in notes


@pytest.mark.parametrize(
    ("media", "name", "table", "said"),
    [
        ("B/a.mp4", "A/a.mp4", "x.csv", ["A/a.mp4 (B/a.mp4)"]),
        ("video_a.mp4", "a.mp4", "x.csv", ["a.mp4 (video_a.mp4)"]),
        ("other.mp4", "a.mp4", "x.csv", ["other.mp4"]),
        ("videos/a.mp4", "a", "annotations/x.csv", ["no media", "videos has"]),
    ],
)
def test_names_without_a_file_are_told_with_files_that_look_like_them(
    media, name, table, said, tmp_path
):
    (row,), notes = scanned(tmp_path, media, f"path,caption\n{name},a dog\n", table)
    assert row[1] is None
    assert [part for part in said if part not in notes] == []


def test_a_manifest_in_a_folder_beside_the_videos_is_read_from_the_folder_above(tmp_path):
    scanned(tmp_path, "videos/a.mp4", "path,caption\na,a dog\n", "annotations/x.csv")
    (row,) = scan_source(tmp_path)[1]
    assert (row.path, row.captions) == (tmp_path / "videos/a.mp4", ("a dog",))


def test_a_name_that_had_no_file_or_several_is_looked_up_again(tmp_path):
    """Of a manifest, no media are in the state of the source."""
    data = tmp_path / "data"
    scanned(data, "A/b.mp4 B/b.mp4", "path,caption\na,a dog\nb,a cat\n")

    def paths() -> list[str]:
        (batch,) = import_source(data / "x.csv", tmp_path / "cache").batches(["path"])
        return batch["path"].to_pylist()

    assert paths() == [str(data / "a")]
    (data / "a.mp4").touch()
    assert paths() == [str(data / "a.mp4")]
    (data / "B/b.mp4").unlink()
    assert paths() == [str(data / "a.mp4"), str(data / "A/b.mp4")]


DOG = ("a dog",)
CAT = ("a cat",)
WINDOWS = {
    "start and end": ("video,start,end,caption\na,1,2,a dog\n", [("a@1-2", 1, 2, DOG)]),
    "minutes": ("path,start,end,caption\na,0:01,1:02,a dog\n", [("a@1-62", 1, 62, DOG)]),
    "other names": (
        "{},start_time,End (s),caption\na,1,2,a dog\na,2,3,a cat\n",
        [("a@1-2", 1, 2, DOG), ("a@2-3", 2, 3, CAT)],
    ),
    "one column": (
        '{},timestamp,caption\na,"[0, 1.5]",a dog\na,0:02 - 0:03,a cat\na,,a pet\n',
        [("a@0-1.5", 0, 1.5, DOG), ("a@2-3", 2, 3, CAT), ("a", None, None, ("a pet",))],
    ),
    "two captions of a part": (
        "video,start,end,caption\na,1,2,a dog\na,1,2,a cat\n",
        [("a@1-2", 1, 2, DOG + CAT)],
    ),
    # As in MSR-VTT, whose times are those of the video that the file was cut from.
    "perhaps cut": (
        "{},start_time,end_time,caption\na,1,2,a dog\n",
        [("a", None, None, DOG)],
    ),
    "frames beside seconds": (
        "video,start,end,start_frame,caption\na,1,2,25,a dog\n",
        [("a@1-2", 1, 2, DOG)],
    ),
    "frames": (
        "{},start_frame,end_frame,caption\na,1,2,a dog\n",
        [("a", None, None, DOG)],
    ),
    "moments": ("{},timestamp,caption\na,1.5,a dog\n", [("a", None, None, DOG)]),
    "a date": ("{},timestamp,caption\na,2024-01-02 03:04:05,a dog\n", [("a", None, None, DOG)]),
    "invalid": (
        "video,start,end,caption\na,1,2,a dog\na,3,2,a dog\na,soon,2,a cat\n",
        [
            "start 3.0 is not before end 2.0",
            "could not convert string to float: 'soon'",
            ("a@1-2", 1, 2, DOG),
        ],
    ),
}


@pytest.mark.parametrize(
    ("case", "column"),
    [
        (case, column)
        for case, (table, _) in WINDOWS.items()
        for column in (["path", "video"] if "{}" in table else [""])
    ],
)
def test_times_are_parts_of_files_or_a_note_says_that_they_are_not_used(case, column, tmp_path):
    table, expected = WINDOWS[case]
    rows, notes = scanned(tmp_path, "a.mp4", table.replace("{}", column))
    assert [row if isinstance(row, str) else (row[0], *row[2:]) for row in rows] == expected
    assert bool(notes) == (
        case in ("other names", "one column", "perhaps cut", "moments", "frames")
    )


def test_times_of_a_question_are_the_part_that_it_is_about(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "x.csv").write_text(
        "video,question,answer,start,end\na,is it,yes,1,2\na,is it,no,2,3\n"
    )
    rows = [row for row in scan_source(tmp_path)[1] if isinstance(row, Row)]
    assert [(row.start, row.questions[0].answer) for row in rows] == [(1, "yes"), (2, "no")]


@pytest.mark.parametrize("file", ["abc_33_46.avi", "abc_000033_000046.mp4"])
def test_a_file_that_is_named_by_its_times_was_cut_already(file, tmp_path):
    """As of MSVD and VATEX. Its clips are of one group."""
    (tmp_path / file).touch()
    (tmp_path / "x.csv").write_text("VideoID,Start,End,Description\nabc,33,46,a bird\n")
    (row,) = scan_source(tmp_path)[1]
    assert (row.path.name, row.start, row.end, row.name) == (file, None, None, "abc")


def test_a_check_and_an_index_of_a_folder_tell_of_names_and_times(tmp_path):
    scanned(tmp_path, "a.mp4", "video,start_time,end_time,caption\na,1,2,a dog\n")
    report = check_data(tmp_path, Config(), samples=0)
    assert "`start_time` and `end_time`: not used" in report["notes"][0]

    scanned(tmp_path, "video_a.mp4", "video,caption\n_a,a dog\n")
    (tmp_path / "a.mp4").unlink()
    problems = check_data(tmp_path, Config(), samples=0)["problems"]
    assert any("video_a.mp4" in problem for problem in problems)

    (tmp_path / "video_a.mp4").unlink()
    scanned(tmp_path, "a.mp4", "video,start,end,caption\na,1,2,a dog\n")
    notes: list[str] = []
    (row,) = scan_media(tmp_path, notes)
    assert row.captions == ()
    assert "1 captions of parts" in notes[-1]
