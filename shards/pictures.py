"""Pictures for inspection: frames with captions, pseudo-labels on their crops (the paper's Figure
3), retrieval."""

import textwrap
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alpro.shards.reader import ShardReader, Unreadable
from alpro.shards.sampling import segment_starts

TILE = 176  # pixels of a frame in a picture
MAX_CHARACTERS = 1000  # maximum length of a text in a picture
MAX_LINES = 8
LINE_HEIGHT = 17  # pixels
INK = (25, 25, 28)
PAPER = (255, 255, 255)
FAINT = (120, 120, 128)
GREEN = (30, 150, 70)
RED = (205, 50, 45)
AMBER = (235, 160, 20)


def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def tile(frame: np.ndarray, border: tuple[int, int, int] | None = None) -> Image.Image:
    """Draw a frame (H, W, 3) uint8 as a tile, with an optional colored border."""
    image = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BICUBIC)
    if border:
        last = TILE - 1
        ImageDraw.Draw(image).rectangle([0, 0, last, last], outline=border, width=5)
    return image


def strip(
    tiles: Sequence[Image.Image],
    lines: Sequence[tuple[str, tuple[int, int, int]]],
    width: int,
) -> Image.Image:
    """Draw tiles side by side, with colored lines of text below, wrapped at `width` pixels."""
    wrapped = []
    characters_per_line = max(20, width // 7)  # a character takes about 7 pixels
    for text, color in lines:
        # Truncated before it is wrapped, which takes 18 s for 400,000 characters.
        beginning = text[:MAX_CHARACTERS]
        shown = textwrap.wrap(beginning, characters_per_line) or [""]
        wrapped += [(line, color) for line in shown[:MAX_LINES]]
        is_cut = len(text) > MAX_CHARACTERS or len(shown) > MAX_LINES
        if is_cut:
            wrapped.append(("...", FAINT))

    text_height = LINE_HEIGHT * len(wrapped)
    height = TILE + 8 + text_height + 12
    image = Image.new("RGB", (width, height), PAPER)
    for i, picture in enumerate(tiles):
        left = i * (TILE + 4)
        image.paste(picture, (left, 0))

    draw = ImageDraw.Draw(image)
    for i, (text, color) in enumerate(wrapped):
        top = TILE + 6 + LINE_HEIGHT * i
        draw.text(
            xy=(2, top),
            text=text,
            fill=color,
            font=font(),
        )
    return image


def sheet(rows: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Stack strips in columns."""
    width = max(row.width for row in rows) + 12
    rows_per_column = -(-len(rows) // columns)  # rounded up
    stacks = []
    heights = []
    for i in range(columns):
        first = i * rows_per_column
        stack = rows[first : first + rows_per_column]
        stacks.append(stack)
        heights.append(sum(row.height for row in stack))

    image = Image.new("RGB", (width * columns, max(heights)), PAPER)
    for i, stack in enumerate(stacks):
        y = 0
        for row in stack:
            image.paste(row, (i * width, y))
            y += row.height
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

        lines = [(text, INK) for text in texts]
        tiles = [tile(frame) for frame in frames]
        width = len(frames) * (TILE + 4)
        rows.append(strip(tiles, lines, width))
    return rows


def draw_entities(
    frame: np.ndarray,
    box: Sequence[float],
    entities: Sequence[tuple[str, float]],
    caption: str,
    kept: bool | None = None,
    shown: Collection[str] | None = None,
) -> Image.Image:
    """Draw a crop with its entities, as in Figure 3: the frame outside of it is darkened.

    Args:
        frame: (H, W, 3) uint8.
        box: Left, top, width and height of the crop, as fractions of the frame.
        entities: With their probabilities, best first.
        kept: Whether the pseudo-label passed the threshold. None: not applicable.
        shown: The entities of the crop, which are drawn in green and the others in red. None:
            unknown.
    """
    image = crop_tile(frame, box)
    lines = []
    for name, probability in entities:
        color = INK
        if shown is not None:
            color = GREEN if name in shown else RED
        lines.append((f"{name} ({probability:.2f})", color))
    if kept:
        lines.append(("kept", INK))
    elif kept is not None:
        lines.append(("dropped: below the threshold", FAINT))
    lines.append((caption, FAINT))
    return strip([image], lines, TILE + 4)


def crop_tile(frame: np.ndarray, box: Sequence[float]) -> Image.Image:
    """Draw a frame (H, W, 3) uint8 that is darkened outside of a box (left, top, width, height as
    fractions)."""
    left, top, width, height = box
    x0 = round(TILE * left)
    y0 = round(TILE * top)
    x1 = round(TILE * (left + width))
    y1 = round(TILE * (top + height))

    image = tile(frame)
    dark = image.point(lambda value: int(0.35 * value))
    inside = image.crop((x0, y0, x1, y1))
    dark.paste(inside, (x0, y0))

    # Pillow's rectangles include their last pixel.
    outline = [x0, y0, x1 - 1, y1 - 1]
    ImageDraw.Draw(dark).rectangle(outline, outline=AMBER, width=2)
    return dark


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
        lines = [(f'"{text}"', INK), (note, FAINT), (labels, FAINT)]
        rows.append(strip(tiles, lines, len(tiles) * (TILE + 4)))
    return sheet(rows, columns=2 if len(rows) > 3 else 1)
