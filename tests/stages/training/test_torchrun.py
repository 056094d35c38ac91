"""Jobs of several processes as torchrun starts them: what one rank's end does to the others, and several nodes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alpro.stages.execution.interface import EXIT_INPUT_ERROR, Resources
from tests.conftest import ROOT
from tests.stages.training.part_of_a_batch import losses_and_gradients

HERE = Path(__file__).parent


@pytest.fixture
def torchrun(free_port) -> Callable[..., list[tuple[int, str]]]:
    """torchrun(program, *arguments, nodes=1): two processes on each; every node's exit status and standard error."""

    def run(program: Path, *arguments: object, nodes: int = 1) -> list[tuple[int, str]]:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test"]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=2", *meeting]
        command += [str(program), *map(str, arguments)]
        agents = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(nodes)]
        try:
            message = [agent.communicate(timeout=600)[1] for agent in agents]
            return [(agent.returncode, text) for agent, text in zip(agents, message, strict=True)]
        finally:
            for agent in agents:
                if agent.poll() is None:
                    agent.terminate()  # it ends its ranks; killed, it would leave them running
                    agent.wait(60)

    return run


def work(folder: Path, **resources) -> Path:
    """A work file in a folder."""
    resources = Resources(device="cpu", **resources).model_dump()
    file = folder / "work.json"
    file.write_text(json.dumps({"out": str(folder / "out"), "inputs": {}, "resources": resources}))
    return file


@pytest.mark.parametrize(
    ("how", "output"),
    [
        ("input-error", "error: clips/shard-000001.tar: cut short"),
        pytest.param("error", "ValueError: a rank's own error", marks=pytest.mark.long),
        pytest.param("killed", "Signal 9 (SIGKILL)", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_its_own_error_first(how, output, tmp_path, torchrun):
    ((status, message),) = torchrun(HERE / "part_of_a_failure.py", work(tmp_path), how)  # ranks would wait ten minutes
    assert status != 0
    assert output in message
    other = message.find("another rank is gone")
    assert other < 0 or how == "killed" or message.index(output) < other
    result = tmp_path / "result.json"
    assert not result.exists() or json.loads(result.read_text()) == {"error": output.removeprefix("error: ")}
    assert result.exists() == (how == "input-error")


@pytest.mark.long
def test_a_silent_rank_ends_the_job_within_the_limit(tmp_path, torchrun):
    ((status, message),) = torchrun(HERE / "part_of_a_failure.py", work(tmp_path, rank_timeout=3), "silent")
    assert status not in (0, EXIT_INPUT_ERROR)
    assert "another rank is gone" in message


@pytest.mark.long
def test_two_nodes_of_two_ranks_are_as_one_process(tmp_path, torchrun):
    """Losses and gradients of every objective, with labels and negatives over the global batch."""
    assert [status for status, _ in torchrun(HERE / "part_of_a_batch.py", tmp_path, nodes=2)] == [0, 0]
    quarters = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(4)]
    whole = losses_and_gradients(0, 1)
    names = {name.split("/")[0] for name in whole}
    assert names == {
        "prompter",
        "matching",
        "matching in pools of 2",
        "matching in pools of 4",
        "pretrain",
        "qa",
    }
    for name, value in whole.items():
        # The gradients are those of all ranks; the losses are means, of each rank its own.
        actual = torch.stack([quarter[name] for quarter in quarters])
        actual = actual.mean(0) if name.endswith("/loss") else actual[0]
        torch.testing.assert_close(actual, value, atol=1e-5, rtol=1e-5, msg=name)
