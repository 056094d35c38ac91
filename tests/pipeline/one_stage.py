"""Runs one stage as a pipeline does: `python one_stage.py STEP.json FOLDER PROCESSES`.

SIGTERM and Ctrl-C stop it, and a second Ctrl-C kills it. It has neither Prefect nor MLflow.
"""

import signal
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

from alpro.files import read_json
from alpro.pipeline.execution.processes import Launch, Processes, run_stage
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import located
from alpro.stages import train_prompter
from alpro.stages.execution.interface import Resources, StageFailed

MAX_ATTEMPTS = 10
STOPPED = 130


class Run:
    """A stage that runs in a thread."""

    def __init__(self, file: Path, root: Path, processes: int):
        described = read_json(file)
        config = train_prompter.Config.model_validate(described["config"])
        given = {name: located(path) for name, path in described["paths"].items()}
        self.step = Step("train_prompter", "train_prompter", config, given=given)
        self.resources = Resources(device="cpu", processes=processes, checkpoint_interval=0.05)
        self.store = Store(root)
        self.running: list[Processes] = []
        self.stopping = threading.Event()
        self.status = 1

    def build(self) -> None:
        """Run the stage, and again as long as it gets further."""
        out = self.store.folder(self.step)
        out.mkdir(parents=True, exist_ok=True)
        with self.store.lock(self.step):
            for _ in range(MAX_ATTEMPTS):
                try:
                    launch = Launch(on_start=self.add)
                    run_stage(self.step, out, self.store, self.resources, launch)
                    self.status = 0
                    return
                except CancelledError:
                    self.status = STOPPED
                    return
                except StageFailed as error:
                    print(error)
                    if not error.progressed:
                        return

    def add(self, processes: Processes) -> None:
        self.running.append(processes)
        if self.stopping.is_set():
            processes.stop()

    def stop(self) -> None:
        self.stopping.set()
        for processes in self.running:
            processes.stop()


def main(file: str, root: str, processes: str) -> int:
    """Run a stage; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run(Path(file), Path(root), int(processes))
    thread = threading.Thread(target=run.build)
    try:
        thread.start()
        thread.join()
    except KeyboardInterrupt:
        run.stop()
        try:
            thread.join()
        except KeyboardInterrupt:
            for one in run.running:
                one.kill()
            thread.join()
    return run.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
