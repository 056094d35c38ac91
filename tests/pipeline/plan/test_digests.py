"""Digests of the user's data."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.plan import digests as files
from alpro.pipeline.plan.digests import Digests, digest_data


@pytest.fixture
def digests(tmp_path) -> Digests:
    return Digests(tmp_path / "digests.sqlite")


@pytest.fixture
def data(tmp_path):
    """A manifest of two files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(name.encode())
    rows = [{"path": name, "caption": f"this is {name}"} for name in ("a.mp4", "b.mp4")]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "items.jsonl"


def test_digests_are_sha256_of_contents_or_missing(tmp_path, digests):
    (tmp_path / "a").write_bytes(b"abc")
    assert digests.of([tmp_path / "a", tmp_path / "b"]) == [hashlib.sha256(b"abc").hexdigest(), "missing"]


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path, digests, monkeypatch):
    read = []
    checksum = files.checksum
    monkeypatch.setattr(files, "checksum", lambda path: (read.append(Path(path).name), checksum(path))[1])
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    first = digests.of([file])
    assert (digests.of([file]), read) == (first, ["a"])
    file.write_bytes(b"abd")  # as long as before
    os.utime(file, ns=(1, 1))
    assert digests.of([file]) != first
    assert read == ["a", "a"]


def test_another_pipeline_can_write_while_files_are_read(tmp_path, digests, monkeypatch):
    checksum = files.checksum
    monkeypatch.setattr(files, "BATCH", 1)

    def write_meanwhile(path):
        with sqlite3.connect(digests.path, timeout=5) as other:  # a commit is short
            other.execute("insert or replace into digests values (?, 1, 1, 'x')", (f"other {path}",))
        other.close()
        return checksum(path)

    monkeypatch.setattr(files, "checksum", write_meanwhile)
    named = [tmp_path / name for name in "abc"]
    for file in named:
        file.write_bytes(file.name.encode())
    assert digests.of(named) == [hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c")]


def test_an_interrupted_run_keeps_its_digests(tmp_path, digests, monkeypatch):
    read = []

    def checksum(path):
        read.append(Path(path).name)
        if read == ["a", "b"]:
            raise KeyboardInterrupt
        return Path(path).name

    monkeypatch.setattr(files, "checksum", checksum)
    monkeypatch.setattr(files, "BATCH", 1)
    for name in "ab":
        (tmp_path / name).touch()
    with pytest.raises(KeyboardInterrupt):
        digests.of([tmp_path / "a", tmp_path / "b"])
    assert digests.of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert read == ["a", "b", "b"]


CHANGES = {
    "a video's contents": lambda data: (data.parent / "a.mp4").write_bytes(b"other contents"),
    "a caption": lambda data: data.write_text(data.read_text().replace("this is", "that is")),
    "a missing video": lambda data: (data.parent / "b.mp4").unlink(),
    "one row more": lambda data: data.write_text(data.read_text() + '{"path": "c.mp4", "caption": "new"}\n'),
    "a bad row more": lambda data: data.write_text(data.read_text() + "no JSON\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_digest_of_data_changes_with(what, data, digests):
    before = digest_data(data, digests)
    CHANGES[what](data)
    assert digest_data(data, digests) != before


def test_the_digest_of_data_depends_neither_on_other_files_nor_on_its_folder(data, digests, tmp_path):
    before = digest_data(data, digests)
    (data.parent / "notes.txt").write_text("not named by the manifest")
    assert digest_data(data, digests) == before
    moved = shutil.copytree(data.parent, tmp_path / "elsewhere")
    assert digest_data(moved / data.name, digests) == before


def test_the_digest_of_a_folder_includes_its_videos_and_texts(data, digests):
    folder = data.parent
    (folder / "a.txt").write_text("a bird\n")
    before = digest_data(folder, digests)
    (folder / "a.txt").write_text("a bird\na plane\n")
    assert digest_data(folder, digests) != before


def test_a_folder_instead_of_a_file_is_missing(data, digests):
    (data.parent / "c.mp4").mkdir()
    assert digests.of([data.parent / "c.mp4"]) == ["missing"]
    data.write_text(
        data.read_text() + '{"path": "c.mp4", "caption": "a folder"}\n{"path": "d\\u0000", "caption": "x"}\n'
    )
    assert digest_data(data, digests)


def test_a_relative_manifest_and_a_path_with_dots_give_the_same_digest(data, digests, monkeypatch):
    before = digest_data(data, digests), digest_data(data.parent, digests)
    assert digest_data(data.parent / ".." / data.parent.name / data.name, digests) == before[0]
    monkeypatch.chdir(data.parent)
    assert (digest_data(Path(data.name), digests), digest_data(Path(), digests)) == before


@pytest.mark.parametrize("damage", ["garbage", "in use"])
def test_a_cache_that_cannot_be_used_is_named(damage, tmp_path, digests, monkeypatch):
    (tmp_path / "a").write_text("a")
    connect = sqlite3.connect
    other = connect(digests.path)
    if damage == "in use":
        monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
        other.execute("begin exclusive")
    else:
        digests.path.write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match=r"digests\.sqlite"):
        digests.of([tmp_path / "a"])
    other.close()


def test_a_file_that_cannot_be_read_now_is_an_error_and_not_missing(tmp_path, digests, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")

    def fail_with(number: int) -> None:
        def fail(path):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(files, "checksum", fail)

    fail_with(errno.EIO)
    with pytest.raises(InputError, match="a: cannot be read: Input/output error; run again, or remove it"):
        digests.of([tmp_path / "a"])
    fail_with(errno.EACCES)
    assert digests.of([tmp_path / "a"]) == ["missing"]
    monkeypatch.undo()
    assert digests.of([tmp_path / "a"]) == [hashlib.sha256(b"abc").hexdigest()]


def test_a_store_that_does_not_respond_changes_no_identity(digests, monkeypatch):
    answers = {"http://host/a": "1 etag x", "http://host/b": "not fetched", "http://host/c": "missing"}
    monkeypatch.setattr(files, "identities", lambda places: map(answers.get, places))
    places = list(answers)
    assert digests.identities(places) == ["1 etag x", "not fetched", "missing"]
    answers |= dict.fromkeys(places, "not fetched")
    assert digests.identities(places) == ["1 etag x", "not fetched", "missing"]
    answers |= {"http://host/a": "2 etag y", "http://host/b": "3 etag z"}
    assert digests.identities(places) == ["2 etag y", "3 etag z", "missing"]
