"""The rows of the study of a teacher that knows more: arms, seeds, steps, and their order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.silent.arms import ALL_KEPT, CROPS, WITHOUT_PEM, Arm

# The teachers learn in the same way and from stills of the same kind. The captions differ: those of
# `second` name all four things of a still, those of `first`, which the student reads, one.
TEACHERS = {"teacher": "second", "plain": "first"}
TEACHER_TRAINING: dict[str, Any] = {"crops": CROPS, "optimizer": "muon", "lr": 1.5e-3}
FIRST_DRAW = 6
DRAWS = range(FIRST_DRAW, 12)
SEEDS = (0, 1, 2)  # of the arms of the primary tests; the others have the first
DOSES = (50, 20, 80, 35, 65)
ARMS = {
    "none": Arm(prompter="teacher", changes=WITHOUT_PEM),
    "permuted": Arm("permuted", prompter="teacher", changes=ALL_KEPT),
    "teacher": Arm(prompter="teacher", changes=ALL_KEPT),
    "true": Arm("true", prompter="teacher"),
    "teacher at 0.2": Arm(prompter="teacher"),
    "plain": Arm(prompter="plain", changes=ALL_KEPT),
    # True labels that are right as often as the teacher's, and wrong where and as the teacher is.
    "errors of the teacher": Arm("errors", prompter="teacher", changes=ALL_KEPT),
}
ARMS |= {f"true {dose}": Arm("mixed", prompter="teacher", share=dose / 100) for dose in DOSES}


@dataclass(frozen=True)
class Sizes:
    """Stills, steps and batches; the test of the program has smaller ones."""

    stills: int = 12000  # of training, half of them for start and teacher
    test_stills: int = 1000  # a fifth more are in a style that training does not show
    batch_size: int = 32
    teacher_steps: int = 4000
    start_steps: int = 2000
    early_start_steps: int = 1000
    steps: int = 800
    other_steps: tuple[int, ...] = (400, 1600)


@dataclass(frozen=True)
class Row:
    """One run of pre-training, and its file. start_steps: of the training of its start."""

    draw: int
    arm: str
    seed: int
    steps: int
    start_steps: int
    sizes: Sizes = field(repr=False)

    @property
    def name(self) -> str:
        parts = [f"draw-{self.draw}", self.arm.replace(" ", "-"), str(self.seed)]
        if self.steps != self.sizes.steps:
            parts.append(f"steps-{self.steps}")
        if self.start_steps != self.sizes.start_steps:
            parts.append(f"start-{self.start_steps}")
        return "-".join(parts)


def primary_rows(draw: int, sizes: Sizes) -> Iterator[Row]:
    """What the primary tests need, and `true`. `none` comes first: it needs no teacher."""

    def row(arm: str, seed: int) -> Row:
        return Row(draw, arm, seed, sizes.steps, sizes.start_steps, sizes)

    for arm in ("none", "permuted", "teacher", "true"):
        yield row(arm, SEEDS[0])
    for seed in SEEDS[1:]:
        for arm in ("none", "permuted", "teacher"):
            yield row(arm, seed)


def other_rows(draw: int, sizes: Sizes) -> Iterator[Row]:
    """Dose, other labels, other numbers of steps, and, of the first draw, another start."""
    for arm in (*(f"true {dose}" for dose in DOSES), "errors of the teacher"):
        yield Row(draw, arm, 0, sizes.steps, sizes.start_steps, sizes)
    for arm in ("teacher at 0.2", "plain"):
        yield Row(draw, arm, 0, sizes.steps, sizes.start_steps, sizes)
    for steps in sizes.other_steps:
        for arm in ("none", "permuted", "teacher"):
            yield Row(draw, arm, 0, steps, sizes.start_steps, sizes)
    if draw == FIRST_DRAW:
        for arm in ("none", "permuted", "teacher", "true"):
            yield Row(draw, arm, 0, sizes.steps, sizes.early_start_steps, sizes)


def schedule(
    draws: list[int], blocks: list[str], sizes: Sizes, seeds: Sequence[int] = SEEDS
) -> Iterator[Row]:
    """The rows of some draws and seeds: the primary ones of all draws before any other."""
    of_blocks = {"primary": primary_rows, "other": other_rows}
    for block in blocks:
        for draw in draws:
            yield from (row for row in of_blocks[block](draw, sizes) if row.seed in seeds)
