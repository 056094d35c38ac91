"""benchmarks/gpu.py at small sizes on a CPU: the program for a lent GPU works before there is
one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.long
def test_all_parts_run(tmp_path):
    figures = tmp_path / "gpu.json"
    command = [sys.executable, PROGRAM, "--small", "--batch", "4", "--steps", "20"]
    subprocess.run([*command, "--json", figures], check=True, timeout=600)
    parts = json.loads(figures.read_text())
    attention = {row["attention"]: row for row in parts["attention"]}
    assert {"alone", "products", "broadcast", "packed"} <= attention.keys()
    assert all(row["largest difference"] < 1e-5 for row in attention.values())
    assert all(row["kernels"] for row in parts["block"])
    assert [row["run"] for row in parts["runs"]] == ["ALPRO, T=2", "ALPRO, T=1", "CLIP"]
    assert all(row["kernels"] and row["samples_per_second"] for row in parts["runs"])
    assert all(row["utilization"] for row in parts["runs"])
