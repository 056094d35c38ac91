"""Five thousand rendered clips: counts, memory, and the cost of a few new rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alpro.shards.reader import ShardReader
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
    (out / "artifact.json").write_text("{}")  # as an artifact has it
    return counts | {"memory": int(done.stdout.split()[-1]) // 1024}


def test_five_thousand_clips(tmp_path):
    sample = tmp_path / "sample"
    sample.mkdir()
    config = render_sample.Config(lessons=2, clips=3000, stills=2, validation=40, test=40, size=64, frames=8, seed=3)
    render_sample.run(config, {}, sample, Resources(workers=2))
    lines = (sample / "clips.jsonl").read_text().splitlines()
    assert len(lines) >= 5000

    def few() -> Path:
        (sample / "few.jsonl").write_text("".join(line + "\n" for line in lines[:500]))
        return sample / "few.jsonl"

    small = decode(few(), tmp_path / "few" / "a")
    whole = decode(sample / "clips.jsonl", tmp_path / "artifacts" / "a")
    assert whole["items"] == len(lines) == whole["samples"] + whole["rejected"]
    assert whole["linked"] == 0
    # Tables are written in groups of rows, and the small corpus has not one whole group.
    assert whole["memory"] < small["memory"] + 64
    rows = [json.loads(line) for line in lines]
    changed = rows[:1000] + rows[1001:3000] + [rows[3000] | {"captions": ["another"]}] + rows[3001:]
    changed += [row | {"id": f"new {row['id']}"} for row in rows[:20]]
    (sample / "changed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    again = decode(sample / "changed.jsonl", tmp_path / "artifacts" / "b")
    assert again["items"] == len(changed)
    assert again["linked"] > 0.7 * again["samples"]
    reader = ShardReader(tmp_path / "artifacts" / "b")
    assert sorted(reader.column("id").to_pylist() + rejected(tmp_path / "artifacts" / "b")) == sorted(
        row["id"] for row in changed
    )
    print(f"\nfew: {small}\nwhole: {whole}\nchanged: {again}")


def rejected(folder: Path) -> list[str]:
    return pq.read_table(folder / "rejects.parquet")["id"].to_pylist()
