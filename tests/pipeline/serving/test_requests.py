"""Requests of `alpro serve` take turns: places, uploads that are slow or take long to decode,
clients that go away."""

import asyncio
import errno
import os
import threading
from functools import partial

from alpro import Model
from alpro.pipeline.serving import requests as module
from tests.pipeline.conftest import wait_for

TEXT = {"text": "a red ball moves left"}
PART = {"type": "http.request", "body": b"123456", "more_body": True}


def test_too_many_requests_are_refused_at_once_and_the_others_are_answered(
    client, app, monkeypatch
):
    """Two places: one request is computed, one waits."""
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    queue = app.state.queue
    started = threading.Event()
    go_on = threading.Event()
    queue.models.submit(lambda: (started.set(), go_on.wait()))
    started.wait()
    results = []
    ask = partial(client.get, "/api/search", params=TEXT)
    waiting = [threading.Thread(target=lambda: results.append(ask())) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: queue.waiting == 2)

    refused = ask()

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.get("/api/health").status_code == 200  # needs no place
    go_on.set()
    for thread in waiting:
        thread.join()
    assert [answer.status_code for answer in results] == [200, 200]
    assert queue.waiting == 0


def post(app, *messages):
    """The statuses of a POST whose body arrives as these messages; None never arrives."""
    sent = []
    pending = list(messages)

    async def receive():
        if pending and pending[0] is None:
            await asyncio.Event().wait()
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b""}
    scope |= {"headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http"}
    scope |= {"server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": ""}
    asyncio.run(app(scope, receive, send))
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


def test_uploads_are_bounded_in_size_time_and_number_and_deleted(app, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(module, "MAX_UPLOAD_BYTES", 10)
    assert post(app, PART, PART, None) == [413]
    assert post(app, PART, PART | {"body": b"1234", "more_body": False}, None) == [400]
    assert post(app, PART, {"type": "http.disconnect"}) == [408]
    monkeypatch.setattr(module, "UPLOAD_SECONDS", 0.01)
    assert post(app, PART, None) == [408]
    assert (app.state.queue.waiting, app.state.queue.uploads) == (0, 0)
    monkeypatch.setattr(module, "MAX_UPLOADS", 0)
    assert post(app, None) == [429]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_upload_is_one_line(client, monkeypatch):
    def fail(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/secret")

    monkeypatch.setattr(module, "NamedTemporaryFile", fail)
    answer = client.post("/api/search", content=b"x" * 100)
    assert (answer.status_code, "No space left" in answer.json()["detail"]) == (503, True)
    assert "secret" not in answer.text
    assert client.get("/api/search", params=TEXT).status_code == 200


def test_an_upload_that_takes_long_to_decode_stops_no_search(client, keys, monkeypatch):
    """Searches, questions and pictures are answered while all threads decode uploads."""
    decoding = threading.Semaphore(0)
    searched = threading.Event()
    real = Model.frames

    def slow(self, file, limits):
        if file.id == "upload":
            assert limits.timeout <= 10
            decoding.release()
            assert searched.wait(60)
        return real(self, file, limits)

    monkeypatch.setattr(Model, "frames", slow)
    statuses = []
    uploads = []
    for _ in range(module.DECODERS):
        upload = threading.Thread(
            target=lambda: statuses.append(client.post("/api/search", content=b"x").status_code)
        )
        upload.start()
        uploads.append(upload)
        assert decoding.acquire(timeout=60)

    clip = keys[0]
    for path in ("search?text=a", f"search?clip={clip}", f"ask?clip={clip}&question=what"):
        assert client.get(f"/api/{path}").status_code == 200
    assert client.get(f"/api/clip/{clip}?view=still").status_code == 200
    searched.set()
    for upload in uploads:
        upload.join()
    assert statuses == [400] * module.DECODERS


def test_a_client_that_goes_away_gives_up_its_turn(app, videos, monkeypatch):
    monkeypatch.setattr(app.state.queue, "models", None)  # nothing is computed
    body = videos[0].read_bytes()
    statuses = post(app, {"type": "http.request", "body": body, "more_body": False})
    assert (statuses, app.state.queue.waiting) == ([499], 0)
