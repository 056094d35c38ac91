"""Units: a folder is complete or not there, and is found only if it is whole."""

import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.pool import Died
from alpro.stages.corpora import units as units_module
from alpro.stages.corpora.units import (
    Unit,
    find_unused,
    finish_units,
    link,
    open_units,
)
from alpro.stages.execution.interface import Resources


@pytest.fixture
def out(tmp_path):
    """The folder of a stage in a workspace."""
    folder = tmp_path / "artifacts" / "decode_videos" / "0123"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def units(out):
    return open_units(out)


def make(units, key, write):
    return units.find_or_make("train", lambda: key, write)


def write(folder):
    (folder / "shard.tar").write_bytes(b"samples")
    (folder / "index.parquet").write_bytes(b"rows")
    return {"samples": 1, "transient": False}


def test_a_unit_is_found_after_it_was_made(units, tmp_path):
    assert units.find("key") is None

    make(units, "key", write)

    record = units.find("key")
    assert record is not None
    assert record["samples"] == 1
    assert units.folder("key") == tmp_path / "units" / "key"


def test_a_folder_outside_of_a_workspace_has_units_of_its_own(tmp_path):
    out = tmp_path / "debugged"
    out.mkdir()

    make(open_units(out), "key", write)

    assert [folder.name for folder in tmp_path.iterdir()] == ["debugged"]


def test_an_interrupted_unit_is_not_there(units):
    def interrupt(folder):
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(units, "key", interrupt)

    assert list(units.root.iterdir()) == []


def test_what_a_killed_stage_left_is_deleted_by_its_next_run_alone(units, out):
    own = units.root / f".{out.name}.1.part"
    foreign = units.root / ".another.1.part"
    for folder in (own, foreign):
        folder.mkdir()
        (folder / "shard.tar").touch()

    open_units(out)

    assert list(units.root.iterdir()) == [foreign]


def change(file):
    file.write_bytes(b"x" + file.read_bytes()[1:])


@pytest.mark.parametrize("name", ["shard.tar", "index.parquet", "unit.json"])
@pytest.mark.parametrize("damage", [change, Path.unlink])
def test_a_damaged_unit_is_made_again(units, name, damage):
    make(units, "key", write)
    file = units.folder("key") / name
    whole = file.read_bytes()
    damage(file)
    assert units.find("key") is None

    make(units, "key", write)

    assert file.read_bytes() == whole
    assert [folder.name for folder in units.root.iterdir()] == ["key"]


def test_two_stages_may_replace_a_damaged_unit(units, monkeypatch):
    make(units, "key", write)
    change(units.folder("key") / "unit.json")
    publish = units_module.publish
    attempts = []

    def publish_after_another(*paths):
        attempts.append(paths)
        if len(attempts) == 2:  # the damaged one is moved
            make(units, "key", write)
        publish(*paths)

    monkeypatch.setattr(units_module, "publish", publish_after_another)
    make(units, "key", write)

    assert units.find("key") is not None


def test_a_transient_unit_is_not_found(units):
    make(units, "key", lambda folder: write(folder) | {"transient": True})

    assert units.find("key") is None


def test_a_unit_whose_files_change_while_it_is_made_is_made_again(units):
    keys = iter(["key", "other key"])

    unit = units.find_or_make("train", lambda: next(keys), write)

    assert unit == ("train", "key", True)
    assert units.find("key") is None


def test_two_stages_may_make_a_unit_at_the_same_time(units):
    barrier = threading.Barrier(2)

    def write_together(folder):
        barrier.wait()
        return write(folder)

    threads = [
        threading.Thread(target=make, args=(units, "key", write_together)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert units.find("key") is not None
    assert [folder.name for folder in units.root.iterdir()] == ["key"]


def test_a_corpus_keeps_its_shards_when_units_are_removed(units, out):
    make(units, "key", write)
    shard = units.folder("key") / "shard.tar"

    link(shard, out / "train.tar")
    assert shard.samefile(out / "train.tar")
    shutil.rmtree(units.folder("key"))

    assert (out / "train.tar").read_bytes() == b"samples"
    assert list(units.root.iterdir()) == []


def test_a_link_replaces_a_file_of_an_interrupted_run_and_leaves_what_it_links_to(out):
    for name in ("old", "new"):
        (out / name).write_text(name)
    link(out / "old", out / "train.tar")

    link(out / "new", out / "train.tar")

    assert (out / "train.tar").read_text() == "new"
    assert (out / "old").read_text() == "old"


def test_a_unit_is_in_use_by_a_corpus_or_by_an_interrupted_stage(units, out, tmp_path):
    for key in ("linked", "progress", "unused"):
        make(units, key, write)
    (units.root / ".killed.part").mkdir()
    corpus = out.with_name("corpus")
    corpus.mkdir()
    table = pa.table({"name": ["train"], "key": ["linked"]})
    pq.write_table(table, corpus / "units.parquet")
    (out / "parts" / "units").write_text("progress\nunus")  # cut by a power failure

    unused = {folder.name for folder in find_unused(tmp_path)}
    without_corpus = {folder.name for folder in find_unused(tmp_path, removed=[corpus])}

    assert unused == {"unused", ".killed.part"}
    assert without_corpus == {"unused", ".killed.part", "linked"}


def test_a_task_that_dies_ends_the_stage_after_all_others(units, out, monkeypatch):
    unit = Unit("1", "key", made=True)
    results = [(0, Died("its process ended with status -11")), (1, unit)]
    monkeypatch.setattr(units_module, "each", lambda *_: results)

    finished = finish_units(range(2), str, out, Resources())

    assert next(finished) == (1, unit)
    assert (out / "parts" / "units").read_text() == "key\n"
    with pytest.raises(RuntimeError, match=r"^0: its process ended.* -11; .*lower"):
        next(finished)
