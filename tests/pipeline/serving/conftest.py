"""What the tests of the page and the API share: a small index, and an application without a server."""

import json
import os
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from alpro import Model
from alpro.files import digest
from alpro.inference.index import Index
from alpro.pipeline.serving import server
from alpro.pipeline.serving.answers import Answers, Models
from alpro.pipeline.serving.media import Media

RETRIEVAL, QA, PROMPTER = (digest(stage)[:8] for stage in ("finetune_retrieval", "finetune_qa", "train_prompter"))


@pytest.fixture(scope="package")
def videos(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    return [Path(shutil.copy(video, folder)) for video in sorted((sample / "videos").glob("test-*.mp4"))[:3]]


@pytest.fixture(scope="package")
def index(trained, videos):
    """An index of three clips, the second half of one of them, and an image."""
    from PIL import Image

    from alpro.pipeline.cli.main import execute, parser

    folder = videos[0].parent
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    rows = [{"path": video.name, "date": f"2024-0{n}-01", "views": 10 * n} for n, video in enumerate(videos, 1)]
    rows += [{"path": videos[0].name, "start": 0.5, "end": 1.0}, {"path": "red.png", "kind": "image", "id": "red"}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("index", "add", folder / "index", folder / "manifest.jsonl", "--columns", "date,views"),
        *("--model", RETRIEVAL, "--workspace", trained),
    ]
    assert execute(parser().parse_args([*map(str, arguments), "--device", "cpu"])) == 0
    return folder / "index"


@pytest.fixture
def answers(trained, index, tmp_path):
    opened = Index.open(index)
    models = {name: Model.load(name, trained, device="cpu") for name in (RETRIEVAL, QA, PROMPTER)}
    media = Media(opened, tmp_path, models[RETRIEVAL].folder.model.config.video)
    return Answers(Models(opened, *models.values()), media)


@pytest.fixture
def client(answers, tmp_path, monkeypatch):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    monkeypatch.setattr(os, "environ", os.environ.copy())
    server.prepare_gradio(uploads)
    app = server.application(answers, "127.0.0.1", uploads, max_upload=1)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        client.uploads = uploads
        yield client
