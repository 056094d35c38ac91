"""Where an artifact comes from, and which artifacts no run in MLflow needs."""

import os
import socket
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.store import lineage as upkeep
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import lineage, remove, required_by, unneeded
from alpro.pipeline.tracking.queries import logged_fingerprints, running
from tests.pipeline.test_cli import call
from tests.pipeline.test_console import artifact as written


def mark(name: str) -> str:
    return name * 64


def artifact(root: Path, name: str, *inputs: str) -> Path:
    """Writes an artifact of a stage of that name; each is newer than the one before, and larger."""
    day = 1 + len(list(root.glob("*/*/artifact.json")))
    arguments = {"config": "sample", "data": "", "changes": ["pretrain.lr=1e-4", "name='my own'"]}
    run = {"at": f"2026-01-0{day}T00:00:00", "seconds": 1.0, "commit": "abc123", "arguments": arguments}
    more = {"run": run, "config": {"seed": 7}, "versions": {"torch": "9.9"}, "counts": {"rows_read": 3}, "paths": {}}
    return written(root, name, name, name, day, {source: source for source in inputs}, **more)


@pytest.fixture
def store(tmp_path):
    """a -> b -> d, a -> c -> d; e on its own; unfinished work of f."""
    root = tmp_path / "artifacts"
    for name, *inputs in (("a",), ("b", "a"), ("c", "a"), ("d", "b", "c"), ("e",)):
        artifact(root, name, *inputs)
    (root / "f" / mark("f")[:16] / "parts").mkdir(parents=True)
    return Store(root)


def names(found) -> list[str]:
    return [record["name"] for _, record in found]


def record_of(store: Store, name: str) -> dict:
    return next(record for _, record in store.all() if record["name"] == name)


def test_lineage_has_inputs_before_users_and_each_once(store):
    assert names(lineage(store, record_of(store, "d"))) == ["a", "b", "c", "d"]
    assert names(lineage(store, record_of(store, "e"))) == ["e"]


def test_a_missing_input_is_named(store):
    d = record_of(store, "d")
    (store.root / "a" / mark("a")[:16] / "artifact.json").unlink()
    with pytest.raises(InputError, match=f"{mark('a')[:16]}, an input of b, is not in"):
        lineage(store, d)


def test_what_a_kept_artifact_requires(store):
    records = [record for _, record in store.all()]
    assert required_by(records, [mark("b")]) == {mark("a"), mark("b")}
    assert required_by(records, [mark("gone")]) == {mark("gone")}


everything = {mark(name) for name in "abcdef"}


@pytest.mark.parametrize(
    ("kept", "known", "chosen"),
    [
        ("d", everything, ["f, unfinished", "e"]),
        ("b", everything, ["f, unfinished", "e", "d", "c"]),
        ("bf", everything, ["e", "d", "c"]),
        ("", everything, ["f, unfinished", "e", "d", "c", "b", "a"]),
        ("", {mark("e")}, ["e"]),  # the others were logged elsewhere
        ("", set(), []),
    ],
)
def test_users_are_removed_before_their_inputs_and_never_what_a_kept_run_needs(store, kept, known, chosen):
    items = unneeded(store, {mark(name) for name in kept}, known)
    assert [item.name for item in items] == chosen
    before = {folder for folder, _ in store.all()}
    remove(store, items)
    assert before - {folder for folder, _ in store.all()} == {item.folder for item in items if item.record}
    assert not any(item.folder.exists() for item in items)


def test_a_file_with_several_links_frees_its_bytes_once_and_only_with_its_last_link(store):
    a, e = store.root / "a" / mark("a")[:16], store.root / "e" / mark("e")[:16]
    os.link(e / "data", e / "again")  # within one folder
    (a / "data").unlink()
    os.link(store.root / "b" / mark("b")[:16] / "data", a / "data")  # b is kept here
    records = {name: (store.root / name / mark(name)[:16] / "artifact.json").stat().st_size for name in "ae"}
    items = unneeded(store, set(), {mark("a"), mark("e")})
    assert {item.name: item.size for item in items} == {"e": 500_000 + records["e"], "a": records["a"]}


def test_nothing_is_removed_while_a_stage_is_being_built(store):
    items = unneeded(store, set(), everything)
    (store.root / "g").mkdir()
    step = type("Step", (), {"stage": "g", "fingerprint": mark("g")})()
    with store.lock(step), pytest.raises(InputError, match=r"g/.* is being built; run this command when it is done"):
        remove(store, items)
    assert len(store.all()) == 5


