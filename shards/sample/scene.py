"""Scenes of the sample corpus: things with a kind and a color, their motion and positions, and the
splits; their captions in plain English, and questions with answers."""

import hashlib
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

Combination = tuple[str, str, str]  # kind, color and motion
WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("sample.toml").read_text("utf-8")
)
THING_KINDS = tuple(WORDS["things"])
COLORS = {name: tuple(rgb) for name, rgb in WORDS["colors"].items()}
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
MOTIONS = (*DIRECTIONS, "circle", "growing", "shrinking", "spinning", "still")
# The radius of a thing at the start of the clip, and its growth, as factors. A thing shrinks as it
# grows backwards, so that a reversed clip has the same sizes.
GROWTH = {"growing": (0.45, 0.85), "shrinking": (1.30, -0.85)}
MOTION_WEIGHTS = (0.15, 0.15, 0.15, 0.15, 0.08, 0.08, 0.08, 0.08, 0.08)
OPPOSITES = (("left", "right"), ("up", "down"), ("growing", "shrinking"))
REVERSED = dict(OPPOSITES) | {second: first for first, second in OPPOSITES}
HELD_OUT_SHARE = 0.25
COMBINATIONS = tuple(product(THING_KINDS, COLORS, MOTIONS))


def _share(combination: Combination) -> float:
    text = "/".join(combination)
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


# Chosen by a hash, so that the held-out combinations have no pattern.
HELD_OUT = frozenset(c for c in COMBINATIONS if _share(c) < HELD_OUT_SHARE)


@dataclass(frozen=True)
class Thing:
    """A thing: its position (x, y: fractions of the frame, from the top left), radius (fraction)
    and motion."""

    kind: str
    color: str
    motion: str
    x: float
    y: float
    radius: float
    reach: float = 0.0  # length of the path, fraction of the frame
    angle: float = 0.0  # tilt, degrees
    clockwise: bool = True

    def pose(self, time: float) -> tuple[float, float, float, float]:
        """Position, radius and angle at time 0..1 of the clip."""
        # Its position is the middle of the path.
        from_middle = time - 0.5
        dx, dy = DIRECTIONS.get(self.motion, (0, 0))
        x = self.x + dx * self.reach * from_middle
        y = self.y + dy * self.reach * from_middle

        start, growth = GROWTH.get(self.motion, (1, 0))
        radius = self.radius * (start + growth * time)

        angle = self.angle
        turns = time if self.clockwise else -time
        if self.motion == "spinning":
            angle += 360 * turns
        elif self.motion == "circle":
            # The tilt, which a circling thing does not have, is where on the circle it begins.
            phase = 2 * np.pi * turns + np.radians(self.angle) * 6
            x += self.reach * np.cos(phase)
            y += self.reach * np.sin(phase)
            angle = 0.0
        return x, y, radius, angle

    @property
    def combination(self) -> Combination:
        return self.kind, self.color, self.motion

    @property
    def held_out(self) -> bool:
        """Whether this combination of kind, color and motion is not in training."""
        return self.combination in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """The things of a clip and the relation of the first thing, which the captions describe, to the
    others."""

    things: tuple[Thing, ...]
    relation: str | None  # above, below, beside, between
    background: int = field(default=0, compare=False)

    @property
    def main(self) -> Thing:
        return self.things[0]

    def reverse(self) -> "Scene":
        """Return the same scene with time running backwards."""
        things = tuple(
            replace(thing, motion=REVERSED.get(thing.motion, thing.motion))
            for thing in self.things
        )
        return replace(self, things=things)


def pick(rng: np.random.Generator, *words: str) -> str:
    return str(rng.choice(words))


def draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))


def draw_scene(
    rng: np.random.Generator,
    count: int,
    motion: str | None = None,
    wide: bool = False,
    main: Sequence[str] = (),
) -> Scene:
    """Draw a random scene of 1 to 3 things; the main thing moves, the others are still beside its path.

    wide: a single thing is anywhere in the frame and its size varies more (for still images). main:
    kind and color of the main thing; empty: random.
    """
    kinds = draw_names(rng, THING_KINDS, count, first=main[:1])
    colors = draw_names(rng, COLORS, count, first=main[1:])
    motion = motion or str(rng.choice(MOTIONS, p=MOTION_WEIGHTS))
    relation, centers = _arrange(rng, count, motion)

    is_alone = count == 1
    things = []
    for i, (kind, color) in enumerate(zip(kinds, colors, strict=True)):
        thing_motion = motion if i == 0 else "still"
        in_lane = thing_motion in DIRECTIONS
        radius = rng.uniform(0.22, 0.30) if is_alone else rng.uniform(0.16, 0.19)
        offset = rng.uniform(-0.03, 0.03, 2)
        x, y = centers[i] + offset

        # Drawn for every thing: the draws after it are the same for all motions.
        reach = rng.uniform(0.65, 0.8)
        if thing_motion == "circle":
            reach = 0.24 if is_alone else 0.14
        elif not in_lane:
            reach = 0.0

        if in_lane and is_alone:  # a random lane across the path
            across = rng.uniform(0.25, 0.75)
            _, vertical = DIRECTIONS[thing_motion]
            x, y = (0.5, across) if vertical == 0 else (across, 0.5)
        if wide and is_alone:
            radius = rng.uniform(0.18, 0.32)
            x, y = rng.uniform(0.22, 0.78, 2)

        thing = Thing(
            kind,
            color,
            motion=thing_motion,
            x=x,
            y=y,
            radius=radius,
            reach=reach,
            angle=rng.uniform(-15, 15),
            clockwise=rng.random() < 0.5,
        )
        things.append(thing)

    background = int(rng.integers(2**31))
    return Scene(tuple(things), relation, background)


