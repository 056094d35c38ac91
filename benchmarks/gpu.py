"""The checks and measurements that need a GPU, in one command: one JSON and one table.

    python benchmarks/gpu.py [--minutes 9] [--out DIR] [--only TRIAL ...] [--device cpu]

The trials run one after another, usually the shortest first, each in a process of its own with a time limit. At the
limit the process is killed with its children; with more than 9 minutes, the limits are longer. A trial is skipped if
less than MIN_SHARE of its limit is left of the minutes, or if it needs a GPU and there is none. After each trial
gpu.json and gpu.md are written to DIR, so that they have the results so far if this program is killed; gpu.log has the
output of all trials. The exit status is 1 if a trial failed or was killed at its limit, and 0 if trials were skipped.

On a CPU, and with --device cpu, models and data are small: this shows that the trials work, and the figures mean
nothing.

The project does not have to be installed: the trials import a folder of links to this checkout. They need torch, numpy,
pyarrow, safetensors, tokenizers, filelock, pydantic, rich, pillow, simplejpeg, fsspec and webdataset; the trial `tests`
also needs pytest and hypothesis. For a machine without a network, carry them as wheels for its Python and platform
(`pip download --only-binary=:all: --python-version ... --platform ...`), install them there with `pip install
--no-index --find-links wheels --target site ...`, and set PYTHONPATH=site. Compiled steps also need a C compiler.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from checkout import link

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 9.0
MIN_SHARE = 1 / 3  # of a trial's limit that must be left for it to start
FAILURES = ("failed", "time limit")


@dataclass(frozen=True)
class Trial:
    """A function of gpu_trials.py or gpu_runs.py, its title in the table, and its time limit in seconds of MINUTES."""

    name: str
    title: str
    limit: float


TRIALS = (
    Trial("machine", "machine and versions", 90),
    Trial("sync", "no synchronization in a step", 60),
    Trial("tests", "tests marked `gpu`", 60),
    Trial("resume", "resume after a kill", 75),
    Trial("ranks", "two ranks on one device over gloo", 75),
    Trial("loader", "the loader feeds the step", 90),
    Trial("sweep", "batch size and memory", 90),
    Trial("evaluation", "evaluation of all pairs and of the top k", 120),
    Trial("objectives", "bfloat16 and compiled steps against float32", 120),
    Trial("step", "the pre-training step (train_step.py)", 240),
)


@dataclass(frozen=True)
class Result:
    """The result of a trial. status: passed, failed, skipped, time limit, or not run; summary: lines for the table."""

    name: str
    title: str
    status: str = "not run"
    seconds: float = 0.0
    summary: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    options = arguments()
    if options.trial:
        import gpu_trials

        sys.exit(gpu_trials.run(options.trial, options.work, options.seconds, options.device))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the trial is killed too
    chosen = [trial for trial in TRIALS if not options.only or trial.name in options.only]
    with tempfile.TemporaryDirectory(prefix="alpro-gpu-") as temporary:
        folder = Path(temporary)
        out = options.out or folder / "out"
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.log").unlink(missing_ok=True)
        environment = os.environ | {"PYTHONPATH": search_path(folder)}

        def start(trial: Trial, seconds: float) -> Result:
            print(f"{trial.name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
            return run_trial(trial, seconds, folder / trial.name, out / "gpu.log", environment, options.device)

        more = max(1.0, options.minutes / MINUTES)
        chosen = [replace(trial, limit=more * trial.limit) for trial in chosen]
        results = run_trials(chosen, 60 * options.minutes, start, lambda results: write(out, options.minutes, results))
        print(table(results))
        if options.out:
            print(f"written to {out}: gpu.json, gpu.md, gpu.log")
        else:
            print_failures(results, out / "gpu.log")
    sys.exit(any(result.status in FAILURES for result in results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [trial.name for trial in TRIALS]
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all trials together")
    parser.add_argument("--out", type=Path, help="folder for gpu.json, gpu.md and gpu.log; by default only printed")
    parser.add_argument("--only", nargs="+", choices=names, metavar="TRIAL", help=f"trials to run: {' '.join(names)}")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    for name, kind in (("trial", str), ("work", Path), ("seconds", float)):  # of a trial's process
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def search_path(folder: Path) -> str:
    """PYTHONPATH of the trials: links to this checkout come before an installed `alpro`."""
    return os.pathsep.join(filter(None, [str(link(ROOT, folder / "links")), os.environ.get("PYTHONPATH")]))


# Running


def run_trials(
    trials: Iterable[Trial],
    seconds: float,
    start: Callable[[Trial, float], Result],
    save: Callable[[list[Result]], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Runs the trials in order within `seconds` in all; `start` gets a trial and its limit in seconds.

    `save` is called with the results of all trials before the first one and after each.
    """
    trials = list(trials)
    end = clock() + seconds
    results = [Result(trial.name, trial.title) for trial in trials]
    save(results)
    for place, trial in enumerate(trials):
        left = end - clock()
        if left < MIN_SHARE * trial.limit:
            reason = f"no time: {max(left, 0):.0f} s left, at least {MIN_SHARE * trial.limit:.0f} s are required"
            results[place] = replace(results[place], status="skipped", summary=[reason])
        else:
            started = clock()
            results[place] = replace(start(trial, min(trial.limit, left)), seconds=clock() - started)
        save(results)
    return results


