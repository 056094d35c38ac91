"""An index of clips, with a random model of each kind, and the server that serves them."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from alpro import Model
from alpro.inference.index import Index
from alpro.inference.index_videos import add_videos, settings
from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import guarded
from alpro.pipeline.serving.models import ServedModels
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL


@pytest.fixture(scope="module")
def videos(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    return [
        Path(shutil.copy(video, folder))
        for video in sorted((sample / "videos").glob("test-*.mp4"))[:3]
    ]


@pytest.fixture(scope="module")
def models(trained, videos, clips):
    """An index of three clips, the second half of one, an image, and samples of a decoded corpus,
    with its models."""
    folder = videos[0].parent
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    rows = [
        {"path": video.name, "day": f"2024-0{n}-01", "caption": f"clip {n}"}
        for n, video in enumerate(videos, 1)
    ]
    more = [
        {"path": videos[0].name, "start": 0.5, "end": 1.0},
        {"path": "red.png", "kind": "image", "id": "red"},
    ]
    loaded = {name: Model.load(name, trained, device="cpu") for name in (RETRIEVAL, QA, PROMPTER)}
    model = next((trained / "artifacts" / "finetune_retrieval").iterdir())
    for name, part in (("one", rows), ("two", more)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        about = settings(folder / "index", model, columns=("day",))
        add_videos(folder / "index", loaded[RETRIEVAL], about, folder / f"{name}.jsonl")
    add_videos(folder / "index", loaded[RETRIEVAL], about, clips)
    search, ask, prompter = loaded.values()
    return ServedModels(Index.open(folder / "index"), search, ask, prompter)


@pytest.fixture
def app(models):
    return application(models)


@pytest.fixture
def client(app):
    with TestClient(guarded(app, "127.0.0.1"), base_url="http://127.0.0.1:7860") as client:
        yield client
