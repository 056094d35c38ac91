"""URLs with passwords and signatures are refused where they come in: nothing has to be removed later."""

from alpro.credentials import has_credentials, refuse_credentials
from alpro.shards.sources.manifest import scan_manifest
from alpro.shards.storage import resolve
from tests.conftest import one_line

WITHOUT = [
    "https://host/a.mp4",
    "https://host/@me/a.mp4",
    "https://host:8080/@me/a.mp4",
    "http://[::1]:80/@me",
    "https://host/watch?v=7",
    "https://host/a.mp4?design=7&keywords=x",
    "s3://bucket/what?.mp4",
    "s3://bucket/a@b:c.mp4",
    "abfs://box@account.host/a.mp4",
    "filecache::https://host/a.mp4?x",
    "zip://a.mp4::https://host/b.zip",
    "/a/b?c@d",
    "a text, sig=a",
]
WITH = [
    "https://me:pw@host/a.mp4",
    "https://me@host:8080/a.mp4",  # a user's name may be a token
    "HTTPS://me:pw@[::1]:80/a.mp4",
    "s3://key:secret@bucket/a.mp4",
    "s3://k:a/b@bucket/v.mp4",
    "filecache::https://me:pw@host/a.mp4",
    "zip://a.mp4::https://me:pw@host/b.zip",
    "https://host/a.mp4::s3://k:s@b/c",
    "https://host/a.mp4#access_token=x",
    "https://host?AWSAccessKeyId=x",
    "https://h/v.mp4;jsessionid=x?y=1",
    "az://box/a.mp4?sv=1&sig=x%2F",
    *(f"https://u:p{odd}x@h/v.mp4" for odd in ("@", "?a#", "'", '" ', "/", "::", "é@")),
    *(f"https://host/a.mp4?{query}" for query in ("id=7&X-Amz-Signature=x", "name=x::y&sig=x", "%73ig=x")),
]


def test_credentials_in_urls_are_found():
    assert [url for url in WITHOUT if has_credentials(url)] == []
    assert [url for url in WITH if not has_credentials(url)] == []


def test_a_setting_or_a_row_with_credentials_is_refused_without_repeating_it(tmp_path):
    refuse_credentials("corpora.a.data", WITHOUT[0])
    manifest = tmp_path / "m.jsonl"
    for url in ("https://me:hush@host/a.mp4", "s3://b/a.mp4?sig=hush"):
        with one_line("corpora.a.data") as setting:
            refuse_credentials("corpora.a.data", url)
        with one_line() as path:
            resolve(tmp_path, url)
        places = [setting, path]
        for key in ("path", "id", "group", "page"):
            kept = f'{{"path": "a.mp4", "caption": "{url} is kept"}}'
            manifest.write_text(f'{kept}\n{{"path": "b.mp4", "{key}": "{url}"}}')
            with one_line(f"line 2 of the manifest: {key}") as row:
                list(scan_manifest(manifest))
            places.append(row)
        assert not any("hush" in str(place.value) for place in places)
