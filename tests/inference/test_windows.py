"""Windows of long videos: how an index cuts, replaces and finds them."""

import json
import shutil
import struct
import subprocess

import pytest

from alpro.errors import InputError
from alpro.inference.find import model_digest
from alpro.inference.index import About, Index, rows_of
from alpro.inference.index_videos import in_windows, remove_from_index, scan_videos, update_index
from alpro.inference.model import Model
from alpro.inference.search import Hit, group_windows, most_similar_hits, neighbors, search
from alpro.pipeline.cli.data import print_check
from alpro.shards.decoding import ffmpeg_binary, video_seconds
from alpro.stages import decode_videos
from alpro.stages.corpora.check_data import check_data


def join(clips, film):
    """Writes videos of one format after another into a file, without encoding them again."""
    names = film.with_suffix(".list")
    names.write_text("".join(f"file '{clip}'\n" for clip in clips))
    command = [ffmpeg_binary(), "-y", "-v", "error", "-f", "concat", "-safe", "0", "-i", names, "-c", "copy", film]
    subprocess.run([str(part) for part in command], check=True)
    names.unlink()


@pytest.fixture(scope="module")
def model(folders):
    return Model.from_pretrained(folders["retrieval"], device="cpu")


@pytest.fixture
def update(tmp_path, folders, model):
    """update(videos, window, stride): adds videos to the index."""

    def add(videos, window=None, stride=None):
        about = About(
            model=str(folders["retrieval"]),
            digest=model_digest(folders["retrieval"]),
            embed_dim=16,
            window=window,
            stride=stride,
        )
        return update_index(tmp_path / "index", model, about, list(scan_videos(videos)))

    return add


def windows_of(folder):
    return [(row["start"], row["end"]) for table in Index.open(folder).items for row in rows_of(table)]


def test_a_search_finds_the_window_of_a_film_that_shows_a_clip(update, videos, model, tmp_path):
    """Ten minutes of one clip, with another one at 420 s: it is the clip that is searched for."""
    common, rare, _ = videos
    folder, count = tmp_path / "films", round(600 / video_seconds(rare))
    folder.mkdir()
    join([rare if number == 0.7 * count else common for number in range(count)], folder / "film.mp4")
    assert update(folder, window=10.0, stride=5.0).embedded == 119
    hits = most_similar_hits(Index.open(tmp_path / "index"), model.embed_videos([rare])[0].numpy(), 3)
    best = hits[0]
    assert (best.item["start"], best.item["end"], best.span) == (420, 430, (415, 430))
    assert neighbors(best) == "neighbors fit too: 415-430 s"
    assert all(hit.item["end"] < 420 or hit.item["start"] > 430 for hit in hits[1:])
    found = search(Index.open(tmp_path / "index"), model, "a red ball moves left", k=4)
    assert len({hit.number for hit in found.hits}) == 4
    assert all(hit.match is not None for hit in found.hits)


@pytest.mark.parametrize("length", [1e15, float("inf"), float("nan")])
def test_a_wrong_length_in_a_header_makes_no_windows(length, update, videos, tmp_path):
    """One flipped bit of a length in a Matroska file turns seconds into millennia."""
    folder = tmp_path / "films"
    folder.mkdir()
    join([videos[0]] * 4, folder / "film.mkv")
    content = bytearray((folder / "film.mkv").read_bytes())
    place = content.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds
    content[place : place + 8] = struct.pack(">d", length)
    (folder / "film.mkv").write_bytes(content)
    counts = update(folder, window=1.0, stride=0.5)
    assert counts.embedded + counts.rejected == 1


def test_long_videos_are_named_before_they_are_decoded(videos, tmp_path, capsys):
    """A film of 70 seconds has 13 windows; nine short clips have none."""
    join([videos[0]] * 70, tmp_path / "film.mp4")
    clips = [shutil.copy(videos[n % 3], tmp_path / f"{n}.mp4").name for n in range(9)]
    lines = [{"path": path, "caption": "a ball", "id": str(n)} for n, path in enumerate(["film.mp4", *clips])]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check_data(tmp_path / "m.jsonl", decode_videos.Config(frames=2, size=32))
    assert report["decoded"]["long"] == [pytest.approx(70, abs=0.1)]
    print_check(report)
    out = capsys.readouterr().out
    assert "1 of them are longer than a minute, up to 1" in out
    assert "makes about 13 windows of all" in out


def test_windows_cover_a_video_and_the_last_one_ends_with_it(videos, tmp_path):
    join([videos[0]] * 12, tmp_path / "twelve.mp4")
    lines = [{"path": "twelve.mp4"}, {"path": "twelve.mp4", "start": 3, "id": "x"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = list(in_windows(scan_videos(tmp_path / "m.jsonl"), 5.0, 2.5))
    assert [(row["id"], row["start"], row["end"]) for row in rows] == [
        *(("twelve", start, min(start + 5, 12)) for start in (0, 2.5, 5, 7.5)),
        ("x", 3, None),
    ]
    short = list(scan_videos(videos[0].parent))  # also files that are no videos: decoding says why
    assert list(in_windows(short, 5.0, 5.0)) == short


def test_an_index_keeps_its_windows_and_replaces_those_of_a_changed_file(update, videos, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    join([videos[0]] * 6, folder / "film.mp4")
    update(folder, 2.0, 2.0)
    assert windows_of(tmp_path / "index") == [(0, 2), (2, 4), (4, 6)]
    assert update(folder).skipped == 3
    join([videos[1]] * 3, folder / "film.mp4")
    assert update(folder).embedded == 2
    assert sorted(windows_of(tmp_path / "index")) == [(0, 2), (2, 3)]
    with pytest.raises(InputError, match=r"this index has windows of 2 s every 2 s; choose another folder"):
        update(folder, 2.0, 1.0)
    assert len(remove_from_index(tmp_path / "index", ["film"])) == 2


def test_what_has_no_windows_is_refused(clips):
    (reject,) = in_windows([{"id": "a", "path": "https://host/a.mp4", "kind": "video"} | NO_WINDOW], 10.0, 5.0)
    assert (reject.reason, "not a URL" in reject.detail) == ("bad row", True)
    with pytest.raises(InputError, match="a decoded corpus has no windows; index its videos instead"):
        list(in_windows(scan_videos(clips), 10.0, 5.0))


NO_WINDOW = {"start": None, "end": None, "frame_offsets": None}


def test_windows_of_several_files_are_grouped_by_file():
    """In order of similarity; a window that touches a group's best one belongs to it."""
    windows = [("a", 10, 20), ("b", 15, 25), ("a", 20, 30), ("a", 30, 40), ("a", 5, 15), ("c", None, None)]
    hits = [
        Hit({"path": path, "start": start, "end": end}, number, 1 - number / 10)
        for number, (path, start, end) in enumerate(windows)
    ]
    assert [(hit.number, hit.span) for hit in group_windows(hits)] == [
        (0, (5, 30)),
        (1, (15, 25)),
        (3, (30, 40)),
        (5, None),
    ]
