"""The store: fingerprints, the record that makes an artifact, checksums, lineage and removal."""

import hashlib
import shutil
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from alpro.artifact import check_artifact
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution.processes import Launch, run_stage
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.checksums import describe_contents, verify
from alpro.pipeline.store.lineage import lineage
from alpro.stages import STAGES, decode_videos, render_sample, train_prompter
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.execution.step import Step
from tests.clip_models import REVISION
from tests.pipeline.lineage import add_artifacts, folder_of


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts")


def sample_step(**config):
    return Step("render_sample", "render_sample", render_sample.Config(**config))


def decode_step(sample=None, **config):
    return Step(
        "decode_videos",
        "decode_videos clips",
        decode_videos.Config(**config),
        inputs={"sample": sample or sample_step()},
        digests={"notes": "ab" * 32},
    )


def nothing(step, out):
    return Outcome()


# Fingerprints and records.


@pytest.mark.parametrize(
    "change",
    [
        {"config": decode_videos.Config(size=64)},
        {"inputs": {"sample": sample_step(seed=1)}},
        {"digests": {"notes": "cd" * 32}},
    ],
)
def test_what_decides_the_result_changes_the_fingerprint(change):
    assert replace(decode_step(), **change).fingerprint != decode_step().fingerprint


@pytest.mark.parametrize(
    "change", [{"given": {"notes": Path("/a")}}, {"name": "another"}]
)
def test_names_and_paths_do_not_change_the_fingerprint(change):
    assert replace(decode_step(), **change).fingerprint == decode_step().fingerprint


def test_a_new_version_of_a_stage_changes_the_fingerprint(monkeypatch):
    before = decode_step().fingerprint
    monkeypatch.setattr(decode_videos, "VERSION", 1000)
    assert decode_step().fingerprint != before


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_has_a_key_of_the_resources(stage):
    """It would be built again for other resources."""
    config = import_module(f"alpro.stages.{stage}").Config
    assert not config.model_fields.keys() & Resources.model_fields.keys()


def test_the_record_is_written_last_and_describes_the_artifact(store):
    step = decode_step()

    def work(step, out):
        assert out == store.folder(step)
        assert store.find(step) is None
        return Outcome({"items": 3}, {"score": 0.5}, ["few"], "float32")

    record = store.make(step, work, {"commit": "abc"})

    assert store.find(step) == record
    expected = replace(
        step.description,
        counts={"items": 3},
        metrics={"score": 0.5},
        warnings=["few"],
        precision="float32",
        contents={},
        run=record.run,
        versions=record.versions,
    )
    assert record == expected
    assert record.run["commit"] == "abc"
    assert {"python", "torch", "av"} <= record.versions.keys()


def test_a_finished_artifact_has_no_unfinished_work(store):
    def work(step, out):
        (out / "result.txt").write_text("done")
        for name in ("checkpoints", "parts", "model"):
            (out / name).mkdir()
        (out / "checkpoints" / ".step-00000009.part").mkdir()
        (out / "model" / ".weights.0123.part").touch()
        return Outcome()

    store.make(decode_step(), work, {})

    names = {path.name for path in store.folder(decode_step()).rglob("*")}
    assert names == {"result.txt", "model", "artifact.json"}


def test_the_record_has_the_commits_of_the_hubs_models_that_are_named_without_one(
    hub, clip_folders
):
    clip = hub(clip_folders["clip"])
    hub(clip_folders["clip"], "timm/vit.tag")

    def commits(**config):
        # Together they are invalid.
        built = train_prompter.Config.model_construct(phases=(), **config)
        return Step("train_prompter", "", built).hub_commits

    assert commits(clip=clip, vit="vit.tag", bert="") == {
        "train_prompter.clip": REVISION,
        "train_prompter.vit": REVISION,
    }
    assert commits(clip=f"{clip}@{REVISION}") == {}


# Work that fails, stops or waits.


def test_work_that_fails_is_continued(store):
    step = decode_step()

    def fail(step, out):
        (out / "half.txt").write_text("half")
        raise OSError("disk full")

    def finish(step, out):
        assert (out / "half.txt").exists()
        return Outcome()

    with pytest.raises(OSError, match="disk full"):
        store.make(step, fail, {})
    assert store.artifacts() == []

    store.make(step, finish, {})
    assert store.find(step)


def test_nothing_stays_of_work_whose_files_changed(store):
    answers = [False, True]
    step = replace(sample_step(), recheck=lambda: answers.pop(0))

    def work(step, out):
        (out / "parts").mkdir()  # fails if one is there
        return Outcome()

    with pytest.raises(InputError, match="render_sample"):
        store.make(step, work, {})
    assert store.find(step) is None
    store.make(step, work, {})
    assert store.find(step)


@pytest.fixture
def release(store):
    """release(): ends another run, which has the lock."""
    held = store.lock(sample_step())
    with ThreadPoolExecutor(1) as run:
        lock = run.submit(held.__enter__).result()
        yield lambda: run.submit(lock.release).result()


