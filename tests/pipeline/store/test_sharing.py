"""Shared artifacts: uploads and downloads are complete or ignored, also after failures."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from alpro.errors import InputError
from alpro.pipeline.store import sharing as shared_artifacts
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import join, read_bytes
from alpro.stages import render_sample
from alpro.stages.execution.interface import Outcome

STEP = Step("render_sample", "render_sample", render_sample.Config())


@pytest.fixture(params=["path", "file", "memory"])
def place(request, tmp_path: Path, memory: str) -> str:
    """Where artifacts are shared."""
    return {"path": f"{tmp_path}/shared", "file": f"file://{tmp_path}/shared", "memory": memory}[request.param]


@pytest.fixture
def machine(tmp_path: Path, place: str) -> Callable[..., Store]:
    """machine(name): the store of a machine that shares artifacts with the others."""
    return lambda name, place=place: Store(tmp_path / name, place)


def make(store: Store, content: str = "made") -> dict:
    def work(_: Step, out: Path) -> Outcome:
        (out / "deep" / "er").mkdir(parents=True)
        (out / "deep" / "er" / "ü 1.txt").write_text(content)
        (out / "weights.bin").write_bytes(content.encode() * 1000)
        (out / "empty").write_bytes(b"")
        (out / "work.json").write_text("{}")
        return Outcome({"items": 3})

    return store.make(STEP, work, {"by": content})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_uploaded_artifact_can_be_fetched_by_another_machine(machine):
    here, there = machine("a"), machine("b")
    record = make(here)
    assert there.fetch(STEP) is None
    assert not there.is_shared(STEP)
    assert here.share(STEP) == ""
    assert there.is_shared(STEP)
    assert there.find(STEP) is None
    (there.folder(STEP) / "checkpoints").mkdir(parents=True)  # unfinished work, which is replaced
    (there.folder(STEP) / "checkpoints" / "last").touch()
    assert there.fetch(STEP) == record == there.find(STEP)
    sent = {name: content for name, content in files(here.folder(STEP)).items() if name != "work.json"}
    assert files(there.folder(STEP)) == sent
    assert [folder for folder, _ in there.all()] == [there.folder(STEP)]


def test_concurrent_uploads_do_not_mix(machine, monkeypatch):
    """Both upload at the same time; a download has the files of only one upload."""
    one, other = machine("a"), machine("b")
    make(one, "one")
    make(other, "other")
    monkeypatch.setattr(shared_artifacts, "is_shared", lambda place: False)
    assert one.share(STEP) == other.share(STEP) == ""
    third = machine("c")
    assert third.fetch(STEP)["run"]["by"] == "other"
    assert files(third.folder(STEP))["weights.bin"] == b"other" * 1000


def test_an_artifact_is_uploaded_once(machine, monkeypatch):
    one, other = machine("a"), machine("b")
    make(one, "one")
    make(other, "other")
    one.share(STEP)
    monkeypatch.setattr(shared_artifacts, "send_file", None)
    assert other.share(STEP) == ""
    assert machine("c").fetch(STEP)["run"]["by"] == "one"


def test_an_incomplete_upload_is_ignored_and_retried_by_the_next_run(machine, monkeypatch):
    here, sent = machine("a"), []
    make(here)

    def broken(path: Path, location) -> None:
        if len(sent) == 2:
            raise OSError(f"{location}: the line is cut")
        sent.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(shared_artifacts, "send_file", broken)
        message = here.share(STEP)
    assert "the line is cut" in message
    assert "the next run retries it" in message
    assert "\n" not in message
    assert here.find(STEP)  # it is here all the same
    assert machine("b").fetch(STEP) is None
    assert here.share(STEP) == ""
    assert machine("b").fetch(STEP)


def test_an_interrupted_download_is_resumed(machine, monkeypatch):
    here, there, got = machine("a"), machine("b"), []
    make(here)
    here.share(STEP)
    whole = shared_artifacts.fetch_file

    def fetch_file(location, path: Path, most: int = 9) -> None:
        if len(got) == most:
            raise OSError(f"{location}: the line is cut")
        got.append(path.name)
        whole(location, path)

    monkeypatch.setattr(shared_artifacts, "MAX_CONCURRENT_REQUESTS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(shared_artifacts, "fetch_file", lambda *at: fetch_file(*at, most=2))
        with pytest.raises(InputError, match=r"resources.artifacts = .*: the line is cut"):
            there.fetch(STEP)
    assert there.find(STEP) is None
    assert list(there.all()) == []
    monkeypatch.setattr(shared_artifacts, "fetch_file", fetch_file)
    assert there.fetch(STEP)
    assert len(got) == len(set(got)) == 4
    assert not list((there.root / ".fetched").glob("*/*"))


def test_a_corrupt_shared_artifact_raises_an_error(machine, place):
    here, there = machine("a"), machine("b")
    make(here)
    here.share(STEP)
    contents = join(here.place(STEP), "contents.json")
    file_list = json.loads(read_bytes(contents))
    weights = join(here.place(STEP), f"{file_list['folder']}/weights.bin")
    shared_artifacts.write_bytes(weights, read_bytes(weights)[::-1])
    with pytest.raises(InputError, match=r"weights.bin: checksum mismatch"):
        there.fetch(STEP)
    file_list["files"] = {"../../outside": "0" * 64}
    shared_artifacts.write_bytes(contents, json.dumps(file_list).encode())
    with pytest.raises(InputError, match="is outside the data folder"):
        there.fetch(STEP)
    shared_artifacts.write_bytes(contents, b"{")
    with pytest.raises(InputError, match=r"contents.json: corrupt; delete it"):
        there.fetch(STEP)
    assert there.find(STEP) is None


def test_a_file_that_was_damaged_here_is_not_uploaded(machine):
    here, there = machine("a"), machine("b")
    make(here)
    (here.folder(STEP) / "weights.bin").write_bytes(b"damaged")
    assert "weights.bin differs from the artifact's record" in here.share(STEP)
    assert there.fetch(STEP) is None


def test_a_file_that_was_damaged_before_its_upload_is_not_fetched(machine):
    """The list of files of the upload agrees with the file, the artifact's record does not."""
    here, there = machine("a"), machine("b")
    make(here)
    here.share(STEP)
    contents = join(here.place(STEP), "contents.json")
    file_list = json.loads(read_bytes(contents))
    shared_artifacts.write_bytes(join(here.place(STEP), f"{file_list['folder']}/weights.bin"), b"damaged")
    file_list["files"]["weights.bin"] = hashlib.sha256(b"damaged").hexdigest()
    shared_artifacts.write_bytes(contents, json.dumps(file_list).encode())
    with pytest.raises(InputError, match=r"weights.bin differs from the artifact's record"):
        there.fetch(STEP)
    assert there.find(STEP) is None


