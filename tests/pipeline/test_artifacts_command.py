"""`alpro artifacts ...`: list, show, verify and remove."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.artifact import read_record
from alpro.files import read_json, write_json
from alpro.inference.index import Index, IndexSettings, record_index
from alpro.inference.names import write_refs
from alpro.pipeline.cli import main as cli
from alpro.pipeline.store.artifacts import Store
from alpro.stages import render_sample
from alpro.stages.execution.interface import Outcome
from alpro.stages.execution.step import Step
from tests.pipeline.conftest import write_artifact
from tests.pipeline.lineage import CHANGE, add_artifacts, folder_of, marks


@pytest.fixture
def workspace(tmp_path):
    """The workspace of `add_artifacts`, with an unfinished f."""
    add_artifacts(tmp_path)
    unfinished(tmp_path).mkdir(parents=True)
    newest = {"decode clips": "a", "decode stills": "b", "train": "e", "evaluate": "0"}
    fingerprints = {step: mark * 64 for step, mark in newest.items()}
    write_refs(tmp_path, "sample", [], fingerprints)
    return tmp_path


def unfinished(workspace):
    return workspace / "artifacts" / "train" / ("f" * 16)


def alpro(workspace, *words):
    """Calls `alpro artifacts ...`; returns its exit status."""
    return cli.execute(["artifacts", *map(str, words), "--workspace", str(workspace)])


# ls and show.


def test_an_artifact_is_listed_with_its_score(tmp_path, capsys):
    scores = {"test/fine-tuned/similarity/t2v/R1": 51.26}
    write_artifact(tmp_path, "evaluate", metrics=scores)
    write_artifact(tmp_path, "finetune_qa", metrics={"validation/qa/acc": 44.0})

    alpro(tmp_path, "ls")

    out = capsys.readouterr().out
    assert "R@1 51.3" in out
    assert "accuracy 44.0" in out


def test_an_artifact_is_listed_with_its_size_and_its_run(workspace, capsys):
    alpro(workspace, "ls")

    lines = capsys.readouterr().out.splitlines()
    (line,) = (text for text in lines if text.startswith("c" * 8))
    _, name, _, _, config, change, *_ = line.split()
    assert [name, config, change] == ["train", "sample", CHANGE]
    assert lines[-1].startswith("6 artifacts, ")


def test_an_artifact_is_shown_with_the_command_that_builds_it(workspace, capsys):
    alpro(workspace, "show", "dd")

    command, *_ = capsys.readouterr().out.splitlines()
    assert command == (
        f"alpro run evaluate --config sample --set {CHANGE} --set finetune_qa.lr=2 --set "
        "'name='\"'\"'my own'\"'\"''"
    )


def test_an_artifact_is_shown_with_its_values_and_all_that_it_was_built_from(
    workspace, capsys
):
    path = folder_of(workspace, "d") / "artifact.json"
    write_json(path, read_json(path) | {"files": {"data": "12ab"}})

    alpro(workspace, "show", "dd")

    shown = capsys.readouterr().out
    sources = [line for line in shown.partition("{")[0].splitlines() if "2026" in line]
    assert [line[0] for line in sources] == [*"abcd"]
    assert '"lr": 0.1234567891' in shown
    assert '"data": "12ab"' in shown


# verify.


@pytest.fixture
def built(tmp_path):
    """Two artifacts, the second with a damaged file."""
    store = Store(tmp_path / "artifacts")

    def work(_, out):
        (out / "a.tar").write_bytes(b"0123456789")
        return Outcome()

    folders = []
    for seed, name in enumerate(("good", "bad")):
        step = Step("render_sample", name, render_sample.Config(seed=seed))
        store.make(step, work, {})
        folders.append(store.folder(step))
    (folders[1] / "a.tar").write_bytes(b"x")
    return folders[0], folders[1]


def test_the_exit_status_tells_whether_all_is_as_recorded(built, tmp_path, capsys):
    good, bad = built
    statuses = [
        alpro(tmp_path, "verify", *names)
        for names in ([], [good.name[:6]], [good.name, bad.name], ["0" * 20])
    ]
    assert statuses == [1, 0, 1, 2]
    assert f"damaged: {bad / 'a.tar'}" in capsys.readouterr().out.splitlines()


def test_records_that_cannot_be_read_or_were_moved_are_problems(
    built, tmp_path, capsys
):
    good, bad = built
    (good / "artifact.json").write_text("")
    bad.rename(bad.with_name("0" * 16))

    assert alpro(tmp_path, "verify") == 1
    lines = capsys.readouterr().out.splitlines()
    for folder in (good, bad.with_name("0" * 16)):
        assert f"damaged: {folder / 'artifact.json'}" in lines


# gc and rm.


def test_gc_lists_before_it_removes(workspace, capsys):
    alpro(workspace, "gc")
    out = capsys.readouterr().out
    assert "c" * 8 in out
    assert marks(workspace) == "abcde0"


def test_gc_removes_what_nothing_in_use_was_built_from_and_touches_nothing_else(
    workspace,
):
    for place in ("reports/a.html", "mlflow/1/picture.png", "mlflow.db"):
        (workspace / place).parent.mkdir(parents=True, exist_ok=True)
        (workspace / place).touch()

    def files():
        return {
            path
            for path in workspace.rglob("*")
            if path.is_file() and path.suffix != ".lock"
        }

    removed = {file for mark in "cd" for file in folder_of(workspace, mark).iterdir()}
    before = files()

    alpro(workspace, "gc", "--yes")

    assert marks(workspace) == "abe0"
    assert files() == before - removed
    assert unfinished(workspace).is_dir()


def test_gc_removes_the_units_of_the_corpora_that_it_removes(workspace, capsys):
    for mark in "ab":
        (workspace / "units" / mark).mkdir(parents=True)
        (workspace / "units" / mark / "shard.tar").write_bytes(bytes(2 << 20))
        table = pa.table({"name": ["train"], "key": [mark]})
        pq.write_table(table, folder_of(workspace, mark) / "units.parquet")
    write_refs(
        workspace, "sample", [], {"decode clips": "a" * 64, "decode stills": "a" * 64}
    )

    alpro(workspace, "gc", "--yes")

    assert [unit.name for unit in (workspace / "units").iterdir()] == ["a"]
    assert "1 units that no corpus is made of" in capsys.readouterr().out


def test_gc_removes_outdated_imports_of_data(workspace):
    folders = [
        workspace / "manifests" / name for name in ("data-1-", "data-2-", "other-1-")
    ]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        os.utime(folder, (number, number))

    alpro(workspace, "gc", "--yes")

    assert not folders[0].exists()
    assert all(folder.is_dir() for folder in folders[1:])


def test_gc_removes_nothing_where_no_stage_stands_for_an_artifact(tmp_path):
    add_artifacts(tmp_path)  # as if they were copied here

    assert alpro(tmp_path, "gc", "--yes") == 2

    assert marks(tmp_path) == "abcde0"


@pytest.fixture
def index(workspace, tmp_path_factory):
    """An index with the model c, which nothing else keeps."""
    place = tmp_path_factory.mktemp("elsewhere") / "index"
    settings = IndexSettings(model=str(folder_of(workspace, "c")), digest="x")
    return Index.create(place, settings, 8, {})


def test_gc_keeps_the_model_of_an_index(workspace, index):
    """Also of one that is not there: its disk may not be mounted, or its folder has another name."""
    record_index(index)

    alpro(workspace, "gc", "--yes")

    assert marks(workspace) == "abce0"
    shutil.rmtree(index.place)
    alpro(workspace, "gc", "--yes")
    assert marks(workspace) == "abce0"


def test_gc_keeps_a_link_to_another_workspace(workspace, tmp_path_factory):
    folder = folder_of(workspace, "c")
    other = tmp_path_factory.mktemp("other") / "c"
    shutil.move(folder, other)
    folder.symlink_to(other)

    assert alpro(workspace, "gc", "--yes") == 0

    assert read_record(other)
    assert marks(workspace) == "abce0"


def test_rm_removes_artifacts(workspace, capsys):
    assert alpro(workspace, "rm", "dd", "cc", "dddd", "--yes") == 0

    assert marks(workspace) == "abe0"
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_rm_removes_nothing_before_yes(workspace, capsys):
    assert alpro(workspace, "rm", "bb") == 2

    assert "--yes" in capsys.readouterr().err
    assert marks(workspace) == "abcde0"
