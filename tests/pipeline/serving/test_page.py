"""The page of `alpro serve`, without a browser: its answers, its messages, and what its server refuses."""

import asyncio
import os
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest

from alpro import Model
from alpro.files import write_json
from tests.pipeline.serving.conftest import PROMPTER, QA, RETRIEVAL
from tests.pipeline.test_cli import call

pytest.importorskip("gradio")

import gradio
import uvicorn

from alpro.inference.search import search
from alpro.pipeline.serving import page
from alpro.pipeline.serving import server as command
from alpro.pipeline.serving.answers import MAX_TEXT
from alpro.pipeline.serving.media import MAX_UPLOADS, Media, Unknown
from alpro.pipeline.serving.mistakes import Mistake
from alpro.pipeline.serving.turns import Turns

JSON = {"Content-Type": "application/json"}


def test_a_search_has_the_hits_of_the_command_and_the_numbers_of_their_clips(answers):
    text = "a red ball moves left"
    found = answers.search(text)
    expected = search(answers.models.index, answers.models.search, text, 8)
    assert [(hit.item, hit.similarity, hit.match) for hit in found.hits] == [
        (hit.item, hit.similarity, hit.match) for hit in expected.hits
    ]
    assert sorted(hit.number for hit in found.hits) == [0, 1, 2, 3, 4]
    assert all(answers.models.index.item(hit.number) == hit.item for hit in found.hits)


def test_questions_and_regions_have_the_answers_of_the_models(answers, videos):
    key = answers.pick(1)
    assert answers.ask(key, "what moves?") == dict(answers.models.ask.ask(videos[1], "what moves?", 5))
    box = (0.5, 0.0, 0.25, 1.0)
    assert answers.entities(key, "0.5, 0, 0.25, 1") == [dict(answers.models.entities.entities(videos[1], box, 5))]
    assert answers.entities(key, "") == [dict(answers.models.entities.entities(videos[1], top_k=5))]


def test_a_pre_trained_model_answers_beside_the_prompter(answers, videos, pretrained):
    model = answers.models.pretrained = Model.from_pretrained(pretrained, device="cpu")
    prompter, own = answers.entities(answers.pick(1), "0.5, 0, 0.25, 1", "a ball")
    assert list(answers.models.naming) == ["Prompter", "Pre-trained model"]
    assert prompter == dict(answers.models.entities.entities(videos[1], (0.5, 0, 0.25, 1), 5))
    assert own == dict(model.entities(videos[1], (0.5, 0, 0.25, 1), 5, "a ball"))
    labels = [part for part in page.build(answers).blocks.values() if isinstance(part, gradio.Label)]
    assert [label.label for label in labels][-2:] == ["Prompter", "Pre-trained model"]


def test_an_uploaded_video_is_asked_like_a_file(answers, videos, tmp_path):
    key = answers.upload(shutil.copy(videos[2], tmp_path / "My Video.MP4"))
    assert answers.ask(key, "what moves?") == dict(answers.models.ask.ask(videos[2], "what moves?", 5))
    assert not (tmp_path / "My Video.MP4").exists()


def test_mistakes_are_messages_without_paths(answers, tmp_path):
    bad = tmp_path / "bad.mp4"
    for call_, text in {
        lambda: answers.search(" "): "Write what the videos should show.",
        lambda: answers.search("a" * (MAX_TEXT + 1)): "This text has 501 characters; at most 500 are allowed.",
        lambda: answers.ask("", "what?"): "Upload a video, or choose a clip of the search results.",
        lambda: answers.ask("clips/0", ""): "Write a question.",
        lambda: answers.ask("uploads/abc", "what?"): "This clip is no longer available: choose or upload it again.",
        lambda: answers.entities("clips/0", "0.5,0,0.6,1"): "0.5,0,0.6,1 is not a region of the frame: it takes "
        "left, top, width and height as fractions, such as 0.5, 0, 0.5, 1",
        lambda: answers.pick(5): "This clip is no longer available: choose or upload it again.",
        lambda: answers.pick("../x"): "This clip is no longer available: choose or upload it again.",
        lambda: answers.upload(bad): "This file cannot be decoded: unreadable (moov atom not found).",
    }.items():
        bad.write_text("no video")
        with pytest.raises(Mistake) as mistake:
            call_()
        assert str(mistake.value) == text


