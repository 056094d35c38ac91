"""Digests of the files that a user names: they decide what is built again."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.plan import digests as module
from alpro.pipeline.plan.digests import Digests
from tests.pipeline.conftest import group_may_write
from tests.plans import digest_data

ROW = '{"path": "%s.mp4", "caption": "this is %s"}\n'


@pytest.fixture
def digests(tmp_path):
    return Digests(tmp_path / "digests.sqlite")


@pytest.fixture
def data(tmp_path):
    """A manifest of two files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_text(name)
    (folder / "items.jsonl").write_text("".join(ROW % (name, name) for name in "ab"))
    return folder / "items.jsonl"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# Data.


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("items.jsonl", ROW % ("a", "that")),
        ("items.jsonl", ROW % ("a", "a") + ROW % ("b", "b") + "no JSON\n"),
        ("a.mp4", "other contents"),
        ("b.mp4", None),
    ],
)
def test_rows_and_their_files_decide_the_digest_of_data(file, content, data, digests):
    before = digest_data(data, digests)
    path = data.parent / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert digest_data(data, digests) != before


def test_other_files_and_the_folder_do_not_decide_the_digest_of_data(
    data, digests, tmp_path
):
    before = digest_data(data, digests)
    (data.parent / "notes.md").write_text("not named by the manifest")
    moved = shutil.copytree(data.parent, tmp_path / "elsewhere")
    assert (
        digest_data(data, digests) == digest_data(moved / data.name, digests) == before
    )


def test_a_folder_has_one_digest_by_whatever_path(data, digests, monkeypatch):
    folder = data.parent
    data.unlink()
    (folder / "a.txt").write_text("a bird\n")
    before = digest_data(folder, digests)

    monkeypatch.chdir(folder)
    assert digest_data(folder / ".." / folder.name, digests) == before
    assert digest_data(Path(), digests) == before


def test_a_path_that_is_no_file_is_missing(data, digests):
    (data.parent / "c.mp4").mkdir()
    assert digests.of([data.parent / "c.mp4"]) == ["missing"]
    rows = [json.dumps({"path": path, "caption": "x"}) for path in ("c.mp4", "d\0")]
    data.write_text("\n".join(rows))
    assert digest_data(data, digests)


# The cache.


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_a_file_that_must_not_be_read_is_missing_and_one_that_fails_is_an_error(
    error, data, digests, monkeypatch
):
    def fail(path):
        raise OSError(error, "no")

    with monkeypatch.context() as patch:
        patch.setattr(module, "checksum", fail)
        if error == errno.EACCES:
            assert digests.of([data]) == ["missing"]
        else:
            with pytest.raises(InputError, match=r"items\.jsonl: cannot be read"):
                digests.of([data])
    assert digests.of([data]) == [sha256(data.read_bytes())]


def test_an_unchanged_file_is_read_once_also_after_an_interruption(
    tmp_path, digests, monkeypatch
):
    """Each batch is kept; another pipeline can write while files are read."""
    read = []
    checksum = module.checksum
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())

    def interrupted(path):
        read.append(Path(path).name)
        if read == ["a", "b"]:
            raise KeyboardInterrupt
        with sqlite3.connect(digests.path, timeout=5) as other:  # a commit is short
            row = "insert or replace into digests values (?, 1, 1, 'x')"
            other.execute(row, (f"other {path}",))
        other.close()
        return checksum(path)

    monkeypatch.setattr(module, "checksum", interrupted)
    monkeypatch.setattr(module, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        digests.of(files)
    expected = [sha256(name) for name in (b"a", b"b", b"c")]
    assert digests.of([*files, tmp_path / "none"]) == [*expected, "missing"]
    assert (digests.of(files), read) == (expected, ["a", "b", "b", "c"])


def test_a_changed_file_is_read_again(tmp_path, digests):
    file = tmp_path / "a"
    file.write_bytes(b"a")
    assert digests.of([file]) == [sha256(b"a")]
    file.write_bytes(b"d")  # as long as before
    os.utime(file, ns=(1, 1))
    assert digests.of([file]) == [sha256(b"d")]


def test_a_cache_that_cannot_be_used_is_named(tmp_path, digests):
    digests.path.write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match=r"digests\.sqlite"):
        digests.of([tmp_path / "a"])


def test_a_store_that_does_not_respond_changes_no_identity(digests, monkeypatch):
    places = ["http://host/a", "http://host/b", "http://host/c"]
    for answers, expected in (
        (
            ["1 etag x", "not fetched", "missing"],
            ["1 etag x", "not fetched", "missing"],
        ),
        (["not fetched"] * 3, ["1 etag x", "not fetched", "missing"]),
        (["2 etag y", "3 etag z", "not fetched"], ["2 etag y", "3 etag z", "missing"]),
    ):
        monkeypatch.setattr(module, "identities", lambda _, answers=answers: answers)
        assert digests.of(places) == expected == digests.of(places, ask=False)


def test_databases_have_the_permissions_of_other_new_files(mlflow_store, tmp_path):
    """So that a group may share a workspace."""
    mlflow_store(tmp_path)

    with group_may_write():
        Digests(tmp_path / "digests.sqlite").of([])

    for name in ("digests.sqlite", "mlflow.db"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o664
