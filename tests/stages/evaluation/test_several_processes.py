"""Processes that share an evaluation: its results are those of one process, to the last bit."""

import json
from pathlib import Path

import pytest
import torch

from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages import cache_prompts
from alpro.stages.evaluation import encoding
from alpro.stages.evaluation.controls import Shuffle
from tests.stages.evaluation.part_of_an_evaluation import evaluate

PROGRAM = Path(__file__).with_name("part_of_an_evaluation.py")
CONTROLS = ["reversed", "shuffled", "single_frame"]


@pytest.fixture
def work(tmp_path, tiny_model, tokenizer, vocabulary, clips, resources) -> dict:
    """Both evaluation stages on a small corpus, with all kinds of models."""
    config = tiny_model(tokenizer.get_vocab_size())
    torch.manual_seed(0)
    models = {
        "prompter": ModelFolder("prompter", Prompter(config), tokenizer),
        "pretrained": ModelFolder("pretrain", Alpro(config), tokenizer),
        "retrieval": ModelFolder("retrieval", Alpro(config), tokenizer),
        "qa": ModelFolder("qa", Alpro(config, answers=3), tokenizer, answers=["ball", "box", "left"]),
    }
    for name, folder in models.items():
        folder.save_pretrained(tmp_path / name / "model")
    inputs = {name: str(tmp_path / name) for name in models} | {"clips": str(clips), "vocabulary": str(vocabulary)}
    (tmp_path / "prompts").mkdir()
    prompter = {"prompter": tmp_path / "prompter", "vocabulary": vocabulary}
    cache_prompts.run(cache_prompts.Config(), prompter, tmp_path / "prompts", resources)
    inputs["prompts"] = str(tmp_path / "prompts")
    common = {"retrieval": "clips", "qa": "clips"}
    before = ("pretrained", "prompter", "prompts", "vocabulary", "clips")
    return {
        "evaluate": {
            "config": common | {"controls": CONTROLS},
            "inputs": {name: inputs[name] for name in ("retrieval", "qa", "clips")},
        },
        "zero_shot": {"config": common, "inputs": {name: inputs[name] for name in before}},
    }


@pytest.mark.parametrize("stage", ["zero_shot", pytest.param("evaluate", marks=pytest.mark.long)])
def test_two_processes_have_the_results_of_one(stage, work, two_ranks, tmp_path):
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
