"""Processes that share an evaluation: its results are those of one process, to the last bit."""

import json
from pathlib import Path

import pytest
import torch

from alpro.models.alpro import Prompter
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation import encoding
from alpro.stages.evaluation.controls import Shuffle
from tests.stages.evaluation.part_of_an_evaluation import evaluate

PROGRAM = Path(__file__).with_name("part_of_an_evaluation.py")
CONTROLS = ["reversed", "shuffled", "single_frame"]


@pytest.mark.parametrize("stage", ["zero_shot", pytest.param("evaluate", marks=pytest.mark.long)])
def test_two_processes_have_the_results_of_one(stage, folders, vocabulary, clips, two_ranks, tmp_path):
    """With all kinds of models."""
    inputs = folders | {"pretrained": folders["pretrain"], "clips": clips, "vocabulary": vocabulary}
    config = {"retrieval": "clips", "qa": "clips"} | ({"controls": CONTROLS} if stage == "evaluate" else {})
    work = {stage: {"config": config, "inputs": {name: str(path) for name, path in inputs.items()}}}
    files = {}
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "work.json").write_text(json.dumps(work))
        if name == "alone":
            evaluate(tmp_path / name / "work.json", stage)
        else:
            assert two_ranks(PROGRAM, tmp_path / name / "work.json", stage) == [0, 0]
        written = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        files[name] = {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in written}
    assert files["alone"].keys() >= {f"{stage}/results.json", f"{stage}/scores.parquet"}
    assert files["shared"] == files["alone"]


@torch.no_grad()
def test_shuffled_frames_do_not_depend_on_the_number_of_processes(tiny_model, clips, monkeypatch):
    """Each process encodes some batches of clips. The order of a clip's frames is that of one process."""
    model = Prompter(tiny_model(50))
    encoder, reader = NormalizedModel(model, (0.5,) * 3, (0.5,) * 3).eval(), ShardReader(clips)
    monkeypatch.setattr(encoding, "merge", lambda tokens: tokens)

    def tokens(rank: int, ranks: int) -> torch.Tensor:
        monkeypatch.setattr(encoding, "is_own", lambda batch: batch % ranks == rank)
        numbers = list(range(7))
        return encoding.encode_videos(encoder, reader, numbers, batch=2, reorder=Shuffle(0)).tokens

    alone = tokens(0, 1)
    assert len(alone.unique(dim=0)) == 7
    assert torch.equal(tokens(0, 3) + tokens(1, 3) + tokens(2, 3), alone)