def test_a_run_waits_for_another(store, release):
    """It says so once."""
    lines: list[str] = []
    looks = iter([lambda: None, release])
    with store.lock(sample_step(), lines.append, lambda: next(looks)()):
        assert ["waiting" in line for line in lines] == [True]


def test_a_run_that_is_stopped_does_not_wait(store, release):
    with (
        pytest.raises(CancelledError),
        store.lock(sample_step(), is_stopping=lambda: True),
    ):
        pass
    release()


# Checksums.

FILES = {"a.tar": b"0123456789", "model/weights": b"weights", "empty": b""}


@pytest.fixture
def built(store):
    """The folder of an artifact with FILES."""

    def work(_, out):
        for name, content in FILES.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        return Outcome()

    store.make(sample_step(), work, {})
    return store.folder(sample_step())


def problems(store):
    root = store.folder(sample_step())
    return [str(file.relative_to(root)) for file in verify([root])]


def test_a_record_has_the_size_and_the_sha256_of_every_file(store, built):
    recorded = read_json(built / "artifact.json")["contents"]
    expected = {}
    for name, content in FILES.items():
        sha256 = hashlib.sha256(content).hexdigest()
        expected[name] = {"size": len(content), "sha256": sha256}
    assert recorded == expected
    assert problems(store) == []


def test_a_file_that_a_stage_has_hashed_is_not_read_again(built):
    known = describe_contents(built, {"a.tar": "known", "not there": ""})

    read = describe_contents(built, {})
    assert known.pop("a.tar")["sha256"] == "known"
    assert known == {name: read[name] for name in ("empty", "model/weights")}


def test_changed_and_missing_files_are_problems(store, built):
    (built / "a.tar").write_bytes(b"0")
    (built / "model" / "weights").unlink()
    assert problems(store) == ["a.tar", "model/weights"]


def test_a_file_with_other_contents_of_the_same_size_is_a_problem(store, built):
    (built / "a.tar").write_bytes(b"0123456780")
    assert problems(store) == ["a.tar"]


@pytest.mark.parametrize("change", [{"metrics": {"test/recall_1": 99.0}}, {"sum": ""}])
def test_an_edited_record_is_a_problem_and_is_not_used(store, built, change):
    path = built / "artifact.json"
    write_json(path, read_json(path) | change)

    assert "artifact.json" in problems(store)
    for use in (lambda: store.find(sample_step()), lambda: check_artifact(path.parent)):
        with pytest.raises(InputError, match=r"artifact.json was changed"):
            use()


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"weighty")]
)
@pytest.mark.parametrize("name", ["a.tar", "model/weights"])
def test_no_stage_starts_with_a_damaged_input(store, built, name, damage):
    for folder in (built, built / "model", built.parent):
        check_artifact(folder)
    damage(built / name)

    with pytest.raises(InputError):
        check_artifact(built / "model")
    step = decode_step()
    with pytest.raises(InputError, match=f"{name} is damaged or missing"):
        run_stage(step, store.folder(step), store, Resources(), Launch())


def test_an_input_that_cannot_be_read_is_not_called_damaged(store, built):
    """Who deletes it to build it again loses days of training."""
    weights = built / "model" / "weights"
    weights.unlink()
    weights.mkdir()  # Reading it is an error of the system.

    with pytest.raises(IsADirectoryError):
        check_artifact(built)


# What was built from what, and removal.


@pytest.fixture
def many(store):
    add_artifacts(store.root.parent)
    return store


def listed(artifacts):
    return "".join(record.fingerprint[0] for _, record in artifacts)


def test_a_lineage_lacks_what_was_removed(many):
    (folder_of(many.root.parent, "b") / "artifact.json").unlink()
    artifacts = many.artifacts()
    assert listed(lineage(artifacts, ["d" * 64])) == "acd"


def test_a_removal_that_is_interrupted_leaves_no_record_over_an_incomplete_folder(
    many, monkeypatch
):
    def killed(folder):
        (folder / "data").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    removed = folder_of(many.root.parent, "d")
    with pytest.raises(KeyboardInterrupt):
        many.remove([removed])

    assert listed(many.artifacts()) == "abce0"
    assert not (removed / "artifact.json").exists()
    assert all((folder / "data").is_file() for folder, _ in many.artifacts())


def test_nothing_is_removed_while_a_stage_is_built(many):
    with many.lock(sample_step()), pytest.raises(InputError, match="render_sample/"):
        many.remove([folder_of(many.root.parent, "d")])
    assert len(many.artifacts()) == 6


def test_what_lies_outside_of_the_store_is_not_removed(many, tmp_path):
    folder = folder_of(many.root.parent, "c")
    other = tmp_path / "another workspace"
    shutil.move(folder, other)
    folder.symlink_to(other)

    for place in (folder, other):
        with pytest.raises(InputError, match=str(other)):
            many.remove([folder_of(many.root.parent, "d"), place])
    assert (other / "data").is_file()
    assert len(many.artifacts()) == 6
