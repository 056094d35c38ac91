"""A training run that is killed at random moments has the result of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alpro.stages.execution.interface import EXIT_INTERRUPTED
from alpro.stages.training.metrics import read_metrics
from tests.conftest import ROOT
from tests.stages.training.part_of_a_life import STEPS

pytestmark = pytest.mark.long
PROGRAM = Path(__file__).with_name("part_of_a_life.py")
TIMING = ("time", "train/data_wait", "train/samples_per_second", "train/memory_gib")


@pytest.fixture
def live(clips, vocabulary) -> Callable[..., subprocess.Popen]:
    """live(out): the training run in a folder, started or going on."""

    def start(out: Path) -> subprocess.Popen:
        out.mkdir(exist_ok=True)
        command = [sys.executable, PROGRAM, out, clips, vocabulary / "tokenizer.json"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([str(part) for part in command], env=environment, cwd=ROOT, stderr=subprocess.PIPE)

    return start


def result(out: Path) -> tuple[dict[str, Tensor], list[dict]]:
    """The weights, and the metrics of every logged step but those of time."""
    lines = [
        {key: value for key, value in line.items() if key not in TIMING} for line in read_metrics(out / "metrics.jsonl")
    ]
    return load_file(out / "weights.safetensors"), lines


def shown(out: Path) -> dict[int, list[str]]:
    """The samples of each step; a step that was done again must have had the same."""
    actual: dict[int, list[str]] = {}
    for line in (out / "seen.0.jsonl").read_text().splitlines():
        step, _, ids = json.loads(line)
        assert actual.setdefault(step, ids) == ids
    return actual


# Ctrl-C while PyTorch's C++ code calls Python ends in std::terminate, and so in SIGABRT.
ENDS = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGABRT, EXIT_INTERRUPTED, 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_has_the_same_result_to_the_last_bit(seed, live, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert live(whole).wait(600) == 0
    rng = random.Random(seed)
    ended: list[int] = []
    while not ended or ended[-1] != 0:
        assert len(ended) < 100, "it gets nowhere"
        process = live(broken)
        # Mostly as it trains and saves, which it does all the time, a few steps further on; sometimes as it starts.
        if rng.random() < 0.85:
            steps = lives_seen(broken) + rng.randint(1, 6)
            while process.poll() is None and lives_seen(broken) < steps:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 1.5))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        ended.append(process.wait(600))
        assert ended[-1] in ENDS, process.stderr.read()
        if rng.random() < 0.3:
            spoil(broken / "checkpoints", rng)
    assert len(ended) > 3, "killed too seldom to tell anything"
    (weights, lines), (again, lines_again) = result(whole), result(broken)
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []
    assert lines == lines_again
    assert shown(whole) == shown(broken)
    assert sorted(shown(whole)) == list(range(STEPS))


def test_resumed_with_another_number_of_ranks_each_sample_is_used_once(live, two_ranks, clips, vocabulary, tmp_path):
    """The order of the samples is that of one undisturbed process, wherever the ranks change."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert live(whole).wait(600) == 0
    broken.mkdir()
    part = (PROGRAM, broken, clips, vocabulary / "tokenizer.json")
    assert two_ranks(*part, stop_after=lambda: list((broken / "checkpoints").glob("step-*"))) == [75, 75]
    assert live(broken).wait(600) == 0
    shards: dict[int, dict[int, list[str]]] = {}
    for rank in (1, 0):  # what one process did again alone comes last
        for line in (broken / f"seen.{rank}.jsonl").read_text().splitlines():
            step, ranks, ids = json.loads(line)
            shards[step] = {0: ids} if ranks == 1 else shards.get(step, {}) | {rank: ids}
    together = {step: [i for rank in sorted(parts) for i in parts[rank]] for step, parts in shards.items()}
    assert together == shown(whole)


def lives_seen(out: Path) -> int:
    """How many steps have begun, in all restarts."""
    return len((out / "seen.0.jsonl").read_bytes().splitlines()) if (out / "seen.0.jsonl").exists() else 0


def spoil(checkpoints: Path, rng: random.Random) -> None:
    """Cuts a file of the newest checkpoint short, as a machine that lost its power may leave it."""
    actual = sorted(checkpoints.glob("step-*"))
    if len(actual) > 1:
        file = rng.choice(sorted(actual[-1].iterdir()))
        os.truncate(file, rng.randrange(file.stat().st_size))
