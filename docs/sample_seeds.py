"""The sample pipeline over several seeds: the mean and interval of every test score, and the cost of each run.

    python docs/sample_seeds.py [--config sample] [--seeds 0 1 2] [--workspace workspace] [--json FILE]

A seed determines the corpus, the weights and the order of the samples. The interval is Student's 95 percent interval
over the seeds, and not that of results.json, which is over the test videos of one seed. The last column is the score of
chance, or of the most frequent answer.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alpro.stages import EVALUATIONS

STAGES = ("render_sample", "train_prompter", "pretrain", "finetune_retrieval", "finetune_qa", "evaluate")
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5th percentile, by the number of seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", default="workspace")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    runs = [run(arguments.config, seed, arguments.workspace) for seed in arguments.seeds]
    for seed, figures in zip(arguments.seeds, runs, strict=True):
        print(f"seed {seed}: {figures['seconds']:.0f} s, {figures['gigabytes']:.1f} GiB at most in one process")
    print(table([figures["rows"] for figures in runs]))
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1))


def run(config: str, seed: int, workspace: str) -> dict[str, Any]:
    """Runs a pipeline; returns its result rows, seconds, and the peak memory of its largest process."""
    changes = [part for stage in STAGES for part in ("--set", f"{stage}.seed={seed}")]
    command = [
        sys.executable,
        "-m",
        "alpro.pipeline.cli",
        "run",
        "--config",
        config,
        "--workspace",
        workspace,
        *changes,
    ]
    started = time.monotonic()
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - started
    assert re.search(r"report: (\S+)", done.stdout), done.stdout
    rows = []
    for stage in EVALUATIONS:
        files = Path(workspace).glob(f"artifacts/{stage}/*/results.json")
        rows += json.loads(max(files, key=lambda path: path.stat().st_mtime).read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seed": seed, "seconds": seconds, "gigabytes": peak, "rows": rows}


def table(runs: list[list[dict[str, Any]]]) -> str:
    """A Markdown table of every score over the runs."""
    lines = [
        "| what | score | mean | 95 % interval over seeds | each | items | chance |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in runs[0]:
        values = [other["value"] for rows in runs for other in rows if other["name"] == row["name"]]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        interval = STUDENT.get(len(values), 1.96) * spread / len(values) ** 0.5
        each = " ".join(f"{value:.1f}" for value in values)
        score = f"{row['direction']} {row['metric']}".strip()
        cells = (row["what"], score, f"{statistics.mean(values):.1f}", f"± {interval:.1f}", each)
        chance = "-" if row["chance"] is None else f"{row['chance']:.1f}"
        lines.append(f"| {' | '.join(cells)} | {row['items']} | {chance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
