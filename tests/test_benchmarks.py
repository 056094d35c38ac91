"""The benchmarks run at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_no_request_of_many_clients_is_lost(tmp_path):
    """More clients than places."""
    options = ["--clients", "40", "--requests", "2", "--videos", "8", "--json", tmp_path / "figures.json"]
    command = [sys.executable, ROOT / "benchmarks" / "serve.py", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert {name: row["answers"] for name, row in rows.items()} == {
        "similarity, 1 client": 8,
        "similarity, 40 clients": 80,
        "matching, 1 client": 8,
        "matching, 40 clients": 40,
    }
    assert all(0 < row["p50"] <= row["p99"] for row in rows.values())