def test_a_clip_has_a_file_that_browsers_play_and_a_frame(answers, videos, tmp_path):
    media = answers.media
    assert media.original("clips/0") == (videos[0], "video/mp4")
    assert (media.fragment("clips/0"), media.fragment("clips/3")) == ("", "#t=0.5,1")
    assert media.preview("clips/3").read_bytes()[:4] == b"\x1aE\xdf\xa3"  # WebM
    assert media.preview("clips/3").stat().st_size < media.preview("clips/0").stat().st_size  # the second half
    assert (media.plays("clips/4"), media.original("clips/4")) == (False, None)
    for key in ("clips/0", "clips/4"):
        assert media.frame(key).read_bytes()[:3] == b"\xff\xd8\xff"  # JPEG
    assert media.preview("clips/4") == media.frame("clips/4")
    assert media.name("clips/3") == f"{videos[0].name} 0.5-1 s"
    for key in (
        "clips/5",
        "clips/-1",
        "clips/x",
        "clips/",
        "clips/²",
        "uploads/x",
        "",
        "clips/0/..",
        f"clips/{videos[0]}",
    ):
        with pytest.raises(Unknown):
            media.source(key)


def test_a_clip_of_a_decoded_corpus_is_an_animation(answers, clips, tmp_path):
    from alpro.inference.index_videos import scan_videos

    items = list(scan_videos(clips))
    index = type("Few", (), {"item": staticmethod(items.__getitem__), "__len__": lambda self: len(items)})()
    media = Media(index, tmp_path, answers.media.video)
    assert (media.plays("clips/0"), media.original("clips/0"), media.name("clips/0")) == (False, None, items[0]["id"])
    assert media.preview("clips/0").read_bytes()[8:12] == b"WEBP"
    assert media.frame("clips/0").read_bytes()[:3] == b"\xff\xd8\xff"


def test_old_uploads_are_deleted(answers, tmp_path):
    keys = []
    for number in range(MAX_UPLOADS + 1):
        (tmp_path / f"{number}.mp4").write_bytes(b"x")
        keys.append(answers.media.add_upload(tmp_path / f"{number}.mp4"))
    with pytest.raises(Unknown):
        answers.media.source(keys[0])
    assert len(list(tmp_path.glob("*/upload.mp4"))) == MAX_UPLOADS


