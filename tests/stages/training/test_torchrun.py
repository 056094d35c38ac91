"""Jobs of several processes as torchrun starts them: what one rank's end does to the others."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alpro.stages.execution.interface import EXIT_INPUT_ERROR, Resources
from tests.conftest import ROOT

HERE = Path(__file__).parent


@pytest.fixture
def torchrun(free_port) -> Callable[..., tuple[int, str]]:
    """torchrun(program, *arguments): the exit status and standard error of two processes."""

    def run(*arguments: object) -> tuple[int, str]:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test"]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *meeting]
        agent = subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            message = agent.communicate(timeout=600)[1]
            return agent.returncode, message
        finally:
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
        ("input-error", "clips/shard-000001.tar: cut short"),
        pytest.param("error", "ValueError: a rank's own error", marks=pytest.mark.long),
        pytest.param("killed", "Signal 9 (SIGKILL)", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_its_own_error_first(how, output, tmp_path, torchrun):
    status, message = torchrun(HERE / "part_of_a_failure.py", work(tmp_path), how)  # ranks would wait ten minutes
    assert status != 0
    result = tmp_path / "result.json"
    if how == "input-error":  # the launcher prints it
        assert json.loads(result.read_text()) == {"error": output}
        return
    other = message.find("another rank is gone")
    assert output in message
    assert other < 0 or how == "killed" or message.index(output) < other
    assert not result.exists()


@pytest.mark.long
def test_a_silent_rank_ends_the_job_within_the_limit(tmp_path, torchrun):
    status, message = torchrun(HERE / "part_of_a_failure.py", work(tmp_path, rank_timeout=3), "silent")
    assert status not in (0, EXIT_INPUT_ERROR)
    assert "another rank is gone" in message
