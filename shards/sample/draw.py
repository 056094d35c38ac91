"""Draws the scenes of the sample corpus: sprites with distinctive marks on dark, weakly textured backgrounds."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from alpro.shards.sample.scene import COLORS, Scene, Thing

SPRITE = 64  # pixels of a sprite's side; a thing of radius 1 fills it
OVERSAMPLE = 4
# Colors of the marks, which differ from the named colors.
WHITE, BLACK, GREY, BROWN, CREAM = (250, 250, 250), (15, 15, 15), (130, 130, 130), (115, 70, 35), (235, 215, 165)


def render(scene: Scene, frames: int, size: int) -> np.ndarray:
    """The scene as (frames, size, size, 3) uint8."""
    rng = np.random.default_rng(scene.background)
    ground = background(rng, size)
    for thing in reversed(scene.things[1:]):  # they stay still
        paste(ground, thing, 0.0)
    out = np.empty((frames, size, size, 3), np.uint8)
    for i in range(frames):
        picture = ground.copy()
        paste(picture, scene.main, i / max(1, frames - 1))
        picture += 2.5 * rng.standard_normal((size, size, 1), np.float32)
        out[i] = np.clip(picture, 0, 255)
    return out


def paste(picture: np.ndarray, thing: Thing, time: float, drawn: np.ndarray | None = None) -> None:
    """Draws a thing at a time of the clip, 0 to 1, onto a picture (S, S, 3) float32, in place. drawn: another sprite
    than that of its kind and color."""
    size = len(picture)
    x, y, radius, angle = thing.pose(time)
    reach = np.sqrt(2) * radius * size + 1  # of the rotated sprite's corners, pixels
    left, top = (int(max(0, at * size - reach)) for at in (x, y))
    right, bottom = (int(min(size, at * size + reach + 1)) for at in (x, y))
    if left >= right or top >= bottom:
        return
    scale = SPRITE / (2 * radius * size)  # sprite pixels per frame pixel
    cos, sin = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    across, down = x * size - left, y * size - top
    matrix = (cos, sin, SPRITE / 2 - cos * across - sin * down, -sin, cos, SPRITE / 2 + sin * across - cos * down)
    image = Image.fromarray(sprite(thing.kind, thing.color) if drawn is None else drawn).transform(
        (right - left, bottom - top), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    rgba = np.asarray(image, np.float32)  # premultiplied
    part = picture[top:bottom, left:right]
    part *= 1 - rgba[..., 3:] / 255
    part += rgba[..., :3]


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A dark tint with weak, smooth texture: (size, size, 3) float32."""
    tint = rng.uniform(18, 55, 3)
    coarse = Image.fromarray((rng.random((6, 6)) * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    texture = (np.asarray(coarse, np.float32)[..., None] / 255 - 0.5) * rng.uniform(6, 22)
    return (tint + texture).astype(np.float32)


@lru_cache(maxsize=256)
def sprite(kind: str, color: str) -> np.ndarray:
    """A thing as premultiplied RGBA (SPRITE, SPRITE, 4) uint8."""
    return draw_shape(kind, COLORS[color])


def draw_shape(kind: str, color: tuple[int, int, int]) -> np.ndarray:
    """A thing in any color (RGB), as `sprite`."""
    side = SPRITE * OVERSAMPLE
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    _SHAPES[kind](_Pen(ImageDraw.Draw(image), side), color)
    rgba = np.asarray(image, np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    small = rgba.reshape(SPRITE, OVERSAMPLE, SPRITE, OVERSAMPLE, 4).mean(axis=(1, 3))
    return small.round().astype(np.uint8)


class _Pen:
    """Draws in coordinates from -1 to 1, y downwards, with a margin."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int):
        self.draw, self.side = draw, side

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (0.5 + 0.47 * x) * self.side, (0.5 + 0.47 * y) * self.side

    def disc(self, fill, x=0.0, y=0.0, rx=1.0, ry=None):
        ry = rx if ry is None else ry
        self.draw.ellipse([self.at(x - rx, y - ry), self.at(x + rx, y + ry)], fill=fill)

    def box(self, fill, left, top, right, bottom):
        self.draw.rectangle([self.at(left, top), self.at(right, bottom)], fill=fill)

    def polygon(self, fill, *points):
        self.draw.polygon([self.at(*p) for p in points], fill=fill)


def _ball(pen, color):
    pen.disc(color)
    pen.box(WHITE, -0.93, -0.28, 0.93, 0.28)


def _box(pen, color):
    pen.box(color, -0.85, -0.85, 0.85, 0.85)
    pen.box(BLACK, -0.2, -0.85, 0.2, 0.85)
    pen.box(BLACK, -0.85, -0.2, 0.85, 0.2)


def _triangle(pen, color):
    pen.polygon(color, (0, -1), (0.95, 0.75), (-0.95, 0.75))
    pen.polygon(GREY, (0, 0.75), (0.5, -0.1), (-0.5, -0.1))


def _star(pen, color):
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)
    pen.polygon(color, *((r * np.cos(a), r * np.sin(a)) for a, r in zip(angles, radii, strict=True)))
    pen.disc(CREAM, rx=0.42)


def _heart(pen, color):
    pen.disc(color, -0.47, -0.35, 0.52)
    pen.disc(color, 0.47, -0.35, 0.52)
    pen.polygon(color, (-0.93, -0.1), (0.93, -0.1), (0, 0.98))
    pen.disc(WHITE, -0.45, -0.36, 0.38)


def _cross(pen, color):
    pen.box(color, -0.35, -0.95, 0.35, 0.95)
    pen.box(color, -0.95, -0.35, 0.95, 0.35)
    pen.box(BROWN, -0.4, -0.4, 0.4, 0.4)


def _ring(pen, color):
    pen.disc(color)
    pen.disc((0, 0, 0, 0), rx=0.5)
    for angle in np.arange(4) * np.pi / 2:
        pen.disc(GREY, 0.75 * np.cos(angle), 0.75 * np.sin(angle), 0.24)


def _moon(pen, color):
    pen.disc(color)
    pen.disc((0, 0, 0, 0), 0.45, -0.15, 0.8)
    pen.disc(CREAM, -0.55, 0.3, 0.3)


def _flower(pen, color):
    for angle in np.arange(6) * np.pi / 3:
        pen.disc(color, 0.62 * np.cos(angle), 0.62 * np.sin(angle), 0.38)
    pen.disc(WHITE, rx=0.46)
    pen.disc(BLACK, rx=0.22)


def _fish(pen, color):
    pen.disc(color, -0.18, 0, 0.75, 0.5)
    pen.polygon(color, (0.35, 0), (1, -0.6), (1, 0.6))
    pen.disc(WHITE, -0.58, -0.1, 0.2)
    pen.box(BLACK, -0.22, -0.47, 0.12, 0.47)


def _house(pen, color):
    pen.box(color, -0.75, -0.15, 0.75, 0.95)
    pen.polygon(BROWN, (0, -1), (0.98, -0.12), (-0.98, -0.12))
    pen.box(CREAM, -0.28, 0.25, 0.28, 0.95)


def _tree(pen, color):
    pen.box(BROWN, -0.28, 0.3, 0.28, 1)
    pen.polygon(color, (0, -1), (0.62, -0.2), (-0.62, -0.2))
    pen.polygon(color, (0, -0.6), (0.85, 0.42), (-0.85, 0.42))


_SHAPES = {"ball": _ball, "box": _box, "triangle": _triangle, "star": _star, "heart": _heart, "cross": _cross}
_SHAPES |= {"ring": _ring, "moon": _moon, "flower": _flower, "fish": _fish, "house": _house, "tree": _tree}
