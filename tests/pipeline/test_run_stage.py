"""A stage in its own process: its result and its errors."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.files import read_json, write_json
from alpro.pipeline.execution import run_stage as stage_run
from alpro.pipeline.store.artifacts import Step, Store
from alpro.stages import render_sample
from alpro.stages.execution.interface import Outcome, Resources

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path):
    """work(stage, config, **inputs): a work file for a stage, in a folder of its own."""

    def write(stage: str, config: dict, **inputs: Path) -> Path:
        (tmp_path / "out").mkdir(exist_ok=True)
        described = {
            "stage": stage,
            "config": config,
            "inputs": {name: str(path) for name, path in inputs.items()},
            "out": str(tmp_path / "out"),
            "resources": Resources(workers=1, device="cpu").model_dump(mode="json"),
        }
        write_json(tmp_path / "out" / "work.json", described)
        return tmp_path / "out" / "work.json"

    return write


def test_success_writes_the_result(work, inline_pool):
    small = {"lessons": 1, "clips": 1, "stills": 1, "validation": 4, "test": 4, "size": 32, "frames": 4}
    file = work("render_sample", small)
    assert stage_run.main([str(file)]) == 0
    result = read_json(file.with_name("result.json"))
    assert result["counts"]["stills"] == 1
    assert result["metrics"] == {}
    assert not file.with_name("artifact.json").exists()  # the caller's to write


def test_an_input_error_exits_with_2_one_line_and_a_result(work, tmp_path, capsys):
    file = work("decode_videos", {}, data=tmp_path / "nowhere.jsonl")
    assert stage_run.main([str(file)]) == 2
    mistake = read_json(file.with_name("result.json"))["error"]
    assert "nowhere.jsonl: no such file or folder" in mistake
    assert capsys.readouterr().err == f"error: {mistake}\n"


def test_the_first_failing_rank_writes_the_result(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    file = work("decode_videos", {}, data=tmp_path / "nowhere.jsonl")
    assert stage_run.main([str(file)]) == 2
    first = read_json(file.with_name("result.json"))
    assert capsys.readouterr().err == f"error: {first['error']}\n"
    monkeypatch.setenv("RANK", "2")
    other = work("decode_videos", {}, data=tmp_path / "elsewhere.jsonl")
    assert stage_run.main([str(other)]) == 2
    assert read_json(file.with_name("result.json")) == first
    assert capsys.readouterr().err == ""


def test_a_bug_is_not_an_input_error(work, monkeypatch):
    monkeypatch.setattr(stage_run, "run", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage_run.main([str(work("render_sample", {}))])


@pytest.mark.parametrize("arguments", [[], ["one.json", "two.json"]])
def test_without_a_work_file_it_prints_the_usage(arguments, capsys):
    assert stage_run.main(arguments) == 2
    assert "usage: python -m alpro.pipeline.execution.run_stage WORK.json" in capsys.readouterr().err


def test_the_stage_receives_the_contents_of_the_work_file(work, tmp_path, monkeypatch):
    from alpro.stages import decode_videos

    given = []
    monkeypatch.setattr(decode_videos, "run", lambda *all_of_it: (given.extend(all_of_it), Outcome({"items": 1}))[1])
    file = work("decode_videos", {"size": 64, "quality": 80}, data=tmp_path)
    assert stage_run.main([str(file)]) == 0
    config, inputs, out, resources = given
    assert (config.size, config.quality) == (64, 80)
    assert (inputs, out) == ({"data": tmp_path}, tmp_path / "out")
    assert resources.workers == 1


def test_an_unknown_configuration_key_raises_an_error(work):
    with pytest.raises(ValueError, match="sizes"):
        stage_run.main([str(work("decode_videos", {"sizes": 3}))])


WATCHED = """import sys, time
from alpro.pipeline.execution.run_stage import watch_parent
{watch}
print('ready', flush=True)
time.sleep(60)
"""


def orphan(watch: str, environment: dict[str, str]) -> int:
    """Starts a process that starts another and ends; returns the number of the one left behind."""
    starter = textwrap.dedent("""
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1].replace("PARENT", str(os.getpid()))],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout.readline() == "ready\\n"
        print(child.pid, flush=True)
    """)
    program = WATCHED.format(watch=watch)
    done = subprocess.run(
        [sys.executable, "-c", starter, program],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as torchrun is started: the group is its own
    )
    return int(done.stdout)


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


RANKED = {"WORLD_SIZE": "2", "RANK": "1"}  # as torchrun starts it


@pytest.mark.parametrize(
    ("watch", "environment"),
    [("watch_parent(PARENT)", {}), ("watch_parent(PARENT)", RANKED), ("watch_parent(0)", RANKED)],
)
def test_a_process_stops_after_its_parent_has_ended(watch, environment):
    left = orphan(watch, environment)
    ends = time.monotonic() + 120
    while alive(left) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not alive(left)


def test_a_process_without_a_parent_is_not_stopped(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = threading.active_count()
    stage_run.watch_parent(0)
    assert threading.active_count() == before  # nothing watches


def test_a_stage_runs_as_a_module(work, tmp_path):
    file = work("decode_videos", {}, data=tmp_path / "nowhere.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "alpro.pipeline.execution.run_stage", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert json.loads(file.with_name("result.json").read_text())["error"]


def test_a_finished_artifact_is_not_overwritten(work, tmp_path, capsys):
    file = work("decode_videos", {}, data=tmp_path / "nowhere.jsonl")
    out = Path(json.loads(file.read_text())["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "artifact.json").write_text(json.dumps({"version": RECORD_VERSION}))
    assert stage_run.main([str(file)]) == 2
    assert "is finished" in capsys.readouterr().err
    (out / "artifact.json").write_text("")  # after a power failure
    assert stage_run.main([str(file)]) == 2
    assert "artifact is rebuilt" in (said := capsys.readouterr().err)
    assert "nowhere.jsonl" in said
    assert stage_run.main([str(tmp_path / "none.json")]) == 2
    assert "not a readable work file" in capsys.readouterr().err


SMALL = {"lessons": 1, "clips": 1, "stills": 1, "validation": 4, "test": 4, "size": 32, "frames": 4}


@pytest.fixture
def unfinished(tmp_path, inline_pool) -> tuple[Store, Step, Path]:
    """A store, a step, and the work file that a pipeline left when it was interrupted after it started the stage."""
    step, store = Step("render_sample", "render_sample", render_sample.Config(**SMALL)), Store(tmp_path)
    folder = store.folder(step)
    folder.mkdir(parents=True)
    described = {
        "stage": step.stage,
        "config": step.config.model_dump(mode="json"),
        "inputs": {},
        "out": str(folder),
        "resources": Resources(workers=1, device="cpu").model_dump(mode="json"),
        "artifact": step.description,
    }
    write_json(folder / "work.json", described)
    return store, step, folder / "work.json"


def test_a_standalone_stage_writes_the_record(unfinished, capsys):
    store, step, file = unfinished
    (file.parent / "checkpoints").mkdir()
    assert stage_run.main([str(file)]) == 0
    assert capsys.readouterr().out == f"done: {store.folder(step)}\n"
    record = store.find(step)
    assert record["fingerprint"] == step.fingerprint
    assert record["counts"]["stills"] == 1
    assert record["run"]["by"] == "alpro.pipeline.execution.run_stage"
    assert {path.name for path in file.parent.iterdir()}.isdisjoint({"checkpoints", "result.json"})
    pipeline_record = store.make(step, lambda *_: Outcome(record["counts"]), {"commit": "abc"})
    other = {"run": "", "sum": ""}  # times
    assert record | other == pipeline_record | other


def test_a_stage_in_a_pipeline_does_not_write_the_record(unfinished, monkeypatch):
    store, step, file = unfinished
    monkeypatch.setenv("ALPRO_PARENT", str(os.getpid()))
    with store.lock(step):
        assert stage_run.main([str(file)]) == 0
    assert store.find(step) is None
    assert read_json(file.with_name("result.json"))["counts"]["stills"] == 1


@pytest.mark.parametrize("key", ["config", "out"])
def test_an_edited_work_file_gives_no_artifact(key, unfinished, tmp_path, capsys):
    """The fingerprint is of another configuration; a pipeline would take the result for that one's."""
    *_, file = unfinished
    work = read_json(file)
    work |= {"config": {"config": SMALL | {"seed": 5}}, "out": {"out": str(tmp_path / "mine")}}[key]
    write_json(file, work)
    assert stage_run.main([str(file)]) == 0
    assert "without an artifact record: `config` or `out` was changed" in capsys.readouterr().out
    assert not list(tmp_path.rglob("artifact.json"))
    assert read_json(file.with_name("result.json"))["counts"]["stills"] == 1


def test_a_standalone_stage_does_not_disturb_another_run(unfinished, capsys):
    store, step, file = unfinished
    with store.lock(step):
        assert stage_run.main([str(file)]) == 2
    assert capsys.readouterr().err == f"error: another process is running in {store.folder(step)}; wait until it ends\n"
    assert stage_run.main([str(file)]) == 0
