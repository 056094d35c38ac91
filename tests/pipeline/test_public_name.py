"""`alpro serve` behind a proxy with TLS, with the requests that nginx and Caddy pass on."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alpro.errors import InputError
from alpro.pipeline.cli.serve import check_public_name
from alpro.pipeline.serving.guard import guarded

TOKEN = "0123456789abcdef"
SAME = {"Sec-Fetch-Site": "same-origin"}


def ask(public_name, **headers):
    """The status of an upload from the page."""
    app = FastAPI()
    app.post("/api/search")(lambda: {})
    client = TestClient(guarded(app, "127.0.0.1", TOKEN, public_name))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    return client.post("/api/search", headers=authorized | SAME | named).status_code


@pytest.mark.parametrize(
    ("host", "name", "origin", "status"),
    [
        ("search.example.com", "search.example.com", "https://search.example.com", 200),
        # Nginx.
        ("127.0.0.1:7860", "Search.Example.com", "https://search.example.com", 200),
        # On the machine.
        ("localhost:7860", "search.example.com", "http://localhost:7860", 200),
        ("search.example.com", "", "https://search.example.com", 400),
        ("127.0.0.1:7860", "", "https://search.example.com", 403),
        ("other.example.com", "search.example.com", "https://search.example.com", 400),
        # Without TLS.
        ("127.0.0.1:7860", "search.example.com", "http://search.example.com", 403),
        (
            "127.0.0.1:7860",
            "search.example.com",
            "https://search.example.com.evil.com",
            403,
        ),
    ],
)
def test_only_requests_of_the_page_of_the_proxy_are_taken(host, name, origin, status):
    assert ask(name, Host=host, Origin=origin) == status


@pytest.mark.parametrize(
    "name", ["https://search.example.com", "a b", "search.example.com/path"]
)
def test_the_public_name_is_a_name(name):
    with pytest.raises(InputError, match="--public-name"):
        check_public_name(name, TOKEN)


def test_a_public_name_needs_a_token():
    with pytest.raises(InputError, match="token"):
        check_public_name("search.example.com", "")
    check_public_name("search.example.com:8443", TOKEN)
    check_public_name("", "")
