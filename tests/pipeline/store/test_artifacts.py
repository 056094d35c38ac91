"""Fingerprints, and the record that makes a folder an artifact."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store.artifacts import Store
from alpro.stages import STAGES, decode_videos, render_sample
from alpro.stages.execution.interface import Outcome, Resources, Stopped, require
from alpro.stages.execution.stop import STOP, Stop

ROOT = Path(__file__).parents[2]


def sample_step(**config) -> Step:
    return Step("render_sample", "render_sample", render_sample.Config(**config))


def decode_step(sample: Step | None = None, **config) -> Step:
    files = {"notes": "ab" * 32}
    inputs = {"sample": sample or sample_step()}
    return Step("decode_videos", "decode_videos clips", decode_videos.Config(**config), inputs, files)


def changed_version(monkeypatch) -> Step:
    monkeypatch.setattr(decode_videos, "VERSION", 1000)
    return decode_step()


CHANGES = {
    "its configuration": lambda _: decode_step(size=64),
    "its version": changed_version,
    "the configuration of an input": lambda _: decode_step(sample_step(seed=1)),
    "which input it is": lambda _: replace(decode_step(), inputs={"data": sample_step()}),
    "an outside file's contents": lambda _: replace(decode_step(), files={"notes": "cd" * 32}),
    "an outside file's role": lambda _: replace(decode_step(), files={"data": "ab" * 32}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_fingerprint_changes_with(what, monkeypatch):
    before = decode_step().fingerprint
    assert CHANGES[what](monkeypatch).fingerprint != before


@pytest.mark.parametrize("change", [{"paths": {"notes": Path("/elsewhere")}}, {"name": "what people call it"}])
def test_fingerprint_does_not_change_with_paths_and_names(change):
    assert replace(decode_step(), **change).fingerprint == decode_step().fingerprint


def test_no_stage_has_resources_in_its_configuration():
    for stage in STAGES:
        both = import_module(f"alpro.stages.{stage}").Config.model_fields.keys() & Resources.model_fields.keys()
        assert not both, f"{stage} would be rebuilt for other resources: {both}"


def test_the_record_is_written_last_and_describes_the_artifact(tmp_path):
    store, step = Store(tmp_path), decode_step()

    def work(step: Step, out: Path) -> Outcome:
        assert out == store.folder(step)
        assert store.find(step) is None
        (out / "result.txt").write_text("done")
        for name in ("checkpoints", "parts", "model"):
            (out / name).mkdir()
        return Outcome({"items": 3}, {"score": 0.5})

    record = store.make(step, work, {"commit": "abc"})
    assert store.find(step) == record
    assert record["fingerprint"] == step.fingerprint
    assert record["config"] == step.config.model_dump(mode="json")
    assert record["inputs"]["sample"]["fingerprint"] == step.inputs["sample"].fingerprint
    assert (record["counts"], record["metrics"]) == ({"items": 3}, {"score": 0.5})
    assert record["run"]["commit"] == "abc"
    assert record["versions"]["torch"]
    assert {path.name for path in store.folder(step).iterdir()} == {"result.txt", "model", "artifact.json"}


def test_failing_work_leaves_unfinished_work_without_a_record(tmp_path):
    store, step = Store(tmp_path), decode_step()

    def fail(_: Step, out: Path) -> Outcome:
        (out / "half.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.make(step, fail, {})
    assert store.find(step) is None
    assert store.all() == []

    def go_on(_: Step, out: Path) -> Outcome:
        assert (out / "half.txt").read_text() == "half"
        return Outcome()

    store.make(step, go_on, {})
    assert store.find(step) is not None


def test_a_run_whose_files_changed_leaves_nothing_to_continue(tmp_path):
    here = [False, True]
    store, step = Store(tmp_path), replace(sample_step(), unchanged=lambda: here.pop(0))

    def work(_: Step, out: Path) -> Outcome:
        assert not (out / "parts").exists()
        (out / "parts").mkdir()
        return Outcome()

    with pytest.raises(InputError, match="render_sample"):
        store.make(step, work, {})
    assert store.find(step) is None
    store.make(step, work, {})
    assert store.find(step)
    assert {file.name for file in store.folder(step).iterdir()} == {"artifact.json"}


def test_store_lists_artifacts_oldest_first(tmp_path):
    store = Store(tmp_path)
    steps = [sample_step(seed=number) for number in range(3)]
    for step, at in zip(steps, ("2024-03-01", "2024-01-01", "2024-02-01"), strict=True):
        store.make(step, lambda *_: Outcome(), {"at": at})
    store.folder(sample_step(seed=9)).mkdir()  # unfinished
    assert [record["run"]["at"] for _, record in store.all()] == ["2024-01-01", "2024-02-01", "2024-03-01"]


def test_two_processes_build_a_step_once(tmp_path):
    program = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from alpro.stages import render_sample
        from alpro.pipeline.plan.step import Step
        from alpro.pipeline.store.artifacts import Store
        from alpro.stages.execution.interface import Outcome

        store, step = Store(Path(sys.argv[1])), Step("render_sample", "sample", render_sample.Config())

        def work(step, out):
            with open(out / "makers", "a") as file:
                file.write("x")
            while len(list(store.root.glob("waiting-*"))) < 2:  # the other process comes meanwhile
                time.sleep(0.01)
            return Outcome()

        (store.root / f"waiting-{os.getpid()}").touch()
        with store.lock(step):
            finished = store.find(step)
            if finished is None:
                store.make(step, work, {})
        print("reused" if finished else "built")
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=120)[0].strip() for process in both)
    assert printed == ["built", "reused"]
    step = Step("render_sample", "sample", render_sample.Config())
    assert (Store(tmp_path).folder(step) / "makers").read_text() == "x"


def test_a_run_announces_once_that_it_waits_for_another(tmp_path, monkeypatch):
    store, step = Store(tmp_path), sample_step()
    lines: list[str] = []
    with store.lock(step, pytest.fail) as held:
        times = iter([None, None, held.release])

        def wait(self: Stop, seconds: float) -> None:
            if release := next(times):
                release()

        monkeypatch.setattr(Stop, "wait", wait)
        with store.lock(step, lines.append):
            assert lines == [f"{step.name}: waits for another run that makes it"]


def test_a_stopped_run_does_not_wait_for_another(tmp_path):
    stop = Stop()
    token = STOP.set(stop)
    try:
        with Store(tmp_path).lock(sample_step()):
            stop.request()
            with pytest.raises(Stopped), Store(tmp_path).lock(sample_step()):
                pass
    finally:
        STOP.reset(token)


def test_an_unwritable_store_raises_an_input_error(tmp_path):
    (tmp_path / "render_sample").write_text("not a folder")
    with (
        pytest.raises(InputError, match=rf"{tmp_path}/render_sample: File exists"),
        Store(tmp_path).lock(sample_step()),
    ):
        pass


def test_a_failed_json_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "artifact.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["artifact.json"]


def test_require_names_the_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"index\.parquet"):
        require(tmp_path, "index.parquet")
    assert require(tmp_path.parent, tmp_path.name) == tmp_path


def test_configurations_are_frozen_and_reject_unknown_keys():
    with pytest.raises(ValueError, match="sizes"):
        decode_videos.Config(sizes=3)
    with pytest.raises(ValueError, match="frozen"):
        decode_videos.Config().size = 3


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_corrupt_record_is_reported_and_ignored(content, tmp_path, capsys):
    (tmp_path / "artifact.json").write_text(content)
    assert read_record(tmp_path) is None
    assert "is corrupt" in capsys.readouterr().err
