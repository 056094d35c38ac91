"""Runs one stage in its own process: `python -m alpro.pipeline.execution.run_stage WORK.json`, alone or under torchrun.

The work file contains the stage, its configuration, the folders of its inputs, the output folder and the resources. A
pipeline reads the result, or the input error that stopped the stage, from result.json beside the work file, and writes
the artifact record. If a user starts the module, it writes the record itself. It needs neither Prefect nor MLflow.
"""

import json
import os
import re
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import make_folder, read_json, write_json
from alpro.pipeline.execution.lifecycle import PARENT_SECONDS, alive, end_after
from alpro.pipeline.store.artifacts import check_inputs, fingerprint, inputs_of, stopwatch, write_record
from alpro.shards.storage import DISK_FULL, located
from alpro.stages.execution.interface import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, Outcome, Resources

ORPHAN_SECONDS = 30.0  # time for a process to stop by itself after its parent has ended
# Errors of gloo and NCCL if the other process has ended.
LOST_RANK = re.compile(r"(closed|reset) by peer|broken pipe|timed out waiting|remote process|aborted", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m alpro.pipeline.execution.run_stage WORK.json", file=sys.stderr)
        return EXIT_INPUT_ERROR
    file = Path(arguments[0])
    try:
        work = read_json(file)
        out = Path(work["out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {file}: not a readable work file: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    if read_record(out) is not None:
        print(f"error: {out} is finished; to run it again, change `out` in a copy of {file.name}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    make_folder(out)
    watch_parent(int(os.environ.get("ALPRO_PARENT", 0)))
    main_rank = int(os.environ.get("RANK", 0)) == 0
    standalone = main_rank and "ALPRO_PARENT" not in os.environ
    lock = FileLock(out.with_suffix(".lock"))  # same as Store.lock; a pipeline holds it for its processes
    if standalone:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"error: another process is running in {out}; wait until it ends", file=sys.stderr)
            return EXIT_INPUT_ERROR
    if main_rank:
        file.with_name("result.json").unlink(missing_ok=True)
    try:
        if standalone:
            check_inputs(work["inputs"].values())
        with stopwatch(out) if standalone else nullcontext(float) as seconds:
            outcome = run(work)
    except (InputError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            if error.errno not in DISK_FULL:
                raise
            message = f"{error.filename or out}: {error.strerror}; free some disk space and run again to resume"
        if write_first_result(file.with_name("result.json"), {"error": message}):
            print(f"error: {message}", file=sys.stderr, flush=True)
        return EXIT_INPUT_ERROR
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ or not LOST_RANK.search(str(error)):
            raise
        line = str(error).splitlines()[0]
        print(f"rank {os.environ['RANK']}: another rank is gone ({line})", file=sys.stderr, flush=True)
        return 1
    except SystemExit as exit_:
        if exit_.code != EXIT_INTERRUPTED:
            raise
        write_first_result(file.with_name("result.json"), {"interrupted": True})  # torchrun has its own exit status
        return EXIT_INTERRUPTED
    if main_rank:
        write_json(file.with_name("result.json"), {k: v for k, v in asdict(outcome).items() if k != "sha256"})
    if standalone:
        done = finish(work, outcome, seconds())
        print(f"done: {out}{'' if done else ', without an artifact record: `config` or `out` was changed'}")
    return 0


def finish(work: dict, outcome: Outcome, seconds: float) -> bool:
    """Writes the artifact record of a stage that a user runs. Returns False if the work file was edited, so that its
    fingerprint does not belong to this result."""
    out, artifact = Path(work["out"]), work.get("artifact")
    if artifact is None or out.name != artifact["fingerprint"][:16]:
        return False
    config = import_module(f"alpro.stages.{work['stage']}").Config.model_validate(work["config"])
    if fingerprint(work["stage"], config, inputs_of(artifact), artifact["files"]) != artifact["fingerprint"]:
        return False
    (out / "result.json").unlink(missing_ok=True)  # first: the record lists the files of the artifact
    write_record(out, artifact, outcome, {"seconds": seconds, "by": "alpro.pipeline.execution.run_stage"})
    return True


def write_first_result(path: Path, result: dict) -> bool:
    """Writes a result unless there is one: the first rank that fails is the cause. Returns whether it is the first."""
    try:
        with open(path, "x") as file:
            file.write(json.dumps(result))
    except FileExistsError:
        return False
    except OSError:  # a full disk: the message is only printed
        path.unlink(missing_ok=True)
    return True


def run(work: dict) -> Outcome:
    """Runs the stage that a work file describes."""
    module = import_module(f"alpro.stages.{work['stage']}")
    config = module.Config.model_validate(work["config"])
    inputs = {name: located(path) for name, path in work["inputs"].items()}
    resources = Resources.model_validate(work["resources"])
    return module.run(config, inputs, Path(work["out"]), resources)


def watch_parent(parent: int) -> None:
    """Stops this process if the pipeline (`parent`, 0 for none) or the torchrun that started it has ended.

    Its result would be lost. The process receives SIGTERM, so that it writes a checkpoint, and exits after a delay: a
    rank that waits for another does not handle signals, and torchrun's ranks are in their own sessions.
    """
    ranked, first_parent = "WORLD_SIZE" in os.environ, os.getppid()
    if not parent and not ranked:
        return

    def ended() -> None:
        while (not parent or alive(parent)) and (not ranked or os.getppid() == first_parent):
            time.sleep(PARENT_SECONDS)

    end_after(ended, ORPHAN_SECONDS, EXIT_INTERRUPTED)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo or NCCL may abort the process during Python's shutdown.
    if "WORLD_SIZE" in os.environ:
        os._exit(status)
    sys.exit(status)
