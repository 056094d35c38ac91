"""Processes that share an evaluation: its results are those of one process, to the last bit."""

from pathlib import Path

import pytest

from alpro.files import write_json
from alpro.pipeline.execution import run_stage
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
    shared = {
        "stage": "evaluate",
        "config": config,
        "resources": resources.model_dump(),
    }
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
