"""The benchmarks run at a small size; variants of the training step that do not agree are reported."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "train_step.py"


def loaded(file: Path):
    """A program as a module."""
    sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_step():
    return loaded(FILE)


@pytest.mark.long
def test_small_steps_agree_and_are_timed(tmp_path):
    out = tmp_path / "figures.json"
    shared = ["--device", "cpu", "--size", "small", "--batch", "8", "--repeats", "1", "--warmup", "0", "--json", out]
    done = subprocess.run(
        [sys.executable, FILE, *map(str, shared)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert list(figures["variants"]) == ["five passes, float32 (a)", "five passes, bfloat16 (b)", "ours, float32"]
    negatives = [one["negatives"] for name, one in figures["losses"].items() if "bfloat16" not in name]
    assert len(negatives[0]) == 16
    assert negatives == negatives[:1] * len(negatives)
    for one in figures["variants"].values():
        assert 0.5 < sum(one["parts"].values()) / one["seconds"] < 1.01


FIVE = {"loss_vtc": 1.0, "grad_norm": 10.0, "negatives": [1, 0]}


@pytest.mark.parametrize(
    ("dtype", "changed", "fine"),
    [
        ("float32", {}, True),
        ("float32", {"loss_vtc": 1.001}, False),
        ("bfloat16", {"loss_vtc": 1.001}, True),
        ("bfloat16", {"loss_vtc": 1.03}, False),
        ("float32", {"grad_norm": 10.1}, False),
        ("float32", {"negatives": [1, 1]}, False),
        ("bfloat16", {"negatives": [1, 1]}, True),  # similarities are rounded, so a draw may fall to the next
        ("float32", {"loss_vtc": float("nan")}, False),
    ],
)
def test_the_variants_that_agree(train_step, dtype, changed, fine):
    chosen = [train_step.Variant("five", "float32", five_passes=True), train_step.Variant("ours", dtype)]
    assert train_step.agree(chosen, [FIVE, FIVE | changed]) is fine


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
