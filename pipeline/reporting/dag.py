"""The DAG of a run as a drawing: places of its steps, and the lines between them."""

from collections.abc import Mapping
from dataclasses import dataclass

from alpro.pipeline.reporting.run_summary import StepSummary

WIDTH, HEIGHT, GAP, ROW = 184, 44, 16, 72  # of a box, between boxes, from row to row, in pixels
MAX_LETTERS = 27  # that fit into a box


@dataclass(frozen=True)
class Box:
    """A step: its left upper corner in pixels, and its two lines of text."""

    x: float
    y: float
    step: StepSummary
    title: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines (SVG paths) in an area of pixels."""

    width: float
    height: float
    boxes: list[Box]
    paths: list[str]
    box_width: float = WIDTH
    box_height: float = HEIGHT


def drawing(steps: list[StepSummary]) -> Drawing:
    """Steps from top to bottom: each in the row below its lowest input, those of a row side by side."""
    rows: dict[int, list[StepSummary]] = {}
    row_of: dict[str, int] = {}
    for step in steps:  # inputs come first
        row_of[step.name] = 1 + max((row_of[name] for name in step.inputs), default=-1)
        rows.setdefault(row_of[step.name], []).append(step)
    widest = max(map(len, rows.values()), default=0)
    width = widest * (WIDTH + GAP) + GAP
    boxes = {}
    for row, members in rows.items():
        left = (width - len(members) * (WIDTH + GAP) + GAP) / 2
        for place, step in enumerate(members):
            stage, _, corpus = step.name.partition(" ")
            text = " · ".join(filter(None, (corpus, state_text(step))))
            x, y = left + place * (WIDTH + GAP), GAP / 2 + row * ROW
            boxes[step.name] = Box(x, y, step, shortened(stage), shortened(text))
    paths = [line(boxes[source], boxes[step.name]) for step in steps for source in direct_inputs(step, steps)]
    return Drawing(width, len(rows) * ROW - ROW + HEIGHT + GAP, list(boxes.values()), paths)


def direct_inputs(step: StepSummary, steps: list[StepSummary]) -> list[str]:
    """The inputs of a step that are not also inputs of its other inputs: the lines to those follow from the rest."""
    inputs = {other.name: other.inputs for other in steps}
    others = {name: ancestors(name, inputs) for name in step.inputs}
    return [name for name in step.inputs if not any(name in above for above in others.values())]


def ancestors(name: str, inputs: Mapping[str, list[str]]) -> set[str]:
    """All steps that a step is built from."""
    return {one for source in inputs[name] for one in (source, *ancestors(source, inputs))}


def line(source: Box, target: Box) -> str:
    """A line from the lower edge of a box straight down to the row above another, and a curve to its upper edge."""
    x1, y1, x2, y2 = source.x + WIDTH / 2, source.y + HEIGHT, target.x + WIDTH / 2, target.y
    gap = ROW - HEIGHT
    return f"M{x1:g} {y1:g}V{y2 - gap:g}C{x1:g} {y2 - gap / 2:g} {x2:g} {y2 - gap / 2:g} {x2:g} {y2:g}"


def state_text(step: StepSummary) -> str:
    """The state of a step, and the time that its artifact took."""
    time = duration(step.seconds) if step.seconds is not None else ""
    return time if step.state == "built" else ", ".join(filter(None, (step.state, time)))


def shortened(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"


def duration(seconds: float) -> str:
    """A time as people write it.

    >>> [duration(s) for s in (20.24, 125, 7300)]
    ['20.2 s', '2 min 5 s', '2 h 1 min']
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
