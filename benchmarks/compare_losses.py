"""The losses of two commits or two configurations, step by step, on the same data with the same seed.

    python benchmarks/compare_losses.py [A] [B] [--stage pretrain] [--steps 60] [--set KEY=VALUE ...]
        [--set-a KEY=VALUE ...] [--set-b KEY=VALUE ...] [--stop-b STEP] [--json FILE]

A and B are commits, or folders with a checkout; by default the last commit and the working tree. Keys are those of the
stage's configuration, and of `resources`: `--set-b resources.processes=2` trains B in two processes. A shared `model.`
key also applies to the stages before, because fine-tuning has its model from pre-training. With --stop-b, B receives
SIGTERM after that step and continues from its checkpoint. Commits are exported to a temporary folder and run in this
environment, in processes whose `alpro` is a folder of links to them; a process fails if it imports other code.

The table has every loss of both, the largest and the mean relative difference, and the step of the largest. Equal code
on one processor differs by exactly 0. The last digits of a sum depend on the processor, on threads and on the division
into processes: kernels for AVX2 instead of AVX-512, or two threads, change a loss by at most 1e-4 in 60 steps, two
processes by 8e-7, and initial weights times 1 + 1e-5 normal(0, 1) by 7e-3.

What it trades: the corpora and models are those of benchmarks/tiny_world.py, so that two runs take a minute on one
thread. It shows whether two trainings are the same and where they part, not which one is better: use two pipelines for
that (docs/evaluate.md). Corpora, vocabulary and the stages before the compared one are those of A. Both commits need
the stages' present interface, `run(config, inputs, out, resources)`, and the keys that tiny_world.py sets.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_world
from checkout import ROOT, export, link

from alpro.stages import pretrain
from alpro.stages.execution.interface import Resources
from alpro.stages.training.metrics import MetricsFile

Curves = dict[str, list[float]]


@dataclass
class Side:
    """One of the two trainings: its code, what differs in its configuration, and the step after which it is stopped."""

    name: str
    code: Path
    links: Path  # a folder for PYTHONPATH, in which `alpro` is this code
    changes: dict[str, Any] = field(default_factory=dict)
    stop: int = 0


def main() -> None:
    options = arguments()
    if options.work:
        return work(json.loads(options.work.read_text()))
    own_keys = [*options.set_a, *options.set_b]
    if "model" not in tiny_world.STAGES[options.stage] and any(key.startswith("model.") for key in own_keys):
        sys.exit(f"{options.stage} has the model of pretrain; change it for both, with --set")
    with tempfile.TemporaryDirectory(prefix="compare_losses-") as temporary:
        folder = Path(temporary)
        shared = dict(map(parsed, options.set))
        sides = [
            side("A", options.a, shared | dict(map(parsed, options.set_a)), 0, folder),
            side("B", options.b, shared | dict(map(parsed, options.set_b)), options.stop_b, folder),
        ]
        inputs = prepare(options.stage, options.steps, sides[0], shared, folder)
        runs = [train(options.stage, options.steps, one, inputs, folder) for one in sides]
    names = [one.name for one in sides]
    figures = {"stage": options.stage, "steps": options.steps, "names": names, "losses": compared(*runs)}
    print_tables(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", nargs="?", default="HEAD", metavar="A", help="a commit or a folder")
    parser.add_argument("b", nargs="?", default=".", metavar="B", help="a commit or a folder")
    parser.add_argument("--stage", choices=tiny_world.STAGES, default="pretrain")
    parser.add_argument("--steps", type=int, default=60, help="of the stage, and of each stage before it")
    for name in ("set", "set-a", "set-b"):
        parser.add_argument(f"--{name}", action="append", default=[], metavar="KEY=VALUE", help="a changed value")
    parser.add_argument("--stop-b", type=int, default=0, metavar="STEP", help="interrupt B after this step")
    parser.add_argument("--json", type=Path, help="also write the losses to this file")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # of a training process
    return parser.parse_args()


def parsed(change: str) -> tuple[str, Any]:
    """A change KEY=VALUE; the value is JSON, otherwise a string."""
    key, _, value = change.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


# Code


def side(letter: str, code: str, changes: dict[str, Any], stop: int, folder: Path) -> Side:
    """Exports a commit, unless `code` is a folder, and links its packages."""
    path, name = Path(code).resolve(), code
    if not path.is_dir():
        path = export(code, folder / letter / "code")
        command = ["git", "rev-parse", "--short", code]
        short = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        name = f"{code} ({short.stdout.strip()})"
    name = " ".join([letter, name, *(f"{key}={json.dumps(value)}" for key, value in changes.items())])
    return Side(
        f"{name} stopped after {stop}" if stop else name, path, link(path, folder / letter / "links"), changes, stop
    )


# Training, in processes that import the code of a side


def prepare(stage: str, steps: int, one: Side, changes: dict[str, Any], folder: Path) -> dict[str, str]:
    """Writes the corpora and trains the stages before the compared one, with the code of `one` and the changes of the
    model; returns all folders."""
    stages, out = list(tiny_world.STAGES), folder / "inputs"
    before = [name for name in stages[: stages.index(stage)] if "model" in tiny_world.STAGES[name]]
    changes = {key: value for key, value in changes.items() if key.startswith("model.")}
    described = {"prepare": before, "steps": steps, "changes": changes, "out": str(out)}
    start(one, described, folder / "prepare.json", 1).wait()
    if not (out / "inputs.json").exists():
        sys.exit(f"{one.name}: the inputs of {stage} were not made; the error is above")
    return json.loads((out / "inputs.json").read_text())


def train(stage: str, steps: int, one: Side, inputs: dict[str, str], folder: Path) -> Curves:
    """Trains the stage with the code of a side; returns its losses by step."""
    changes, resources = divided(stage, one.changes)
    out = folder / one.name[0] / stage / "out"
    described = {"stage": stage, "steps": steps, "changes": changes, "resources": resources}
    described |= {"inputs": inputs, "out": str(out)}
    file, processes = folder / one.name[0] / "work.json", resources.get("processes", 1)
    status = start(one, described | {"stop": one.stop}, file, processes).wait()
    if one.stop and status:  # of torchrun a status of its own
        status = start(one, described, file, processes).wait()
    elif one.stop:
        sys.exit(f"{one.name}: ended without an interruption; choose an earlier step")
    if status:
        sys.exit(f"{one.name}: training ended with status {status}; the error is above")
    return tiny_world.curves(out)


def divided(stage: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The changes of a stage's configuration, and the resources; fine-tuning has no keys of the model."""
    resources: dict[str, Any] = {"workers": 1, "device": "cpu", "checkpoint_interval": 3600}
    resources |= {key.partition(".")[2]: value for key, value in changes.items() if key.startswith("resources.")}
    others = ("resources.",) if "model" in tiny_world.STAGES[stage] else ("resources.", "model.")
    return {key: value for key, value in changes.items() if not key.startswith(others)}, resources


