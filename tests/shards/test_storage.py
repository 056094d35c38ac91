"""Files by URL: reading whole files and ranges, listing, paths that a manifest may use, and one-line errors."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.registry import known_implementations
from hypothesis import given
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.shards.decoding import DecodeError
from alpro.shards.sources import identity
from alpro.shards.sources.identity import file_identity, identities
from alpro.shards.storage import (
    TooLarge,
    TooSlow,
    exists,
    is_url,
    join,
    listing,
    local_copy,
    located,
    open_binary,
    parent,
    read_bytes,
    read_range,
    resolve,
    suffix,
)
from alpro.stages import decode_videos
from tests.conftest import RangeServer

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=["path", "file", "memory", "http", "cached"])
def folder(request, tmp_path: Path, memory: str, served: Callable):
    """A folder with a file data.bin, on this machine or in a store."""
    (tmp_path / "data.bin").write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe_file("/bucket/corpus/data.bin", CONTENT)
    return {
        "path": lambda: tmp_path,
        "file": lambda: located(f"file://{tmp_path}"),
        "memory": lambda: memory,
        "http": lambda: served()[0],
        "cached": lambda: f"filecache::file://{tmp_path}",
    }[request.param]()


def test_reading_a_file_whole_by_range_and_as_a_stream(folder):
    place = join(folder, "data.bin")
    assert read_bytes(place) == CONTENT
    assert read_range(place, 1000, 300) == CONTENT[1000:1300]
    assert read_range(place, len(CONTENT) - 5, 100) == CONTENT[-5:]  # it ends there
    with open_binary(place) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == CONTENT[-10:]
        file.seek(3)
        assert file.read(4) == CONTENT[3:7]
    with local_copy(place) as path:
        assert path.read_bytes() == CONTENT
        assert path.suffix == ".bin"
    assert path.exists() == isinstance(place, Path)  # a copy goes, a file of the user's stays


def test_a_missing_file_raises_file_not_found(folder):
    place = join(folder, "none.bin")
    assert not exists(place)
    assert exists(join(folder, "data.bin"))
    for read in (read_bytes, file_identity, lambda p: read_range(p, 0, 1), lambda p: open_binary(p).read()):
        with pytest.raises(FileNotFoundError):
            read(place)
    if is_url(place):
        with pytest.raises(FileNotFoundError, match="No such file"), local_copy(place):
            pass


def test_a_folder_is_listed_in_order_by_extension(folder, tmp_path: Path):
    for name in ("b.tar", "a.tar", "ü c.tar", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
        fsspec.filesystem("memory").pipe_file(f"/bucket/corpus/{name}", b"x")
    locations = listing(folder, ".tar")
    assert locations == [join(folder, name) for name in ("a.tar", "b.tar", "ü c.tar")]
    assert [read_bytes(place) for place in locations] == [b"x"] * 3


def test_a_copy_stops_at_the_size_limit(folder, tmp_path: Path):
    place = join(folder, "data.bin")
    with local_copy(place, max_bytes=len(CONTENT)) as path:
        assert path.stat().st_size == len(CONTENT)
    if is_url(place):
        copies = tmp_path / "copies"
        copies.mkdir()
        with pytest.raises(TooLarge, match="larger than 9999 bytes"), local_copy(place, 9999, copies):
            pass
        assert list(copies.iterdir()) == []


def test_identity_changes_only_with_the_file(tmp_path: Path, memory: str, served: Callable):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    os.utime(file, (1e9, 1e9))
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/corpus/a.bin", b"one")
    places = [file, f"{served()[0]}/a.bin", f"{memory}/a.bin"]
    before = list(identities(places))
    assert list(identities(places)) == before
    assert all(value.startswith("3 ") for value in before)
    file.write_bytes(b"two")
    os.utime(file, (2e9, 2e9))
    system.pipe_file("/bucket/corpus/a.bin", b"two")
    assert all(old != new for old, new in zip(before, identities(places), strict=True))
    assert list(identities([f"{memory}/none", file]))[:1] == ["missing"]


def test_a_server_without_ranges_raises_an_error_and_a_local_copy_works(tmp_path: Path, served: Callable):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    url, _ = served(ranges=False)
    with pytest.raises(OSError, match=r"does not support range requests; put filecache::"):
        read_range(f"{url}/data.bin", 10, 20)
    assert read_range(f"filecache::{url}/data.bin", 10, 20) == CONTENT[10:30]
    with local_copy(f"{url}/data.bin") as path:
        assert path.read_bytes() == CONTENT


def test_an_unresponsive_server_is_not_a_missing_file(free_port, monkeypatch):
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    place = f"http://127.0.0.1:{free_port()}/a.mp4"
    for read in (exists, file_identity, read_bytes):
        with pytest.raises(OSError, match="onnect") as error:
            read(place)
        assert not isinstance(error.value, FileNotFoundError)
        assert "\n" not in str(error.value)


def test_a_failed_request_of_an_open_file_is_retried(tmp_path, served, monkeypatch):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    url, _ = served()
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", (0, 0))
    file = open_binary(f"{url}/data.bin", block_size=16)
    assert file.read(8) == CONTENT[:8]
    send_head, failed = RangeServer.send_head, []

    def flaky(self):
        if len(failed) < 2:
            failed.append(self.path)
            return self.send_error(503)
        return send_head(self)

    monkeypatch.setattr(RangeServer, "send_head", flaky)
    assert file.read() == CONTENT[8:]
    assert len(failed) == 2


def test_failed_requests_are_retried_unless_missing_or_forbidden(memory, tmp_path, monkeypatch):
    system = type(fsspec.filesystem("memory"))
    fsspec.filesystem("memory").pipe_file("/bucket/corpus/a.mp4", CONTENT)
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", (0, 0))
    place, asked = f"{memory}/a.mp4", []

    def answer(errors: list[Exception | None], method: str) -> None:
        whole = getattr(system, method)

        def flaky(self, *args, **kwargs):
            asked.append(method)
            if error := errors[min(len(asked), len(errors)) - 1]:
                raise error
            return whole(self, *args, **kwargs)

        asked.clear()
        patch.setattr(system, method, flaky)

    class Refused(Exception):
        status = 403

    def copied() -> bytes:
        with local_copy(place) as path:
            return path.read_bytes()

    def ranged() -> bytes:
        return read_range(place, 0, len(CONTENT))

    for read, method in ((lambda: read_bytes(place), "cat_file"), (ranged, "cat_file"), (copied, "get_file")):
        for errors, kind, times in (
            ([TimeoutError("slow"), RuntimeError("lost"), None], None, 3),
            ([RuntimeError("lost")], OSError, 3),
            ([FileNotFoundError("a")], FileNotFoundError, 1),
            ([Refused("no")], PermissionError, 1),
        ):
            with monkeypatch.context() as patch:
                answer(errors, method)
                if kind:
                    with pytest.raises(kind):
                        read()
                else:
                    assert read() == CONTENT
                assert len(asked) == times


def test_an_unknown_protocol_and_a_missing_package_raise_input_errors(monkeypatch):
    with pytest.raises(InputError, match=r"gopher://a/b: Protocol not known: gopher"):
        read_bytes("gopher://a/b")
    known = {"class": "no_such_package.Store", "err": "Install no_such_package to read it"}
    monkeypatch.setitem(known_implementations, "teststore", known)
    with pytest.raises(InputError, match=r"teststore://a/b: Install no_such_package"):
        read_bytes("teststore://a/b")
    with pytest.raises(InputError, match="Protocol not known: pipe"):
        open_binary("pipe://cat a")


def test_a_name_is_joined_to_a_folder():
    for folder, name, joined in (
        ("s3://b/c", "a.tar", "s3://b/c/a.tar"),
        ("s3://b/c/", "d/a.tar", "s3://b/c/d/a.tar"),
        ("filecache::s3://b/c", "a.tar", "filecache::s3://b/c/a.tar"),
        ("zip://in::s3://b/c.zip", "a.mp4", "zip://in/a.mp4::s3://b/c.zip"),
        ("zip://::s3://b/c.zip", "a.mp4", "zip://a.mp4::s3://b/c.zip"),
        ("https://h/c", "what? #1 ü.mp4", "https://h/c/what%3F%20%231%20%C3%BC.mp4"),
        ("s3://b/c", "what? #1.mp4", "s3://b/c/what? #1.mp4"),
        ("s3://b/c", "gs://d/e", "gs://d/e"),
        ("s3://b/c", "/data/a.tar", Path("/data/a.tar")),
        (Path("/c"), "s3://b/a.tar", "s3://b/a.tar"),
        (Path("/c"), "a.tar", Path("/c/a.tar")),
    ):
        assert join(folder, name) == joined
        if not is_url(name) and not name.startswith("/") and "?" not in name:
            assert str(parent(joined)).rstrip("/") == str(folder if name.count("/") == 0 else f"{folder}d").rstrip("/")


def test_a_row_may_refer_to_its_folder_or_the_network():
    for root, path, expected in (
        (Path("/data"), "a/b.mp4", Path("/data/a/b.mp4")),
        (Path("/data"), "/data/b.mp4", Path("/data/b.mp4")),
        (Path("/data"), "file:///data/b.mp4", Path("/data/b.mp4")),
        (Path("/data"), "a::b.mp4", Path("/data/a::b.mp4")),
        (Path("/data"), "https://host/b.mp4", "https://host/b.mp4"),
        ("s3://b/data", "a/./c.mp4", "s3://b/data/a/c.mp4"),
        ("s3://b/data", "s3://other/c.mp4", "s3://other/c.mp4"),
        ("s3://b/data", "https://host/c.mp4", "https://host/c.mp4"),
        ("memory://b/data", "memory://b/data/c.mp4", "memory://b/data/c.mp4"),
        ("filecache::s3://b/data", "c.mp4", "filecache::s3://b/data/c.mp4"),
        ("filecache::s3://b/data", "filecache::s3://b/data/c.mp4", "filecache::s3://b/data/c.mp4"),
    ):
        assert resolve(root, path) == expected


OUTSIDE = [
    "../b.mp4",
    "../data-secret/b.mp4",
    "a/../../b.mp4",
    "/etc/passwd",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "local:///etc/passwd",
    "file:///data/../etc/passwd",
    "filecache::file:///etc/passwd",
    "simplecache::https://host/a.mp4",
    "zip://a.mp4::file:///home/me/secret.zip",
    "tar://a.mp4::/home/me/secret.tar",
    "memory://other/a.mp4",
    "memory://b/data/../a.mp4",
    "memory://b/data2/a.mp4",
    "reference://a::file:///etc/passwd",
    "sftp://host/a.mp4",
    "git://a.mp4",
    "memory://b/data/%2e%2e/a.mp4",
    "memory://b/data/x/%2E%2e/%2e%2E/a.mp4",
    "zip://a.mp4::https://host/b.zip",
    "zip://a.mp4::s3://b/data/c.zip",
    "blockcache::filecache::s3://b/c.mp4",
    "dir::zip://a::file:///etc",
]


def test_a_row_cannot_refer_to_other_local_files():
    for root in (Path("/data"), "s3://b/data", "memory://b/data", "https://host/data"):
        for path in OUTSIDE:
            with pytest.raises(InputError, match="is outside the data folder") as error:
                resolve(root, path)
            assert "\n" not in str(error.value)


def test_escaped_dots_are_part_of_a_name(memory):
    """No layer decodes them to a parent folder."""
    for root, expected in (
        (Path("/data"), Path("/data/%2e%2e/a.mp4")),
        ("https://host/data", "https://host/data/%252e%252e/a.mp4"),
        (memory, f"{memory}/%2e%2e/a.mp4"),
    ):
        assert resolve(root, "%2e%2e/a.mp4") == expected
    fsspec.filesystem("memory").pipe_file("/bucket/a.mp4", b"secret")
    assert not exists(f"{memory}/%2e%2e/a.mp4")


def test_a_name_cannot_lengthen_the_chain_of_its_manifest():
    for root in ("filecache::s3://b/data", "memory://b/data"):
        with pytest.raises(InputError):
            resolve(root, "1x::file:///etc/passwd")


@given(st.lists(st.sampled_from(["..", ".", "a", "b.mp4", "", "%2e%2e"]), min_size=1, max_size=6).map("/".join))
def test_a_relative_path_outside_the_folder_raises_an_error(name):
    for root in (Path("/data/here"), "memory://b/here"):
        try:
            location = resolve(root, name)
        except InputError:
            continue
        assert str(location).startswith(str(root))
        assert ".." not in str(location).split("/")


def test_the_extension_of_a_location():
    for place, ending in (
        ("https://host/a.MP4?key=1.2", ".mp4"),
        ("https://host/a%2Emp4#t=1", ".mp4"),
        ("zip://a.webm::s3://b/c.zip", ".webm"),
        ("s3://b/a", ""),
        ("s3://b/a.x y/../z", ""),
        (Path("A.JPG"), ".jpg"),
    ):
        assert suffix(place) == ending


def test_a_copy_stops_at_the_deadline(memory, monkeypatch):
    fsspec.filesystem("memory").pipe_file("/bucket/corpus/a.mp4", bytes(100))
    with local_copy(f"{memory}/a.mp4", seconds=60) as copy:
        assert copy.stat().st_size == 100
    with pytest.raises(TooSlow), local_copy(f"{memory}/a.mp4", seconds=-1):
        pass
    monkeypatch.setattr(decode_videos, "FETCH_SECONDS", -1.0)
    with (
        pytest.raises(DecodeError, match="not fetched: fetching takes too long"),
        decode_videos.fetched(SimpleNamespace(path=f"{memory}/a.mp4", member=None), 1000, Path()),
    ):
        pass


def test_a_store_that_does_not_respond_has_not_said_that_a_file_is_missing(monkeypatch):
    def refuse(location):
        raise FileNotFoundError if "gone" in str(location) else OSError("no answer")

    monkeypatch.setattr(identity, "file_identity", refuse)
    places = ["https://h/a", "https://h/gone", Path("/folder"), Path("/gone")]
    assert list(identities(places)) == ["not fetched", "missing", "missing", "missing"]
