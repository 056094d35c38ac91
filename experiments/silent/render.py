"""Stills of four things, of which the captions name only some: the corpora of the silent study.

`first` and `second` have half of the training stills each: the captions of `first` name `named`
things, those of `second` all four; the start of all runs learns from them. `test` has captions that
name all four things, because a query with one would fit many stills. The manifest's columns go into
each sample's metadata: `things` with their kinds and places, as fractions of the frame.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from alpro.shards.clip import Clip
from alpro.shards.sample.draw import SPRITE, background, draw_shape, paste
from alpro.shards.sample.scene import THING_KINDS, Thing
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter

SHOWN = (
    "apple basket bell bird boat book bottle bowl bread brush bucket button cake camera candle "
    "car card cat chair clock coat cup dog door drum duck egg fan flag fork glove hammer hat horse "
    "key kite knife ladder lamp leaf map mirror mouse pan pen plate rope shoe"
)
NOUNS = tuple(SHOWN.split())
NOT_SHOWN = (
    "actor airport beach bridge castle church city coach cook country dancer desert doctor driver "
    "family farmer forest friend garden girl guard harbor hotel island judge king kitchen lake "
    "library market meadow museum nurse office palace park pilot poet queen river road sailor "
    "school singer station street student teacher tower village"
)
ABSENT = tuple(NOT_SHOWN.split())
HUES = (0.0, 0.14, 0.36, 0.62)  # red, yellow, green, blue
# A kind is a shape in a range of hues; neither of the two alone tells what it is.
KINDS = dict(zip(NOUNS, product(THING_KINDS, HUES), strict=True))
PLACES = {
    "upper left": (0.25, 0.25),
    "upper right": (0.75, 0.25),
    "lower left": (0.25, 0.75),
    "lower right": (0.75, 0.75),
}
STYLES = ("flat", "shaded", "striped")
NEW_STYLE = "outlined"  # only in test
STARTS = (
    "",
    "a photo of ",
    "a picture of ",
    "a good picture of ",
    "a bright photo of ",
    "here is ",
)
CORPORA = ("first", "second", "test")
CAPTIONS = 5  # of a training still
SHARD_SIZE = 500
QUALITY = 95  # of JPEG
ABSENT_SHARE = 0.2  # of the captions that name a noun that no picture shows


@dataclass(frozen=True)
class Drawn:
    """How a thing is drawn: color (RGB), proportions (width, height, of at most 1), style."""

    color: tuple[int, int, int]
    width: float
    height: float
    style: str


@dataclass(frozen=True)
class Still:
    """Four things in the order of PLACES. Captions name those at the places `named`."""

    things: tuple[Thing, ...]
    drawn: tuple[Drawn, ...]
    named: tuple[int, ...]
    background: int


def draw_still(rng: np.random.Generator, named: int, style: str = "") -> Still:
    """A random still. style: of all things; empty: a random one of STYLES for each."""
    things = []
    drawn = []
    kinds = [str(kind) for kind in rng.choice(NOUNS, 4, replace=False)]
    for kind, place in zip(kinds, PLACES.values(), strict=True):
        x, y = place + rng.uniform(-0.05, 0.05, 2)
        radius = rng.uniform(0.14, 0.2)
        angle = rng.uniform(-25, 25)
        things.append(
            Thing(kind, "", "still", float(x), float(y), float(radius), angle=float(angle))
        )
        drawn.append(draw_look(rng, kind, style))

    chosen = sorted(rng.choice(4, named, replace=False).tolist())
    return Still(tuple(things), tuple(drawn), tuple(chosen), int(rng.integers(2**31)))


def draw_look(rng: np.random.Generator, kind: str, style: str) -> Drawn:
    """How a thing of a kind is drawn: a color near its hue, proportions, a style."""
    hue = (KINDS[kind][1] + rng.uniform(-0.05, 0.05)) % 1
    saturation = rng.uniform(0.6, 1)
    value = rng.uniform(0.65, 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    color = round(255 * red), round(255 * green), round(255 * blue)
    width, height = rng.permutation([1.0, rng.uniform(0.7, 1)])
    return Drawn(color, float(width), float(height), style or str(rng.choice(STYLES)))


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
    rgba = draw_shape(shape, drawn.color)
    light = light_of(rgba, drawn.style)
    colors = np.clip(rgba[..., :3] * light[..., None], 0, 255)
    shaded = np.concatenate([colors, rgba[..., 3:]], axis=2)

    # Squeezed to its proportions, in the middle of a transparent square.
    width = max(1, round(SPRITE * drawn.width))
    height = max(1, round(SPRITE * drawn.height))
    whole = Image.fromarray(shaded.astype(np.uint8))
    squeezed = whole.resize((width, height), Image.Resampling.BILINEAR)
    out = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    out.paste(squeezed, ((SPRITE - width) // 2, (SPRITE - height) // 2))
    return np.asarray(out)


def light_of(rgba: np.ndarray, style: str) -> np.ndarray:
    """The factor (SPRITE, SPRITE) of the brightness of a thing in a style."""
    down, across = np.mgrid[0:SPRITE, 0:SPRITE]
    if style == "shaded":
        return 1.1 - 0.7 * down / SPRITE
    if style == "striped":
        return np.where((across + down) % 16 < 8, 1.0, 0.6)
    if style == NEW_STYLE:  # the inside is dark, the edge is bright
        inside = Image.fromarray(rgba[..., 3]).filter(ImageFilter.MinFilter(9))
        return np.where(np.asarray(inside) > 128, 0.4, 1.1)
    return np.ones((SPRITE, SPRITE), np.float32)


def caption(still: Still, rng: np.random.Generator) -> str:
    """A caption of the things at `named`, in random order, half of the captions with their places.

    Some also name a noun that no picture shows.
    """
    places = [*PLACES]
    with_places = rng.random() < 0.5
    names = []
    for number in rng.permutation(still.named):
        place = f" in the {places[number]}" if with_places else ""
        names.append(article(still.things[number].kind) + place)

    text = str(rng.choice(STARTS)) + " and ".join(names)
    if rng.random() < ABSENT_SHARE:
        text += f" for the {rng.choice(ABSENT)}"
    return text


def full_caption(still: Still) -> str:
    """All things with their places."""
    names = zip(still.things, PLACES, strict=True)
    return " and ".join(f"{article(thing.kind)} in the {place}" for thing, place in names)


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def items(
    stills: int, test: int, new_style: int, named: int, seed: int = 0
) -> Iterator[tuple[str, Row, Still]]:
    """The corpus, the row and the still of every item.

    `stills` training stills, half in `first` and half in `second`; `test` test stills, and
    `new_style` more in a style that training does not show.
    """
    rng = np.random.default_rng([seed, 5])
    for number in range(stills):
        corpus, count = ("first", named) if number % 2 else ("second", 4)
        still = draw_still(rng, count)
        captions = [caption(still, rng) for _ in range(CAPTIONS)]
        yield corpus, row_of(f"still-{number:05d}", "train", still, captions), still

    rng = np.random.default_rng([seed, 6])  # the same for every number of named things
    for style, count in (("", test), (NEW_STYLE, new_style)):
        for number in range(count):
            still = draw_still(rng, 4, style)
            name = f"{style or 'test'}-{number:05d}"
            yield "test", row_of(name, "test", still, [full_caption(still)]), still


def row_of(name: str, split: str, still: Still, captions: list[str]) -> Row:
    """The row of a manifest, with the things and the named ones in `meta`."""
    things = [
        {"kind": thing.kind, "x": thing.x, "y": thing.y, "radius": thing.radius}
        for thing in still.things
    ]
    named = [still.things[number].kind for number in still.named]
    return Row.model_validate(
        {
            "id": name,
            "path": f"{name}.jpg",
            "kind": "image",
            "split": split,
            "group": name,
            "captions": tuple(dict.fromkeys(captions)),
            "meta": {"things": things, "named": named},
        }
    )


def write_shards(
    out: Path, stills: int, test: int, new_style: int, named: int, size: int = 96, seed: int = 0
) -> None:
    """Writes the shards of CORPORA to out/<corpus>/, and all kinds to out/kinds.txt."""
    rows: dict[str, list[tuple[Row, Still]]] = {corpus: [] for corpus in CORPORA}
    for corpus, row, still in items(stills, test, new_style, named, seed):
        rows[corpus].append((row, still))

    for corpus, of_corpus in rows.items():
        (out / corpus).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(of_corpus), SHARD_SIZE):
            file = out / corpus / f"{start // SHARD_SIZE:06d}.tar"
            with ShardWriter(file, QUALITY) as writer:
                for row, still in of_corpus[start : start + SHARD_SIZE]:
                    writer.write(row, Clip(picture(still, size)[None], 0.0, size, size))

    (out / "kinds.txt").write_text("\n".join((*NOUNS, *ABSENT)) + "\n")
