"""Limits of requests to `alpro serve`: places in the queue, and bodies that are slow or large."""

import asyncio
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from alpro.pipeline.serving import requests as module
from alpro.pipeline.serving.app import application
from tests.pipeline.conftest import wait_for

TEXT = {"text": "a red ball moves left"}
PART = {"type": "http.request", "body": b"123456", "more_body": True}
LAST = {"type": "http.request", "body": b"1234", "more_body": False}
GONE = {"type": "http.disconnect"}


@pytest.fixture
def hold(models, monkeypatch):
    """Event that lets a search go on: until then, it holds the models."""
    go_on = threading.Event()
    search = models.search.search

    def wait(*arguments, **options):
        assert go_on.wait(60)
        return search(*arguments, **options)

    monkeypatch.setattr(models.search, "search", wait)
    return go_on


def test_too_many_requests_are_refused_at_once_and_the_others_are_answered(
    models, hold, monkeypatch
):
    """Two places: one request is computed, one waits."""
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    client = TestClient(application(models))
    with ThreadPoolExecutor(3) as threads:
        searches = [
            threads.submit(client.get, "/api/search", params=TEXT) for _ in range(3)
        ]
        wait_for(lambda: any(search.done() for search in searches))
        assert client.get("/api/health").status_code == 200  # needs no place
        hold.set()
        answers = [search.result() for search in searches]

    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    refused = max(answers, key=lambda answer: answer.status_code)
    assert refused.headers["retry-after"] == "1"
    assert client.get("/api/search", params=TEXT).status_code == 200


def post(app, *messages):
    """The statuses of a POST whose body arrives as these messages; None never arrives."""
    sent = []
    pending = list(messages)

    async def receive():
        if pending and pending[0] is None:
            await asyncio.Event().wait()
        return pending.pop(0) if pending else GONE

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/search",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    asyncio.run(app(scope, receive, send))
    return [message["status"] for message in sent if "status" in message]


@pytest.mark.parametrize(
    ("limits", "messages", "status"),
    [
        ({"MAX_UPLOAD_BYTES": 10}, [PART, PART, None], 413),
        ({"MAX_UPLOAD_BYTES": 10}, [PART, LAST, None], 400),  # it is no video
        ({}, [PART, GONE], 408),
        ({"UPLOAD_SECONDS": 0.01}, [PART, None], 408),
        ({"MAX_WAITING": 0}, [None], 429),
    ],
)
def test_uploads_are_bounded_in_size_time_and_number_and_deleted(
    limits, messages, status, models, monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)
    app = application(models)
    for _ in range(33):  # more than there are places
        assert post(app, *messages) == [status]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_upload_is_one_line(client, monkeypatch):
    def fail(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/secret")

    monkeypatch.setattr(module, "NamedTemporaryFile", fail)
    answer = client.post("/api/search", content=b"x" * 100)
    assert answer.status_code == 503
    assert "No space left" in answer.text
    assert "secret" not in answer.text
