"""The time of commands that have nothing to compute: help, lists, and runs that find every artifact.

    python benchmarks/startup.py [--workspace FOLDER] [--against COMMIT] [--turns 3] [--json FILE]

Runs of the sample's vocabulary, whose inputs and result exist: the same command again; a command with other
arguments, which starts no run either; and that command as a Prefect flow with a server of its own, as every command
ran at first. That is the baseline, "as a flow". COMMIT, which needs `alpro run STAGE`, also runs the command with other
arguments, with its own code.
The commands take turns. The table has the medians of the turns, in seconds.

The workspace has the artifacts of a run of the sample; what is missing there is built first (two minutes). Without
--workspace it is a temporary folder.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from checkout import ROOT, export, link

BASELINE = "as a flow"
CLI = "from alpro.pipeline.cli import main; getattr(main, 'main', main)()"  # in earlier commits, cli was a module
FLOW = f"from alpro.pipeline.reports import summary; summary.finished_steps = lambda *plan: []; {CLI}"
STAGE = "build_vocabulary"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="of a run of the sample")
    parser.add_argument("--against", metavar="COMMIT", help="an earlier commit, to compare with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="startup-") as temporary:
        folder = Path(temporary)
        here = link(ROOT, folder / "here")
        where = ["--workspace", str((options.workspace or folder / "workspace").resolve())]
        run_command(CLI, ["run", STAGE, *where], here)  # builds what is missing
        numbers = itertools.count(1000 + int(time.time()) % 10**6)  # of a value that no earlier run had

        def other() -> list[str]:
            return ["run", STAGE, *where, "--set", f"resources.max_stages={next(numbers)}"]

        commands = {
            BASELINE: lambda: run_command(FLOW, other(), here),
            "other arguments": lambda: run_command(CLI, other(), here),
            "same command again": lambda: run_command(CLI, ["run", STAGE, *where], here),
            "artifacts ls": lambda: run_command(CLI, ["artifacts", "ls", *where], here),
            "--help": lambda: run_command(CLI, ["--help"], here),
        }
        if options.against:
            there = link(export(options.against, folder / "code"), folder / "there")
            commands[options.against] = lambda: run_command(CLI, other(), there)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.turns):
            for name, command in commands.items():
                if name == "same command again":
                    command()  # the run before may have had other arguments
                seconds[name].append(command())
    medians = {name: median(values) for name, values in seconds.items()}
    print(f"{'':22}{'seconds':>9}{'of the baseline':>17}")
    for name, value in medians.items():
        print(f"{name[:20]:22}{value:9.2f}{value / medians[BASELINE]:17.2f}")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1))


def run_command(program: str, arguments: list[str], links: Path) -> float:
    """The seconds of a command with the code of a folder of links."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | {"PYTHONPATH": str(links)},
        cwd=links,  # no configuration of Prefect's is here
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(arguments)} failed; its error is above")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
