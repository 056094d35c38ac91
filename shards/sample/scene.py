"""Scenes of the sample corpus: things with a kind and a color, their motion and positions, and the
splits; their captions in plain English, and questions with answers."""

import hashlib
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

THING_KINDS = (
    "ball",
    "box",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
    "flower",
    "fish",
    "house",
    "tree",
)
COLORS = {
    "red": (225, 35, 35),
    "green": (40, 170, 50),
    "blue": (50, 80, 235),
    "yellow": (240, 225, 40),
}
COLORS |= {
    "orange": (250, 140, 20),
    "purple": (140, 50, 190),
    "pink": (255, 130, 190),
    "cyan": (50, 215, 225),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "circle", "growing", "shrinking", "spinning", "still")
MOTION_WEIGHTS = (0.15, 0.15, 0.15, 0.15, 0.08, 0.08, 0.08, 0.08, 0.08)
OPPOSITES = (("left", "right"), ("up", "down"), ("growing", "shrinking"))
REVERSED = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
HELD_OUT_SHARE = 0.25
COMBINATIONS = tuple(product(THING_KINDS, COLORS, MOTIONS))


def _share(combination: tuple[str, str, str]) -> float:
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


# By a hash, so that the held-out combinations have no pattern.
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
        x, y, radius, angle = self.x, self.y, self.radius, self.angle
        turn = 1 if self.clockwise else -1
        if self.motion in DIRECTIONS:
            dx, dy = DIRECTIONS[self.motion]
            x, y = x + dx * self.reach * (time - 0.5), y + dy * self.reach * (time - 0.5)
        elif self.motion == "circle":
            phase = 2 * np.pi * (turn * time) + np.radians(self.angle) * 6
            x, y, angle = x + self.reach * np.cos(phase), y + self.reach * np.sin(phase), 0.0
        elif self.motion == "growing":
            radius *= 0.45 + 0.85 * time
        elif self.motion == "shrinking":
            radius *= 1.30 - 0.85 * time
        elif self.motion == "spinning":
            angle += turn * 360 * time
        return float(x), float(y), float(radius), float(angle)

    @property
    def combination(self) -> tuple[str, str, str]:
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
        """The same scene with time running backwards."""
        return replace(
            self,
            things=tuple(replace(t, motion=REVERSED.get(t.motion, t.motion)) for t in self.things),
        )


def draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))


def draw_scene(
    rng: np.random.Generator,
    count: int,
    motion: str | None = None,
    wide: bool = False,
    main: tuple[str, str] | None = None,
) -> Scene:
    """A random scene of 1 to 3 things; the main thing moves, the others are still beside its path.

    wide: a single thing is anywhere in the frame and its size varies more (for still images). main:
    kind and color of the main thing; None: random.
    """
    kinds = draw_names(rng, THING_KINDS, count, main and main[0])
    colors = draw_names(rng, tuple(COLORS), count, main and main[1])
    motion = motion or str(rng.choice(MOTIONS, p=MOTION_WEIGHTS))
    relation, places = _arrange(rng, count, motion)
    things = []
    for i, (kind, color) in enumerate(zip(kinds, colors, strict=True)):
        radius = rng.uniform(0.22, 0.30) if count == 1 else rng.uniform(0.16, 0.19)
        moves = motion if i == 0 else "still"
        x, y = places[i] + rng.uniform(-0.03, 0.03, 2)
        reach = {True: rng.uniform(0.65, 0.8), False: 0.0}[moves in DIRECTIONS]
        if moves == "circle":
            reach = 0.24 if count == 1 else 0.14
        if moves in DIRECTIONS and count == 1:  # a random lane across the path
            across = rng.uniform(0.25, 0.75)
            x, y = (0.5, across) if DIRECTIONS[moves][1] == 0 else (across, 0.5)
        if wide and count == 1:
            radius = rng.uniform(0.18, 0.32)
            x, y = rng.uniform(0.22, 0.78, 2)
        angle, clockwise = float(rng.uniform(-15, 15)), bool(rng.random() < 0.5)
        things.append(
            Thing(
                kind,
                color,
                moves,
                float(x),
                float(y),
                float(radius),
                float(reach),
                angle,
                clockwise,
            )
        )
    return Scene(tuple(things), relation, int(rng.integers(2**31)))


def draw_names(
    rng: np.random.Generator, names: tuple[str, ...], count: int, first: str | None
) -> list[str]:
    """`count` different names, `first` first unless it is None."""
    others = [name for name in names if name != first]
    drawn = [str(name) for name in rng.choice(others, count - (first is not None), replace=False)]
    return drawn if first is None else [first, *drawn]


