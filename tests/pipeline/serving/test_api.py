"""The JSON API: its answers are those of Python, and what it refuses."""

import asyncio
import base64
import json
import os
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from alpro.inference.search import search
from alpro.pipeline.cli.serve import token_of
from alpro.pipeline.serving import api, server
from alpro.pipeline.serving.allowed_requests import Requests
from alpro.pipeline.serving.mistakes import Busy, Stopping
from alpro.pipeline.serving.turns import MAX_BODY, Queued, Turns
from tests.pipeline.test_cli import call

TEXT = "a red ball moves left"


@pytest.fixture
def client(answers, tmp_path):
    """The API without the page."""
    app = Requests(Starlette(), api.build(answers, 1 << 20), answers.media, "127.0.0.1", tmp_path)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def found(answer):
    assert answer.status_code == 200, answer.text
    return [(hit["clip"], hit["similarity"], hit["match"]) for hit in answer.json()["hits"]]


def test_a_search_has_the_hits_of_python(client, answers):
    expected = search(answers.models.index, answers.models.search, TEXT, 10)
    hits = [(hit.number, hit.similarity, hit.match) for hit in expected.hits]
    assert found(client.get("/api/search", params={"text": TEXT})) == hits
    answer = client.post("/api/search", json={"text": TEXT})
    assert found(answer) == hits
    body = answer.json()
    assert (body["clips"], body["nothing_fits"]) == (5, None)
    by_number = {hit["clip"]: hit for hit in body["hits"]}
    assert (by_number[4]["id"], by_number[4]["kind"], by_number[4]["columns"]) == ("red", "image", {})
    assert by_number[2]["columns"] == {"date": "2024-03-01", "views": "30"}
    assert by_number[3]["start"] == 0.5


@pytest.mark.parametrize("rerank", [0, 3, 20])
def test_pages_have_all_results_once_in_order(client, rerank):
    params = {"text": TEXT, "rerank": rerank}
    whole = found(client.get("/api/search", params=params))
    parts = [found(client.get("/api/search", params=params | {"k": 2, "offset": at})) for at in (0, 2, 4, 6)]
    assert [len(part) for part in parts] == [2, 2, 1, 0]
    assert [one[:2] for part in parts for one in part] == [one[:2] for one in whole]
    assert parts[0] == whole[:2]


def test_a_filtered_search_ranks_the_clips_that_fit(client):
    whole = found(client.get("/api/search", params={"text": TEXT, "rerank": 0}))
    for filters, clips in {
        ("kind=image",): {4},
        ("date>=2024-02-01",): {1, 2},
        ("views<30", "kind=video"): {0, 1},
        ("path~*.png",): {4},
        ("start>0",): {3},
        ("views=7",): set(),
    }.items():
        answer = client.get("/api/search", params={"text": TEXT, "rerank": 0, "filter": filters})
        assert found(answer) == [hit for hit in whole if hit[0] in clips]
        assert answer.json()["clips"] == len(clips)
        assert {hit[0] for hit in found(client.post("/api/search", json={"text": TEXT, "filter": filters}))} == clips
    answer = client.get("/api/search", params={"text": TEXT, "filter": "color=red"})
    assert (answer.status_code, "no column 'color'" in answer.json()["detail"]) == (400, True)


def test_clips_and_uploads_have_similar_clips(client, answers, videos):
    own = answers.models.search.embed_videos([videos[0]])[0]
    others = [answers.models.index.embedding(n) for n in range(5)]
    expected = sorted(((n, float(own.numpy() @ e)) for n, e in enumerate(others)), key=lambda pair: -pair[1])
    upload = client.post("/api/similar", files={"file": ("a.MP4", videos[0].read_bytes())}, data={"k": "5"})
    assert [clip for clip, *_ in found(upload)] == [n for n, _ in expected]
    assert [score for _, score, _ in found(upload)] == pytest.approx([score for _, score in expected], abs=1e-5)
    by_number = found(client.get("/api/similar", params={"clip": 0}))
    assert [clip for clip, *_ in by_number] == [n for n, _ in expected if n != 0]
    assert found(client.get("/api/similar", params={"id": answers.models.index.item(0)["id"]})) == by_number
    assert found(client.get("/api/similar", params={"clip": 0, "offset": 1, "k": 2})) == by_number[1:3]
    assert found(client.get("/api/similar", params={"clip": 0, "filter": "kind=image"}))[0][0] == 4
    assert list(answers.media.folder.glob("*/upload.*")) == []


