"""One of the processes that share an evaluation stage: python part_of_an_evaluation.py WORK.json STAGE"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from alpro.stages.execution.interface import Resources


def evaluate(work: Path, stage: str) -> None:
    """Runs one evaluation of a file; prints the metrics that this rank has."""
    values = json.loads(work.read_text())[stage]
    module, out = import_module(f"alpro.stages.{stage}"), work.parent / stage
    out.mkdir(exist_ok=True)
    inputs = {name: Path(path) for name, path in values["inputs"].items()}
    outcome = module.run(module.Config(**values["config"]), inputs, out, Resources(device="cpu", workers=1))
    print(json.dumps([stage, outcome.metrics]), flush=True)


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)  # as a stage ends: gloo's threads may abort a process during Python's shutdown