def test_the_page_plays_the_index_and_loads_nothing_from_elsewhere(client, videos, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"a request to {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    page = client.get("/")
    assert page.status_code == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers
    config = client.get("/config").json()
    assert (config["analytics_enabled"], config["footer_links"]) == (False, [])
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    assert "https://" not in client.get("/theme.css").text
    part = client.get("/media/clips/0", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert client.get("/media/clips/1").content == videos[1].read_bytes()
    assert client.get("/media/clips/0/preview").headers["content-type"] == "video/webm"
    assert client.get("/media/clips/0/frame").headers["content-type"] == "image/jpeg"


SECRET = "/etc/passwd"


@pytest.mark.parametrize(
    "path",
    [
        *(f"/gradio_api/file={path}" for path in (SECRET, f"..{SECRET}", f"%2e%2e{SECRET}", "http://127.0.0.1/")),
        *(
            f"/{place}{SECRET}"
            for place in ("file=", "gradio_api/file", "static/", "assets/", "static/..", "assets/%2e%2e")
        ),
        *(
            f"/media/{place}"
            for place in ("clips/9", "clips/-1", f"clips/..{SECRET}", "clips/..%2f..%2fx", "uploads/x")
        ),
        *(f"/media/clips/{place}" for place in ("4", "0%00", "0/preview/x", "0/other")),
        *(f"/gradio_api/{name}" for name in ("info", "openapi.json", "proxy=http://127.0.0.1/", "app_id")),
        *(
            f"/{name}"
            for name in (
                "docs",
                "openapi.json",
                "api",
                "api/",
                "api/redoc",
                "monitoring",
                "runs",
                "gradio_api/runs",
                "svelte/x",
                "login",
            )
        ),
        "/gradio_api/deep_link?session_hash=x",
        "/custom_component/x/client/component/index.js",
    ],
)
def test_no_other_address_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["call/run", "run/run", "api/run", "component_server", "call/v2/run"])
def test_functions_are_not_called_by_name(client, path):
    assert client.post(f"/gradio_api/{path}", json={"data": ["a"]}).status_code == 404


def test_pages_of_other_sites_are_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null", "http://[", "http://127.0.0.1:99999"):
        assert client.post("/gradio_api/queue/join", json={}, headers={"Origin": origin}).status_code == 403


def event_number(client, kind):
    """The number of the event of a kind, as the page sends it."""
    events = client.get("/config").json()["dependencies"]
    return next(event["id"] for event in events if event["targets"][0][1] == kind)


def send(client, kind, *data):
    body = {"data": data, "fn_index": event_number(client, kind), "session_hash": "abc"}
    return client.post("/gradio_api/queue/join", json=body)


@pytest.mark.parametrize("path", [SECRET, "http://127.0.0.1:9/a.mp4", "https://example.com/a.mp4", 3, None])
@pytest.mark.parametrize("field", ["path", "url"])
def test_only_uploaded_files_are_read(client, field, path):
    file = {field: path, "meta": {"_type": "gradio.FileData"}}
    assert send(client, "upload", file).status_code == 400
    assert send(client, "submit", {"nested": [file]}).status_code == 400


@pytest.mark.parametrize("number", [10**20, -1, "0", 1.5, True, [0]])
def test_a_function_that_no_page_has_is_refused(client, number):
    body = {"data": [], "fn_index": number, "session_hash": "abc"}
    assert client.post("/gradio_api/queue/join", json=body).status_code in (400, 404, 422)


def test_uploads_that_nobody_uses_are_deleted(client, answers):
    paths = []
    for number in range(MAX_UPLOADS + 3):
        (path,) = client.post("/gradio_api/upload", files={"files": ("a.mp4", b"%d" % number)}).json()
        paths.append(client.uploads / path)
        os.utime(paths[-1], ns=(number, number))
    assert [path.is_file() for path in paths] == [False] * 3 + [True] * MAX_UPLOADS
    with pytest.raises(Mistake, match="no longer available: choose or upload it again"):
        answers.upload(str(paths[0]))


def test_a_connection_without_a_request_is_closed(monkeypatch):
    monkeypatch.setattr(command, "IDLE_TICKS", 3)
    server = command.Server(uvicorn.Config(lambda: None), Turns())
    closed: list[str] = []

    class Connection:
        def __init__(self, name, cycle):
            self.cycle, self.transport = cycle, SimpleNamespace(close=lambda: closed.append(name))

    server.server_state.connections = {Connection("idle", None), Connection("busy", 1)}
    for _ in range(3):
        asyncio.run(server.on_tick(0))
    assert closed == []
    asyncio.run(server.on_tick(0))
    assert closed == ["idle"]


def test_uploads_and_requests_have_a_largest_size(client):
    small = client.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1000)})
    assert small.status_code == 200
    (path,) = small.json()
    assert str(client.uploads) not in small.text
    assert (client.uploads / path).read_bytes() == b"x" * 1000
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert send(client, "upload", file).status_code == 200
    for other in (f"../{client.uploads.name}x/a", "..", f"{path}/../../.."):
        assert send(client, "upload", file | {"path": other}).status_code == 400
    assert client.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * (3 << 20))}).status_code == 413
    assert send(client, "submit", "a" * (70 << 10)).status_code == 413
    assert client.post("/gradio_api/queue/join", content=b"[" * 50_000, headers=JSON).status_code == 400


def test_wrong_input_is_one_line(monkeypatch, capsys, trained, index, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    write_json(empty / "index.json", {"model": "x", "digest": "y", "embed_dim": 16})
    taken = socket.create_server(("127.0.0.1", 0))
    own = ["--workspace", trained, "--device", "cpu", "--port", 7999]
    for arguments, message in {
        (): "nothing to serve; name an INDEX to search, or models with --ask and --entities",
        ("--model", RETRIEVAL): "--model is that of an index; name the INDEX",
        (tmp_path / "none",): "no index.json; `alpro index add",
        (empty,): "the index is empty; `alpro index add` adds videos to it",
        (index, "--model", "0000"): "0000: no such folder, and no artifact starts with it",
        (index, "--model", QA): "this index is of another model",
        (index, "--ask", PROMPTER): "model does not answer questions; --ask takes a model of",
        (index, "--entities", QA): f"{QA}: no prompter with embedded entities; --entities takes a train_prompter",
        (index, "--port", taken.getsockname()[1]): "is in use or not allowed (Address already in use); choose",
    }.items():
        status, _, err = call(monkeypatch, capsys, "serve", *own, *arguments)
        assert status == 2, arguments
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert message in err
    taken.close()


def test_without_gradio_the_line_names_the_extra(monkeypatch, capsys, trained, index):
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = call(monkeypatch, capsys, "serve", index, "--workspace", trained, "--port", 7999)
    assert status == 2
    assert err.startswith("error: no Gradio (")
    assert err.endswith("pip install 'alpro-pipeline[serve]'\n")