def test_questions_and_entities_of_clips_and_uploads(client, answers, videos):
    expected = [{"text": text, "probability": p} for text, p in answers.models.ask.ask(videos[1], "what moves?", 2)]
    body = {"question": "what moves?", "k": 2}
    assert client.get("/api/ask", params=body | {"clip": 1}).json() == {"answers": expected}
    file = {"file": (videos[1].name, videos[1].read_bytes())}
    assert client.post("/api/ask", data=body, files=file).json() == {"answers": expected}
    box = (0.5, 0.0, 0.5, 1.0)
    named = [{"text": text, "probability": p} for text, p in answers.models.entities.entities(videos[1], box, 3)]
    body = {"box": "0.5,0,0.5,1", "k": 3}
    assert client.get("/api/entities", params=body | {"clip": 1}).json()["entities"] == named
    assert client.post("/api/entities", data=body, files=file).json() == {"entities": named, "model_entities": None}


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("search", {"text": " "}, 400),
        ("search", {}, 422),
        ("search", {"text": "a" * 501}, 422),
        ("search", {"text": "a", "k": 101}, 422),
        ("search", {"text": "a", "offset": -1}, 422),
        ("search", {"text": "a", "limit": 3}, 422),
        ("search", {"text": "a", "filter": "x"}, 400),
        ("similar", {"clip": 5}, 404),
        ("similar", {"id": "none"}, 404),
        ("similar", {}, 400),
        ("similar", {"clip": 1, "id": "red"}, 400),
        ("entities", {"clip": 1, "box": "1,2,3,4"}, 400),
        ("ask", {"clip": 1, "question": ""}, 400),
        ("other", {}, 404),
    ],
)
def test_a_wrong_request_is_refused(client, path, params, status):
    answer = client.get(f"/api/{path}", params=params)
    assert (answer.status_code, "detail" in answer.json()) == (status, True)


def test_uploads_and_bodies_have_a_largest_size(client, answers):
    large = {"file": ("a.mp4", b"x" * (2 << 20))}
    assert client.post("/api/ask", data={"question": "what?"}, files=large).status_code == 413
    assert client.post("/api/search", json={"text": "a" * MAX_BODY}).status_code == 413
    for name, message in {"a.mp4": "This file cannot be decoded", "a.txt": "has no extension of a video"}.items():
        answer = client.post("/api/similar", files={"file": (name, b"no video")})
        assert (answer.status_code, message in answer.json()["detail"]) == (400, True)
        assert str(answers.media.folder) not in answer.text
    assert answers.turns.taken == 0


def test_pages_of_other_sites_do_not_reach_the_api(client):
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        assert client.get("/api/health", headers=headers).status_code == 403


def test_the_api_is_described_without_other_machines(client):
    about = client.get("/api/openapi.json").json()
    assert set(about["paths"]) == {f"/api/{name}" for name in ("health", "search", "similar", "ask", "entities")}
    assert about["openapi"].startswith("3.")
    schemas = set(about["components"]["schemas"])
    used = {text.partition('"')[0] for text in json.dumps(about).split("#/components/schemas/")[1:]}
    assert used <= schemas
    page = client.get("/api/docs").text
    assert "<script" not in page
    assert "http" not in page
    for name in (*about["paths"], "nothing_fits", "multipart/form-data", "left,top,width,height"):
        assert name in page


def test_health(client, answers):
    answers.models.digests = {"search": "abc"}
    answer = client.get("/api/health")
    assert answer.json() == {"status": "ok", "version": "0.1.0", "clips": 5, "models": {"search": "abc"}}
    answers.turns.stopping = True
    assert (client.get("/api/health").status_code, client.get("/api/health").json()["status"]) == (503, "stopping")
    assert client.get("/api/search", params={"text": TEXT}).status_code == 503


def test_a_token_is_required_everywhere(answers, tmp_path, monkeypatch):
    token = "0123456789abcdef"
    monkeypatch.setattr(os, "environ", os.environ.copy())
    server.prepare_gradio(tmp_path)
    app = server.application(answers, "0.0.0.0", tmp_path, 1, token)

    def basic(password):
        return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()

    with TestClient(app, base_url="http://videos.example:7860") as client:
        for path in ("/", "/config", "/api/health", "/api/docs", "/media/clips/0", "/gradio_api/startup-events"):
            for wrong in (None, "Bearer ", f"Bearer {token[:-1]}", f"Bearer {token}x", basic("x"), "Basic !", token):
                answer = client.get(path, headers={"Authorization": wrong} if wrong else {})
                assert answer.status_code == 401, (path, wrong)
                assert answer.headers["www-authenticate"].startswith("Basic")
            for right in (f"Bearer {token}", f"bearer {token}", basic(token)):
                assert client.get(path, headers={"Authorization": right}).status_code == 200, path