def test_a_run_keeps_its_artifacts_until_it_or_its_parent_is_deleted(store, tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("sample")

    def run(name: str = "", parent: str = "") -> str:
        tags = {"fingerprint": mark(name)} if name else {}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        return client.create_run(experiment, tags=tags).info.run_id

    first, second = run(), run()
    for name in "abcd":
        run(name, first)
    alone = run("e", second)
    run("b", second)
    assert logged_fingerprints(uri) == ({mark(name) for name in "abcde"},) * 2

    def gc(*more):
        return call(monkeypatch, capsys, "artifacts", "gc", "--workspace", tmp_path, *more)

    assert gc()[1].startswith("runs in MLflow need all artifacts")
    client.delete_run(first)
    client.delete_run(alone)
    assert logged_fingerprints(uri) == ({mark("b")}, {mark(name) for name in "abcde"})
    status, out, _ = gc()
    assert (status, len(store.all())) == (0, 5)
    assert "3 artifacts, 1.2 MB, and 0 other files could be removed; add --yes to remove them" in out
    reports = tmp_path / "reports"
    reports.mkdir()
    for name in "be":  # each with the page of a run that needs the artifact
        write_json(reports / f"{name}.json", {"steps": [{"fingerprint": mark(name)}]})
        (reports / f"{name}.html").touch()
    (tmp_path / "artifacts" / ".fetched" / "b" / "half").mkdir(parents=True)
    (reports / ".e.html.0123.part").touch()
    write_json(reports / "compare.json", {})
    status, out, _ = gc("--yes")
    assert (status, names(store.all())) == (0, ["a", "b"])
    assert "removed 3 artifacts, 1.2 MB, and 4 other files" in out
    assert "the workspace before: " in out
    assert "the workspace after: " in out
    assert sorted(file.name for file in reports.iterdir()) == ["b.html", "b.json", "compare.json"]
    assert not (tmp_path / "artifacts" / ".fetched" / "b" / "half").exists()
    left = MlflowClient(uri).search_runs([experiment], "", ViewType.ALL)
    assert len(left) == 2, "those of the deleted parent and its children are gone"


def test_without_an_mlflow_store_nothing_is_removed(store, tmp_path, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "artifacts", "gc", "--workspace", tmp_path, "--yes")
    assert (status, err.count("\n")) == (2, 1)
    assert "mlflow.db does not exist; name the MLflow server of the runs with --tracking-uri" in err
    assert len(store.all()) == 5


def test_the_lineage_is_printed_with_the_command_that_builds_the_artifact(store, tmp_path, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "artifacts", "lineage", mark("d")[:6], "--workspace", tmp_path)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines() if "2026-01-0" in line] == ["a", "b", "c", "d"]
    assert "built with torch 9.9" in out
    expected = "alpro run d --config sample --set pretrain.lr=1e-4 --set 'name='\"'\"'my own'\"'\"''"
    assert f"To build it again, at commit abc123:\n  {expected}\n" in out


def test_the_lineage_shows_rows_entities_files_and_the_folder_of_the_command(store, tmp_path, monkeypatch, capsys):
    folder = store.root / "d" / mark("d")[:16]
    (folder / "index.parquet").touch()
    (folder / "entities.parquet").touch()
    record = read_json(folder / "artifact.json")
    record["run"] |= {"commit": "abc123+", "arguments": {**record["run"]["arguments"], "folder": "/home/me"}}
    write_json(folder / "artifact.json", record | {"files": {"data": "12ab"}, "paths": {"data": "/videos/m.jsonl"}})
    _, out, _ = call(monkeypatch, capsys, "artifacts", "lineage", mark("d")[:6], "--workspace", tmp_path)
    text = " ".join(out.split())
    assert "from b, c reads /videos/m.jsonl, SHA-256 12ab rows read 3" in text
    assert f"{folder}: index.parquet (rows), entities.parquet (entities)" in text
    assert "at commit abc123, in the folder /home/me: alpro run d" in text
    assert text.endswith("The checkout had changes that are not in this commit.")


def test_the_folder_of_a_command_is_relative_to_the_checkout(monkeypatch, tmp_path):
    root = Path(upkeep.__file__).parents[2]
    for folder, name in ((root, "."), (root / "docs", "docs"), (tmp_path, str(tmp_path))):
        monkeypatch.chdir(folder)
        assert upkeep.current_folder() == name


def test_nothing_is_removed_while_a_run_is_active(store, tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("sample")
    here = {"host": socket.gethostname(), "pid": str(os.getppid())}

    def run(**tags: str) -> str:
        return client.create_run(experiment, tags=tags, run_name="mine").info.run_id

    client.delete_run(run(fingerprint=mark("e")))
    run()  # not of this project
    run(host=here["host"], pid="999999999")  # dead
    assert running(uri) == []
    active = run(**here)
    client.delete_run(active)  # its process goes on
    assert running(uri) == [f"mine on {here['host']}"]
    status, _, err = call(monkeypatch, capsys, "artifacts", "gc", "--workspace", tmp_path, "--yes")
    assert (status, err.count("\n")) == (2, 1)
    assert f"mine on {here['host']} is running" in err
    assert "e" in names(store.all())
    client.restore_run(active)
    client.set_terminated(active)
    elsewhere = run(host="elsewhere", pid="1")
    assert running(uri) == ["mine on elsewhere"]
    client.delete_run(elsewhere)
    status, _, _ = call(monkeypatch, capsys, "artifacts", "gc", "--workspace", tmp_path, "--yes")
    assert (status, "e" in names(store.all())) == (0, False)
