"""Runs one stage again in this process, for a debugger: without Prefect, MLflow, other processes or
locks.

    python -m pdb -m alpro.pipeline.execution.debug_stage ARTIFACT OUT

ARTIFACT is a folder of `workspace/artifacts`, of a stage that succeeded or of one that failed. OUT
is a new folder; the workspace is only read. An exception is not caught, so the debugger stops where
it was raised. Work that a stage gives to a pool of processes is done in this one; only the loader
of a training still has a process of its own.
"""

import sys
from pathlib import Path
from typing import Any

from alpro.artifact import RECORD, read_record
from alpro.errors import InputError
from alpro.files import read_json
from alpro.pipeline.execution.run_stage import run
from alpro.pool import in_this_process
from alpro.stages.execution.interface import Outcome, Resources

WORK = "work.json"  # of a stage that has not succeeded


def work_of(folder: Path) -> dict[str, Any]:
    """The stage, configuration, inputs and resources of an artifact, as a work file has them.

    Raises InputError if the folder is not of a stage.
    """
    if (folder / WORK).exists():
        return read_json(folder / WORK)

    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder}: no {RECORD} or {WORK} of a stage; give a folder of artifacts/")

    # A folder of the store is ROOT/STAGE/FINGERPRINT.
    artifacts = folder.absolute().parents[1]
    inputs = dict(record.paths)
    for name, source in record.inputs.items():
        inputs[name] = str(source.folder(artifacts))
    return {
        "stage": record.stage,
        "config": record.config,
        "inputs": inputs,
        "resources": Resources().model_dump(),
    }


def main(arguments: list[str]) -> Outcome:
    """Runs the stage of an artifact's folder into a new folder; returns its outcome.

    Raises InputError if the folders are not right, and whatever the stage raises.
    """
    if len(arguments) != 2:
        raise InputError("two folders are needed: ARTIFACT OUT")
    artifact, out = map(Path, arguments)
    out.mkdir(parents=True)

    work = work_of(artifact)
    alone = {"workers": 1, "processes": 1, "nodes": 1}
    work["resources"] = {**work["resources"], **alone}

    # A debugger does not follow into children.
    with in_this_process():
        return run({**work, "out": str(out)})


if __name__ == "__main__":
    print(main(sys.argv[1:]))