def _arrange(
    rng: np.random.Generator, count: int, motion: str
) -> tuple[str | None, list[np.ndarray]]:
    """The relation of the main thing to the others, and the position of each."""
    if count == 1:
        return None, [rng.uniform(0.38, 0.62, 2)]
    choices: tuple[str, ...]
    if motion in ("left", "right"):
        choices = ("above", "below")
    elif motion in ("up", "down"):
        choices = ("beside",) if count == 2 else ("between",)
    else:
        choices = ("above", "below", "beside") if count == 2 else ("above", "below", "between")
    relation = str(rng.choice(choices))
    if relation in ("above", "below"):
        main, other = (0.28, 0.74) if relation == "above" else (0.72, 0.26)
        across = [0.27, 0.73] if count == 3 else [float(rng.uniform(0.3, 0.7))]
        places = [(0.5, main), *((x, other) for x in across)]
    elif relation == "between":
        places = [(0.5, 0.5), (0.17, 0.5), (0.83, 0.5)]
    else:
        main, other = (0.28, 0.74) if rng.random() < 0.5 else (0.72, 0.26)
        places = [(main, 0.5), (other, 0.5)]
    return relation, [np.array(p) for p in places]


def training_scene(
    rng: np.random.Generator, count: int, motion: str | None = None, wide: bool = False
) -> Scene:
    """A scene without held-out combinations, forwards and reversed."""
    while True:
        scene = draw_scene(rng, count, motion, wide)
        if not any(t.held_out for s in (scene, scene.reverse()) for t in s.things):
            return scene


def draw_main(
    rng: np.random.Generator, held_out: bool, taken: set[tuple[str, str, str]]
) -> tuple[str, str, str]:
    """A combination of kind, color and motion that is not taken, held out from training or not."""
    while True:
        kind, color = str(rng.choice(THING_KINDS)), str(rng.choice(list(COLORS)))
        combination = kind, color, str(rng.choice(MOTIONS, p=MOTION_WEIGHTS))
        if combination not in taken and (combination in HELD_OUT) == held_out:
            return combination


def evaluation_scenes(
    rng: np.random.Generator, sizes: tuple[int, ...], unseen: float
) -> list[list[Scene]]:
    """Scenes of splits of these sizes, a fraction `unseen` of each with a main combination that is
    not in training.

    Every main combination is used once, and by no other thing, so that a caption that names it is
    true for only one clip. The combinations of all splits are drawn before they are divided: each
    draw leaves fewer, so one split after the other would have different distributions.
    """
    mains: set[tuple[str, str, str]] = set()
    splits: list[list[tuple[str, str, str]]] = [[] for _ in sizes]
    for held_out in (True, False):
        numbers = [
            round(size * unseen) if held_out else size - round(size * unseen) for size in sizes
        ]
        drawn = []
        for _ in range(sum(numbers)):
            drawn.append(draw_main(rng, held_out, mains))
            mains.add(drawn[-1])
        order, first = rng.permutation(len(drawn)), 0
        for split, number in zip(splits, numbers, strict=True):
            split += [drawn[i] for i in order[first : first + number]]
            first += number
    return [
        [scene_of(rng, split[i], mains) for i in rng.permutation(len(split))] for split in splits
    ]


def scene_of(
    rng: np.random.Generator, main: tuple[str, str, str], mains: set[tuple[str, str, str]]
) -> Scene:
    """A scene with this main combination, in which the other things are neither held out nor one of
    `mains`."""
    count = draw_count(rng)
    while True:
        scene = draw_scene(rng, count, main[2], main=main[:2])
        if not any(t.held_out or t.combination in mains for t in scene.things[1:]):
            return scene


