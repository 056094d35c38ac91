"""What artifacts were built from, which of them the newest results need, and the commands `alpro artifacts ...`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpro.artifact import RECORD_VERSION, read_record
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.store import lineage as module
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import lineage, remove, unreachable


def artifact(root: Path, mark: str, name: str, *inputs: str) -> Path:
    """Writes an artifact; each is newer than the one before, and larger."""
    day = 1 + len(list(root.glob("*/*/artifact.json")))
    arguments = {"config": "sample", "data": "", "changes": ["pretrain.lr=1e-4", "name='my own'"], "folder": "/home/me"}
    run = {"at": f"2026-01-0{day}T00:00:00", "seconds": 1.0, "commit": "abc123+", "arguments": arguments}
    folder = root / name.split()[0] / (mark * 16)
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(day * 100_000))
    record = {"version": RECORD_VERSION, "stage": name.split()[0], "name": name, "fingerprint": mark * 64, "run": run}
    record |= {"inputs": {source: {"stage": source, "fingerprint": source * 64} for source in inputs}}
    record |= {"files": {}, "counts": {"rows": 3}, "metrics": {}, "config": {"seed": 7, "lr": 0.1234567891}}
    write_json(folder / "artifact.json", record | {"versions": {"torch": "9.9"}})
    return folder


@pytest.fixture
def store(tmp_path) -> Store:
    """Two corpora and two results of each stage; the newer `train` needs a, the older ones b and a; f is unfinished."""
    root = tmp_path / "artifacts"
    artifact(root, "a", "decode clips")
    artifact(root, "b", "decode stills")
    artifact(root, "c", "train", "a", "b")
    artifact(root, "d", "evaluate", "c", "a")
    artifact(root, "e", "train", "a")
    artifact(root, "0", "evaluate", "e", "a")
    (root / "train" / ("f" * 16) / "parts").mkdir(parents=True)
    return Store(root)


def marks(artifacts: list) -> str:
    return "".join(record["fingerprint"][0] for _, record in artifacts)


def folder_of(store: Store, mark: str) -> Path:
    return next(folder for folder, record in store.all() if record["fingerprint"][0] == mark)


def alpro(store: Store, *words: str) -> int:
    """Calls `alpro artifacts ...`; returns its exit status."""
    return cli.execute(["artifacts", *words, "--workspace", str(store.root.parent)])


def as_json(capsys, store: Store, *words: str) -> Any:
    alpro(store, *words, "--json")
    return json.loads(capsys.readouterr().out)


def test_lineage_has_inputs_before_users_and_each_once(store):
    records = {record["fingerprint"][0]: record for _, record in store.all()}
    assert marks(lineage(store, records["d"])) == "abcd"
    assert marks(lineage(store, records["0"])) == "ae0"
    (folder_of(store, "b") / "artifact.json").unlink()
    with pytest.raises(InputError, match="b" * 16):
        lineage(store, records["d"])


@pytest.mark.parametrize(
    ("kept", "removed"),
    [
        ("", "dc"),
        ("0", "dcb"),
        ("d", "0e"),
        ("c", "0ed"),
        ("ec", "0d"),
        ("de", "0"),
        ("b", "0edca"),
        ("gone", "0edcba"),
    ],
)
def test_what_no_kept_result_was_built_from_goes_users_first(kept, removed, store):
    """By default the newest of each name is kept, also a corpus that no result needs."""
    fingerprints = ["gone"] if kept == "gone" else [mark * 64 for mark in kept]
    assert marks(unreachable(store.all(), fingerprints)) == removed


def test_gc_lists_and_then_removes_and_touches_nothing_else(store, tmp_path, capsys):
    for place in ("reports/a.html", "mlflow/1/picture.png", "mlflow.db"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    before = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    gone = {file for mark in "cd" for file in folder_of(store, mark).iterdir()}
    alpro(store, "gc")
    printed = capsys.readouterr().out
    assert "c" * 16 in printed
    assert f"alpro artifacts rm {'f' * 16}" in printed
    assert marks(store.all()) == "abcde0"
    alpro(store, "gc", "--yes")
    assert marks(store.all()) == "abe0"
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"} == before - gone
    assert (store.root / "train" / ("f" * 16) / "parts").is_dir()
    capsys.readouterr()
    alpro(store, "gc", "--yes")
    assert "nothing to remove" in capsys.readouterr().out
    alpro(store, "gc", "00", "--yes")
    assert marks(store.all()) == "ae0"


def test_what_lies_outside_of_the_workspace_is_listed_and_stays(store, tmp_path, capsys):
    """Also if an artifact is a link to that of another workspace."""
    folder, other = folder_of(store, "c"), tmp_path / "another workspace"
    shutil.move(folder, other)
    folder.symlink_to(other)
    alpro(store, "gc", "--yes")
    assert str(folder) in capsys.readouterr().out
    assert read_record(other)
    assert marks(store.all()) == "abce0"
    for place in (folder, other):
        with pytest.raises(InputError, match=str(other)):
            remove(store, [place])
    assert (other / "data").is_file()


def test_an_interrupted_removal_leaves_no_record_over_an_incomplete_folder(store, monkeypatch):
    def killed(folder: Path) -> None:
        (folder / "data").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    folders = [folder for folder, _ in unreachable(store.all())]
    with pytest.raises(KeyboardInterrupt):
        remove(store, folders)
    assert marks(store.all()) == "abce0"
    assert not (folders[0] / "artifact.json").exists()
    assert all((folder / "data").is_file() for folder, _ in store.all())


def test_nothing_is_removed_while_a_stage_is_built(store):
    step = type("Step", (), {"stage": "g", "fingerprint": "9" * 64})()
    with store.lock(step), pytest.raises(InputError, match="g/9999"):
        remove(store, [folder_of(store, "d")])
    assert len(store.all()) == 6


def test_rm_removes_artifacts_and_unfinished_work(store, capsys):
    assert alpro(store, "rm", "dd", "f" * 16, "dddd") == 0
    assert marks(store.all()) == "abce0"
    assert not (store.root / "train" / ("f" * 16)).exists()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_artifacts_are_listed_with_inputs_and_sizes(store, capsys):
    """A file with several links counts once."""
    os.link(folder_of(store, "a") / "data", folder_of(store, "b") / "shard.tar")
    alpro(store, "ls")
    lines = capsys.readouterr().out.splitlines()
    (line,) = (number for number, text in enumerate(lines) if text.startswith("c" * 16))
    assert lines[line].split()[1:] == ["train", "2026-01-03", "00:00", "1", "s", "0.3", "MB"]
    assert [text.split()[-1] for text in lines[line + 1 : line + 3]] == ["a" * 8, "b" * 8]
    assert lines[-1] == "6 artifacts, 2.1 MB"
    rows = as_json(capsys, store, "ls")
    assert [row["bytes"] // 100_000 for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (rows[2]["name"], rows[2]["folder"]) == ("train", str(folder_of(store, "c")))


def test_an_artifact_is_shown_with_all_that_it_was_built_from_and_its_command(store, capsys):
    path = folder_of(store, "d") / "artifact.json"
    write_json(path, read_json(path) | {"files": {"data": "12ab"}})
    alpro(store, "show", "dd")
    shown = capsys.readouterr().out
    assert [line[0] for line in shown.partition("built from\n")[2].splitlines() if "2026" in line] == ["a", "b", "c"]
    for part in (
        "lr: 0.123457\n",
        "rows: 3\n",
        "torch: 9.9\n",
        "data: 12ab\n",
        "commit abc123, in the folder /home/me",
    ):
        assert part in shown
    command = "alpro run evaluate --config sample --set pretrain.lr=1e-4 --set 'name='\"'\"'my own'\"'\"''"
    assert f":\n  {command}\n" in shown
    assert "changes that are not in this commit" in shown
    shown = as_json(capsys, store, "show", "dd")
    assert (shown["command"], [record["name"] for record in shown["built_from"]]) == (
        command,
        ["decode clips", "decode stills", "train"],
    )
    (folder_of(store, "b") / "artifact.json").unlink()
    assert as_json(capsys, store, "show", "dd")["built_from"] == []


def test_the_folder_of_a_command_is_relative_to_the_checkout(monkeypatch, tmp_path):
    root = Path(module.__file__).parents[2]
    for folder, name in ((root, "."), (root / "docs", "docs"), (tmp_path, str(tmp_path))):
        monkeypatch.chdir(folder)
        assert module.current_folder() == name
