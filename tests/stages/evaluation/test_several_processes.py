"""Processes that share an evaluation: its results are those of one process, to the last bit."""

from pathlib import Path

import pytest
import torch

from alpro.files import write_json
from alpro.inference import encoding
from alpro.models.alpro import Prompter
from alpro.models.frames import NormalizedModel
from alpro.pipeline.execution import run_stage
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.controls import Shuffle
from tests.stages.conftest import contents

CONTROLS = ["reversed", "shuffled", "single_frame"]


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("prompter", {"retrieval": "clips", "entity_crops": 1}),
        pytest.param("retrieval", {"retrieval": "clips"}, marks=pytest.mark.long),
        pytest.param("qa", {"qa": "clips"}, marks=pytest.mark.long),
    ],
)
def test_two_processes_have_the_results_of_one(
    task, asked, folders, clips, two_ranks, resources, tmp_path
):
    inputs = {"model": folders[task], "clips": clips}
    if task == "prompter":
        inputs["prompts"] = folders["prompts"]
    config = {"model_name": "mine", "controls": CONTROLS, **asked}
    shared = {"stage": "evaluate", "config": config, "resources": resources.model_dump()}
    shared["inputs"] = {key: str(path) for key, path in inputs.items()}
    for name in ("one", "two"):
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        write_json(tmp_path / name / "work.json", shared | {"out": str(out)})

    status = run_stage.main(tmp_path / "one" / "work.json")
    both = two_ranks(Path(run_stage.__file__), tmp_path / "two" / "work.json")

    assert {status, *both} == {0}
    one = contents(tmp_path / "one")
    assert one.keys() >= {"result.json", "out/results.json", "out/scores.parquet"}
    one.pop("work.json")
    assert contents(tmp_path / "two").items() >= one.items()


@torch.no_grad()
def test_shuffled_frames_do_not_depend_on_the_number_of_processes(tiny_model, clips, monkeypatch):
    """Each process encodes some batches of clips. The order of a clip's frames is that of one
    process."""
    model = Prompter(tiny_model(50))
    encoder = NormalizedModel(model, (0.5,) * 3, (0.5,) * 3).eval()
    reader = ShardReader(clips)
    monkeypatch.setattr(encoding, "all_reduce_", lambda tokens: tokens)

    def tokens(rank, ranks):
        monkeypatch.setattr(encoding, "belongs_to_this_rank", lambda batch: batch % ranks == rank)
        numbers = list(range(7))
        return encoding.encode_videos(encoder, reader, numbers, batch=2, reorder=Shuffle(0)).tokens

    alone = tokens(0, 1)
    assert len(alone.unique(dim=0)) == 7
    assert torch.equal(tokens(0, 3) + tokens(1, 3) + tokens(2, 3), alone)