def draw_names(
    rng: np.random.Generator,
    names: Iterable[str],
    count: int,
    first: Sequence[str],
) -> list[str]:
    """Draw `count` different names, which begin with those of `first`."""
    others = [name for name in names if name not in first]
    drawn = rng.choice(others, count - len(first), replace=False)
    return [*first, *drawn.tolist()]


def _arrange(
    rng: np.random.Generator,
    count: int,
    motion: str,
) -> tuple[str | None, list[Any]]:
    """Return the relation of the main thing to the others, and the center of each.

    Nothing lies on the path of the main thing: beside a lane that runs left or right, the others
    are above or below.
    """
    if count == 1:
        return None, [rng.uniform(0.38, 0.62, 2)]

    choices = ["above", "below", "beside" if count == 2 else "between"]
    if motion in ("left", "right"):
        choices = choices[:2]
    elif motion in ("up", "down"):
        choices = choices[2:]
    relation = pick(rng, *choices)
    if relation == "between":
        return relation, [(0.5, 0.5), (0.17, 0.5), (0.83, 0.5)]

    is_first = relation == "above" or (relation == "beside" and rng.random() < 0.5)
    main, other = (0.28, 0.74) if is_first else (0.72, 0.26)
    if relation == "beside":
        return relation, [(main, 0.5), (other, 0.5)]
    across = [0.27, 0.73] if count == 3 else [rng.uniform(0.3, 0.7)]
    return relation, [(0.5, main), *((x, other) for x in across)]


def training_scene(
    rng: np.random.Generator,
    count: int,
    motion: str | None = None,
    wide: bool = False,
) -> Scene:
    """Draw a scene without held-out combinations, forwards and reversed."""
    while True:
        scene = draw_scene(rng, count, motion, wide=wide)
        # Its reverse is a training clip, too.
        things = (*scene.things, *scene.reverse().things)
        if not any(thing.held_out for thing in things):
            return scene


def draw_main(
    rng: np.random.Generator,
    held_out: bool,
    taken: Collection[Combination],
) -> Combination:
    """Draw a combination of kind, color and motion that is not taken, held out from training or not."""
    while True:
        kind = pick(rng, *THING_KINDS)
        color = pick(rng, *COLORS)
        motion = str(rng.choice(MOTIONS, p=MOTION_WEIGHTS))
        combination = (kind, color, motion)
        if (combination in HELD_OUT) == held_out and combination not in taken:
            return combination


def evaluation_scenes(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    unseen: float,
) -> list[list[Scene]]:
    """Scenes of splits of these sizes, a fraction `unseen` of each with a main combination that is
    not in training.

    Every main combination is used once, and by no other thing, so that a caption that names it is
    true for only one clip. The combinations of all splits are drawn before they are divided: each
    draw leaves fewer, so one split after the other would have different distributions.
    """
    mains: list[Combination] = []
    parts = []
    unseen_counts = [round(size * unseen) for size in sizes]
    seen_counts = np.subtract(sizes, unseen_counts).tolist()
    for held_out, counts in ((True, unseen_counts), (False, seen_counts)):
        drawn: list[Combination] = []
        for _ in range(sum(counts)):
            drawn.append(draw_main(rng, held_out, taken=[*mains, *drawn]))
        mains += drawn
        ends = np.cumsum(counts)
        parts.append(np.split(rng.permutation(drawn), ends[:-1]))

    scenes = []
    for unseen_mains, seen_mains in zip(*parts, strict=True):
        # Shuffled: the unseen ones are the first of each split.
        shuffled = rng.permutation([*unseen_mains, *seen_mains])
        scenes.append([scene_of(rng, main, mains) for main in shuffled.tolist()])
    return scenes


def scene_of(
    rng: np.random.Generator,
    main: Sequence[str],
    mains: Collection[Combination],
) -> Scene:
    """Draw a scene with this main combination, in which the other things are neither held out nor one of
    `mains`."""
    *kind_and_color, motion = main
    count = draw_count(rng)
    while True:
        scene = draw_scene(rng, count, motion, main=kind_and_color)
        others = scene.things[1:]
        if not any(thing.held_out or thing.combination in mains for thing in others):
            return scene


