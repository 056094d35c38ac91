"""Captions of the scenes of the sample corpus in plain English, and questions with answers."""

import numpy as np

from alpro.shards.sample.scene import DIRECTIONS, Scene, Thing

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
    style = rng.choice(["full", "plain", "motion", "short", "count"], p=[0.45, 0.2, 0.07, 0.23, 0.05])
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
    """A caption of a still image, which has no motion: kinds and colors, or only one of the two, or counting.

    Kinds and colors are each named alone: a model that tells the images apart by one of them may never begin to learn
    the other.
    """
    style = rng.choice(["full", "kind", "color", "count"], p=[0.33, 0.35, 0.12, 0.2])
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
        rows.append(("where_to", f"where does {subject} {rng.choice(['go', 'move', 'slide'])}?", main.motion))
    return [{"question": str(question), "answer": answer, "type": kind} for kind, question, answer in rows]
