"""Requests to servers of this machine, past any proxy."""

import json
import time
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SECONDS = 10.0
BUSY_DELAYS = (0.1, 0.5, 2.0)  # seconds before a busy server is asked again


def answers(url: str) -> bool:
    """Whether a server answers a request."""
    try:
        with OPENER.open(url, timeout=SECONDS) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


def request(url: str, method: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that a server answers to a request; None if it does not answer, as when it has ended. One that is busy
    (503: Prefect's, if SQLite cannot wait for another transaction) is asked again."""
    data = None if body is None else json.dumps(body).encode()
    wanted = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    for delay in (*BUSY_DELAYS, None):
        try:
            with OPENER.open(wanted, timeout=SECONDS) as answer:
                return json.loads(answer.read() or "null")
        except HTTPError as error:
            if error.code != 503 or delay is None:
                return None
            time.sleep(delay)
        except (OSError, HTTPException):
            return None
    return None
