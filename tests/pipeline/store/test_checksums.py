"""The recorded sizes and SHA-256 of an artifact's files, and their comparison with the files."""

import hashlib
import os
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution.launch import run_stage
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store import checksums as contents_module
from alpro.pipeline.store.artifacts import Store, check_inputs
from alpro.pipeline.store.checksums import describe_contents, verify
from alpro.stages import decode_videos, render_sample
from alpro.stages.execution.interface import Outcome, Resources
from tests.pipeline.test_cli import call

STEP = Step("render_sample", "render_sample", render_sample.Config())
FILES = {"a.tar": b"0123456789", "model/weights": b"weights", "empty": b""}


def build(store: Store, step: Step = STEP, sha256: dict[str, str] | None = None) -> Path:
    def work(_: Step, out: Path) -> Outcome:
        for name, content in FILES.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        (out / "work.json").write_text("{}")
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "last").touch()
        (out / ".a.tar.0123.part").touch()
        return Outcome(sha256=sha256 or {})

    store.make(step, work, {})
    return store.folder(step)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "artifacts")


def problems(store: Store) -> list[tuple[str, str]]:
    return [(problem.kind, problem.file) for problem in verify(store.all())]


def test_a_record_has_the_size_and_the_sha256_of_every_file(store):
    recorded = read_json(build(store) / "artifact.json")["contents"]
    expected = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in FILES.items()}
    assert recorded == expected
    assert list(verify(store.all())) == []


def test_files_that_the_stage_has_hashed_are_not_read_again(store, monkeypatch):
    read = []
    monkeypatch.setattr(contents_module, "checksum", lambda path: read.append(path.name) or "1" * 64)
    recorded = describe_contents(build(store), {"a.tar": "2" * 64, "not there": ""})
    assert sorted(read) == ["a.tar", "empty", "empty", "weights", "weights"]  # the first time, no sums were known
    assert {name: value["sha256"][0] for name, value in recorded.items()} == {
        "a.tar": "2",
        "empty": "1",
        "model/weights": "1",
    }


def test_changed_missing_and_extra_files_are_found(store):
    folder = build(store)
    (folder / "a.tar").write_bytes(b"0123456780")  # of the same size
    assert problems(store) == [("damaged", "a.tar")]
    (folder / "a.tar").write_bytes(b"")
    (folder / "model" / "weights").unlink()
    (folder / "model" / "note").touch()
    (folder / ".a.tar.0456.part").touch()
    found = list(verify(store.all()))
    assert [(problem.kind, problem.file, problem.detail) for problem in found] == [
        ("missing", "model/weights", ""),
        ("extra", "model/note", ""),
        ("damaged", "a.tar", "0 bytes instead of 10"),
    ]
    assert {(problem.folder, problem.name) for problem in found} == {(folder, "render_sample")}


def test_a_file_that_cannot_be_read_is_damaged(store, monkeypatch):
    build(store)

    def checksum(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(contents_module, "checksum", checksum)
    assert {problem.detail for problem in verify(store.all())} == {"cannot be read: Input/output error"}


def test_links_to_one_file_are_read_once_and_all_are_reported(store, monkeypatch):
    other = Step("render_sample", "other", render_sample.Config(seed=1))
    folder, second = build(store), build(store, other)
    (second / "a.tar").unlink()
    os.link(folder / "a.tar", second / "a.tar")
    whole, read = contents_module.checksum, []
    monkeypatch.setattr(contents_module, "THREADS", 1)
    monkeypatch.setattr(contents_module, "checksum", lambda path: read.append(path.name) or whole(path))
    assert problems(store) == []
    assert read.count("a.tar") == 1
    (second / "a.tar").write_bytes(b"9876543210")
    assert problems(store) == [("damaged", "a.tar")] * 2


CHANGES = [{"config": {"seed": 5}}, {"metrics": {"test/recall_1": 99.0}}, {"contents": {}}, {"sum": ""}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_an_edited_record_is_found_and_not_used(store, change):
    path = build(store) / "artifact.json"
    write_json(path, read_json(path) | change)
    assert ("damaged", "artifact.json") in problems(store)
    with pytest.raises(InputError, match=r"artifact.json was changed after it was written; restore it, or delete /.*"):
        store.find(STEP)


@pytest.mark.parametrize("name", ["model/weights", "empty"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"weighty")])
def test_a_damaged_input_is_refused(store, name, damage):
    folder = build(store)
    check_inputs([folder, str(folder / "model"), "https://elsewhere/shards", folder.parent])
    damage(folder / name)
    for place in (folder, folder / "model"):
        with pytest.raises(
            InputError, match=rf"{name} is damaged or missing; restore it, or delete {folder} to rebuild"
        ):
            check_inputs([place])


def test_a_stage_does_not_start_with_a_damaged_input(store):
    folder = build(store)
    (folder / "model" / "weights").write_bytes(b"w")
    step = Step("decode_videos", "decode_videos", decode_videos.Config(), {"sample": STEP})
    with pytest.raises(InputError, match="model/weights is damaged"):
        run_stage(step, store.folder(step), store, Resources())


def test_a_folder_under_the_name_of_another_fingerprint_is_found(store):
    folder = build(store)
    folder.rename(folder.with_name("0" * 16))
    assert problems(store) == [("damaged", "artifact.json")]


@pytest.mark.parametrize("removed", [{"sum"}, {"sum", "contents"}])
def test_a_record_without_checksums_is_an_error(store, tmp_path, monkeypatch, capsys, removed):
    path = build(store) / "artifact.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key not in removed})
    status, out, _ = call(monkeypatch, capsys, "artifacts", "verify", "--workspace", tmp_path)
    assert status == 1
    assert "has no checksums" in out


def test_the_exit_status_tells_whether_all_is_as_recorded(store, tmp_path, monkeypatch, capsys):
    other = Step("render_sample", "other", render_sample.Config(seed=1))
    good, bad = build(store), build(store, other)
    (bad / "a.tar").write_bytes(b"x")

    def run(*arguments):
        return call(monkeypatch, capsys, "artifacts", "verify", *arguments, "--workspace", tmp_path)

    status, out, _ = run()
    assert status == 1
    assert f"damaged  other {bad.name}  a.tar: 1 bytes instead of 10\n" in out
    assert run(good.name[:6])[0] == 0
    assert run(good.name, bad.name)[0] == 1
    status, _, err = run("0" * 20)
    assert (status, err.count("\n")) == (2, 1)
    (good / "artifact.json").write_text("")
    status, out, _ = run()
    assert f"damaged  render_sample {good.name}  artifact.json: cannot be read\n" in out
