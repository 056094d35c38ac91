"""The steps of the sample's training in a run: against the step alone, and against an earlier commit.

    python benchmarks/sample_steps.py [--workspace FOLDER] [--against COMMIT] [--steps 120] [--turns 3]

Trains the last phase of the sample's prompter, on all cores: `run` as the stage does, `step alone` with batches that
were loaded before, and COMMIT with its own code. They take turns. The table has the medians of the turns, in samples/s
by wall-clock time and in milliseconds of processor time a sample, all threads together, without the first steps.

The workspace has the sample's corpora and vocabulary; what is missing there is built first (two minutes). Without
--workspace it is a temporary folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from checkout import ROOT, export, link

STAGE = "train_prompter"
FIRST = 20  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="of a run of the sample")
    parser.add_argument("--against", metavar="COMMIT", help="an earlier commit, to compare with")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # of a training process
    options = parser.parse_args()
    if options.work:
        return train(**json.loads(options.work.read_text()))
    with tempfile.TemporaryDirectory(prefix="sample_steps-") as temporary:
        folder = Path(temporary)
        described = prepare(options.workspace or folder / "workspace", options.steps)
        sides = {"step alone": (ROOT, True), "run": (ROOT, False)}
        if options.against:
            sides |= {options.against: (export(options.against, folder / "code"), False)}
        links = {name: link(code, folder / f"links{i}") for i, (name, (code, _)) in enumerate(sides.items())}
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for turn in range(options.turns):
            for i, (name, (code, alone)) in enumerate(sides.items()):
                work = described | {"alone": alone, "code": str(code), "out": str(folder / f"{turn}-{i}")}
                figures[name].append(start(work, folder / "work.json", links[name]))
    print_table(figures, options.against or "step alone")


def prepare(workspace: Path, steps: int) -> dict[str, Any]:
    """The configuration and the inputs of the stage; builds the inputs that are missing."""
    from alpro.pipeline.config.pipeline_config import load_config
    from alpro.pipeline.plan.dag import planned

    command = [sys.executable, "-m", "alpro.pipeline.cli.main", "build-vocabulary", "--workspace", str(workspace)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    config = load_config("sample").train_prompter
    assert config
    phase = config.phases[-1].model_copy(update={"steps": steps})
    config = config.model_copy(update={"phases": (phase,), "log_every": steps})
    _, planned_steps, store = planned(STAGE, "sample", "", [], workspace.resolve())
    own = next(step for step in planned_steps if step.name == STAGE)
    needed = {"vocabulary", *phase.corpora}
    inputs = {name: str(store.folder(step)) for name, step in own.inputs.items() if name in needed}
    return {"config": config.model_dump(mode="json", exclude_defaults=True), "inputs": inputs}


def start(work: dict[str, Any], file: Path, links: Path) -> dict[str, float]:
    """Trains in a process with the code of a side."""
    file.write_text(json.dumps(work))
    command = [sys.executable, __file__, "--work", str(file)]
    env = os.environ | {"PYTHONPATH": str(links)}
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nthe training process of {links.name} failed; its error is above")
    return json.loads((Path(work["out"]) / "figures.json").read_text())


def train(config: dict[str, Any], inputs: dict[str, str], out: str, alone: bool, code: str) -> None:
    """A training process: writes its samples/s and its processor time."""
    from alpro.stages import train_prompter
    from alpro.stages.execution.interface import Resources
    from alpro.stages.training import dataset, loop
    from alpro.stages.training.batch import Batch

    assert Path(loop.__file__).resolve().is_relative_to(code), f"imported {loop.__file__}"
    load, step, times = dataset.TrainingDataset.__getitem__, loop._Trainer.step, []
    loaded: dict[int, Batch] = {}

    def loaded_before(self: Any, number: int) -> Batch:
        if not loaded:
            loaded.update({step: load(self, step) for step in range(len(self))})
        return loaded[number]

    def timed(self: Any, part: Batch) -> float:
        times.append((time.perf_counter(), time.process_time()))
        return step(self, part)

    parsed, folder = train_prompter.Config.model_validate(config), Path(out)
    folder.mkdir(parents=True)
    with (
        patch.object(loop._Trainer, "step", timed),
        patch.object(dataset.TrainingDataset, "__getitem__", loaded_before if alone else load),
    ):
        resources = Resources(device="cpu", checkpoint_interval=3600)
        train_prompter.run(parsed, {name: Path(path) for name, path in inputs.items()}, folder, resources)
    (first, used), (last, used_last) = times[FIRST], times[-1]
    samples = (len(times) - 1 - FIRST) * parsed.batch_size
    figures = {"samples/s": samples / (last - first), "ms": 1000 * (used_last - used) / samples}
    (folder / "figures.json").write_text(json.dumps(figures))


def print_table(figures: dict[str, list[dict[str, float]]], baseline: str) -> None:
    medians = {name: {key: median(turn[key] for turn in turns) for key in turns[0]} for name, turns in figures.items()}
    print(f"{'':14}{'samples/s':>11}{'ms of processor time':>22}   against {baseline}: samples/s, processor time")
    base = medians[baseline]
    for name, row in medians.items():
        print(
            f"{name[:12]:14}{row['samples/s']:11.0f}{row['ms']:22.2f}"
            f"{row['samples/s'] / base['samples/s']:12.2f}{base['ms'] / row['ms']:14.2f}"
        )


if __name__ == "__main__":
    main()
