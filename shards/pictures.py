"""Pictures for inspection: frames with captions, pseudo-labels on their crops (the paper's Figure
3), retrieval."""

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.sampling import segment_starts

TILE = 176  # pixels of a frame in a picture
GAP = 4  # pixels between tiles
MAX_CHARACTERS = 1000  # wrapping 400,000 characters takes 18 s
MAX_LINES = 8
LINE_HEIGHT = 17  # pixels
INK = (25, 25, 28)
PAPER = (255, 255, 255)
GREEN = (30, 150, 70)
RED = (205, 50, 45)


def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def tile(frame: np.ndarray, border: tuple[int, int, int] | None = None) -> Image.Image:
    """Draw a frame (H, W, 3) uint8 as a tile, with an optional colored border."""
    image = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BICUBIC)
    if border:
        last = TILE - 1
        ImageDraw.Draw(image).rectangle([0, 0, last, last], outline=border, width=5)
    return image


def strip(tiles: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """Draw tiles side by side, with wrapped texts below; texts alone are as wide as one tile."""
    width = max(len(tiles), 1) * (TILE + GAP)
    lines = []
    for text in texts:
        lines += textwrap.wrap(
            text[:MAX_CHARACTERS],
            width // 7,  # a character takes about 7 pixels
            max_lines=MAX_LINES,
            placeholder=" ...",
        )

    height = TILE + LINE_HEIGHT * len(lines) + 20
    image = Image.new("RGB", (width, height), PAPER)
    for i, picture in enumerate(tiles):
        image.paste(picture, (i * (TILE + GAP), 0))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((2, TILE + 6 + LINE_HEIGHT * i), line, INK, font())
    return image


def sheet(rows: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Stack strips in columns."""
    width = max(row.width for row in rows) + 12
    rows_per_column = -(-len(rows) // columns)  # rounded up
    starts = range(0, len(rows), rows_per_column)
    stacks = [rows[start : start + rows_per_column] for start in starts]
    height = max(sum(row.height for row in stack) for stack in stacks)

    image = Image.new("RGB", (width * columns, height), PAPER)
    for column, stack in enumerate(stacks):
        top = 0
        for row in stack:
            image.paste(row, (column * width, top))
            top += row.height
    return image


def sample_strips(reader: ShardReader, count: int) -> list[Image.Image]:
    """Draw evenly spaced samples of a corpus, each as four frames with its texts. Corrupt samples
    are left out."""
    rows = []
    for sample_index in segment_starts(len(reader), min(count, len(reader))):
        try:
            sample = reader[sample_index]
            frame_count = 4 if len(sample) > 1 else 1
            frames = sample.frames(segment_starts(len(sample), frame_count))
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
    shown: Collection[str] | None,
) -> Image.Image:
    """Draw a crop with its entities, as in Figure 3: the frame outside of it is darkened.

    Args:
        frame: (H, W, 3) uint8.
        box: Left, top, width and height of the crop, as fractions of the frame.
        entities: With their probabilities, best first.
        kept: Whether the pseudo-label passed the threshold.
        shown: The entities that the crop shows, if this is known.
    """
    texts = []
    for name, probability in entities:
        mark = " (shown)" if shown and name in shown else ""
        texts.append(f"{probability:.2f} {name}{mark}")
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
    return sheet(rows, columns=2 if len(rows) > 3 else 1)
