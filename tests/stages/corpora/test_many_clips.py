"""Five thousand rendered clips: counts, and memory that does not grow with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alpro.stages import render_sample
from alpro.stages.execution.interface import Resources
from tests.conftest import ROOT

pytestmark = pytest.mark.long

# What the kernel says of a child's memory begins with that of its parent, so the process tells it itself.
PROGRAM = """
import re, sys
from pathlib import Path
from alpro.pipeline.execution.run_stage import main
status = main(Path(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def decode(manifest: Path, out: Path) -> dict:
    """Decodes a manifest in a new process; returns its counts and its peak memory in MiB."""
    out.mkdir(parents=True)
    work = {
        "stage": "decode_videos",
        "config": {"frames": 8, "size": 64},
        "inputs": {"data": str(manifest)},
        "out": str(out),
        "resources": {"workers": 2, "device": "cpu"},
    }
    file = out.with_suffix(".json")
    file.write_text(json.dumps(work))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    counts = json.loads(file.with_name("result.json").read_text())["counts"]
    return counts | {"memory": int(done.stdout.split()[-1]) // 1024}


def test_five_thousand_clips(tmp_path):
    sample = tmp_path / "sample"
    sample.mkdir()
    config = render_sample.Config(lessons=2, clips=3000, stills=2, validation=40, test=40, size=64, frames=8, seed=3)
    render_sample.run(config, {}, sample, Resources(workers=2))
    lines = (sample / "clips.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) >= 5000
    (sample / "few.jsonl").write_text("".join(lines[:500]))
    small, whole = (decode(sample / f"{name}.jsonl", tmp_path / name / "a") for name in ("few", "clips"))
    assert whole["items"] == len(lines) == whole["samples"] + whole["rejected"]
    # Tables are written in groups of rows, and the small corpus has not one whole group.
    assert whole["memory"] < small["memory"] + 64
