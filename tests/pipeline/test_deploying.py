"""docs/deploying.md as a script: the commands of its blocks on real servers and workers."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pipeline.started import ROOT, TINY, call, wait_for

PAGE = (ROOT / "docs" / "deploying.md").read_text()
LASTING = (
    "prefect server start",
    "mlflow server",
    "worker start",
    "alpro.pipeline.servers.worker",
)  # a block that ends with one is a terminal that stays


def blocks(heading: str) -> list[str]:
    """The code blocks of a section of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


class Terminals:
    """Runs blocks of the page with bash, in the project's folder."""

    def __init__(self, folder: Path, ports: dict[str, int], stack: ExitStack):
        # All that differs from the page: the names of the machine, of its ports, and of its folders.
        self.names = {
            "server.example.com": "127.0.0.1",
            "0.0.0.0": "127.0.0.1",
            ":4200": f":{ports['prefect']}",
            "--port 4200": f"--port {ports['prefect']}",
            ":5000": f":{ports['mlflow']}",
            "--port 5000": f"--port {ports['mlflow']}",
            "/shared/alpro": str(folder / "shared"),
            "/var/lib/alpro": str(folder / "lib"),
        }
        self.folder, self.stack = folder, stack
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment |= {"PREFECT_HOME": str(folder / "home"), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.environment["ALPRO_CONFIGS"] = str(Path(TINY).parent)

    def script(self, block: str) -> str:
        names = "|".join(map(re.escape, self.names))
        return "set -e\n" + re.sub(names, lambda match: self.names[match[0]], block)

    def run(self, block: str) -> str:
        command = ["bash", "-c", self.script(block)]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stay(self, block: str) -> subprocess.Popen:
        """Starts a block in a session of its own. It ends with the context."""
        log = self.stack.enter_context(open(self.folder / f"{len(list(self.folder.glob('*.log')))}.log", "w"))
        process = subprocess.Popen(
            ["bash", "-c", self.script(block)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,  # a worker ends with its standard input if that is a pipe
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.stack.callback(end, process)
        return process


def end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:  # a worker without its server does not end by SIGTERM
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
def test_the_commands_for_several_machines_work_as_they_stand(tmp_path, free_port):
    ports = {"prefect": free_port(), "mlflow": free_port()}
    for folder in ("shared", "lib"):
        (tmp_path / folder).mkdir()
    with ExitStack() as stack:
        terminals = Terminals(tmp_path, ports, stack)
        prefect, mlflow = f"http://127.0.0.1:{ports['prefect']}/api", f"http://127.0.0.1:{ports['mlflow']}"
        running = []
        for block in blocks("Several machines"):
            if not any(program in block for program in LASTING):
                wait_for(lambda: call(prefect, "GET", "/health"), 1200)
                terminals.run(block)
            else:
                running.append(terminals.stay(block))
        run = "prefect deployment run decode-videos/decode-videos --watch"
        address = "export PREFECT_API_URL=http://server.example.com:4200/api\n"
        assert "Completed" in terminals.run(f"{address}{run} -p config={TINY}")
        assert len(list((tmp_path / "shared" / "artifacts" / "decode_videos").glob("*/artifact.json"))) == 2
        assert call(mlflow, "GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny")
        # The workspace is that of the workers.
        failed = subprocess.run(
            ["bash", "-c", terminals.script(f"{address}{run} -p config={TINY} -p workspace=mine")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=terminals.environment,
        )
        assert failed.returncode
        assert "were specified but not found on the deployment" in failed.stdout + failed.stderr
        assert not list(tmp_path.rglob("mine"))
        assert all(process.poll() is None for process in running)
