"""One stage in its own process: `python -m alpro.pipeline.execution.run_stage WORK.json`, alone or
under torchrun.

The work file contains the stage, its configuration, the folders of its inputs, the output folder
and the resources. The process leaves its outcome, or the input error that stopped it, in
result.json beside the work file; `launch.run_stage` starts it and reads that. It needs neither
Prefect nor MLflow.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import os_errors, read_json, write_json
from alpro.shards.storage import DISK_FULL, located
from alpro.stages import TRAININGS
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    EXIT_INTERRUPTED,
    InterruptedExit,
    Outcome,
    Resources,
)
from alpro.stages.execution.lifecycle import end_with_parent, ignore_signals, parent_process

# To leave its contexts after SIGTERM. Less than `launch.GRACE_SECONDS`: nobody else may be there to
# end the process, if its parent was killed.
END_SECONDS = 40
# Errors that a second try would meet again.
PERMANENT_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)


def main(file: Path) -> int:
    """Runs the stage of a work file; returns the exit status of the process."""
    work = read_json(file)
    result = file.with_name("result.json")
    # Not by a person on another node: `launch.run_stage` prints the error.
    launched = os.environ.get("GROUP_RANK", "0") == "0"
    if "WORLD_SIZE" in os.environ:  # torchrun starts its ranks in sessions of their own
        end_with_parent(parent_process(), signal.SIGKILL)

    try:
        with os_errors(work["out"]):
            outcome = run(work)
    except InputError as error:
        return stop(result, {"error": str(error)}, EXIT_INPUT_ERROR, quiet=launched)
    except OSError as error:
        if error.errno in DISK_FULL:
            full = f"{error.filename or work['out']}: {error.strerror}; free some disk space and run again to resume"
            return stop(result, {"error": full}, EXIT_INPUT_ERROR, quiet=launched)
        if isinstance(error, PERMANENT_ERRORS):
            raise
        # A network or its disk failed: the stage may succeed if it continues soon.
        message = one_line(error, max_length=MAX_MESSAGE)
        return stop(result, {"interrupted": message}, EXIT_INTERRUPTED)
    except InterruptedExit as exit_:
        return stop(result, {"interrupted": exit_.reason}, EXIT_INTERRUPTED, quiet=True)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        line = out_of_memory(work["stage"], error)
        return stop(result, {"error": line}, EXIT_INPUT_ERROR, quiet=launched)

    # All ranks share the folder of the work file, and one outcome.
    if int(os.environ.get("RANK", 0)) == 0:
        write_json(result, asdict(outcome))
    return 0


def stop(path: Path, result: dict[str, str], status: int, quiet: bool = False) -> int:
    """Writes why a stage ended, unless another rank has: the first that fails is the cause, and
    torchrun has an exit status of its own. Prints it unless `quiet`, or if it cannot be written.
    Returns the status."""
    if path.exists():
        return status

    try:
        # In one piece: torchrun may end this rank meanwhile, because another one has failed.
        write_json(path, result)
    except OSError:  # a full disk
        quiet = False

    if not quiet:
        print(*map(": ".join, result.items()), file=sys.stderr, flush=True)
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, that of a GPU or of this machine."""
    if isinstance(error, MemoryError):
        return True

    torch = sys.modules.get("torch")  # most stages run without it
    if torch is None or not isinstance(error, RuntimeError):
        return False

    # cuBLAS and the allocator of a CPU raise a plain RuntimeError.
    message = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "CUBLAS_STATUS_ALLOC_FAILED" in message
        or "DefaultCPUAllocator" in message
    )


def out_of_memory(stage: str, error: Exception) -> str:
    """One line: what ran out of memory, and which settings need less."""
    # torch's message goes on with the statistics of its allocator.
    reason = one_line(error).partition(". ")[0]
    if stage not in TRAININGS:
        return f"{stage} ran out of memory ({reason}): free some memory, or run it alone"

    return (
        f"{stage} ran out of memory ({reason}): double {stage}.accumulation_steps, which computes "
        f"the "
        "same batch in smaller parts, or set resources.checkpoint_activations=true, which needs "
        "far "
        "less memory and a third more time; then run again"
    )


def run(work: dict) -> Outcome:
    """Runs the stage that a work file describes."""
    module = import_module(f"alpro.stages.{work['stage']}")
    config = module.Config.model_validate(work["config"])
    inputs = module.Inputs.of({name: located(path) for name, path in work["inputs"].items()})
    resources = Resources.model_validate(work["resources"])
    return module.run(config, inputs, Path(work["out"]), resources)


def end(status: int) -> NoReturn:
    """Ends this process and its children at once, whatever state they are in.

    Python's own exit joins child processes, and the loading processes of a training ignore SIGTERM;
    threads of gloo or NCCL may abort the process during that exit.
    """
    try:
        # A second signal, or the death of a child, does not interrupt the end.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        for child in multiprocessing.active_children():
            child.kill()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:  # nobody reads the output, or a handler raised
        os._exit(status)


def start(file: Path) -> NoReturn:
    """Runs `main` and ends the process with its status, or with 1 and a traceback if it raises
    anything."""

    received: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        # A second one would interrupt the end.
        ignore_signals(number)
        # Whatever was interrupted may be left in a state in which a context waits forever.
        signal.alarm(END_SECONDS)
        sys.exit(EXIT_INTERRUPTED)

    # Where a training does not write a checkpoint: leaves contexts, which end the processes of a
    # pool.
    signal.signal(signal.SIGTERM, terminate)

    status = 1
    try:
        status = main(file)
    except BaseException:
        # That of `terminate`, or of what it has interrupted. Nothing says why: torchrun also ends
        # the ranks that are left when one has failed, and the status that `launch.run_stage` sees
        # is torchrun's.
        if received:
            status = EXIT_INTERRUPTED
        else:
            traceback.print_exc()
    finally:
        end(status)


if __name__ == "__main__":
    start(Path(sys.argv[1]))
