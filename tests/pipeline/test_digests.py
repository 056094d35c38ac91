"""Digests of the files that a user names: they decide what is built again."""

import errno
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest

from alpro.errors import InputError
from alpro.pipeline.plan import digests as module
from alpro.pipeline.plan.digests import Digests
from tests.plans import digest_data


@pytest.fixture
def digests(tmp_path) -> Digests:
    return Digests(tmp_path / "digests.sqlite")


@pytest.fixture
def data(tmp_path) -> Path:
    """A manifest of two files."""
    (tmp_path / "data").mkdir()
    rows = [{"path": name, "caption": f"this is {name}"} for name in ("a.mp4", "b.mp4")]
    for row in rows:
        (tmp_path / "data" / row["path"]).write_text(row["path"])
    (tmp_path / "data" / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data" / "items.jsonl"


def test_the_digest_of_data_depends_on_rows_and_their_files_and_neither_on_others_nor_on_its_folder(
    data, digests, tmp_path, monkeypatch
):
    folder = data.parent
    text = data.read_text()
    before = digest_data(data, digests)
    (folder / "notes.md").write_text("not named by the manifest")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert digest_data(data, digests) == digest_data(moved / data.name, digests) == before
    found = {before}
    for other in (
        text.replace("this is", "that is"),
        text + '{"path": "c.mp4", "caption": "new"}\n',
        text + "no JSON\n",
    ):
        data.write_text(other)
        found.add(digest_data(data, digests))
    (folder / "a.mp4").write_text("other contents")
    found.add(digest_data(data, digests))
    (folder / "b.mp4").unlink()
    found.add(digest_data(data, digests))
    assert len(found) == 6

    data.unlink()
    (folder / "a.txt").write_text("a bird\n")
    of_folder = digest_data(folder, digests)
    assert digest_data(folder / ".." / folder.name, digests) == of_folder
    monkeypatch.chdir(folder)
    assert digest_data(Path(), digests) == of_folder
    (folder / "a.txt").write_text("a bird\na plane\n")
    assert digest_data(folder, digests) != of_folder


def test_a_file_that_cannot_be_read_now_is_an_error_and_a_folder_is_missing(
    data, digests, monkeypatch
):
    (data.parent / "c.mp4").mkdir()
    assert digests.of([data.parent / "c.mp4"]) == ["missing"]
    data.write_text(
        data.read_text()
        + '{"path": "c.mp4", "caption": "x"}\n{"path": "d\\u0000", "caption": "x"}\n'
    )
    assert digest_data(data, digests)
    data.touch()
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "checksum", Mock(side_effect=PermissionError(errno.EACCES, "no permission"))
        )
        assert digests.of([data]) == ["missing"]
        patch.setattr(
            module, "checksum", Mock(side_effect=OSError(errno.EIO, "input/output error"))
        )
        with pytest.raises(InputError, match=r"items\.jsonl: cannot be read"):
            digests.of([data])
    assert digests.of([data]) == [hashlib.sha256(data.read_bytes()).hexdigest()]


@pytest.mark.parametrize("damage", ["garbage", "in use"])
def test_a_cache_that_cannot_be_used_is_named(damage, tmp_path, digests, monkeypatch):
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


def test_a_store_that_does_not_respond_changes_no_identity(digests, monkeypatch):
    places = ["http://host/a", "http://host/b", "http://host/c"]
    for answers, expected in (
        (["1 etag x", "not fetched", "missing"], ["1 etag x", "not fetched", "missing"]),
        (["not fetched"] * 3, ["1 etag x", "not fetched", "missing"]),
        (["2 etag y", "3 etag z", "not fetched"], ["2 etag y", "3 etag z", "missing"]),
    ):
        monkeypatch.setattr(module, "identities", lambda _, answers=answers: answers)
        assert digests.identities(places) == expected == digests.identities(places, ask=False)