NUMBERS = ("one", "two", "three")


def motion_phrase(motion: str, rng: np.random.Generator) -> str:
    phrases = WORDS["motions"]
    if motion not in DIRECTIONS:
        return pick(rng, *phrases[motion])
    verb = pick(rng, *phrases["go"])
    return f"{verb} {pick(rng, *phrases[motion])}"


def name(
    thing: Thing,
    article: str = "a",
    color: bool = True,
    kind: bool = True,
) -> str:
    noun = thing.kind if kind else "thing"
    words = f"{thing.color} {noun}" if color else noun
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}"


def _relation_phrase(
    scene: Scene,
    rng: np.random.Generator,
    color: bool = True,
    kind: bool = True,
) -> str:
    """How the main thing lies to the others, such as " next to a red ball"."""
    preposition = pick(rng, *WORDS["relations"][scene.relation])
    others = [name(thing, color=color, kind=kind) for thing in scene.things[1:]]
    return f" {preposition} {' and '.join(others)}"


def full_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write a complete caption: kind, color, motion, relation and the other things."""
    start = pick(rng, "", "", "in this video ", "here ", "we see how ")
    text = f"{start}{name(scene.main)} {motion_phrase(scene.main.motion, rng)}"
    if scene.relation:
        text += _relation_phrase(scene, rng)
    return text


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write a caption of a training clip: full, without colors, only the motion, short, or counting."""
    main = scene.main
    style = rng.choice(
        ["full", "plain", "motion", "short", "count"], p=[0.45, 0.2, 0.07, 0.23, 0.05]
    )
    if style == "full":
        return full_caption(scene, rng)

    if style == "plain":
        article = pick(rng, "a", "the")
        subject = name(main, article, color=False)
        text = f"{subject} {motion_phrase(main.motion, rng)}"
        if scene.relation and rng.random() < 0.7:
            text += _relation_phrase(scene, rng, color=False)
        return text

    if style == "motion":
        subject = "it"
        if len(scene.things) > 1 or rng.random() < 0.3:
            subject = f"the {main.color} one"
        return f"{subject} {motion_phrase(main.motion, rng)}"

    if style == "short":
        medium = pick(rng, "video", "video footage", "footage", "portrait", "clip")
        article = pick(rng, "a", "the", "one")
        subject = name(main, article, color=rng.random() < 0.3)
        return f"a {medium} of {subject}"

    return _count(scene, rng)


def lesson_caption(scene: Scene, rng: np.random.Generator) -> str:
    subject = pick(rng, "it", "it", "something")
    return f"{subject} {motion_phrase(scene.main.motion, rng)}"


def still_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write a caption of a still image, which has no motion: kinds and colors, or only one of the two, or
    counting.

    Kinds and colors are each named alone: a model that tells the images apart by one of them may
    never begin to learn the other.
    """
    style = rng.choice(["full", "kind", "color", "count"], p=[0.27, 0.5, 0.09, 0.14])
    if style == "count":
        return _count(scene, rng)

    color = style != "kind"
    kind = style != "color"
    start = pick(
        rng, "a picture of", "a photo of", "a good picture of", "here is", "we see"
    )
    text = f"{start} {name(scene.main, color=color, kind=kind)}"
    if scene.relation and rng.random() < 0.8:
        text += _relation_phrase(scene, rng, color, kind)
    return text


def _count(scene: Scene, rng: np.random.Generator) -> str:
    count = len(scene.things)
    noun = pick(rng, "thing", "shape")
    ending = "s" if count > 1 else ""
    things = f"{NUMBERS[count - 1]} {noun}{ending}"
    if rng.random() < 0.3:
        verb = "are" if count > 1 else "is"
        return f"there {verb} {things}"

    listed = [name(thing, color=rng.random() < 0.6) for thing in scene.things]
    return f"{things}, {' and '.join(listed)}"


def questions(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
    """One question of each applicable type: what, color, how many, where to."""
    main = scene.main
    moving = motion_phrase(main.motion, rng)
    # If the main thing is still, so are the others: the question uses its color.
    what = f"what is the {main.color} thing?"
    if main.motion != "still" and rng.random() < 0.5:
        what = f"what {moving}?"

    things = pick(rng, "things", "shapes")
    verb = pick(rng, "are there", "do we see")
    which = pick(rng, "what", "which")
    count = NUMBERS[len(scene.things) - 1]
    rows = [
        ("what", what, main.kind),
        ("color", f"{which} color is the {main.kind}?", main.color),
        ("how_many", f"how many {things} {verb}?", count),
    ]
    if main.motion in DIRECTIONS:
        subject = name(main, "the", color=rng.random() < 0.5)
        go = pick(rng, "go", "move", "slide")
        rows.append(("where_to", f"where does {subject} {go}?", main.motion))

    return [
        {"question": question, "answer": answer, "type": kind}
        for kind, question, answer in rows
    ]
