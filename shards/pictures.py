"""Pictures for inspection: frames with captions, pseudo-labels on their crops (the paper's Figure
3), retrieval."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.sampling import segment_starts

TILE = 176  # pixels of a frame in a picture
GAP = 4  # pixels between tiles
MAX_CHARACTERS = 1000  # wrapping 400,000 characters takes 18 s
MAX_LINES = 8
LINE_HEIGHT = 17  # pixels
FONT_SIZE = 13
INK = (25, 25, 28)
PAPER = (255, 255, 255)
GREEN = (30, 150, 70)
RED = (205, 50, 45)


def tile(frame: np.ndarray, border: tuple[int, int, int] | None = None) -> Image.Image:
    """Draw a frame (H, W, 3) uint8 as a tile, with an optional colored border."""
    image = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BICUBIC)
    if border:
        image = ImageOps.expand(ImageOps.crop(image, 5), 5, border)
    return image


def strip(tiles: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """Draw tiles side by side, with wrapped texts below; texts alone are as wide as one tile."""
    width = max(len(tiles), 1) * (TILE + GAP)
    wrapper = textwrap.TextWrapper(
        width // 7,  # a character takes about 7 pixels
        max_lines=MAX_LINES,
        placeholder=" ...",
    )
    text = "\n".join(wrapper.fill(text[:MAX_CHARACTERS]) for text in texts)

    line_count = text.count("\n") + 1
    image = Image.new("RGB", (width, TILE + LINE_HEIGHT * line_count + 20), PAPER)
    for i, picture in enumerate(tiles):
        image.paste(picture, (i * (TILE + GAP), 0))
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(image).text((2, TILE + 6), text, INK, font)
    return image


def sheet(strips: Sequence[Image.Image], columns: int) -> Image.Image:
    """Draw strips in rows of `columns`, in cells of equal size."""
    width = max(strip.width for strip in strips) + 12
    height = max(strip.height for strip in strips)
    row_count = -(-len(strips) // columns)  # rounded up
    image = Image.new("RGB", (width * columns, height * row_count), PAPER)
    for i, picture in enumerate(strips):
        row, column = divmod(i, columns)
        image.paste(picture, (column * width, row * height))
    return image


def sample_strips(reader: ShardReader, count: int) -> list[Image.Image]:
    """Draw evenly spaced samples of a corpus, each as four frames with its texts. Corrupt samples
    are left out."""
    rows = []
    for sample_index in segment_starts(len(reader), min(count, len(reader))):
        try:
            sample = reader[sample_index]
            frames = sample.frames(segment_starts(len(sample), min(4, len(sample))))
        except Unreadable:
            continue

        metadata = sample.metadata
        texts = [f"{metadata['id']} ({metadata['split']})"]
        texts += metadata["captions"][:2]
        for question in metadata["questions"][:2]:
            texts.append(f"{question['question']} {question['answer']}")

        rows.append(strip([tile(frame) for frame in frames], texts))
    return rows


def draw_entities(
    frame: np.ndarray,
    box: Sequence[float],
    entities: Sequence[tuple[str, float]],
    caption: str,
    kept: bool,
) -> Image.Image:
    """Draw a crop with its entities, as in Figure 3: the frame outside of it is darkened.

    Args:
        frame: (H, W, 3) uint8.
        box: Left, top, width and height of the crop, as fractions of the frame.
        entities: With their probabilities, best first.
        kept: Whether the pseudo-label passed the threshold.
    """
    texts = [f"{probability:.2f} {name}" for name, probability in entities]
    texts.append("kept" if kept else "dropped: below the threshold")
    texts.append(caption)

    rows, columns = frame.shape[:2]
    left, top, width, height = box
    inside = np.s_[
        round(rows * top) : round(rows * (top + height)),
        round(columns * left) : round(columns * (left + width)),
    ]
    darkened = (0.35 * frame).astype(np.uint8)
    darkened[inside] = frame[inside]
    return strip([tile(darkened)], texts)


def retrieval_picture(
    queries: Sequence[tuple[str, str, Sequence[tuple[np.ndarray, str, bool]]]],
) -> Image.Image:
    """Draw queries (text, note, results), each result (frame, note, correct), best first."""
    rows = []
    for text, note, results in queries:
        tiles = [
            tile(frame, GREEN if correct else RED) for frame, _, correct in results
        ]
        labels = "  |  ".join(label for _, label, _ in results)
        rows.append(strip(tiles, [f'"{text}"', note, labels]))
    return sheet(rows, columns=2)
