"""Files by URL: reading whole files and ranges, listing, paths that a manifest may use, and
one-line errors."""

import os
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.registry import known_implementations

from alpro.errors import InputError
from alpro.shards import storage
from alpro.shards.storage import (
    TooLarge,
    exists,
    identities,
    is_url,
    join,
    local_copy,
    read_range,
    resolve,
)
from tests.conftest import RangeServer, in_store

CONTENT = bytes(range(256)) * 40


def write(folder, name, content=b"x"):
    """Write a file into the folder here, and into that of `memory`."""
    (folder / name).write_bytes(content)
    in_store(folder / name)


@pytest.fixture(params=["path", "file", "memory", "http", "cached"])
def folder(request, tmp_path, memory, served):
    """A folder with a file data.bin, on this machine or in a store."""
    write(tmp_path, "data.bin", CONTENT)
    return {
        "path": lambda: tmp_path,
        "file": lambda: storage.located(f"file://{tmp_path}"),
        "memory": lambda: memory,
        "http": lambda: served()[0],
        "cached": lambda: f"filecache::file://{tmp_path}",
    }[request.param]()


def copied(place, *limits):
    with local_copy(place, *limits) as path:
        return path.read_bytes()


def test_reading_a_file_whole_by_range_and_of_a_limited_size(folder, tmp_path):
    place = join(folder, "data.bin")
    copies = tmp_path / "copies"
    copies.mkdir()
    assert read_range(place, 1000, 300) == CONTENT[1000:1300]
    assert read_range(place, len(CONTENT) - 5, 100) == CONTENT[-5:]  # it ends there
    with local_copy(place, len(CONTENT), copies) as path:
        assert path.read_bytes() == CONTENT
        assert path.suffix == ".bin"
        assert (path.parent.parent == copies) == is_url(place)
    # A copy goes, a file of the user's stays.
    assert path.exists() == isinstance(place, Path)
    if is_url(place):
        with pytest.raises(TooLarge, match="larger than 9999 bytes"):
            copied(place, 9999, copies)
        assert list(copies.iterdir()) == []


def test_a_file_that_is_missing_or_appears(folder, tmp_path):
    place = join(folder, "new.bin")
    assert not exists(place)
    assert exists(join(folder, "data.bin"))
    assert list(identities([place, folder])) == ["missing", "missing"] or "http" in str(
        folder
    )
    for read in (lambda p: read_range(p, 0, 1), copied):
        with pytest.raises(FileNotFoundError):
            read(place)
    write(tmp_path, "new.bin")
    assert exists(place)


def test_a_path_is_no_url_and_its_errors_are_not_repeated(tmp_path):
    path = tmp_path / "a::b.bin"
    path.write_bytes(CONTENT)
    asked = []

    def read(system, name):
        asked.append(name)
        return system.cat_file(name)

    assert storage.call_store(path, read) == CONTENT
    path.unlink()
    with pytest.raises(FileNotFoundError):
        storage.call_store(path, read)
    assert asked == [str(path), str(path)]


def test_a_folder_is_listed_in_order_by_extension(folder, tmp_path):
    for name in ("b.tar", "a.tar", "ü c.tar", "note.txt"):
        write(tmp_path, name)
    (tmp_path / "folder.tar").mkdir()
    locations = storage.listing(folder, ".tar")

    # A server's page does not say that this is a folder.
    files = [location for location in locations if location != f"{folder}/folder.tar"]
    assert files == [join(folder, name) for name in ("a.tar", "b.tar", "ü c.tar")]
    assert copied(files[-1]) == b"x"


def test_identity_changes_only_with_the_file(tmp_path, memory, served):
    file = tmp_path / "a.bin"
    places = [file, f"{served()[0]}/a.bin", f"{memory}/a.bin"]
    seen = []
    for content, time in ((b"one", 1e9), (b"two", 2e9), (b"three", 2e9)):
        write(tmp_path, "a.bin", content)
        os.utime(file, (time, time))
        seen.append(list(identities(places)))
        assert list(identities(places)) == seen[-1]
        assert all(value.startswith(f"{len(content)} ") for value in seen[-1])
    assert all(len(set(values)) == 3 for values in zip(*seen, strict=True))


