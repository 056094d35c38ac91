"""Requests of `alpro serve` take turns: places, uploads that are slow or take long to decode,
clients that go away."""

import asyncio
import errno
import os
import threading
from functools import partial

import pytest

from alpro import Model
from alpro.pipeline.serving import requests as module
from tests.pipeline.conftest import wait_for

TEXT = "a red ball moves left"
SHOT = {"text": TEXT}


def test_too_many_requests_are_refused_at_once_and_the_others_are_answered(client, app):
    """Two places: one computes, one waits. Uploads that do not end hold none of them."""
    queue = app.state.queue
    started = threading.Event()
    go_on = threading.Event()
    results = []
    queue.free_places = 2
    queue.models.submit(lambda: (started.set(), go_on.wait()))
    started.wait()
    ask = partial(client.get, "/api/search", params=SHOT)
    waiting = [threading.Thread(target=lambda: results.append(ask())) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: not queue.free_places)
    refused = ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.get("/api/health").status_code == 200  # needs no place
    go_on.set()
    for thread in waiting:
        thread.join()
    assert [answer.status_code for answer in results] == [200, 200]
    assert queue.free_places == 2


def call(app, messages):
    return asyncio.run(answer(app, messages))


async def answer(app, messages, path="/api/search"):
    """The statuses of a POST whose body arrives as these messages; one that is None never
    arrives."""
    sent = []
    left = list(messages)

    async def receive():
        if left and left[0] is None:
            await asyncio.Event().wait()
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
    }
    scope |= {
        "headers": [(b"host", b"127.0.0.1")],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    ends = {"server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2)}
    await app(scope | ends, receive, send)
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


def test_uploads_are_bounded_in_size_time_and_number_and_deleted(app, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(module, "MAX_UPLOAD", 10)
    part = {"type": "http.request", "body": b"123456", "more_body": True}
    assert call(app, [part, part, None]) == [413]
    # The client stays, however long the decoder takes.
    assert call(app, [part, part | {"body": b"1234", "more_body": False}, None]) == [400]
    assert call(app, [part, {"type": "http.disconnect"}]) == [408]
    monkeypatch.setattr(module, "UPLOAD_SECONDS", 0.01)
    assert call(app, [part, None]) == [408]
    assert (app.state.queue.free_places, app.state.queue.free_uploads) == (
        module.MAX_WAITING + 1,
        module.MAX_UPLOADS,
    )
    app.state.queue.free_uploads = 0
    assert call(app, [None]) == [429]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 413), (errno.ENOENT, 503)])
def test_a_disk_that_takes_no_upload_is_one_line(number, status, client, monkeypatch):
    """A folder for temporary files that is full, or gone."""

    def fail(**_):
        raise OSError(number, os.strerror(number), "/tmp/secret")

    monkeypatch.setattr(module, "NamedTemporaryFile", fail)
    answer = client.post("/api/search", content=b"x" * 100)
    assert answer.status_code == status
    assert os.strerror(number) in answer.json()["detail"]
    assert "secret" not in answer.text
    assert client.get("/api/search", params={"text": "a dog"}).status_code == 200


def test_slow_uploads_give_up_their_place_to_others(app, videos, monkeypatch):
    """Also while they are fewer than the places: a body must arrive at a minimal rate."""
    queue = app.state.queue
    part = {"type": "http.request", "body": b"x", "more_body": True}
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.01)
    assert call(app, [part, None]) == [408]

    monkeypatch.setattr(module, "GRACE_SECONDS", 10.0)
    monkeypatch.setattr(module, "SLOW_AFTER", -1.0)
    queue.free_uploads = 1
    body = {"type": "http.request", "body": videos[0].read_bytes(), "more_body": False}

    async def both():
        dripping = asyncio.create_task(answer(app, [part, None]))
        while not queue.receiving:
            await asyncio.sleep(0)
        return await asyncio.gather(answer(app, [body, None]), dripping)

    assert asyncio.run(both()) == [[200], [408]]
    assert queue.free_uploads == 1


def test_an_upload_that_takes_long_to_decode_stops_no_search(client, app, models, monkeypatch):
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
    assert client.get("/api/search", params=SHOT).status_code == 200
    for path in ("search?clip=0", "ask?clip=0&question=what", "clip/0?view=still"):
        assert client.get(f"/api/{path}").status_code == 200
    searched.set()
    for upload in uploads:
        upload.join()
    assert statuses == [400] * module.DECODERS


def test_a_client_that_goes_away_gives_up_its_turn(app, videos):
    queue = app.state.queue
    go_on = threading.Event()
    computed = []
    queue.models.submit(go_on.wait)
    body = videos[0].read_bytes()
    statuses = call(app, [{"type": "http.request", "body": body, "more_body": False}])
    go_on.set()
    queue.models.submit(computed.append, 1).result()
    assert (statuses, computed, queue.free_places) == ([499], [1], 33)
