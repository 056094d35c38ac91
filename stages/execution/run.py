"""Runs one stage in a process of its own: `python -m alpro.stages.execution.run WORK.json`, or the same under torchrun.

The work file holds the stage, its configuration, the folders of its inputs, the output folder and the resources. A
pipeline reads the result, or the mistake that ended the stage, from result.json beside the work file, and writes the
artifact's record. If a person starts it, it writes the record itself. It needs neither Prefect nor MLflow.
"""

import errno
import json
import os
import re
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.shards.storage import located
from alpro.stages.artifacts.store import (
    EXIT_INPUT_ERROR,
    EXIT_INTERRUPTED,
    Outcome,
    Resources,
    fingerprint,
    write_record,
)

ORPHAN_SECONDS = 30.0  # what a process has to end by itself when the one that started it is gone
# What gloo and NCCL say when the process at the other end has ended.
LOST_RANK = re.compile(r"(closed|reset) by peer|broken pipe|timed out waiting|remote process|aborted", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m alpro.stages.execution.run WORK.json", file=sys.stderr)
        return EXIT_INPUT_ERROR
    file, started = Path(arguments[0]), time.time()
    try:
        work = read_json(file)
        out = Path(work["out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {file}: not a readable work file: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    if (out / "artifact.json").exists():
        print(f"error: {out} is finished; to run it again, change `out` in a copy of {file.name}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    out.mkdir(parents=True, exist_ok=True)
    watch_parent(int(os.environ.get("ALPRO_PARENT", 0)))
    main_rank = int(os.environ.get("RANK", 0)) == 0
    by_hand = main_rank and "ALPRO_PARENT" not in os.environ
    lock = FileLock(out.with_suffix(".lock"))  # as Store.lock; a pipeline holds it for the processes that it starts
    if by_hand:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"error: another process works in {out}", file=sys.stderr)
            return EXIT_INPUT_ERROR
    if main_rank:
        file.with_name("result.json").unlink(missing_ok=True)
    try:
        outcome = run(work)
    except InputError as error:
        if first_to_tell(file.with_name("result.json"), {"mistake": str(error)}):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_INPUT_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = f"{error.filename or out}: {error.strerror}; free some space and run again: it continues"
        if first_to_tell(file.with_name("result.json"), {"mistake": message}):
            print(f"error: {message}", file=sys.stderr, flush=True)
        return EXIT_INPUT_ERROR
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ or not LOST_RANK.search(str(error)):
            raise
        line = str(error).splitlines()[0]
        print(f"rank {os.environ['RANK']}: another rank is gone ({line})", file=sys.stderr, flush=True)
        return 1
    except SystemExit as left:
        if left.code != EXIT_INTERRUPTED:
            raise
        first_to_tell(file.with_name("result.json"), {"interrupted": True})  # torchrun ends with a status of its own
        return EXIT_INTERRUPTED
    if main_rank:
        write_json(file.with_name("result.json"), {"counts": outcome.counts, "metrics": outcome.metrics})
    if by_hand:
        done = finish(work, outcome, time.time() - started)
        print(f"done: {out}{'' if done else ', which is not an artifact: `config` or `out` was changed'}")
    return 0


def finish(work: dict, outcome: Outcome, seconds: float) -> bool:
    """Writes the record of a stage that a person runs. False if the work file does not describe this result: the
    fingerprint is then of another one."""
    out, artifact = Path(work["out"]), work.get("artifact")
    if artifact is None or out.name != artifact["fingerprint"][:16]:
        return False
    config = import_module(f"alpro.stages.{work['stage']}").Config.model_validate(work["config"])
    inputs = {name: made["fingerprint"] for name, made in artifact["inputs"].items()}
    if fingerprint(work["stage"], config, inputs, artifact["files"]) != artifact["fingerprint"]:
        return False
    write_record(out, artifact, outcome, {"seconds": round(seconds, 1), "by": "alpro.stages.execution.run"})
    (out / "result.json").unlink(missing_ok=True)
    return True


def first_to_tell(path: Path, result: dict) -> bool:
    """Writes a result unless there is one: of the ranks that fail, the first is the cause."""
    try:
        with open(path, "x") as file:
            file.write(json.dumps(result))
    except FileExistsError:
        return False
    except OSError:  # a full disk: what is printed is all there is
        path.unlink(missing_ok=True)
    return True


def run(work: dict) -> Outcome:
    """Runs the stage that a work file describes and returns what it found."""
    module = import_module(f"alpro.stages.{work['stage']}")
    config = module.Config.model_validate(work["config"])
    inputs = {name: located(path) for name, path in work["inputs"].items()}
    resources = Resources.model_validate(work["resources"])
    if threads := os.environ.get("ALPRO_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    return module.run(config, inputs, Path(work["out"]), resources)


def watch_parent(parent: int) -> None:
    """Stops this process when the pipeline (`parent`, 0 for none) or the torchrun that started it is gone.

    Nobody would take its result. It is told as by SIGTERM, to write its checkpoint, and ended for good after a while:
    a rank that waits for another heeds no signal, and torchrun's ranks are in sessions of their own.
    """
    ranked, started_by = "WORLD_SIZE" in os.environ, os.getppid()
    if not parent and not ranked:
        return

    def watch() -> None:
        while (not parent or alive(parent)) and (not ranked or os.getppid() == started_by):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank has threads of gloo or NCCL that may abort the process while Python takes itself apart.
    if "WORLD_SIZE" in os.environ:
        os._exit(status)
    sys.exit(status)