def test_a_server_without_ranges_raises_an_error_and_a_local_copy_works(
    tmp_path, served
):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    url, _ = served(ranges=False)
    with pytest.raises(
        OSError, match=r"does not support range requests; put filecache::"
    ):
        read_range(f"{url}/data.bin", 10, 20)
    assert read_range(f"filecache::{url}/data.bin", 10, 20) == CONTENT[10:30]
    assert copied(f"{url}/data.bin") == CONTENT


def test_an_unresponsive_server_is_not_a_missing_file(free_port, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", ())
    place = f"http://127.0.0.1:{free_port()}/a.mp4"
    for read in (exists, copied, lambda p: read_range(p, 0, 1)):
        with pytest.raises(OSError, match="onnect") as error:
            read(place)
        assert not isinstance(error.value, FileNotFoundError)
        assert "\n" not in str(error.value)
    assert list(identities([place])) == ["not fetched"]


class Answer(Exception):
    def __init__(self, status: int):
        self.status = status


# As fsspec raises it for a server that does not respond, or with an error of its own.
CAUSED = FileNotFoundError("a")
BROKEN = FileNotFoundError("a")
CAUSED.__cause__ = ConnectionError("lost")
BROKEN.__cause__ = Answer(500)


REPEATED = [
    ([TimeoutError("slow"), RuntimeError("lost"), None], None),
    ([RuntimeError("lost")], OSError),
    ([CAUSED], OSError),
    ([BROKEN], OSError),
]
FINAL = [
    ([FileNotFoundError("a")], FileNotFoundError),
    ([Answer(403)], OSError),
    ([OSError(28, "No space left on device")], OSError),
]


@pytest.mark.parametrize(("errors", "kind"), REPEATED + FINAL)
@pytest.mark.parametrize("method", ["cat_file", "get_file"])
def test_failed_requests_are_repeated_unless_that_is_of_no_use(
    memory, monkeypatch, tmp_path, method, errors, kind
):
    system = type(fsspec.filesystem("memory"))
    write(tmp_path, "a.mp4", CONTENT)
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0, 0))
    whole = getattr(system, method)
    asked = []

    def flaky(self, *args, **kwargs):
        asked.append(method)
        if error := errors[min(len(asked), len(errors)) - 1]:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(system, method, flaky)
    read = (
        copied
        if method == "get_file"
        else lambda place: read_range(place, 0, len(CONTENT))
    )
    if kind:
        with pytest.raises(kind) as error:
            read(f"{memory}/a.mp4")
        assert isinstance(error.value, FileNotFoundError) == (kind is FileNotFoundError)
    else:
        assert read(f"{memory}/a.mp4") == CONTENT
    assert len(asked) == (3 if (errors, kind) in REPEATED else 1)


def test_an_unknown_protocol_and_a_missing_package_raise_input_errors(monkeypatch):
    known = {
        "class": "no_such_package.Store",
        "err": "Install no_such_package to read it",
    }
    monkeypatch.setitem(known_implementations, "teststore", known)
    for place, message in (
        ("gopher://a/b", "gopher://a/b: Protocol not known: gopher"),
        ("teststore://a/b", "teststore://a/b: Install no_such_package"),
        ("pipe://cat a", "Protocol not known: pipe"),
    ):
        with pytest.raises(InputError, match=message):
            read_range(place, 0, 1)


# A folder, a name and the location of both.
JOINED = """
s3://b/c | a.tar | s3://b/c/a.tar
s3://b/c/ | d/a.tar | s3://b/c/d/a.tar
filecache::s3://b/c | a.tar | filecache::s3://b/c/a.tar
https://h/c | what? #1 ü.mp4 | https://h/c/what%3F%20%231%20%C3%BC.mp4
s3://b/c | what? #1.mp4 | s3://b/c/what? #1.mp4
s3://b/c | gs://d/e | gs://d/e
s3://b/c | /data/a.tar | /data/a.tar
/c | s3://b/a.tar | s3://b/a.tar
/c | a.tar | /c/a.tar
"""
# The folder of a manifest, the path of a row and the file that it means. Escaped dots are part of a
# name.
INSIDE = """
/data | a/b.mp4 | /data/a/b.mp4
/data | /data/b.mp4 | /data/b.mp4
/data | file:///data/b.mp4 | /data/b.mp4
/data | a::b.mp4 | /data/a::b.mp4
/data | https://host/b.mp4 | https://host/b.mp4
/data | %2e%2e/a.mp4 | /data/%2e%2e/a.mp4
s3://b/data | a/./c.mp4 | s3://b/data/a/c.mp4
s3://b/data | s3://other/c.mp4 | s3://other/c.mp4
filecache::s3://b/data | c.mp4 | filecache::s3://b/data/c.mp4
filecache::s3://b/data | filecache::s3://b/data/c.mp4 | filecache::s3://b/data/c.mp4
https://host/data | %2e%2e/a.mp4 | https://host/data/%252e%252e/a.mp4
memory://b/data | %2e%2e/a.mp4 | memory://b/data/%2e%2e/a.mp4
"""


