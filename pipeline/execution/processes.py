"""Runs a stage as a group of processes, with torchrun if it has several ranks, and ends them."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alpro.artifact import check_artifact
from alpro.environment import unset_ranks
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.interpreter import interpreter
from alpro.log import PLAIN, TIMES, log
from alpro.pipeline.store.artifacts import Store
from alpro.shards.storage import Location, absolute
from alpro.stages import EVALUATIONS, TRAININGS, WITH_MODEL
from alpro.stages.execution.devices import VISIBLE_GPUS
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    EXIT_STOPPED,
    RESULT_FILE,
    WORK_FILE,
    Outcome,
    Resources,
    StageFailed,
    count_finished,
)
from alpro.stages.execution.lifecycle import STOP_FILE, shell_status, supervised
from alpro.stages.execution.step import Step
from alpro.threads import cores

DISTRIBUTED_STAGES = (*TRAININGS, *EVALUATIONS)
GRACE_SECONDS = 45.0  # to write a checkpoint
JOIN_SECONDS = 120  # that another node waits for an answer of node 0
POLL_SECONDS = 0.1  # between looks whether a program has ended, or is to end
NEVER = threading.Event()  # stands for an event that does not come
LAST_LINES = 3  # lines of the output in the message of a stage that failed
# How a stage ended without a result, by its exit status.
ENDS = {
    128 + signal.SIGKILL: "was killed, probably for memory (fewer resources.workers or "
    "a smaller batch need less; the same command resumes)",
    EXIT_STOPPED: "was stopped with a checkpoint; the same command resumes",
}


class Processes:
    """A running program: a process group under a supervisor, which this process watches and ends.

    Args:
        command: the program.
        environment: its environment variables.
        grace: seconds that it has to end.
        stop_file: file at which it ends; without one, it receives SIGTERM.
        descriptors: open files that the group inherits, such as a lock that it holds until it ends,
            even if this process is killed.
        on_line: receives the output line by line, in place of this terminal.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        grace: float = 0.0,
        stop_file: Path | None = None,
        descriptors: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ):
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reader: threading.Thread | None = None
        self._leader = subprocess.Popen(
            supervised(command, grace, stop_file),
            start_new_session=True,  # Ctrl-C reaches this process only
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if on_line else None,
            stderr=subprocess.STDOUT if on_line else None,
            pass_fds=tuple(descriptors),
            text=True,
            errors="replace",
        )
        if on_line:
            self._reader = threading.Thread(
                target=self._read, args=(on_line,), daemon=True
            )
            self._reader.start()

    def stop(self) -> None:
        """Ask the group to end, also several times: a training writes a checkpoint. Not after
        `wait`: the process ID may have been reused."""
        os.kill(self._leader.pid, signal.SIGTERM)

    def poll(self) -> int | None:
        """Return the exit status or the signal with which the leader ended; None while it runs."""
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        ended = os.waitid(os.P_PID, self._leader.pid, options)
        return ended.si_status if ended else None

    def wait(
        self,
        stopping: threading.Event = NEVER,
        killing: threading.Event = NEVER,
    ) -> int:
        """Wait until the leader has ended, and end what is left. Returns the `shell_status`.

        Args:
            stopping: the event at which the group is asked to end.
            killing: the event at which it is ended at once.
        """
        while self.poll() is None:
            if killing.is_set():
                os.killpg(self._leader.pid, signal.SIGKILL)
            elif stopping.is_set():
                self.stop()
            time.sleep(POLL_SECONDS)

        # The leader is not reaped before the group is gone: until then, no other group can get its
        # number.
        os.killpg(self._leader.pid, signal.SIGKILL)
        # The supervisor itself may have been killed.
        status = shell_status(self._leader.wait())
        if self._reader:
            self._reader.join(timeout=5)
        return status

    def _read(self, on_line: Callable[[str], None]) -> None:
        """Read to the end, whatever `on_line` raises: with a full pipe, the stage would block."""
        assert self._leader.stdout is not None
        for line in self._leader.stdout:
            if line.strip("=- \n"):  # torchrun frames its last lines
                self.last_lines.append(line.strip())
            # Rich raises SystemExit if the worker that prints Prefect's log has ended.
            with suppress(BaseException):
                on_line(line.rstrip())


@dataclass(frozen=True)
class Launch:
    """How a stage is started on this machine.

    Attributes:
        gpus: the GPUs that it uses, by names that CUDA_VISIBLE_DEVICES accepts.
        descriptors, on_line: as of `Processes`.
        stopping, killing: as of `Processes.wait`.
        models: stages that share the cores of this machine, including this one.
    """

    gpus: Sequence[str] = ()
    descriptors: Sequence[int] = ()
    on_line: Callable[[str], None] | None = None
    stopping: threading.Event = NEVER
    killing: threading.Event = NEVER
    models: int = 1


