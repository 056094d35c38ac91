"""Jobs of several processes as torchrun starts them: what one rank's end does to the others."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alpro.stages.execution.interface import Resources
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


@pytest.mark.parametrize(
    ("how", "output"),
    [
        ("input-error", "clips/shard-000001.tar: cut short"),
        pytest.param("error", "ValueError: a rank's own error", marks=pytest.mark.long),
        pytest.param("killed", "Signal 9 (SIGKILL)", marks=pytest.mark.long),
        pytest.param("silent", "another rank is gone", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_its_own_error_first(how, output, tmp_path, torchrun):
    """At once, without waiting for the limit; a silent one at the limit."""
    resources = Resources(device="cpu", rank_timeout=3 if how == "silent" else 600).model_dump()
    work, result = tmp_path / "work.json", tmp_path / "result.json"
    work.write_text(json.dumps({"out": str(tmp_path / "out"), "inputs": {}, "resources": resources}))
    status, message = torchrun(HERE / "part_of_a_failure.py", work, how)
    assert status != 0
    if how == "input-error":  # the launcher prints it
        assert json.loads(result.read_text()) == {"error": output}
        return
    other = message.find("another rank is gone")
    assert (output in message, result.exists()) == (True, False)
    assert other < 0 or how != "error" or message.index(output) < other
