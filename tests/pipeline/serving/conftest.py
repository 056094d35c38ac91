"""An index of clips, with a random model of each kind, and the server that serves them."""

import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from alpro import Model
from alpro.inference.index import Index
from alpro.inference.index_videos import Embedder, add_videos
from alpro.inference.loading import resolve
from alpro.inference.search import Searcher
from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import guarded
from alpro.pipeline.serving.models import ServedModels
from alpro.pool import in_this_process
from tests.conftest import write_lines
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL


@pytest.fixture(scope="module")
def videos(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    return [
        Path(shutil.copy(video, folder))
        for video in sorted((sample / "videos").glob("test-*.mp4"))[:3]
    ]


@pytest.fixture(scope="module")
def add(trained):
    """add(index, videos, **options): embed videos."""
    embedder = Embedder(resolve(RETRIEVAL, trained), device="cpu")

    def run(index, videos, **options):
        with in_this_process():
            add_videos(index, embedder, videos, **options)

    return run


@pytest.fixture(scope="module")
def models(trained, videos, add):
    """An index of three clips, the second half of one, an image, and members of a tar, with its
    models."""
    folder = videos[0].parent
    Image.new("RGB", (2, 400), "red").save(folder / "red.png")
    rows = [
        {"path": video.name, "day": f"2024-0{n}-01", "caption": f"clip {n}"}
        for n, video in enumerate(videos, 1)
    ]
    more = [
        {"path": videos[0].name, "start": 0.5, "end": 1.0},
        {"path": "red.png", "kind": "image", "id": "red"},
    ]
    for name, part, columns in (("one", rows, ["day"]), ("two", more, [])):
        manifest = write_lines(folder / f"{name}.jsonl", part)
        add(folder / "index", manifest, columns=columns)
    (folder / "tars").mkdir()
    about = write_lines(folder / "about.json", [{"status": "success"}])
    with tarfile.open(folder / "tars" / "00000.tar", "w") as tar:
        for key in range(12):  # two pages of clips
            tar.add(about, f"{key}.json")
            tar.add(videos[1], f"{key}.mp4")
    add(folder / "index", folder / "tars")

    search, ask, prompter = (
        Model.load(name, trained, device="cpu") for name in (RETRIEVAL, QA, PROMPTER)
    )
    return ServedModels(Searcher(Index.open(folder / "index"), search), ask, prompter)


@pytest.fixture(scope="module")
def keys(models):
    """The keys of three videos, the half of one, an image and members."""
    rows = models.search.index.rows()
    rows.sort(
        key=lambda row: (
            bool(row["member"]),
            row["kind"] == "image",
            row["start"] or 0,
        )
    )
    return [row["key"] for row in rows]


@pytest.fixture
def app(models):
    return application(models)


@pytest.fixture
def client(app):
    with TestClient(guarded(app), base_url="http://127.0.0.1:7860") as client:
        yield client
