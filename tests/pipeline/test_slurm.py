"""The Slurm files on a real Slurm of one node, which the test starts. It needs root and Debian's slurmctld, slurmd,
slurm-client and munge."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pipeline.started import ROOT, TINY, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
CLUSTER = ROOT / "docs" / "cluster"
# cred_expire: seconds until a requeued job may start.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """A running Slurm; `folder` is where jobs run and write their output."""

    def __init__(self, folder: Path):
        self.folder = folder
        left_out = ("SLURM_", "PREFECT_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, *command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, script: str, *arguments: object, options: tuple[str, ...] = ()) -> str:
        """Submits a file without GPUs; returns the number of the job."""
        small = ("--parsable", "--gpus=0", "--cpus-per-task=1", "--time=60", *options)
        return self.run("sbatch", *small, CLUSTER / script, *arguments)

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        return re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing or os.getuid() != 0:
        pytest.skip("no Slurm here, or not root: apt-get install slurmctld slurmd slurm-client munge")
    folder, ports = tmp_path_factory.mktemp("slurm"), []
    with ExitStack() as sockets:
        for _ in range(2):
            one = sockets.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, control=ports[0], node=ports[1])
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    cluster = Slurm(folder)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
    with ExitStack() as programs:
        log = programs.enter_context(open(folder / "programs.log", "w"))
        for command in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
            programs.callback(process.wait)
            programs.callback(process.terminate)
            if command is munge:
                wait_for((folder / "munge.socket").exists, 60)
        wait_for(
            lambda: "idle" in subprocess.run(["sinfo"], env=cluster.environment, capture_output=True, text=True).stdout,
            120,
        )
        try:
            yield cluster
        finally:  # jobs do not end with slurmd
            cluster.run("scancel", "--user=root")
            wait_for(lambda: not cluster.run("squeue", "--noheader"), 300)


def training(workspace: Path, steps: int) -> list[str]:
    phases = f'pretrain.phases=[{{corpora=["clips","stills"],weights=[1,1],steps={steps}}}]'
    return ["run", "pretrain", "--config", TINY, "--workspace", str(workspace), "--set", phases]


def checkpoints(workspace: Path) -> list[Path]:
    return list(workspace.glob("artifacts/pretrain/*/checkpoints/step-*"))


@pytest.mark.long
def test_an_interrupted_job_is_queued_again_and_continues(slurm, tmp_path):
    job = slurm.submit("slurm_train.sh", *training(tmp_path, 400), "--set", "resources.checkpoint_interval=1")
    wait_for(lambda: checkpoints(tmp_path), 1200)
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # as Slurm does before the time limit
    wait_for(lambda: slurm.state(job) == "COMPLETED", 1800)
    output = slurm.output(job)
    assert "interrupted; the job is queued again and resumes" in output
    assert re.search(r"continuing from step \d+ of 400", output)
    assert list(tmp_path.glob("artifacts/pretrain/*/artifact.json"))


@pytest.mark.long
def test_a_stage_on_several_nodes_is_an_artifact(slurm, tmp_path):
    """Of one node here: it starts the stage through torchrun with a rendezvous."""
    (tmp_path / "w").mkdir()
    _, stage, *options = training(tmp_path / "w", 60)
    job = slurm.submit("slurm_nodes.sh", stage, tmp_path / "w", *options, options=("--nodes=1", "--gpus-per-node=0"))
    wait_for(lambda: slurm.state(job) == "COMPLETED", 1200)
    assert list(tmp_path.glob("w/artifacts/pretrain/*/artifact.json"))
