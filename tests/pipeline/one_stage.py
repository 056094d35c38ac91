"""Runs one stage as a pipeline does: `python one_stage.py STEP.json FOLDER PROCESSES`.

SIGTERM and Ctrl-C stop it, and a second Ctrl-C kills it. It has neither Prefect nor MLflow, and does
not import torch.
"""

import signal
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from alpro.files import read_json
from alpro.pipeline.execution.processes import Launch, run_stage
from alpro.pipeline.store.artifacts import Store
from alpro.shards.storage import located
from alpro.stages.execution.interface import Resources, StageConfig, StageFailed
from alpro.stages.execution.step import Step

MAX_ATTEMPTS = 10
STOPPED = 130


class Values(StageConfig, frozen=True, extra="allow"):
    """The values of a configuration. Only the stage checks them, which imports torch."""


class KnownStep(Step):
    """A step with the fingerprint that its file has: to compute it, one imports the stage."""

    fingerprint = ""


def build(step: Step, store: Store, resources: Resources, launch: Launch) -> int:
    """Run a stage, and again as long as it gets further; returns the exit status."""
    out = store.folder(step)
    out.mkdir(parents=True, exist_ok=True)
    with store.lock(step):
        for _ in range(MAX_ATTEMPTS):
            try:
                run_stage(step, out, store, resources, launch)
                return 0
            except CancelledError:
                return STOPPED
            except StageFailed as error:
                print(error)
                if not error.progressed:
                    break
    return 1


def main(file: str, root: str, processes: str) -> int:
    """Run the stage of a file; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    described = read_json(Path(file))
    config = Values.model_validate(described["config"])
    given = {name: located(path) for name, path in described["paths"].items()}
    KnownStep.fingerprint = described["fingerprint"]
    step = KnownStep("train_prompter", "train_prompter", config, given=given)
    resources = Resources(
        device="cpu", processes=int(processes), checkpoint_interval=0.05
    )
    stopping, killing = threading.Event(), threading.Event()
    launch = Launch(stopping=stopping, killing=killing)

    with ThreadPoolExecutor(1) as thread:
        status = thread.submit(build, step, Store(Path(root)), resources, launch)
        for event in (stopping, killing):
            try:
                return status.result()
            except KeyboardInterrupt:
                event.set()
        return status.result()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
