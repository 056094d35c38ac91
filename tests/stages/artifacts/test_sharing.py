"""Artifacts that machines share: whole or not there, whoever sends, and whatever fails in the middle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from alpro.errors import InputError
from alpro.shards.storage import join, read_bytes
from alpro.stages import render_sample
from alpro.stages.artifacts import sharing as shared_artifacts
from alpro.stages.artifacts.store import Outcome, Step, Store

STEP = Step("render_sample", "render_sample", render_sample.Config())


@pytest.fixture(params=["path", "file", "memory"])
def place(request, tmp_path: Path, memory: str) -> str:
    """Where artifacts are shared."""
    return {"path": f"{tmp_path}/shared", "file": f"file://{tmp_path}/shared", "memory": memory}[request.param]


@pytest.fixture
def machine(tmp_path: Path, place: str) -> Callable[..., Store]:
    """machine(name): the store of a machine that shares artifacts with the others."""
    return lambda name, place=place: Store(tmp_path / name, place)


def make(store: Store, said: str = "made") -> dict:
    def work(_: Step, out: Path) -> Outcome:
        (out / "deep" / "er").mkdir(parents=True)
        (out / "deep" / "er" / "ü 1.txt").write_text(said)
        (out / "weights.bin").write_bytes(said.encode() * 1000)
        (out / "empty").write_bytes(b"")
        (out / "work.json").write_text("{}")
        return Outcome({"items": 3})

    return store.make(STEP, work, {"by": said})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_one_machine_sends_another_has(machine):
    here, there = machine("a"), machine("b")
    manifest = make(here)
    assert there.fetch(STEP) is None
    assert not there.is_shared(STEP)
    assert here.share(STEP) == ""
    assert there.is_shared(STEP)
    assert there.find(STEP) is None
    assert there.fetch(STEP) == manifest == there.find(STEP)
    sent = {name: content for name, content in files(here.folder(STEP)).items() if name != "work.json"}
    assert files(there.folder(STEP)) == sent
    assert [folder for folder, _ in there.all()] == [there.folder(STEP)]


def test_unfinished_work_gives_way_to_what_is_fetched(machine):
    make(here := machine("a"))
    here.share(STEP)
    there = machine("b")
    (there.folder(STEP) / "checkpoints").mkdir(parents=True)
    assert there.fetch(STEP)
    assert not (there.folder(STEP) / "checkpoints").exists()


def test_two_machines_that_send_at_once_do_not_mix(machine, monkeypatch):
    """Both find nothing there; what is fetched is all of one of them."""
    one, other = machine("a"), machine("b")
    make(one, "one")
    make(other, "other")
    monkeypatch.setattr(shared_artifacts, "is_shared", lambda place: False)
    assert one.share(STEP) == other.share(STEP) == ""
    third = machine("c")
    assert third.fetch(STEP)["made"]["by"] == "other"
    assert files(third.folder(STEP))["weights.bin"] == b"other" * 1000


def test_an_artifact_is_sent_once(machine, monkeypatch):
    one, other = machine("a"), machine("b")
    make(one, "one")
    make(other, "other")
    one.share(STEP)
    monkeypatch.setattr(shared_artifacts, "send_file", None)
    assert other.share(STEP) == ""
    assert machine("c").fetch(STEP)["made"]["by"] == "one"


def test_what_is_sent_half_is_not_there_and_the_next_run_sends_it(machine, monkeypatch):
    here, sent = machine("a"), []
    make(here)

    def broken(path: Path, location) -> None:
        if len(sent) == 2:
            raise OSError(f"{location}: the line is cut")
        sent.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(shared_artifacts, "send_file", broken)
        said = here.share(STEP)
    assert "the line is cut" in said
    assert "the next run tries again" in said
    assert "\n" not in said
    assert here.find(STEP)  # it is here all the same
    assert machine("b").fetch(STEP) is None
    assert here.share(STEP) == ""
    assert machine("b").fetch(STEP)


def test_a_fetch_that_is_cut_goes_on_where_it_was(machine, monkeypatch):
    here, there, got = machine("a"), machine("b"), []
    make(here)
    here.share(STEP)
    whole = shared_artifacts.fetch_file

    def fetch_file(location, path: Path, most: int = 9) -> None:
        if len(got) == most:
            raise OSError(f"{location}: the line is cut")
        got.append(path.name)
        whole(location, path)

    monkeypatch.setattr(shared_artifacts, "AT_ONCE", 1)
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


def test_what_is_damaged_there_is_told(machine, place):
    here, there = machine("a"), machine("b")
    make(here)
    here.share(STEP)
    contents = join(here.place(STEP), "contents.json")
    told = json.loads(read_bytes(contents))
    weights = join(here.place(STEP), f"{told['folder']}/weights.bin")
    shared_artifacts.write_bytes(weights, read_bytes(weights)[::-1])
    with pytest.raises(InputError, match=r"weights.bin: not the bytes that were sent"):
        there.fetch(STEP)
    told["files"] = {"../../outside": "0" * 64}
    shared_artifacts.write_bytes(contents, json.dumps(told).encode())
    with pytest.raises(InputError, match="leaves"):
        there.fetch(STEP)
    shared_artifacts.write_bytes(contents, b"{")
    with pytest.raises(InputError, match=r"contents.json: damaged; delete it"):
        there.fetch(STEP)
    assert there.find(STEP) is None


def test_another_artifact_in_its_place_is_refused(machine):
    here, there = machine("a"), machine("b")
    make(here)
    manifest = here.folder(STEP) / "artifact.json"
    manifest.write_text(manifest.read_text().replace(STEP.fingerprint, "0" * 64))
    here.share(STEP)
    with pytest.raises(InputError, match="not the artifact of render_sample"):
        there.fetch(STEP)
    assert there.find(STEP) is None


def test_a_place_that_does_not_answer_is_told(machine, free_port, monkeypatch):
    """Before hours of work, that is; after them the artifact stays here."""
    monkeypatch.setattr("alpro.shards.storage.PAUSES", ())
    store = machine("a", f"http://127.0.0.1:{free_port()}")
    for ask in (store.fetch, store.is_shared):
        with pytest.raises(InputError, match=r"resources.artifacts = http://127.0.0.1:\d+: .*[Cc]onnect"):
            ask(STEP)
    make(store)
    assert "the next run tries again" in store.share(STEP)
    with pytest.raises(InputError, match="Protocol not known"):
        machine("b", "nowhere://a").fetch(STEP)


def test_without_a_shared_place_nothing_is_asked(tmp_path):
    store = Store(tmp_path)
    make(store)
    shutil.rmtree(store.folder(STEP))
    assert store.fetch(STEP) is None
    assert not store.is_shared(STEP)
    assert store.share(STEP) == ""
    assert fsspec.filesystem("memory").store == {}
