"""An index as a table: what is written is what is read, ranked, filtered and removed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock, Timeout

from alpro.errors import InputError
from alpro.inference import index as module
from alpro.inference.index import (
    EMPTY,
    Index,
    IndexSettings,
    make_condition,
)
from tests.conftest import one_line

ROOT = "/videos"
COLUMNS = {"day": pa.string(), "views": pa.float64()}
SIZE = 8


def make_item(number, path="", **values):
    """A clip; its key is its path, as if it were a digest of it."""
    item = EMPTY | {
        "id": f"{number}",
        "path": path or f"{ROOT}/{number:02}.mp4",
        "kind": "video",
    }
    item |= {"identity": "1 2", "duration": 3.0} | values
    return item | {"key": item["path"].removeprefix(ROOT)}


def make_vectors(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, SIZE), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_index(place):
    settings = IndexSettings(model="/model", digest="d", root=ROOT)
    return Index.create(place, settings, SIZE, COLUMNS)


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "index")


def fill(index, items, vectors):
    index.write(
        [item | {"vector": vector} for item, vector in zip(items, vectors, strict=True)]
    )


def ids(index, where="", words=""):
    return [item["id"] for item in index.rows(make_condition(where, words))]


def test_a_clip_is_in_the_index_once_with_its_last_values(index):
    vectors = make_vectors(5)
    fill(index, [make_item(n) for n in range(4)], vectors[:4])

    fill(index, [make_item(4, f"{ROOT}/01.mp4")], vectors[4:])

    reopened = Index.open(index.place)
    assert ids(reopened) == ["0", "4", "2", "3"]
    for item in reopened.rows():
        np.testing.assert_array_equal(
            index.embedding(item["key"]), vectors[int(item["id"])]
        )


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_nearest_clips_are_those_of_a_stable_sort(k, index):
    """Also where many are equal, in whatever order they were added."""
    vectors = make_vectors(5)[np.random.default_rng(2).integers(0, 5, 24)]
    items = [make_item(n) for n in range(24)]
    for part in (slice(12, 24), slice(0, 12)):
        fill(index, items[part], vectors[part])
    query = make_vectors(1, seed=3)[0]

    nearest = index.nearest(query, k)

    scores = (vectors @ query).astype(float).round(6)
    expected = sorted(range(24), key=lambda n: (-scores[n], n))[:k]
    assert [item["id"] for item in nearest] == [f"{n}" for n in expected]
    similarities = [item["similarity"] for item in nearest]
    np.testing.assert_allclose(similarities, scores[expected], atol=2e-6)


CASES = {
    "KIND = 'image'": "2",
    "path LIKE '2/%'": "12",
    "duration IS NULL": "2",
    "kind = 'video' AND caption ILIKE '%BALL%'": "0",
    "kind = 'image' OR id = '7'": "02",
    '`views` > 9 AND "views" < 11': "1",
    "day >= '2024-01-15' -- a comment": "0",
    "caption = 'it''s a ball'": "0",
}
WORDS = {
    "BALL two": "2",
    "b.mp4": "1",
    "1/": "",  # a folder
    "cafe\u0301": "0",  # composed or not
    "it's": "0",
    "%": "",
}


@pytest.fixture
def three(index):
    first = {
        "id": "7",
        "caption": "it's a ball",
        "columns": {"day": "2024-02-01", "views": 9},
    }
    second = {
        "id": "06",
        "duration": 2.0,
        "columns": {"day": "2024-01-01", "views": 10},
    }
    third = {
        "id": "red",
        "kind": "image",
        "caption": "two balls",
        "duration": None,
        "columns": {},
    }
    items = [
        make_item(0, f"{ROOT}/1/caf\u00e9.mp4", **first),
        make_item(1, f"{ROOT}/2/b.mp4", **second),
        make_item(2, f"{ROOT}/2/c.png", **third),
    ]
    fill(index, items, np.eye(3, SIZE, dtype=np.float32))
    index.write([make_item(3, reason="unreadable", detail="no header")])
    return index


NAMES = ["7", "06", "red"]
FILTERS = [(where, "", expected) for where, expected in CASES.items()]
FILTERS += [("", words, expected) for words, expected in WORDS.items()]
FILTERS += [("kind = 'image'", "ball", "2"), ("", "", "012")]


@pytest.mark.parametrize(("where", "words", "expected"), FILTERS)
def test_a_condition_chooses_what_is_listed_counted_and_ranked(
    where, words, expected, three
):
    condition = make_condition(where, words)
    names = [NAMES[int(digit)] for digit in expected]
    assert ids(three, where, words) == names
    assert three.count(condition) == len(names)
    query = np.arange(1, SIZE + 1, dtype=np.float32)
    assert [item["id"] for item in three.nearest(query, 3, condition)] == names[::-1]


COLUMNS_LINE = "No field named color. Valid fields are `key`, `id`, `path`, `kind`"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("color = 'red'", COLUMNS_LINE),
        ("kind = video", "No field named video"),
        ("kind = 'video' LIMIT 1", "LIMIT"),
        ("kind = 'video'; DROP TABLE clips", ";"),
        ("caption", "boolean"),
        ("kind = 'video", "Unterminated"),
        ("kind = '\udcff'", "surrogate"),
        ("1=1) OR (1=1", "bracket"),
    ],
)
def test_a_wrong_condition_is_a_line(where, reason, three):
    with one_line(reason) as raised:
        three.nearest(np.ones(SIZE, np.float32), 1, make_condition(where))
    assert ".rs:" not in str(raised.value)


def bytes_on_disk(folder):
    return b"".join(
        file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    )


@pytest.mark.parametrize("killed", ["", "update", "delete", "optimize"])
def test_what_is_removed_is_not_on_the_disk_also_after_a_kill(
    killed, index, monkeypatch
):
    def kill(*arguments, **options):
        raise KeyboardInterrupt

    vectors = make_vectors(40)
    items = [make_item(n, caption=f"caption {n}") for n in range(40)]
    fill(index, items[:20], vectors[:20])
    fill(index, items[20:], vectors[20:])  # another file
    assert vectors[25].tobytes() in bytes_on_disk(index.place)
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(type(index.table), killed, kill)
            with pytest.raises(KeyboardInterrupt):
                index.remove(["/05.mp4"])

    index.remove(["/05.mp4", "/25.mp4"])

    contents = bytes_on_disk(index.place)
    assert vectors[5].tobytes() not in contents
    assert vectors[25].tobytes() not in contents
    assert ids(index) == [f"{n}" for n in range(40) if n not in (5, 25)]
    np.testing.assert_array_equal(index.embedding("/06.mp4"), vectors[6])


@pytest.fixture
def fail_once(index, monkeypatch):
    """fail_once(name, message): a method of the engine raises an error the first time."""

    def prepare(name, message):
        real = getattr(type(index.table), name)
        errors = [RuntimeError(f"lance error: {message}")]

        def call(*arguments, **options):
            if errors:
                raise errors.pop()
            return real(*arguments, **options)

        monkeypatch.setattr(type(index.table), name, call)

    return prepare


@pytest.mark.parametrize(
    "read", ["rows", "count", "identities", "nearest", "embedding"]
)
def test_a_read_whose_files_another_process_removed_is_repeated(read, three, fail_once):
    reads = {
        "rows": lambda: [item["id"] for item in three.rows()],
        "count": three.count,
        "identities": lambda: three.identities().num_rows,
        "nearest": lambda: three.nearest(np.ones(SIZE, np.float32), 1),
        "embedding": lambda: three.embedding("/2/b.mp4").tolist(),
    }
    expected = reads[read]()
    fail_once(
        "count_rows" if read == "count" else "search",
        "Not found: clips.lance/_deletions/5-1-2.arrow",
    )

    assert reads[read]() == expected


CHANGES = {
    "write": (
        "merge_insert",
        lambda index: fill(index, [make_item(9)], make_vectors(1)),
    ),
    "remove": ("delete", lambda index: index.remove(["/09.mp4"])),
    "optimize": ("optimize", lambda index: index.optimize()),
    "change_settings": (
        "update_field_metadata",
        lambda index: index.change_settings(root="/a"),
    ),
}


@pytest.mark.parametrize(("name", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_waits_for_the_lock_and_is_repeated_after_a_conflict(
    name, change, index, fail_once, monkeypatch
):
    fail_once(name, "Retryable commit conflict for version 5: another writer was first")
    real = getattr(type(index.table), name)
    held = []

    def call(*arguments, **options):
        with (
            pytest.raises(Timeout),
            FileLock(Path(index.place, "clips.lock"), blocking=False),
        ):
            pass
        held.append(name)
        return real(*arguments, **options)

    monkeypatch.setattr(type(index.table), name, call)

    change(index)

    assert len(held) > 1
    with FileLock(Path(index.place, "clips.lock"), blocking=False):
        pass


def test_a_folder_that_moved_is_one_change(index):
    """Paths outside of it stay."""
    places = [f"{ROOT}/1/a.mp4", "/videos2/a.mp4", "s3://bucket/a.mp4"]
    fill(index, [make_item(n, path) for n, path in enumerate(places)], make_vectors(3))
    version = index.table.version
    index.change_settings(root="/archive")
    assert index.table.version == version + 1
    paths = {item["path"] for item in Index.open(index.place).rows()}
    assert paths == {"/archive/1/a.mp4", *places[1:]}


def test_many_clips_are_searched_approximately_unless_exactly_is_asked(
    index, monkeypatch
):
    monkeypatch.setattr(module, "EXACT_CLIPS", 300)
    monkeypatch.setattr(module, "PARTITIONS", 8)
    vectors = make_vectors(512)
    items = [make_item(n) for n in range(512)]
    fill(index, items[:256], vectors[:256])
    index.optimize()
    assert not index.table.list_indices()

    fill(index, items[256:], vectors[256:])
    index.optimize()

    assert index.table.list_indices()
    query = vectors[300]
    best = np.argsort(-(vectors @ query))[:10]
    exact = index.nearest(query, 10, exact=True)
    assert [int(item["id"]) for item in exact] == best.tolist()
    assert index.nearest(query, 1)[0]["id"] == "300"


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("moto_server"), reason="no moto[server]")
def test_an_index_may_be_in_a_store(free_port, monkeypatch):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        monkeypatch.setenv(f"AWS_{name}", "any")
    monkeypatch.setenv("AWS_ENDPOINT", address)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    server = subprocess.Popen(["moto_server", "-p", str(port)])
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=9)) as client:
            client.put(f"{address}/bucket")
        index = make_index("s3://bucket/index")
        fill(index, [make_item(n) for n in range(4)], make_vectors(4))
        index.remove(["/01.mp4"])

        assert ids(Index.open(index.place)) == ["0", "2", "3"]
    finally:
        server.kill()
        server.wait()


def test_what_is_no_index_is_a_line(tmp_path):
    with pytest.raises(InputError):
        Index.open(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(InputError, match="password"):
        Index.open("s3://me:secret@bucket/index")


def test_a_table_of_others_is_a_line(index):
    import lancedb

    table = index.table.to_arrow().drop_columns(["vector"])
    schema = table.schema.append(pa.field("vector", pa.list_(pa.float32(), SIZE)))
    lancedb.connect(index.place).create_table("clips", schema=schema, mode="overwrite")

    with pytest.raises(InputError, match="it is no index"):
        Index.open(index.place)


@pytest.mark.parametrize("folder", ["data", "_versions"])
def test_a_damaged_index_is_a_line(folder, three):
    for file in Path(three.place, "clips.lance", folder).iterdir():
        os.truncate(file, 3)

    with pytest.raises(InputError, match=re.escape(three.place)):
        Index.open(three.place).rows()
