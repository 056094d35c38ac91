"""A stage in its own process: its result, and why it ended."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.stages.execution.interface import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, Outcome, Resources

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path) -> Path:
    """The work file of a decoding with values that are not the defaults."""
    out = tmp_path / "out"
    out.mkdir()
    described = {"stage": "decode_videos", "config": {"size": 64, "frames": 8}, "inputs": {"data": str(tmp_path)}}
    described |= {"out": str(out), "resources": Resources(workers=3, device="cpu").model_dump(mode="json")}
    write_json(out / "work.json", described)
    return out / "work.json"


@pytest.fixture
def run(work, monkeypatch):
    """run(result, rank): the status and result.json of a stage that returns or raises `result`, and its arguments."""
    from alpro.pipeline.execution import run_stage
    from alpro.stages import decode_videos

    monkeypatch.setattr(run_stage, "end_with_parent", lambda *_: None)

    def start(result, rank: str = "") -> tuple[int, dict, list]:
        received: list = []

        def stage(*arguments) -> Outcome:
            received.extend(arguments)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(decode_videos, "run", stage)
        for name, value in (("RANK", rank), ("WORLD_SIZE", "3")):
            monkeypatch.setenv(name, value) if rank else monkeypatch.delenv(name, raising=False)
        status, file = run_stage.main(work), work.with_name("result.json")
        return status, read_json(file) if file.exists() else {}, received

    return start


def test_the_stage_receives_the_work_file_and_its_outcome_is_the_result(run, tmp_path):
    outcome = Outcome({"items": 2, "left": 1}, {"loss": 0.5}, ["a", "b"], "float32", {"x.tar": "ab"})
    status, result, (config, inputs, out, resources) = run(outcome)
    assert (status, Outcome(**result)) == (0, outcome)
    assert (config.size, config.frames) == (64, 8)
    assert (inputs, out) == ({"data": tmp_path}, tmp_path / "out")
    assert (resources.workers, resources.device) == (3, "cpu")


@pytest.mark.parametrize(
    ("error", "status", "key"),
    [
        (InputError("clips: no captions"), EXIT_INPUT_ERROR, "error"),
        (OSError(errno.ENOSPC, "No space left", "clips.tar"), EXIT_INPUT_ERROR, "error"),
        (OSError(errno.ESTALE, "Stale file handle"), EXIT_INTERRUPTED, "interrupted"),
        (ConnectionResetError("https://host/a.mp4: reset"), EXIT_INTERRUPTED, "interrupted"),
        (TimeoutError(), EXIT_INTERRUPTED, "interrupted"),
        (SystemExit(EXIT_INTERRUPTED), EXIT_INTERRUPTED, "interrupted"),
        (FileNotFoundError("x"), None, None),
        (PermissionError("x"), None, None),
        (ValueError("a bug"), None, None),
        (SystemExit(3), None, None),
        (RuntimeError("Connection closed by peer"), None, None),  # without ranks
    ],
)
def test_an_error_is_the_persons_or_passes_or_is_a_bug(error, status, key, run, capsys):
    if status is None:
        with pytest.raises(type(error)):
            run(error)
        return
    found, result, _ = run(error)
    assert (found, list(result)) == (status, [key])
    assert len(capsys.readouterr().err.splitlines()) == (0 if isinstance(error, SystemExit) else 1)


def test_the_first_rank_that_fails_says_why_and_the_first_rank_writes_the_outcome(run, work, capsys):
    assert run(InputError("clips: no captions"), "1")[:2] == (EXIT_INPUT_ERROR, {"error": "clips: no captions"})
    capsys.readouterr()
    assert run(InputError("other"), "2")[1] == {"error": "clips: no captions"}
    assert run(RuntimeError("[gloo] Connection closed by peer\nmore"), "2")[0] == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    work.with_name("result.json").unlink()
    assert run(Outcome({"items": 2}), "1")[1] == {}
    assert run(Outcome({"items": 2}), "0")[1]["counts"] == {"items": 2}


def test_it_runs_as_a_module(work, tmp_path):
    program = [sys.executable, "-m", "alpro.pipeline.execution.run_stage", str(work)]
    write_json(work, read_json(work) | {"inputs": {"data": str(tmp_path / "nowhere.jsonl")}})
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == EXIT_INPUT_ERROR
    assert done.stderr == f"error: {read_json(work.with_name('result.json'))['error']}\n"
    assert "nowhere.jsonl" in done.stderr


@pytest.mark.parametrize("ends", ["before", "later"])
def test_a_program_ends_with_its_parent(ends, tmp_path, wait_for_end):
    """The kernel sends SIGTERM when the parent is gone; one that is gone already is noticed."""
    waits = textwrap.dedent(f"""
        import os, signal
        print(os.getpid(), flush=True)
        signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / "ended")!r}, "w"), os._exit(0)))
        print("ready", flush=True)
        signal.pause()""")
    starter = textwrap.dedent("""
        import subprocess, sys
        from alpro.stages.execution.lifecycle import with_parent
        command = with_parent([sys.executable, "-c", sys.argv[1]])
        if sys.argv[2] == "before":
            command[3] = "1"
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        first, second = child.stdout.readline().strip(), child.stdout.readline().strip()
        print(first, second, child.wait() if command[3] == "1" else "")
        sys.stdout.flush()
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)""")
    done = subprocess.run(
        [sys.executable, "-c", starter, waits, ends], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    assert done.returncode == -signal.SIGKILL
    if ends == "before":
        assert done.stdout.split() == ["1"]  # the status; the program has not started
        return
    wait_for_end(int(done.stdout.split()[0]))
    assert (tmp_path / "ended").exists()
