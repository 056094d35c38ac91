"""A training run of two processes, stopped and started again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alpro.stages.training.loop import EXIT_INTERRUPTED
from alpro.stages.training.metrics import read_metrics

pytestmark = pytest.mark.long
TIMING = ("time", "train/data_wait", "train/samples_per_second", "train/memory_gib")
PROGRAM = Path(__file__).with_name("part_of_a_run.py")


@pytest.fixture
def train(clips, vocabulary, two_ranks):
    """train(out, stop, stop): both ranks, each stopped as a step begins (-1: not at all); their exit statuses."""

    def run(out: Path, *stops: int) -> list[int]:
        out.mkdir(exist_ok=True)
        return two_ranks(PROGRAM, out, clips, vocabulary / "tokenizer.json", *stops)

    return run


def test_two_interrupted_ranks_resume_to_the_same_weights(train, tmp_path):
    assert train(tmp_path / "whole", -1, -1) == [0, 0]
    assert train(tmp_path / "broken", 5, 5) == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    assert train(tmp_path / "broken", -1, -1) == [0, 0]
    whole, broken = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "broken"))
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []
    # Metrics are means over both ranks, those of the steps before the interruption too.
    one, other = (
        [
            {key: value for key, value in line.items() if key not in TIMING}
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "broken")
    )
    assert [line["step"] for line in one] == [4, 8, 12]
    for line, again in zip(one, other, strict=True):
        assert line == pytest.approx(again, rel=1e-6)


@pytest.mark.parametrize("stops", [(5, 6), (6, 5)])
def test_a_stop_that_reaches_the_ranks_in_different_steps_leaves_a_checkpoint(train, tmp_path, stops):
    assert train(tmp_path / "run", *stops) == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
