"""Credentials are removed from URLs."""

import pickle

import pytest

from alpro.credentials import clean_values, has_credentials, without_credentials
from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.storage import refuse_credentials

# A URL, its cleaned form as a file address, and its cleaned form as other text.
URLS = [
    ("https://host/a.mp4", "https://host/a.mp4", None),
    ("https://me:pw@host/a.mp4", "https://host/a.mp4", None),
    ("https://me@host:8080/a.mp4", "https://host:8080/a.mp4", None),  # a user's name may be a token
    ("https://me:p@w@host/a.mp4", "https://host/a.mp4", None),
    ("https://me:p?w@host", "https://host", None),
    ("https://host/@me/a.mp4", "https://host/@me/a.mp4", None),
    ("HTTPS://me:pw@[::1]:80/a.mp4?sig=x", "HTTPS://[::1]:80/a.mp4", None),
    ("https://host/watch?v=7", "https://host/watch", "https://host/watch?v=7"),
    ("https://host/a.mp4?design=7&keywords=x", "https://host/a.mp4", "https://host/a.mp4?design=7&keywords=x"),
    ("https://host/a.mp4?id=7&X-Amz-Signature=x", "https://host/a.mp4", "https://host/a.mp4"),
    ("https://host?AWSAccessKeyId=x", "https://host", "https://host"),
    ("https://host/a.mp4?sv=1&sig=x%2F", "https://host/a.mp4", "https://host/a.mp4"),
    ("https://host/a.mp4#access_token=x", "https://host/a.mp4", "https://host/a.mp4"),
    ("s3://key:secret@bucket/a.mp4", "s3://bucket/a.mp4", None),
    ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4", None),
    ("s3://bucket/a@b:c.mp4", "s3://bucket/a@b:c.mp4", None),
    ("az://box/a.mp4?sv=1&sig=x", "az://box/a.mp4", None),
    ("abfs://box@account.host/a.mp4", "abfs://box@account.host/a.mp4", None),
    ("filecache::https://me:pw@host/a.mp4?x", "filecache::https://host/a.mp4", "filecache::https://host/a.mp4?x"),
    ("zip://a.mp4::https://me:pw@host/b.zip", "zip://a.mp4::https://host/b.zip", None),
    ("https://me:pw@host/a.mp4::s3://k:s@b/c", "https://host/a.mp4::s3://b/c", None),
    ("/a/b?c@d", "/a/b?c@d", None),
]


def test_credentials_are_removed_from_a_url():
    for url, address, text in URLS:
        assert without_credentials(url) == address
        kept = without_credentials(url, keep_query=True)
        assert kept == (address if text is None else text)
        assert without_credentials(kept, keep_query=True) == kept
        assert has_credentials(url) == (kept != url)


def test_credentials_are_removed_from_a_sentence():
    text = (
        "Cannot connect to 'https://me:pw@host/a.mp4?sig=1', or (http://b:c@d/e?f). See https://x/y?z=1: 403, \"a@b\""
    )
    left = "Cannot connect to 'https://host/a.mp4', or (http://d/e). See https://x/y: 403, \"a@b\""
    assert without_credentials(text) == left


def test_credentials_are_removed_from_nested_values():
    value = {"a": ["https://me:pw@h/x", 7, None], "https://k:s@h": {"b": ("s3://k:s@b/c",)}}
    assert clean_values(value) == {"a": ["https://h/x", 7, None], "https://h": {"b": ["s3://b/c"]}}


def test_errors_and_rejects_have_no_credentials():
    url = "https://me:pw@host/a.mp4?sig=1"
    assert str(InputError(f"{url}: no such file")) == "https://host/a.mp4: no such file"
    assert str(pickle.loads(pickle.dumps(InputError(url)))) == "https://host/a.mp4"
    reject = Reject(id="a", path=url, reason="missing", detail=f"not at {url}")
    assert (reject.path, reject.detail) == ("https://host/a.mp4", "not at https://host/a.mp4")
    assert Row(id="a", path="https://me:pw@host", kind="video").file_name == "host"


def test_a_configuration_has_no_credentials():
    refuse_credentials("corpora.a.data", "https://host/m.jsonl?page=2")
    with pytest.raises(
        InputError, match=r"^corpora.a.data: this URL contains a user name.*by the environment"
    ) as error:
        refuse_credentials("corpora.a.data", "https://me:hush@host/m.jsonl")
    assert "hush" not in str(error.value)
