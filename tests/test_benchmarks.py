"""The benchmarks run at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.long
def test_every_program_has_figures(tmp_path):
    """Of a server: no request is lost, with more clients than places."""

    def benchmark(name: str, *options: str) -> dict:
        command = [sys.executable, PROGRAMS / f"{name}.py", *options, "--json", tmp_path / "figures.json"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "figures.json").read_text())

    figures = benchmark("decode", "--runs", "1")
    assert all(each["processor"] > 0 for methods in figures.values() for each in methods.values())
    assert len(benchmark("loader", "--clips", "16")["samples/s"]) == 3
    assert benchmark("gpu", "--small", "--steps", "3", "--batch", "8")["utilization"] > 0
    rows = benchmark("serve", "--clients", "40", "--requests", "2", "--videos", "8")
    assert [row["answers"] for row in rows.values()] == [8, 80, 8, 40]  # similarity and matching, 1 and 40 clients
    assert all(0 < row["p50"] <= row["p99"] for row in rows.values())
