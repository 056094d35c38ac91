"""One stage in its own process: `python -m alpro.pipeline.execution.run_stage WORK.json`, alone or
under torchrun.

The work file contains the stage, its configuration, the folders of its inputs, the output folder
and the resources. The process writes its outcome, or the error that stopped it, to result.json beside
the work file; `processes.run_stage` starts the process and reads that file. It needs neither Prefect
nor MLflow.
"""

import faulthandler
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from alpro.errors import InputError
from alpro.files import DISK_FULL, os_errors, read_json, write_json
from alpro.interpreter import set_parent_death_signal
from alpro.log import log
from alpro.shards.reader import REPAIR, Unreadable
from alpro.shards.storage import located
from alpro.stages.execution.devices import describe_memory, is_out_of_memory
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    EXIT_STOPPED,
    RESULT_FILE,
    Outcome,
    Resources,
)
from alpro.stages.execution.lifecycle import PARENT, get_parent


def main(file: Path) -> int:
    """Run the stage of a work file and write its result. Returns the exit status of the process."""
    work = read_json(file)
    result = file.with_name(RESULT_FILE)
    try:
        with os_errors(work["out"]):
            outcome = run(work)
    except Exception as error:
        message = get_message(error, work)
        if message is None:
            raise
        report(result, message)
        return EXIT_INPUT_ERROR

    # All ranks have the same outcome, so rank 0 writes it.
    if int(os.environ.get("RANK", 0)) == 0:
        write_json(result, asdict(outcome))
    return 0


def run(work: dict) -> Outcome:
    """Run the stage that a work file describes."""
    module = import_module(f"alpro.stages.{work['stage']}")
    config = module.Config.model_validate(work["config"])
    inputs = module.Inputs.of(
        {name: located(path) for name, path in work["inputs"].items()}
    )
    resources = Resources.model_validate(work["resources"])
    return module.run(config, inputs, Path(work["out"]), resources)


def get_message(error: Exception, work: dict) -> str | None:
    """Return one line for an error that the user can fix, and None for any other error."""
    if isinstance(error, Unreadable):
        return f"{error}; {REPAIR}"
    if isinstance(error, InputError):
        return str(error)

    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = error.filename or work["out"]
        return (
            f"{place}: {error.strerror}; free some disk space and run again to resume"
        )

    if is_out_of_memory(error):
        return describe_memory(work["stage"], error)
    return None


def report(result: Path, message: str) -> None:
    """Write why the stage cannot go on, unless another rank has written its reason: the first one is
    the cause."""
    if result.exists():
        return

    with suppress(OSError):  # a full disk has no room for the file
        write_json(result, {"error": message})
    # The pipeline prints what it can read. On another node, this process must.
    if PARENT not in os.environ or not result.exists():
        print(f"error: {message}", file=sys.stderr)


def start(file: Path) -> NoReturn:
    """Run `main` and end the process with its status, or with 1 and a traceback, at once, whatever
    state its threads and children are in."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # deprecated name
        # Batch sizes vary; expandable segments avoid fragmentation.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    is_rank = "WORLD_SIZE" in os.environ
    if is_rank:  # torchrun starts its ranks in sessions of their own
        set_parent_death_signal(get_parent(), signal.SIGKILL)

    status = 1
    try:
        status = main(file)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == EXIT_STOPPED:
            status = EXIT_STOPPED  # a training that was stopped
        else:
            log.error(traceback.format_exc().rstrip())

    try:
        sys.stdout.flush()
        # The cause is known: torchrun would wait for ranks that wait for this one, and print 47
        # lines about its status.
        if is_rank and status in (EXIT_INPUT_ERROR, EXIT_STOPPED):
            os.kill(get_parent(), signal.SIGKILL)
    finally:
        # Python's own exit joins child processes, and aborts in threads of gloo or NCCL.
        os._exit(status)


if __name__ == "__main__":
    # A crash of native code, and `kill -USR1`, print where the stage is.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    start(Path(sys.argv[1]))
