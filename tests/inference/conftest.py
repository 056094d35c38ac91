"""An index of three videos that a small random model embeds, in this process."""

import shutil
import subprocess

import pytest

from alpro.inference.index import Index
from alpro.inference.index_videos import Embedder, add_videos
from alpro.inference.loading import resolve
from alpro.inference.model import Model
from alpro.inference.search import Searcher
from alpro.pool import in_this_process
from alpro.shards.ffmpeg_copy import ffmpeg_binary


@pytest.fixture(scope="module")
def model(folders):
    return Model.load(folders["retrieval"], device="cpu")


@pytest.fixture
def update(tmp_path, folders):
    """update(videos, **options): add a folder, a manifest or a corpus to the index; returns the
    counts."""

    def add(videos, task="retrieval", **options):
        embedder = Embedder(resolve(folders[task], tmp_path), device="cpu")
        with in_this_process():
            return add_videos(tmp_path / "index", embedder, videos, **options)

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
def searcher(update, own, model):
    """A search of an index of `own`."""
    update(own)
    return Searcher(Index.open(own.parent / "index"), model)


@pytest.fixture
def film(tmp_path):
    """film(name, parts): join videos of one format in a file, without encoding them again."""
    (tmp_path / "films").mkdir()

    def join(name, parts):
        listed = tmp_path / "parts.txt"
        path = tmp_path / "films" / name
        listed.write_text("".join(f"file '{clip}'\n" for clip in parts))
        command = [ffmpeg_binary(), "-y", "-v", "error", "-f", "concat", "-safe", "0"]
        command += ["-i", listed, "-c", "copy", path]
        subprocess.run([*map(str, command)], check=True)
        return path.parent

    return join
