"""Runs one stage in a process of its own: `python -m stages.run WORK.json`, or `torchrun ... -m stages.run WORK.json`.

The work file says which stage, its configuration, the folders of its inputs, the output folder and the resources. What
came of it, or the mistake that ended it, is written beside it as result.json; the caller makes the artifact of it. It
needs neither Prefect nor MLflow.
"""

import os
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from shards.schema import InputError
from stages.artifacts import CONTINUE, MISTAKE, Outcome, Resources, read_json, write_json


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m stages.run WORK.json", file=sys.stderr)
        return MISTAKE
    file = Path(arguments[0])
    try:
        work = read_json(file)
        out = Path(work["out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {file}: no readable work file: {error}", file=sys.stderr)
        return MISTAKE
    if (out / "manifest.json").exists():
        print(f"error: {out} is finished; give a copy of {file.name} another `out`, or delete that", file=sys.stderr)
        return MISTAKE
    out.mkdir(parents=True, exist_ok=True)
    watch_parent(int(os.environ.get("ALPRO_PARENT", 0)))
    main_rank = int(os.environ.get("RANK", 0)) == 0
    try:
        outcome = run(work)
    except InputError as error:
        if main_rank:
            write_json(file.with_name("result.json"), {"mistake": str(error)})
            print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except SystemExit as left:
        if left.code == CONTINUE and main_rank:  # told in the file too: torchrun ends with a status of its own
            write_json(file.with_name("result.json"), {"interrupted": True})
        raise
    if main_rank:
        write_json(file.with_name("result.json"), {"counts": outcome.counts, "metrics": outcome.metrics})
        if "ALPRO_PARENT" not in os.environ:
            print(f"done: {out}", file=sys.stderr)
    return 0


def run(work: dict) -> Outcome:
    """Runs the stage that a work file describes and returns what it found."""
    module = import_module(f"stages.{work['stage']}")
    config = module.Config.model_validate(work["config"])
    inputs = {name: Path(path) for name, path in work["inputs"].items()}
    resources = Resources.model_validate(work["resources"])
    if threads := os.environ.get("ALPRO_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    return module.run(config, inputs, Path(work["out"]), resources)


def watch_parent(parent: int) -> None:
    """Stops this process, as by SIGTERM, when the process that started it is gone: nobody would take its result.

    Under torchrun, which is not stopped with the process that started it, the first rank stops the whole group.
    """
    rank = os.environ.get("LOCAL_RANK")
    if not parent or rank not in (None, "0"):
        return

    def watch() -> None:
        while alive(parent):
            time.sleep(1)
        if rank is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.killpg(os.getpgrp(), signal.SIGTERM)

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
    sys.exit(main(sys.argv[1:]))