def start(one: Side, described: dict[str, Any], file: Path, processes: int) -> subprocess.Popen:
    """Starts `work` with the code of a side, in so many processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described | {"code": str(one.code)}))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(one.links)}
    return subprocess.Popen([*command, __file__, "--work", str(file)], env=env, cwd=file.parent)


def work(described: dict[str, Any]) -> None:
    """A training process: writes the inputs of a stage, or trains it."""
    assert Path(pretrain.__file__).resolve().is_relative_to(described["code"]), f"imported {pretrain.__file__}"
    out, steps = Path(described["out"]), described["steps"]
    status: Any = 0
    try:
        if "prepare" in described:
            inputs, resources = tiny_world.write_inputs(out), Resources(workers=1, device="cpu")
            for stage in described["prepare"]:
                result, config = out / stage / "out", tiny_world.configuration(stage, steps, described["changes"])
                tiny_world.run_stage(stage, config, inputs, result, resources)
                tiny_world.add_inputs(stage, inputs, result, resources)
            (out / "inputs.json").write_text(json.dumps({name: str(path) for name, path in inputs.items()}))
        else:
            inputs = {name: Path(path) for name, path in described["inputs"].items()}
            config = tiny_world.configuration(described["stage"], steps, described["changes"])
            resources = Resources.model_validate(described["resources"])
            stop_after(described.get("stop", 0))
            tiny_world.run_stage(described["stage"], config, inputs, out, resources)
    except SystemExit as left:
        status = left.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of gloo may abort the process during Python's shutdown


def stop_after(step: int) -> None:
    """This process sends itself SIGTERM when the metrics of a step are written; 0: never."""
    write = MetricsFile.write

    def write_and_stop(self: MetricsFile, at: int, values: dict[str, float]) -> None:
        write(self, at, values)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsFile.write = write_and_stop  # type: ignore[method-assign]


# Output


def compared(a: Curves, b: Curves) -> dict[str, dict[str, Any]]:
    """For each loss of both: its values, and the relative differences |b - a| / |a|.

    largest, mean; step: that of the largest; first: the first that differs, 0 if none does. Steps count from 1. Where A
    is 0, the difference is absolute.
    """
    figures = {}
    for name in (name for name in a if name in b):
        differences = relative(a[name], b[name])
        largest = max(differences)
        figures[name] = {
            "a": a[name],
            "b": b[name],
            "largest": largest,
            "mean": sum(differences) / len(differences),
            "step": differences.index(largest) + 1,
            "first": next((step for step, value in enumerate(differences, 1) if value), 0),
        }
    return figures


def relative(a: list[float], b: list[float]) -> list[float]:
    return [abs(y - x) / (abs(x) or 1.0) for x, y in zip(a, b, strict=True)]


def print_tables(figures: dict[str, Any]) -> None:
    """The losses at a dozen steps, then the differences over all steps."""
    losses, steps = figures["losses"], figures["steps"]
    print("\n".join(["", *figures["names"], f"{figures['stage']}, {steps} steps", ""]))
    shown = sorted({1, steps, *range(0, steps + 1, max(1, steps // 10))} - {0})
    for name, row in losses.items():
        print(f"{name:12}{'step':>6}{'A':>14}{'B':>14}{'B - A':>12}")
        for step in shown:
            x, y = row["a"][step - 1], row["b"][step - 1]
            print(f"{'':12}{step:6}{x:14.7g}{y:14.7g}{y - x:12.2g}")
    print(f"\n{'relative':12}{'largest':>12}{'at step':>9}{'mean':>12}   first step that differs")
    for name, row in losses.items():
        print(f"{name:12}{row['largest']:12.2g}{row['step']:9}{row['mean']:12.2g}   {row['first'] or 'none'}")


if __name__ == "__main__":
    main()