@pytest.mark.parametrize(
    ("host", "file", "variable", "expected"),
    [
        ("127.0.0.1", None, "", ""),
        ("127.0.0.1", None, "v" * 16, "v" * 16),
        ("0.0.0.0", "f" * 16 + "\nsecond line", "v" * 16, "f" * 16),
        ("0.0.0.0", None, "", "other machines need a token"),
        ("192.0.2.1", None, "short", "the token has 5 characters; use 16 or more"),
        ("127.0.0.1", "", "v" * 16, "the token has 0 characters"),
    ],
)
def test_other_machines_need_a_token(host, file, variable, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("ALPRO_TOKEN", variable)
    path = tmp_path / "token" if file is not None else None
    if path:
        path.write_text(file)
    arguments = SimpleNamespace(host=host, token_file=path)
    if " " in expected:
        with pytest.raises(Exception, match=expected):
            token_of(arguments)
    else:
        assert token_of(arguments) == expected


def test_a_missing_token_file_is_one_line(monkeypatch, capsys, index, tmp_path):
    status, _, err = call(monkeypatch, capsys, "serve", index, "--token-file", tmp_path / "none")
    assert (status, err) == (2, f"error: --token-file {tmp_path / 'none'}: No such file or directory\n")


def test_too_many_requests_are_refused_at_once_and_the_others_are_answered(client, answers):
    """Two places: a search that computes, and one that waits."""
    started, go_on = threading.Event(), threading.Event()
    answers.turns.places = 2
    answers.turns.thread.submit(lambda: (started.set(), go_on.wait(60)))
    started.wait(60)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(client.get("/api/search", params={"text": TEXT})))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while answers.turns.taken < 2:
        pass
    refused = client.get("/api/search", params={"text": TEXT})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["detail"] == "Too many requests are waiting; try again in a moment."
    with pytest.raises(Busy):
        answers.turns.call(lambda: None)
    assert client.get("/api/health").status_code == 200  # needs no place
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in results] == [200, 200]
    assert answers.turns.taken == 0


def test_a_client_that_goes_away_gives_up_its_turn():
    """While another function runs, a client sends a request and closes the connection."""
    computed, go_on = [], threading.Event()

    async def trial():
        turns, sent = Turns(), []
        turns.thread.submit(go_on.wait, 60)

        async def app(scope, receive, send):
            await turns.run(lambda: computed.append(scope["path"]))
            await send({"type": "http.response.start", "status": 200, "headers": []})

        messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/api/search", "method": "GET", "headers": []}
        await Queued(app, turns, frozenset(), 1000)(scope, receive, send)
        assert (turns.taken, sent) == (0, [])
        go_on.set()
        await turns.run(lambda: None)
        turns.stopping = True
        with pytest.raises(Stopping), turns.place():
            pass

    asyncio.run(trial())
    assert computed == []


def test_the_server_ends_when_the_queue_is_empty():
    import signal

    import uvicorn

    one = server.Server(uvicorn.Config(lambda: None), Turns())
    with one.turns.place():
        one.handle_exit(signal.SIGTERM, None)
        asyncio.run(one.on_tick(1))
        assert (one.turns.stopping, one.should_exit) == (True, False)
    asyncio.run(one.on_tick(1))
    assert one.should_exit
    other = server.Server(uvicorn.Config(lambda: None), Turns())
    with other.turns.place():
        other.handle_exit(signal.SIGINT, None)
        other.handle_exit(signal.SIGINT, None)
        assert other.should_exit


def test_what_no_model_does_names_the_missing_option(answers):
    answers.models.ask = None
    with TestClient(api.build(answers, 1 << 20)) as client:
        answer = client.get("/api/ask", params={"clip": 1, "question": "what moves?"})
        assert (answer.status_code, "without --ask MODEL" in answer.json()["detail"]) == (404, True)
        assert "/api/ask" not in client.get("/api/openapi.json").json()["paths"]
