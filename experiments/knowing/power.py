"""The power of the primary tests, before any row: from the SDs of the silent study's differences.

python experiments/knowing/power.py
"""

import math
import sys
from pathlib import Path

# for experiments, if this file is the program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.differences import silent_difference
from experiments.knowing.schedule import DRAWS, SEEDS
from experiments.paired import power

EFFECTS = (
    3.0,
    4.0,
    5.0,
    6.8,
    9.3,
)  # the last two: `teacher` in the trial, to `none` and `permuted`
# Uncorrected; the first of Holm's three steps; the same for the aim of a corrected p < 0.01.
ALPHAS = (0.05, 0.05 / 3, 0.01 / 3)


def main() -> None:
    content = silent_difference("crops-all-kept", "permuted").sd
    pays = silent_difference("crops-all-kept", "none").sd

    # Of the variance over draws, the part of the seeds shrinks with their number. How large it is
    # is not known: the bounds are nothing and all of it.
    few = math.sqrt(len(SEEDS))
    deviations = {
        "content, as one seed": content,
        "content, if seeds are all noise": content / few,
        "pays, as one seed": pays,
        "pays, if seeds are all noise": pays / few,
    }
    print(f"{len(DRAWS)} draws; alpha {', '.join(f'{alpha:.4f}' for alpha in ALPHAS)}")
    for name, deviation in deviations.items():
        for effect in EFFECTS:
            powers = [power(effect, deviation, len(DRAWS), alpha) for alpha in ALPHAS]
            cells = "  ".join(f"{value:.2f}" for value in powers)
            print(f"{name:32} SD {deviation:.1f}  {effect:+.1f}  {cells}")


if __name__ == "__main__":
    main()
