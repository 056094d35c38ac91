"""Credentials are removed from URLs."""

import json
import pickle

import pytest

from alpro.credentials import clean_url, clean_values, has_credentials, without_credentials, without_secrets_of
from alpro.errors import InputError
from alpro.shards.schema import Reject, Row
from alpro.shards.storage import refuse_credentials, resolve, store_errors

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
        for clean in (clean_url, without_credentials):
            assert clean(url) == address
            kept = clean(url, keep_query=True)
            assert kept == (address if text is None else text)
            assert clean(kept, keep_query=True) == kept
        assert has_credentials(url) == (kept != url)


ODD = [
    "https://u:pa'HUSH@h/v.mp4",
    'https://u:pa"HUSH@h/v.mp4',
    "https://u:pa HUSH@h/v.mp4",
    "https://u:pa<HUSH@h/v.mp4",
    r"https://u:pa\HUSH@h/v.mp4",
    "https://u:pa::HUSH@h/v.mp4",
    "https://u:pa/HUSH@h/v.mp4",
    "https://u:p?a#HUSH@h/v.mp4",
    "https://u:é@HUSH@h/v.mp4",
    "simplecache::https://u:pa'HUSH@h/v.mp4",
    "s3://k:a/HUSH@h/v.mp4",
    "https://h/v.mp4;token=HUSH",
    "https://h/v.mp4;jsessionid=HUSH?x=1",
    "https://h/v.mp4?name='q'&sig=HUSH",
    "https://h/v.mp4?name=a b&sig=HUSH",
    "https://h/v.mp4?name=<x>&sig=HUSH",
    "https://h/v.mp4?name=x::y&sig=HUSH",
    "https://h/v.mp4?%73ig=HUSH",
]


@pytest.mark.parametrize("url", ODD)
def test_odd_credentials_are_removed_from_a_value_and_from_messages(url, tmp_path):
    cleaned = f"{'simplecache::' * url.startswith('simple')}{'s3' if url.startswith('s3') else 'https'}://h/v.mp4"
    assert clean_url(url) == clean_url(url, keep_query=True) == cleaned
    assert clean_values({"of": [url]}, keep_query=True) == {"of": [cleaned]}
    assert has_credentials(url)
    for text in (f"cannot open {url}: not found", f"path {url!r} is outside", json.dumps({"a": url, "b": "c@d"})):
        assert "HUSH" not in without_credentials(text)
    assert Reject(id="a", path=url, reason="missing").path == cleaned
    assert Row(id="a", path=url, kind="video").file_name == "v.mp4"
    with pytest.raises(InputError) as error:
        resolve(tmp_path, f"zip://a::{url}")
    assert "HUSH" not in str(error.value)
    with pytest.raises(OSError, match=r"h/v\.mp4: 403") as failure, store_errors(url):
        raise OSError(f'403, reason="no access with {url.partition("://")[2]}", url={url!r}')
    assert "HUSH" not in str(failure.value)


def test_a_message_repeats_no_part_of_the_url_that_it_is_about():
    url = "https://me:pass%20word@host/a.mp4?t=a%2Fbc1&sig=SeCr3t'x'"
    text = "Forbidden: me:pass word, ?t=a%2Fbc1&sig=SeCr3t'x', sig=SeCr3t'x', a/bc1 and host/a.mp4"
    assert without_secrets_of(text, url) == "Forbidden: , , ,  and host/a.mp4"
    assert without_secrets_of("404: no file 7", "https://host/a.mp4?t=7&u=404") == "404: no file 7"  # too short


def test_texts_beside_a_url_are_kept():
    for text in ('{"uri": "http://127.0.0.1:5000", "mail": "a@b"}', "http://host:8080/x failed for a@b", "sig=a#key=b"):
        assert without_credentials(text) == text
    assert clean_url("https://host:8080/@me/a.mp4") == "https://host:8080/@me/a.mp4"


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
