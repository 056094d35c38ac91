"""Costs of a corpus: hours and gigabytes of each stage at full size, computed from rates.

    python benchmarks/costs.py [--clips N ...] [--rate STAGE=PER_SECOND ...]

Prints the table of docs/train.md. hours = passes x items / rate / 3600, and gigabytes = items x bytes. The rates below
are of one core of an AMD EPYC in float32, by processor time: decode, 16 frames of a clip of 10 s, 640 x 360, and their
JPEGs; prompter, prompts (25 templates), finetune (8 frames) and index, from steps and forward passes of the encoders;
vocabulary, pretrain and evaluate, from earlier benchmarks of the project. `--rate` replaces all of them, such as by
those of a GPU, which `benchmarks/gpu.py` measures; stages without one are then "?".
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

CLIPS = [1_000, 20_000, 100_000, 2_500_000]


class Stage(NamedTuple):
    """items: how many of what, for this many clips. rate: items that a core handles in a second. size: bytes of an
    item on disk."""

    items: Callable[[int], int]
    what: str
    rate: float
    size: float = 0.0
    passes: int = 1

    def hours(self, clips: int, rate: float) -> float:
        return self.passes * self.items(clips) / rate / 3600

    def gigabytes(self, clips: int) -> float:
        return self.items(clips) * self.size / 1e9


def every(clips: int) -> int:
    return clips


def pairs(clips: int) -> int:
    """Of a tenth of the clips, at most 1,000, with a text each."""
    return min(clips // 10, 1000) ** 2


STAGES = {
    "decode": Stage(every, "clips", 9.5, 300e3),
    "vocabulary": Stage(every, "captions", 4500.0),
    "prompter": Stage(every, "clips", 0.14, passes=10),
    "prompts": Stage(lambda clips: 1000, "entities", 3.8),
    "pretrain": Stage(every, "clips", 0.077, passes=10),
    "finetune": Stage(lambda clips: min(clips, 10_000), "clips", 0.056, passes=5),
    "evaluate": Stage(pairs, "pairs", 4.9),
    "index": Stage(every, "clips", 0.43, 1200.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=CLIPS)
    parser.add_argument("--rate", nargs="+", default=[], metavar="STAGE=PER_SECOND")
    arguments = parser.parse_args()
    given = {stage: float(rate) for stage, rate in (pair.split("=") for pair in arguments.rate)}
    if unknown := given.keys() - STAGES.keys():
        parser.error(f"--rate: no stage {min(unknown)!r}; the stages are {', '.join(STAGES)}")
    print("\n".join(table(arguments.clips, given)))


def table(clips: list[int], given: dict[str, float]) -> list[str]:
    """The lines of the table, in Markdown. given: rates to use instead of those of this file."""
    lines = [f"| hours, GB | {' | '.join(f'{count:,}' for count in clips)} | per second |"]
    lines.append("|---|" + "---:|" * (len(clips) + 1))
    for name, stage in STAGES.items():
        rate = given.get(name) if given else stage.rate
        cells = [cell(stage, count, rate) for count in clips]
        lines.append(f"| {name} | {' | '.join(cells)} | {short(rate) if rate else '?'} |")
    return lines


def cell(stage: Stage, clips: int, rate: float | None) -> str:
    hours = short(stage.hours(clips, rate)) if rate else "?"
    return f"{hours}, {short(stage.gigabytes(clips))}" if stage.size else hours


def short(value: float) -> str:
    """Two digits, and all before the point.

    >>> [short(value) for value in (0.00012, 0.256, 7.31, 92517.4)]
    ['<0.01', '0.26', '7.3', '92,517']
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.01 else "<0.01"


if __name__ == "__main__":
    main()
