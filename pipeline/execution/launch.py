"""Runs a stage as a group of processes, many of them with torchrun, and ends them."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from alpro.environment import forget_ranks
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.interpreter import interpreter
from alpro.log import PLAIN, TIMES, log
from alpro.pipeline.execution.devices import VISIBLE, reserved, visible_devices
from alpro.pipeline.store.artifacts import Step, Store, check_inputs
from alpro.shards.storage import Location, absolute
from alpro.stages import EVALUATIONS, TRAININGS, WITH_MODEL
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    EXIT_INTERRUPTED,
    STOP,
    Interrupted,
    Outcome,
    Resources,
    StageFailed,
    Stopped,
)
from alpro.stages.execution.lifecycle import signal_group, with_parent
from alpro.threads import cores

TORCHRUN = "alpro.pipeline.execution.torchrun"  # not imported here: only its process needs torch
SEVERAL = (*TRAININGS, *EVALUATIONS)  # stages that can use several processes
WORK = "work.json"  # of a stage that has not succeeded
RESULT = "result.json"  # of a stage's processes, beside their work file
# For the processes of a stage to write a checkpoint; torchrun gives its ranks 30.
GRACE_SECONDS = 45.0
TRACKER_SECONDS = 2.0  # for Python's resource tracker, after the process that it serves has ended


def run_stage(
    step: Step,
    out: Path,
    store: Store,
    resources: Resources,
    lock_file: int | None = None,
    say: Callable[[str], None] | None = None,
    concurrent_stages: int = 1,
) -> Outcome:
    """Runs a step's stage with the output folder `out` in a process group of its own; returns its
    outcome.

    The group is ended with this call: on success, on any exception here, on cancellation. If this
    process is killed, the kernel ends it. A stage with a model uses free GPUs, which no other run
    of this machine uses at the same time.

    Args:
        lock_file: the open lock of the artifact, which the group holds, too.
        say: receives the output of the group line by line, if there is no terminal.
        concurrent_stages: the number of stages with a model that may run at the same time, this one
            included: they share a CPU's cores.

    Raises InputError, Interrupted if the next call continues, Stopped if the pipeline stops, else
    StageFailed.
    """
    with_model = step.stage in WITH_MODEL
    gpus = visible_devices(resources) if with_model else {}
    count = resources.processes if step.stage in SEVERAL else 1
    threads = None
    # Two models on a CPU with all threads would wait for each other's.
    if with_model and not gpus and "OMP_NUM_THREADS" not in os.environ:
        threads = threads_on_cpu(out, concurrent_stages, count)

    file = write_work(step, out, store, resources=resources, threads=threads)
    arguments = command(step.stage, file, resources)

    def announce(text: str) -> None:
        (say or log.info)(f"{step.name}: {text}")

    if resources.nodes > 1 and step.stage in TRAININGS:
        # Another node may have its interpreter elsewhere, another current folder, and GPUs of other
        # names.
        allocator = allocator_settings() if gpus else {}
        assigned = [f"{name}={value}" for name, value in allocator.items()]
        elsewhere = shlex.join([*assigned, "python", *arguments[1:-1], str(file.resolve())])
        announce(f"start on each other node: {elsewhere}")

    locks = () if lock_file is None else (lock_file,)
    with reserved(gpus, count, announce) as (devices, gpu_locks):
        settings = gpu_settings(devices)

        if threads:
            settings["OMP_NUM_THREADS"] = str(threads)

        if resources.max_stages > 1:  # progress bars of several stages would overwrite each other
            settings[PLAIN] = "1"

        variables = [f"{name}={value}" for name, value in settings.items()]
        log.debug(f"{step.name}: {shlex.join([*variables, *arguments])}")
        status = run_group(arguments, (*locks, *gpu_locks), say, settings)

    return outcome_of(step, file, status)


def threads_on_cpu(out: Path, concurrent_stages: int, processes: int) -> int:
    """The number of threads of each process of a stage with a model; 0: PyTorch decides.

    A stage that is resumed keeps that of its first attempt: with another, sums differ in their last
    bits, and the result would not be that of a run without the interruption.
    """
    # torchrun would give each process one.
    shared = concurrent_stages * processes > 1
    threads = max(1, cores() // concurrent_stages // processes) if shared else 0

    file = out / WORK
    earlier = read_json(file) if file.is_file() else {}
    same_processes = earlier.get("resources", {}).get("processes") == processes
    if same_processes and earlier.get("threads") is not None:
        return min(earlier["threads"], cores())
    return threads


def write_work(
    step: Step,
    out: Path,
    store: Store,
    *,
    resources: Resources,
    threads: int | None,
) -> Path:
    """Checks the inputs of a step, and writes the file that its processes read. Returns it."""
    inputs: dict[str, Location] = {name: store.folder(other) for name, other in step.inputs.items()}
    inputs |= step.given
    # Just before the stage reads them, which may be hours after the plan.
    check_inputs(inputs.values())

    file = out / WORK
    described = {
        "stage": step.stage,
        "config": step.config.model_dump(mode="json"),
        "inputs": {name: str(absolute(path)) for name, path in inputs.items()},
        "out": str(out.resolve()),
        "resources": resources.model_dump(mode="json"),
        "threads": threads,
    }
    write_json(file, described)
    # The outcome of an earlier attempt would be taken for this one's.
    file.with_name(RESULT).unlink(missing_ok=True)
    return file


def gpu_settings(devices: Sequence[str]) -> dict[str, str]:
    """The environment variables of a stage on these GPUs."""
    if not devices:
        return {}

    return {VISIBLE: ",".join(devices), **allocator_settings()}


def allocator_settings() -> dict[str, str]:
    """Of the memory of GPUs, unless the environment has its own."""
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        return {}
    # Batches differ in size: segments that grow leave no holes in the GPU's memory.
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def outcome_of(step: Step, file: Path, status: int) -> Outcome:
    """What the processes of a stage left. Raises as `run_stage` does.

    file: the work file. status: of the process group's leader, which is torchrun's for several
    processes.
    """
    result_file = file.with_name(RESULT)
    result = read_json(result_file) if result_file.exists() else {}

    if status == 0:
        file.unlink()
        result_file.unlink()
        return Outcome(**result)

    # What a rank has written says more than the exit status, which is torchrun's own.
    if "error" in result:
        raise InputError(result["error"])
    # A stage that the pipeline stops reports SIGTERM, too, and would be run again.
    if STOP.get().is_requested():
        raise Stopped(f"{step.name} was stopped")
    if "interrupted" in result:
        raise Interrupted(f"{step.name}: {result['interrupted']}")
    # SIGALRM: it did not end soon enough after SIGTERM.
    if status in (EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGALRM):
        raise Interrupted(f"{step.name}: it received SIGTERM")
    if status == -signal.SIGKILL:  # torchrun reports it in its output, and ends with 1
        raise StageFailed(
            f"{step.name} was killed, probably for memory: fewer resources.workers or a smaller "
            f"batch need less; "
            "the same command resumes"
        )

    rest = f"unfinished results are in {file.parent}"
    if status == EXIT_INPUT_ERROR:  # a full disk has no place for the result file either
        raise InputError(f"{step.name}: stopped by the error above; {rest}")
    raise StageFailed(f"{step.name} ended with status {status}; its output is above, {rest}")


def command(stage: str, file: Path, resources: Resources) -> list[str]:
    """The command line of a stage's process or processes."""
    module = ("-m", "alpro.pipeline.execution.run_stage", str(file))
    nodes = resources.nodes if stage in TRAININGS else 1
    if resources.processes * nodes == 1 or stage not in SEVERAL:
        return interpreter(*module)

    torchrun = interpreter("-m", TORCHRUN, "--log-dir", os.devnull)  # not a folder that stays
    torchrun += [f"--nproc-per-node={resources.processes}"]
    if nodes == 1:
        return [*torchrun, "--standalone", *module]

    meeting = [
        f"--nnodes={resources.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={resources.rendezvous}",
    ]
    # The name of the folder is the fingerprint's, so it is the same on all nodes.
    return [*torchrun, *meeting, f"--rdzv-id={file.parent.name}", *module]


