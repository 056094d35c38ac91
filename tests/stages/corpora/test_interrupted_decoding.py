"""Decoding that is killed at any moment, or stopped by a full disk, resumes to the same bytes."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alpro.stages.execution.interface import EXIT_INPUT_ERROR
from tests.conftest import ROOT
from tests.stages.conftest import contents


@pytest.fixture
def decode(sample, tmp_path) -> Callable[..., subprocess.Popen]:
    """decode(out, workers): the clips of the sample into a folder, started or resumed, in a separate process."""

    def start(out: Path, workers: int, size: int = 40, **how) -> subprocess.Popen:
        out.mkdir(exist_ok=True)
        work = {
            "stage": "decode_videos",
            "config": {
                "manifest": "clips.jsonl",
                "frames": 8,
                "size": size,
                "samples_per_shard": 4,
                "max_reject_share": 0.5,
            },
            "inputs": {"sample": str(sample)},
            "out": str(out),
            "resources": {"workers": workers, "device": "cpu"},
        }
        file = tmp_path / f"{out.name}.json"
        file.write_text(json.dumps(work))
        command = [sys.executable, "-m", "alpro.pipeline.execution.run_stage", str(file)]
        environment = {"PYTHONPATH": str(ROOT)} | os.environ
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **how)

    return start


def results(out: Path) -> dict[str, str]:
    """The results, without metadata of the run and without files that are deleted from a finished artifact."""
    return {
        name: digest for name, digest in contents(out).items() if not name.startswith("parts/") and ".part" not in name
    }


# Loaded first by every process. File operations below a folder are counted, over all processes or only over workers. At
# a certain number the pipeline, or the worker that does the operation, is killed.
KILLER = """
import os, signal, sys

folder, number, parent = os.environ["KILLS_IN"], int(os.environ["KILLS_AT"]), os.environ["KILLS"] == "parent"
main = int(os.environ.setdefault("KILLS_MAIN", str(os.getpid())))
log = os.open(os.environ["KILLS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
written = os.O_WRONLY | os.O_RDWR


def watch(event, arguments):
    if event not in ("open", "os.rename", "os.remove", "os.link", "os.truncate") or folder not in str(arguments[0]):
        return
    if (event == "open" and not arguments[2] & written) or (not parent and os.getpid() == main):
        return
    os.write(log, b".")
    if os.fstat(log).st_size == number:
        os.kill(main if parent else os.getpid(), signal.SIGKILL)


sys.addaudithook(watch)
"""


@pytest.mark.long
@pytest.mark.parametrize("whom", ["parent", "worker"])
def test_a_run_killed_at_any_time_resumes_to_the_same_bytes(whom, decode, tmp_path, monkeypatch):
    whole, log = tmp_path / "whole", tmp_path / "log"
    assert decode(whole, 1).wait(300) == 0
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'killer'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("KILLS", whom)
    monkeypatch.setenv("KILLS_IN", str(tmp_path / "broken"))
    monkeypatch.setenv("KILLS_LOG", str(log))
    numbers = [*range(1, 40, 6), 10**9] if whom == "parent" else [1, 2, 5, 17, 40]
    for number in numbers:
        log.write_bytes(b"")
        monkeypatch.setenv("KILLS_AT", str(number))
        # A killed pipeline is resumed; a killed worker is replaced.
        out = tmp_path / (f"broken {number}" if whom == "worker" else "broken")
        status = decode(out, 1 + number % 3).wait(300)
        assert (log.stat().st_size >= number) == (number < 10**9)
        assert status == (-signal.SIGKILL if whom == "parent" and number < 10**9 else 0)
        if status == 0:
            assert results(out) == results(whole)


@pytest.mark.parametrize(
    ("max_bytes", "message"), [(4_000, "full: "), pytest.param(150_000, "full: File too large", marks=pytest.mark.long)]
)
def test_a_full_disk_is_a_one_line_error_and_loses_no_work(max_bytes, message, decode, tmp_path):
    out = tmp_path / "full"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))  # the kernel refuses larger files

    process = decode(out, 1, size=80, preexec_fn=small_disk)
    _, stderr = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in stderr) == (EXIT_INPUT_ERROR, False)
    error = json.loads((tmp_path / "result.json").read_text())["error"]  # the launcher prints it
    assert message in error
    assert error.endswith("; free some disk space and run again to resume")
    # The unit that failed leaves nothing; the process may end while it writes the next one, which the next run deletes.
    assert len(list(out.glob(".*.part"))) <= 1
    if max_bytes < 100_000:  # it stops before decoding
        return
    again = decode(out, 2, size=80)
    assert again.wait(300) == 0
    assert not list(out.glob(".*.part"))
    whole = tmp_path / "whole"
    assert decode(whole, 2, size=80).wait(300) == 0
    assert results(out) == results(whole)