def run_trial(
    trial: Trial, seconds: float, folder: Path, log: Path, environment: dict[str, str], device: str
) -> Result:
    """Runs a trial in a new process; its output is appended to `log`."""
    folder.mkdir()
    command = [sys.executable, __file__, "--trial", trial.name, "--work", str(folder), "--device", device]
    status = run_process([*command, "--seconds", str(seconds)], seconds, log, environment)
    return result_of(trial, status, folder / "result.json", log)


def run_process(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """The exit status of a command; None if it was killed after `seconds`. What is left of its children is killed."""
    with open(log, "ab") as output:
        output.write(f"\n--- {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=environment, process_group=0
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process and its children, which are in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def result_of(trial: Trial, exit_status: int | None, file: Path, log: Path) -> Result:
    """The result that a trial's process wrote, and what its exit status says; None: killed at its limit."""
    result = Result(trial.name, trial.title)
    with suppress(FileNotFoundError):
        result = replace(result, **json.loads(file.read_text()))
    if exit_status is None:
        return replace(result, status="time limit", summary=[*result.summary, "killed at the time limit"])
    if exit_status == 0 and result.status in ("passed", "skipped"):
        return result
    if result.status == "failed":
        return result
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return replace(result, status="failed", summary=[*result.summary, f"exit status {exit_status}", *last])


# Output


def write(out: Path, minutes: float, results: list[Result]) -> None:
    """Writes gpu.json and gpu.md."""
    about = {"minutes": minutes, "commit": commit(), "trials": [asdict(result) for result in results]}
    for name, text in (("gpu.json", json.dumps(about, indent=1) + "\n"), ("gpu.md", table(results) + "\n")):
        temporary = out / f".{name}"
        temporary.write_text(text)
        temporary.replace(out / name)


def commit() -> str:
    """The commit of this checkout; empty without a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(FileNotFoundError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    rows = ["| trial | status | seconds | result |", "| --- | --- | ---: | --- |"]
    for result in results:
        text = "<br>".join(line.replace("|", "\\|") for line in result.summary)
        rows.append(f"| {result.title} | {result.status} | {result.seconds:.0f} | {text} |")
    return "\n".join(rows)


def print_failures(results: list[Result], log: Path, lines: int = 40) -> None:
    """Prints the end of the log if a trial failed: without --out the log is deleted."""
    if any(result.status in FAILURES for result in results):
        print("\n".join(log.read_text(errors="replace").splitlines()[-lines:]), file=sys.stderr)


if __name__ == "__main__":
    main()
