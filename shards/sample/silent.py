"""Stills of four things, of which the captions name only some: the corpus of the study `silent`."""

import colorsys
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageFilter

from alpro.shards.sample.draw import SPRITE, background, draw_shape, paste
from alpro.shards.sample.scene import THING_KINDS, Thing

SHOWN = (
    "apple basket bell bird boat book bottle bowl bread brush bucket button cake camera candle car card cat chair "
    "clock coat cup dog door drum duck egg fan flag fork glove hammer hat horse key kite knife ladder lamp leaf map "
    "mirror mouse pan pen plate rope shoe"
)
NOUNS = tuple(SHOWN.split())
NOT_SHOWN = (
    "actor airport beach bridge castle church city coach cook country dancer desert doctor driver family farmer "
    "forest friend garden girl guard harbor hotel island judge king kitchen lake library market meadow museum nurse "
    "office palace park pilot poet queen river road sailor school singer station street student teacher tower "
    "village"
)
ABSENT = tuple(NOT_SHOWN.split())
HUES = (0.0, 0.14, 0.36, 0.62)  # red, yellow, green, blue
# A kind is a shape in a range of hues; neither of the two alone tells what it is.
KINDS = dict(zip(NOUNS, product(THING_KINDS, HUES), strict=True))
PLACES = {"upper left": (0.25, 0.25), "upper right": (0.75, 0.25), "lower left": (0.25, 0.75)}
PLACES |= {"lower right": (0.75, 0.75)}
STYLES = ("flat", "shaded", "striped")
NEW_STYLE = "outlined"  # only in test
STARTS = ("", "a photo of ", "a picture of ", "a good picture of ", "a bright photo of ", "here is ")


@dataclass(frozen=True)
class Drawn:
    """How a thing of a kind is drawn: its color (RGB), its proportions (width, height, of at most 1), its style."""

    colour: tuple[int, int, int]
    width: float
    height: float
    style: str


@dataclass(frozen=True)
class Still:
    """Four things in four places, in the order of PLACES. Captions name the things at the places `named`."""

    things: tuple[Thing, ...]
    drawn: tuple[Drawn, ...]
    named: tuple[int, ...]
    background: int


def draw_still(rng: np.random.Generator, named: int, style: str = "", first: str = "") -> Still:
    """A random still. style: of all things; empty: a random one of STYLES for each. first: the kind of one thing."""
    kinds = [str(kind) for kind in rng.choice([noun for noun in NOUNS if noun != first], 4, replace=False)]
    if first:
        kinds[int(rng.integers(4))] = first
    things, drawn = [], []
    for kind, place in zip(kinds, PLACES.values(), strict=True):
        x, y = place + rng.uniform(-0.05, 0.05, 2)
        radius, angle = rng.uniform(0.14, 0.2), rng.uniform(-25, 25)
        things.append(Thing(kind, "", "still", float(x), float(y), float(radius), angle=float(angle)))
        hue = (KINDS[kind][1] + rng.uniform(-0.05, 0.05)) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.65, 1))
        colour = round(255 * red), round(255 * green), round(255 * blue)
        width, height = rng.permutation([1.0, rng.uniform(0.7, 1)])
        drawn.append(Drawn(colour, float(width), float(height), style or str(rng.choice(STYLES))))
    chosen = sorted(rng.choice(4, named, replace=False).tolist())
    return Still(tuple(things), tuple(drawn), tuple(chosen), int(rng.integers(2**31)))


def picture(still: Still, size: int) -> np.ndarray:
    """The still as (size, size, 3) uint8."""
    rng = np.random.default_rng(still.background)
    pixels = background(rng, size)
    for thing, drawn in zip(still.things, still.drawn, strict=True):
        paste(pixels, thing, 0.0, sprite(KINDS[thing.kind][0], drawn))
    pixels += 4 * rng.standard_normal((size, size, 1), np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def sprite(shape: str, drawn: Drawn) -> np.ndarray:
    """A thing as premultiplied RGBA (SPRITE, SPRITE, 4) uint8."""
    rgba = draw_shape(shape, drawn.colour)
    down, across = np.mgrid[0:SPRITE, 0:SPRITE]
    light = np.ones((SPRITE, SPRITE), np.float32)
    if drawn.style == "shaded":
        light = 1.1 - 0.7 * down / SPRITE
    elif drawn.style == "striped":
        light = np.where((across + down) % 16 < 8, 1.0, 0.6)
    elif drawn.style == NEW_STYLE:  # the inside is dark, the edge is bright
        inside = Image.fromarray(rgba[..., 3]).filter(ImageFilter.MinFilter(9))
        light = np.where(np.asarray(inside) > 128, 0.4, 1.1)
    shaded = np.concatenate([np.clip(rgba[..., :3] * light[..., None], 0, 255), rgba[..., 3:]], axis=2)
    sides = max(1, round(SPRITE * drawn.width)), max(1, round(SPRITE * drawn.height))
    squeezed = Image.fromarray(shaded.astype(np.uint8)).resize(sides, Image.Resampling.BILINEAR)
    out = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    out.paste(squeezed, ((SPRITE - sides[0]) // 2, (SPRITE - sides[1]) // 2))
    return np.asarray(out)


def caption(still: Still, rng: np.random.Generator) -> str:
    """A caption of the things at `named`, in random order, half of the captions with their places. Some name a noun
    that no picture shows."""
    places = [*PLACES]
    with_places = rng.random() < 0.5
    names = []
    for number in rng.permutation(still.named):
        names.append(article(still.things[number].kind) + (f" in the {places[number]}" if with_places else ""))
    text = str(rng.choice(STARTS)) + " and ".join(names)
    return f"{text} for the {rng.choice(ABSENT)}" if rng.random() < 0.2 else text


def full_caption(still: Still) -> str:
    """All things with their places."""
    names = zip(still.things, PLACES, strict=True)
    return " and ".join(f"{article(thing.kind)} in the {place}" for thing, place in names)


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def question(still: Still, number: int, kind: str) -> dict[str, str]:
    """The question about the thing of a place, of a type `kind`."""
    return {"question": f"what is in the {[*PLACES][number]}?", "answer": still.things[number].kind, "type": kind}