def run_stage(
    step: Step, out: Path, store: Store, resources: Resources, launch: Launch
) -> Outcome:
    """Run the stage of a step in processes of its own, with the output folder `out`.

    Raises:
        InputError: If the user can fix what stopped it.
        CancelledError: If the pipeline stopped it.
        StageFailed: If it ended for any other reason.
    """
    work_file = write_work(step, out, store, resources)
    command = get_command(step.stage, work_file, resources)
    stop_file = work_file.with_name(STOP_FILE)
    is_training = step.stage in TRAININGS
    for node in range(1, resources.nodes if is_training else 1):
        there = shlex.join(get_command(step.stage, work_file, resources, node))
        log.info(f"{step.name}, to be started on node {node}: {there}")

    finished = count_finished(out)
    running = Processes(
        command,
        get_environment(step, resources, launch),
        GRACE_SECONDS if is_training else 0.0,
        stop_file if is_training else None,
        launch.descriptors,
        launch.on_line,
    )
    status = running.wait(launch.stopping, launch.killing)
    # Other nodes may see it for a minute on NFS, and would stop the next attempt.
    stop_file.unlink(missing_ok=True)

    # Rank 0, which leaves it, is on this machine.
    file = work_file.with_name(RESULT_FILE)
    if file.exists():
        result = read_json(file)
        if "error" in result:
            raise InputError(f"{step.name}: {result['error']}")
        work_file.unlink()
        file.unlink()
        return Outcome(**result)

    if launch.stopping.is_set():
        raise CancelledError(f"{step.name} was stopped")
    rest = f"unfinished results are in {work_file.parent}"
    if status == EXIT_INPUT_ERROR:  # a full disk has no room for the result
        raise InputError(f"{step.name}: stopped by the error above; {rest}")
    reason = ENDS.get(status, f"ended with status {status}")
    output = " | ".join(running.last_lines) or "its output is above"
    raise StageFailed(
        f"{step.name} {reason}: {output}; {rest}",
        progressed=count_finished(out) > finished,
    )


def write_work(step: Step, out: Path, store: Store, resources: Resources) -> Path:
    """Check the inputs of a step, and write the file that its processes read. Returns its path."""
    inputs: dict[str, Location] = {
        name: store.folder(other) for name, other in step.inputs.items()
    }
    inputs |= step.given
    # Just before the stage reads them, which may be hours after the plan.
    for location in inputs.values():
        if isinstance(location, Path):
            check_artifact(location)

    file = out.resolve() / WORK_FILE
    described = {
        "stage": step.stage,
        "config": step.config.model_dump(mode="json"),
        "inputs": {name: str(absolute(path)) for name, path in inputs.items()},
        "out": str(out.resolve()),
        "resources": resources.model_dump(mode="json"),
    }
    # Files of an earlier attempt would be taken for this one's.
    for name in (RESULT_FILE, STOP_FILE):
        file.with_name(name).unlink(missing_ok=True)
    write_json(file, described)
    return file


def get_command(
    stage: str, work_file: Path, resources: Resources, node: int = 0
) -> list[str]:
    """Return the command line of a stage's process or processes on a node; 0 is this machine."""
    module = ("-m", "alpro.pipeline.execution.run_stage", str(work_file))
    nodes = resources.nodes if stage in TRAININGS else 1
    processes = count_processes(stage, resources)
    if processes * nodes == 1:
        return interpreter(*module)

    group = ["--standalone"]
    if nodes > 1:
        group = [
            f"--nnodes={nodes}",
            f"--node-rank={node}",
            f"--rdzv-endpoint={resources.rendezvous}",
        ]
        # Named by the fingerprint: the command of another run on that node must not join this one.
        group += [f"--rdzv-id={work_file.parent.name}"]
        if node > 0:  # node 0 starts now, and waits 15 minutes for the others
            group += [f"--rdzv-conf=timeout={JOIN_SECONDS}"]
    # Without a log folder, torchrun leaves an empty one.
    options = [f"--nproc-per-node={processes}", *group, f"--log-dir={os.devnull}"]
    return interpreter("-m", "torch.distributed.run", *options, *module)


def get_environment(step: Step, resources: Resources, launch: Launch) -> dict[str, str]:
    """Return the environment variables of a stage's processes.

    A variable that the user sets is left as it is, except the ranks of a pod or a job.
    """
    # Threads that wait for each other yield soon: of two models that train on the same two cores, a
    # step takes 0.41 s in place of 0.7 s with a count of 10,000, and 0.64 to 1.2 s with OpenMP's
    # default; alone, it takes 1.03 of the time. Huge pages: 0.87 of the time.
    defaults = {"GOMP_SPINCOUNT": "3000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    # Models that share a CPU share its cores: if each used all of them, they would wait for each
    # other. The share follows from the plan, not from what happens to run: the last bits of sums
    # depend on it.
    models = launch.models * count_processes(step.stage, resources)
    if step.stage in WITH_MODEL and not launch.gpus and models > 1:
        defaults["OMP_NUM_THREADS"] = str(max(1, cores() // models))

    environment = {**defaults, **os.environ}
    # On a CPU, the GPUs are hidden: since PyTorch 2.13, a step of an optimizer creates a context on one.
    if launch.gpus or resources.device == "cpu":
        environment[VISIBLE_GPUS] = ",".join(launch.gpus)
    # Progress bars of several stages would overwrite each other.
    if resources.max_stages > 1:
        environment[PLAIN] = "1"
    if launch.on_line:  # Prefect's log adds times
        environment[TIMES] = "0"
    unset_ranks(environment)
    return environment


def count_processes(stage: str, resources: Resources) -> int:
    """Return the number of processes that run a stage on this machine."""
    return resources.processes if stage in DISTRIBUTED_STAGES else 1
