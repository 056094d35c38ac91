"""Prefect's server of this machine answers programs and its own page, and no page of another site."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from alpro.pipeline.servers import prefect_server as server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:4200"}, 200),
        ({"host": "localhost:4200"}, 200),
        ({"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:4200"}, 200),
        ({"host": "localhost:4200", "origin": "http://127.0.0.1:4200"}, 200),
        ({"host": "evil.example"}, 403),  # made to resolve to 127.0.0.1
        ({"host": "127.0.0.1:4200", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:8000"}, 403),  # another server of this machine
        ({"host": "127.0.0.1:4200", "origin": "null"}, 403),  # a file, or a frame
        ({"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:99999"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://["}, 403),
        ({"host": "127.0.0.1:x"}, 403),
        ({}, 403),
    ],
)
def test_hosts_and_origins(headers, status, monkeypatch):
    sent = []

    async def send(message):
        sent.append(message)

    monkeypatch.setattr(server, "create_app", lambda: PlainTextResponse("Prefect"))
    scope = {"type": "http", "method": "POST", "path": "/api/flows/"}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(server.LocalApp()(scope, None, send))
    assert sent[0]["status"] == status