def run_group(
    arguments: list[str],
    locks: Sequence[int],
    say: Callable[[str], None] | None,
    settings: Mapping[str, str] | None = None,
) -> int:
    """Runs a command as a process group of its own; returns its exit status, always with the whole
    group gone.

    The open locks, of the artifact's folder and of the GPUs, are passed on, so that they stay held
    as long as any of the group lives, even if this process is killed. `settings` are added to the
    environment. Raises Stopped if the pipeline stops already.
    """
    STOP.get().wait(0)
    piped = say is not None
    process = subprocess.Popen(
        with_parent(arguments),
        start_new_session=True,  # Ctrl-C in a terminal reaches this process only, which ends the group
        env=group_environment(settings or {}, piped),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else None,
        stderr=subprocess.STDOUT if piped else None,
        pass_fds=tuple(locks),
        text=True,
        errors="replace",
    )

    reader = None
    if piped:
        reader = threading.Thread(target=_read_lines, args=(process, say), daemon=True)
        reader.start()

    try:
        with STOP.get().signals(process.pid):
            status = process.wait()
    except BaseException:  # they have time to write a checkpoint
        signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        _wait_for_the_rest(process.pid)
        raise
    else:
        if status != 0:
            _wait_for_the_rest(process.pid)
        return status
    finally:
        signal_group(process.pid, signal.SIGKILL)  # whatever is left
        process.wait()
        if reader:
            reader.join(timeout=5)


def group_environment(settings: Mapping[str, str], piped: bool) -> dict[str, str]:
    """The environment of a stage's processes. A variable that the user sets is left as it is,
    except the ranks of a pod or a job."""
    # Threads that wait for each other give way soon: a step of the sample takes 0.28 s beside
    # another busy process on two cores, with OpenMP's default 1.1 to 2.4; on idle cores it is as
    # fast. Huge pages: 0.87 of the time.
    defaults = {"GOMP_SPINCOUNT": "10000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment = {**defaults, **os.environ, **settings}

    if piped:
        environment[TIMES] = "0"  # Prefect's log adds times
    forget_ranks(environment)
    return environment


def _wait_for_the_rest(leader: int) -> None:
    """Waits until the group of a process that did not finish is gone, for some seconds: the
    resource tracker of multiprocessing removes the semaphores of killed processes."""
    end = time.monotonic() + TRACKER_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(leader, 0)
        except OSError:
            return
        time.sleep(0.02)


def _read_lines(process: subprocess.Popen, say: Callable[[str], None]) -> None:
    """Reads to the end, whatever `say` raises: the stage would block in `write` once the pipe is
    full. If the worker that prints Prefect's log has ended, rich raises SystemExit."""
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(BaseException):
            say(line.rstrip())