def test_an_artifact_under_another_fingerprint_raises_an_error(machine):
    here, there = machine("a"), machine("b")
    make(here)
    record = here.folder(STEP) / "artifact.json"
    record.write_text(record.read_text().replace(STEP.fingerprint, "0" * 64))
    here.share(STEP)
    with pytest.raises(InputError, match="not the artifact of render_sample"):
        there.fetch(STEP)
    assert there.find(STEP) is None


def test_an_unresponsive_shared_location_raises_an_error(machine, free_port, monkeypatch):
    """Before the work; after it, the artifact stays on this machine."""
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    store = machine("a", f"http://127.0.0.1:{free_port()}")
    for ask in (store.fetch, store.is_shared):
        with pytest.raises(InputError, match=r"resources.artifacts = http://127.0.0.1:\d+: .*[Cc]onnect"):
            ask(STEP)
    make(store)
    assert "the next run retries it" in store.share(STEP)
    with pytest.raises(InputError, match="Protocol not known"):
        machine("b", "nowhere://a").fetch(STEP)


def test_no_requests_without_a_shared_location(tmp_path):
    store = Store(tmp_path)
    make(store)
    shutil.rmtree(store.folder(STEP))
    assert store.fetch(STEP) is None
    assert not store.is_shared(STEP)
    assert store.share(STEP) == ""
    assert fsspec.filesystem("memory").store == {}
