"""Draws the scenes of the sample corpus: sprites with distinctive marks on dark, weakly textured
backgrounds."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from alpro.shards.sample.scene import COLORS, WORDS, Scene, Thing

SPRITE = 64  # pixels of a sprite's side; a thing of radius 1 fills it
OVERSAMPLE = 4
MARKS = {name: tuple(color) for name, color in WORDS["marks"].items()}


def render(scene: Scene, frames: int, size: int) -> np.ndarray:
    """Draw the scene as (frames, size, size, 3) uint8."""
    rng = np.random.default_rng(scene.background)
    ground = background(rng, size)
    for thing in reversed(scene.things[1:]):  # they stay still
        paste(ground, thing, time=0.0)

    clip = np.empty((frames, size, size, 3), np.uint8)
    last = max(1, frames - 1)
    for i in range(frames):
        picture = ground.copy()
        paste(picture, scene.main, time=i / last)
        camera_noise = rng.standard_normal((size, size, 1), np.float32)
        picture += 2.5 * camera_noise
        clip[i] = np.clip(picture, 0, 255)
    return clip


def paste(picture: np.ndarray, thing: Thing, time: float) -> None:
    """Draw a thing at a time of the clip, 0 to 1, onto a picture (S, S, 3) float32, in place."""
    size = len(picture)
    x, y, radius, angle = thing.pose(time)

    # The square of the picture that the rotated sprite can reach, in pixels.
    center = np.array([x, y]) * size
    reach = np.sqrt(2) * radius * size + 1
    left, top = np.maximum(0, center - reach).astype(int)
    right, bottom = np.minimum(size, center + reach + 1).astype(int)

    # Pillow's matrix leads from a pixel of this square to one of the sprite: it rotates about the
    # sprite's center.
    scale = SPRITE / (2 * radius * size)  # sprite pixels per picture pixel
    radians = np.radians(angle)
    cos = np.cos(radians) * scale
    sin = np.sin(radians) * scale
    center_x, center_y = center - (left, top)
    offset_x = SPRITE / 2 - cos * center_x - sin * center_y
    offset_y = SPRITE / 2 + sin * center_x - cos * center_y

    image = Image.fromarray(sprite(thing.kind, thing.color)).transform(
        size=(right - left, bottom - top),
        method=Image.Transform.AFFINE,
        data=(cos, sin, offset_x, -sin, cos, offset_y),
        resample=Image.Resampling.BILINEAR,
    )
    rgba = np.asarray(image, np.float32)  # premultiplied
    color = rgba[..., :3]
    opacity = rgba[..., 3:] / 255
    # A view: this changes the picture.
    square = picture[top:bottom, left:right]
    square *= 1 - opacity
    square += color


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a dark tint with weak, smooth texture: (size, size, 3) float32."""
    tint = rng.uniform(18, 55, 3)
    noise = rng.random((6, 6)) * 255
    coarse = Image.fromarray(noise.astype(np.uint8))
    resized = coarse.resize((size, size), Image.Resampling.BICUBIC)

    smooth = np.asarray(resized, np.float32)[..., None] / 255
    contrast = rng.uniform(6, 22)
    texture = (smooth - 0.5) * contrast
    return (tint + texture).astype(np.float32)


@lru_cache(maxsize=256)
def sprite(kind: str, color: str) -> np.ndarray:
    """Draw a thing as premultiplied RGBA (SPRITE, SPRITE, 4) uint8."""
    side = SPRITE * OVERSAMPLE
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    fills = MARKS | {"thing": COLORS[color]}
    for shape, fill, *coordinates in WORDS["drawings"][kind]:
        # From -1 to 1, where 0.47 instead of 0.5 leaves a margin, to pixels.
        corners = [(0.5 + 0.47 * value) * side for value in coordinates]
        getattr(draw, shape)(corners, fill=fills[fill])

    # Premultiplied before it is averaged: otherwise the edge would take on transparent black.
    rgba = np.asarray(image, np.float32)
    opacity = rgba[..., 3:] / 255
    rgba[..., :3] *= opacity
    blocks = rgba.reshape(SPRITE, OVERSAMPLE, SPRITE, OVERSAMPLE, 4)
    small = blocks.mean(axis=(1, 3))
    return small.round().astype(np.uint8)
