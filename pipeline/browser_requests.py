"""Refuses the requests of a browser that would run a command.

Prefect's API can start any program: a work pool's template and a run's job variables have a command and an environment,
and a deployment has steps and code to load. The page needs none of that to start, watch and cancel runs, so only
programs may send it: `prefect deploy`, `prefect work-pool`. A browser names the page in the header Origin of every
request that changes something, and no page can leave the header out.
"""

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Keys of request bodies. Empty values are allowed: the page sends them.
REFUSED = {"job_variables", "infra_overrides", "base_job_template", "pull_steps", "entrypoint", "path"}
REFUSED |= {"storage_document_id", "infrastructure_document_id"}


class NoCommands:
    """The app, without the requests of pages that contain one of the refused keys."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not any(name == b"origin" for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        if key := refused_key(b"".join(message.get("body", b"") for message in messages)):
            detail = f"{key}: a page may not set this; use the command prefect in a terminal"
            await JSONResponse({"detail": detail}, status_code=403)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)


def refused_key(body: bytes) -> str:
    """The first refused key in a JSON body that has a value; empty if there is none."""
    try:
        return next(refused_keys(json.loads(body)), "")
    except ValueError:  # Prefect refuses it, too
        return ""


def refused_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in REFUSED and inner:
                yield key
            elif key != "parameters":  # those of the flow: the worker checks them (access.py)
                yield from refused_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refused_keys(inner)