def lines_of(table):
    return [line.split(" | ") for line in table.strip().splitlines()]


@pytest.mark.parametrize(("folder", "name", "joined"), lines_of(JOINED))
def test_a_name_is_joined_to_a_folder(folder, name, joined):
    assert join(storage.located(folder), name) == storage.located(joined)


@pytest.mark.parametrize(("root", "path", "expected"), lines_of(INSIDE))
def test_a_row_may_refer_to_its_folder_or_the_network(root, path, expected):
    assert resolve(storage.located(root), path) == storage.located(expected)


OUTSIDE = """
../b.mp4 ../data-secret/b.mp4 a/../../b.mp4 /etc/passwd file:///etc/passwd FILE:///etc/passwd local:///etc/passwd
file:///data/../etc/passwd filecache::file:///etc/passwd simplecache::https://host/a.mp4 sftp://host/a.mp4 git://a.mp4
zip://a.mp4::file:///home/me/secret.zip tar://a.mp4::/home/me/secret.tar reference://a::file:///etc/passwd
memory://other/a.mp4 memory://b/data/../a.mp4 memory://b/data2/a.mp4 memory://b/data/%2e%2e/a.mp4
memory://b/data/x/%2E%2e/%2e%2E/a.mp4 zip://a.mp4::https://host/b.zip zip://a.mp4::s3://b/data/c.zip
blockcache::filecache::s3://b/c.mp4 dir::zip://a::file:///etc
"""


@pytest.mark.parametrize(
    "root", [Path("/data"), "s3://b/data", "memory://b/data", "https://host/data"]
)
@pytest.mark.parametrize("path", OUTSIDE.split())
def test_a_row_cannot_refer_to_other_local_files(root, path):
    with pytest.raises(ValueError, match="is outside the data folder"):
        resolve(root, path)


def test_a_name_cannot_lengthen_the_chain_of_its_manifest():
    with pytest.raises(ValueError, match="is outside the data folder"):
        resolve("filecache::s3://b/data", "1x::file:///etc/passwd")


def test_a_member_of_a_tar_is_copied_in_pieces(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 1000)
    place = join(folder, "data.bin")
    member = SimpleNamespace(name="a/b.MP4", offset=100, size=2500)
    with local_copy(place, 2500, tmp_path, member) as path:
        assert path.read_bytes() == CONTENT[100:2600]
        assert path.suffix == ".mp4"
        assert path.parent.parent == tmp_path
    with pytest.raises(TooLarge), local_copy(place, 2499, tmp_path, member):
        pass
    member.offset = len(CONTENT) - 2400
    with (
        pytest.raises(EOFError, match=r"ends inside a/b\.MP4"),
        local_copy(place, 2500, tmp_path, member),
    ):
        pass
    assert not list(tmp_path.glob(".fetched.*"))


def test_a_server_that_repeats_credentials_in_its_reason_is_quoted_by_its_status_alone(
    monkeypatch, served
):
    """As one that is reached with a name and a password of ~/.netrc."""
    url, _ = served()
    reason = "no Basic bmV0OmhVU0g= net:HUSH"
    monkeypatch.setattr(
        RangeServer, "send_head", lambda self: self.send_error(401, reason)
    )

    with pytest.raises(OSError, match="HTTP status 401") as error:
        copied(f"{url}/a.mp4")
    assert "HUSH" not in str(error.value)
    assert "bmV0" not in str(error.value)
