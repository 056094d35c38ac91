"""An index of three videos that a small random model embeds."""

import shutil
import subprocess

import pytest

from alpro.inference.index import Index
from alpro.inference.index_videos import add_videos, settings
from alpro.inference.model import Model
from alpro.shards.ffmpeg_copy import ffmpeg_binary


@pytest.fixture(scope="module")
def model(folders):
    return Model.load(folders["retrieval"], device="cpu")


@pytest.fixture
def update(tmp_path, folders, model):
    """update(videos, window, stride, columns): adds a folder, a manifest or a corpus to the index;
    the counts, and the reported lines."""

    def add(videos, *options, task="retrieval"):
        lines = []
        about = settings(tmp_path / "index", folders[task], *options)
        chosen = model if task == "retrieval" else Model.load(folders[task], device="cpu")
        return add_videos(tmp_path / "index", chosen, about, videos, lines.append), lines

    return add


@pytest.fixture
def own(tmp_path, videos):
    """A folder of five videos, three of them different, and a file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        shutil.copy(videos[number % 3], folder / f"{number}.mp4")
    (folder / "notes.mp4").write_text("no video")
    return folder


@pytest.fixture
def filled(update, own):
    """What a search takes: an index of `own`."""
    update(own)
    return Index.open(own.parent / "index")


@pytest.fixture
def film(tmp_path):
    """film(name, parts): videos of one format after another in a file, without encoding them
    again."""
    (tmp_path / "films").mkdir()

    def join(name, parts):
        listed = tmp_path / "parts.txt"
        path = tmp_path / "films" / name
        listed.write_text("".join(f"file '{clip}'\n" for clip in parts))
        command = [
            ffmpeg_binary(),
            "-y",
            "-v",
            "error",
            "-f",
            "concat",
            "-safe",
            "0",
            "-i",
            listed,
            "-c",
            "copy",
            path,
        ]
        subprocess.run([str(part) for part in command], check=True)
        return path.parent

    return join
