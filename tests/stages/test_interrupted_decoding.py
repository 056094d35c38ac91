"""Decoding that is killed at any moment, or finds the disk full, and is begun again comes to the same bytes."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.artifacts import MISTAKE
from tests.conftest import ROOT
from tests.stages.test_decode_videos import contents


@pytest.fixture
def decode(sample, tmp_path) -> Callable[..., subprocess.Popen]:
    """decode(out, workers): the clips of the sample into a folder, started or going on, in a session of its own."""

    def start(out: Path, workers: int, size: int = 40, **how) -> subprocess.Popen:
        out.mkdir(exist_ok=True)
        work = {
            "stage": "decode_videos",
            "config": {
                "manifest": "clips.jsonl",
                "frames": 8,
                "size": size,
                "samples_per_shard": 4,
                "most_rejects": 0.5,
            },
            "inputs": {"sample": str(sample)},
            "out": str(out),
            "resources": {"workers": workers, "device": "cpu"},
        }
        file = tmp_path / f"{out.name}.json"
        file.write_text(json.dumps(work))
        command = [sys.executable, "-m", "stages.run", str(file)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **how)

    return start


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == process:
            found.append(int(stat.parent.name))
    return found


def made(out: Path) -> dict[str, str]:
    """What was made, without what is known of its making."""
    return {name: digest for name, digest in contents(out).items() if not name.startswith("parts/")}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_comes_to_the_same_bytes(seed, decode, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert decode(whole, 1).wait(300) == 0
    chance = random.Random(seed)
    parents = workers = 0
    while True:
        process = decode(broken, chance.choice([1, 2, 3]))
        until = time.monotonic() + chance.uniform(0, 2.5)
        # One or more workers, at any time, and then mostly the parent, which leaves its workers orphans.
        while process.poll() is None and time.monotonic() < until:
            time.sleep(chance.uniform(0.02, 0.6))
            if chance.random() < 0.5 and (several := children(process.pid)):
                os.kill(chance.choice(several), signal.SIGKILL)
                workers += 1
        if parents < 8:
            process.kill()
            parents += process.poll() is None
        status = process.wait(300)
        if status == 0:
            break
    assert parents > 2
    assert workers > 2
    assert made(broken) == made(whole)


@pytest.mark.parametrize(
    ("most", "refused"), [(20_000, "plan.sqlite: No space left on device"), (150_000, "full: File too large")]
)
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_done(most, refused, decode, tmp_path):
    out = tmp_path / "full"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # bytes a file may have: the kernel refuses more

    process = decode(out, 1, size=80, preexec_fn=small_disk)
    _, said = process.communicate(timeout=300)
    assert process.returncode == MISTAKE
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert refused in lines[0]
    assert "; run again when there is room: it goes on where it was" in lines[0]
    assert "Traceback" not in said
    assert not list(out.glob(".*.part"))
    if most < 100_000:  # before any was decoded
        return
    again = decode(out, 2, size=80)
    assert again.wait(300) == 0
    whole = tmp_path / "whole"
    assert decode(whole, 2, size=80).wait(300) == 0
    assert made(out) == made(whole)
