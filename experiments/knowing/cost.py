"""What PEM costs: processor time of a step of pre-training with and without it, three runs each.

    OMP_NUM_THREADS=1 python experiments/knowing/cost.py

The model and the batch are those of the study. What a run needs before its first step is
subtracted.
"""

import statistics
import sys
import tempfile
from pathlib import Path

# for experiments, if this file is the program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alpro.files import read_json
from alpro.stages.execution.interface import Resources
from experiments.knowing.schedule import Row, Sizes
from experiments.knowing.study import Draw

RUNS = 3
FEW_STEPS = 5
MORE_STEPS = 20
SIZES = Sizes(stills=200, test_stills=20, teacher_steps=2, start_steps=2)


def seconds_per_step(draw: Draw, arm: str, seed: int) -> float:
    """The processor time of a step: the difference of a longer and a shorter run."""
    times = []
    for steps in (FEW_STEPS, MORE_STEPS):
        row = Row(
            draw=0, arm=arm, seed=seed, steps=steps, start_steps=SIZES.start_steps, sizes=SIZES
        )
        times.append(read_json(draw.pretrained(row) / "time.json")["cpu_seconds"])
    return (times[1] - times[0]) / (MORE_STEPS - FEW_STEPS)


def main() -> None:
    seconds: dict[str, list[float]] = {"none": [], "teacher": []}
    with tempfile.TemporaryDirectory() as folder:
        draw = Draw(Path(folder), 0, SIZES, Resources())
        for run in range(RUNS):
            for arm, values in seconds.items():  # in turn, so that a slow minute hits both
                values.append(seconds_per_step(draw, arm, run))

    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    for arm, values in seconds.items():
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"{arm:8} {medians[arm]:.3f} s of a processor per step ({each})")
    print(f"PEM: {medians['teacher'] / medians['none']:.2f} times the time of a step without it")


if __name__ == "__main__":
    main()
