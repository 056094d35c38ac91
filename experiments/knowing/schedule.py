"""The design of the study of a teacher that knows more: draws, seeds, arms, and steps."""

from dataclasses import dataclass, field

FIRST_DRAW = 6
DRAWS = range(FIRST_DRAW, 12)
SEEDS = (0, 1, 2)  # Only the arms of the primary tests have seeds 1 and 2.
DOSES = (50, 20, 80, 35, 65)  # Percent of true labels; the others are another still's.
ARMS = (
    "none",
    "permuted",
    "teacher",
    "true",
    "teacher at 0.2",
    "plain",
    "errors of the teacher",
    *(f"true {dose}" for dose in DOSES),
)


@dataclass(frozen=True)
class Sizes:
    """Training steps of the model and of its start."""

    start_steps: int = 2000
    early_start_steps: int = 1000
    steps: int = 800
    other_steps: tuple[int, ...] = (400, 1600)


@dataclass(frozen=True)
class Row:
    """One run of pre-training, recorded in a JSON file."""

    draw: int
    arm: str
    seed: int
    steps: int
    start_steps: int
    sizes: Sizes = field(repr=False)

    @property
    def name(self) -> str:
        """Stem of the file."""
        parts = [f"draw-{self.draw}", self.arm.replace(" ", "-"), str(self.seed)]
        if self.steps != self.sizes.steps:
            parts.append(f"steps-{self.steps}")
        if self.start_steps != self.sizes.start_steps:
            parts.append(f"start-{self.start_steps}")
        return "-".join(parts)