GO = ("moves", "slides", "drifts", "glides", "travels", "goes")
WHERE = {
    "left": ("left", "to the left", "leftwards", "towards the left side"),
    "right": ("right", "to the right", "rightwards", "towards the right side"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
OTHER_MOTIONS = {
    "circle": ("moves in a circle", "goes round in a circle", "circles around"),
    "growing": ("grows", "gets bigger", "becomes larger"),
    "shrinking": ("shrinks", "gets smaller", "becomes smaller"),
    "spinning": ("spins", "rotates", "turns around itself"),
    "still": ("stays still", "does not move", "rests in its place"),
}
RELATIONS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "beside": ("beside", "next to"),
    "between": ("between",),
}
NUMBERS = ("one", "two", "three")


def motion_phrase(motion: str, rng: np.random.Generator) -> str:
    if motion in DIRECTIONS:
        return f"{rng.choice(GO)} {rng.choice(WHERE[motion])}"
    return str(rng.choice(OTHER_MOTIONS[motion]))


def name(thing: Thing, article: str = "a", color: bool = True, kind: bool = True) -> str:
    words = " ".join([thing.color] * color + [thing.kind if kind else "thing"])
    return f"{'an' if article == 'a' and words[0] in 'aeiou' else article} {words}"


def _others(scene: Scene, color: bool, kind: bool = True) -> str:
    return " and ".join(name(t, color=color, kind=kind) for t in scene.things[1:])


def full_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A complete caption: kind, color, motion, relation and the other things."""
    start = rng.choice(["", "", "in this video ", "here ", "we see how "])
    text = f"{start}{name(scene.main)} {motion_phrase(scene.main.motion, rng)}"
    if scene.relation:
        text += f" {rng.choice(RELATIONS[scene.relation])} {_others(scene, color=True)}"
    return text


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a training clip: full, without colors, only the motion, short, or counting."""
    main = scene.main
    style = rng.choice(
        ["full", "plain", "motion", "short", "count"], p=[0.45, 0.2, 0.07, 0.23, 0.05]
    )
    if style == "full":
        return full_caption(scene, rng)
    if style == "plain":
        text = f"{name(main, str(rng.choice(['a', 'the'])), color=False)} {motion_phrase(main.motion, rng)}"
        if scene.relation and rng.random() < 0.7:
            text += f" {rng.choice(RELATIONS[scene.relation])} {_others(scene, color=False)}"
        return text
    if style == "motion":
        subject = f"the {main.color} one" if len(scene.things) > 1 or rng.random() < 0.3 else "it"
        return f"{subject} {motion_phrase(main.motion, rng)}"
    if style == "short":
        what = rng.choice(["video", "video footage", "footage", "portrait", "clip"])
        return f"a {what} of {name(main, str(rng.choice(['a', 'the', 'one'])), color=rng.random() < 0.3)}"
    return _count(scene, rng)


def lesson_caption(scene: Scene, rng: np.random.Generator) -> str:
    return f"{rng.choice(['it', 'it', 'something'])} {motion_phrase(scene.main.motion, rng)}"


def still_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a still image, which has no motion: kinds and colors, or only one of the two, or
    counting.

    Kinds and colors are each named alone: a model that tells the images apart by one of them may
    never begin to learn the other.
    """
    style = rng.choice(["full", "kind", "color", "count"], p=[0.27, 0.5, 0.09, 0.14])
    if style == "count":
        return _count(scene, rng)
    color, kind = bool(style != "kind"), bool(style != "color")
    start = rng.choice(["a picture of", "a photo of", "a good picture of", "here is", "we see"])
    text = f"{start} {name(scene.main, color=color, kind=kind)}"
    if scene.relation and rng.random() < 0.8:
        text += f" {rng.choice(RELATIONS[scene.relation])} {_others(scene, color, kind)}"
    return text


def _count(scene: Scene, rng: np.random.Generator) -> str:
    count = len(scene.things)
    things = f"{NUMBERS[count - 1]} {rng.choice(['thing', 'shape'])}{'s' if count > 1 else ''}"
    if rng.random() < 0.3:
        return f"there {'are' if count > 1 else 'is'} {things}"
    listed = " and ".join(name(t, color=rng.random() < 0.6) for t in scene.things)
    return f"{things}, {listed}"


def questions(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
    """One question of each applicable type: what, color, how many, where to."""
    main, count = scene.main, len(scene.things)
    moving = motion_phrase(main.motion, rng)
    # If the main thing is still, so are the others: the question uses its color.
    what = f"what is the {main.color} thing?"
    if main.motion != "still" and rng.random() < 0.5:
        what = f"what {moving}?"
    things, verb = rng.choice(["things", "shapes"]), rng.choice(["are there", "do we see"])
    rows = [
        ("what", what, main.kind),
        ("color", f"{rng.choice(['what', 'which'])} color is the {main.kind}?", main.color),
        ("how_many", f"how many {things} {verb}?", NUMBERS[count - 1]),
    ]
    if main.motion in DIRECTIONS:
        subject = name(main, "the", color=bool(rng.random() < 0.5))
        rows.append(
            (
                "where_to",
                f"where does {subject} {rng.choice(['go', 'move', 'slide'])}?",
                main.motion,
            )
        )
    return [
        {"question": str(question), "answer": answer, "type": kind}
        for kind, question, answer in rows
    ]
