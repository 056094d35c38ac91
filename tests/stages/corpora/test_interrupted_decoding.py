"""Decoding that is stopped by a full disk resumes to the same bytes. Kills are in tests/stages/test_power_cut.py."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from alpro.stages.execution.interface import EXIT_INPUT_ERROR
from tests.conftest import ROOT
from tests.stages.conftest import contents


def decode(sample: Path, out: Path, workers: int, **how) -> subprocess.Popen:
    """Decodes the clips of the sample into a folder, or resumes it, in a separate process."""
    out.mkdir(exist_ok=True)
    config = {"manifest": "clips.jsonl", "frames": 8, "size": 80, "samples_per_shard": 4, "max_reject_share": 0.5}
    work = {"stage": "decode_videos", "config": config, "inputs": {"sample": str(sample)}, "out": str(out)}
    file = out.with_suffix(".json")
    file.write_text(json.dumps(work | {"resources": {"workers": workers, "device": "cpu"}}))
    command = [sys.executable, "-m", "alpro.pipeline.execution.run_stage", str(file)]
    environment = {"PYTHONPATH": str(ROOT)} | os.environ
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **how)


def results(out: Path) -> dict[str, str]:
    """The results, without metadata of the run and without files that are deleted from a finished artifact."""
    return {
        name: digest for name, digest in contents(out).items() if not name.startswith("parts/") and ".part" not in name
    }


@pytest.mark.long
def test_a_full_disk_is_a_one_line_error_and_loses_no_work(sample, tmp_path):
    out, whole = tmp_path / "full", tmp_path / "whole"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # the kernel refuses larger files

    process = decode(sample, out, 1, preexec_fn=small_disk)
    _, stderr = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in stderr) == (EXIT_INPUT_ERROR, False)
    error = json.loads((tmp_path / "result.json").read_text())["error"]  # the launcher prints it
    assert "full: File too large" in error
    assert error.endswith("; free some disk space and run again to resume")
    # The unit that failed leaves nothing; the process may end while it writes the next one, which the next run deletes.
    assert len(list(out.glob(".*.part"))) <= 1
    assert decode(sample, out, 2).wait(300) == decode(sample, whole, 2).wait(300) == 0
    assert not list(out.glob(".*.part"))
    assert results(out) == results(whole)
