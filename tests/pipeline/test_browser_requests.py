"""Requests of a page: what would run a command is refused, everything else reaches the app as it was sent."""

import asyncio
import json

import pytest

from alpro.pipeline.browser_requests import NoCommands, refused_key

ORIGIN = (b"origin", b"http://127.0.0.1:4200")


def send(body: bytes, headers: list[tuple[bytes, bytes]], pieces: int = 1) -> tuple[int, bytes]:
    """The status, and the body that the app received."""
    received, answers = [], []
    parts = [body[i::pieces] for i in range(1)] if pieces == 1 else [body[:5], body[5:]]
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def answer(message):
        answers.append(message)

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            received.append(message["body"])
            more = message["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "method": "POST", "path": "/api/x", "headers": headers}
    asyncio.run(NoCommands(app)(scope, receive, answer))
    return answers[0]["status"], b"".join(received)


@pytest.mark.parametrize(
    "body",
    [
        {"job_variables": {"command": "touch /tmp/x"}},
        {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}},
        {"base_job_template": {"job_configuration": {"command": "touch /tmp/x"}}},
        {"name": "x", "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/x"}}]},
        {"entrypoint": "os:system"},
        {"actions": [{"type": "run-deployment", "job_variables": {"command": "x"}}]},
    ],
)
def test_a_page_cannot_send_a_command(body):
    sent = json.dumps(body).encode()
    assert send(sent, [ORIGIN]) == (403, b"")
    assert send(sent, [ORIGIN], pieces=2) == (403, b"")
    assert send(sent, []) == (200, sent)  # a program, such as `prefect deploy`


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"config": "sample", "path": "x"}, "job_variables": {}, "state": {"type": "SCHEDULED"}},
        {"is_paused": True},
        {"sort": "ID_DESC", "pull_steps": None},
        [],
    ],
)
def test_a_page_can_start_and_watch_runs(body):
    sent = json.dumps(body).encode()
    assert send(sent, [ORIGIN]) == (200, sent)
    assert send(sent, [ORIGIN], pieces=2) == (200, sent)


def test_a_body_that_is_no_json_is_left_to_the_app():
    assert refused_key(b"") == refused_key(b"{") == refused_key(b"\xff\xfe") == ""
