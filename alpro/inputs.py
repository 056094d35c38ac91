"""Checks of regions and texts for the command line, Python, the server and exported models.

In every interface, a region is (left, top, width, height) as fractions of the frame. The module
imports nothing of this package, because exported models have a copy of it.
"""

import math
from collections.abc import Sequence
from typing import Any

# Left, top, width and height; also as a text, such as "0.5,0,0.5,1".
Box = Sequence[float] | str
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
ROUNDING = 1e-3  # tolerance by which left + width, or top + height, may exceed 1


def region_to_patches(box: Box, grid: int) -> tuple[int, int, int, int]:
    """Return the patches of a region, at least one.

    Args:
        grid: Number of patches along each side of the frame.

    Returns:
        The left column, the top row, the number of columns and the number of rows.

    Raises:
        ValueError: If it is not a region inside the frame.
    """
    sides = box.split(",") if isinstance(box, str) else box
    try:
        left, top, width, height = map(float, sides)
    except (TypeError, ValueError):
        left = top = width = height = math.nan

    # All comparisons with NaN are false, so it is refused.
    has_area = left >= 0 and top >= 0 and width > 0 and height > 0
    if not (has_area and max(left + width, top + height) <= 1 + ROUNDING):
        raise ValueError(
            f"box {box} is not a region of the frame: it takes left, top, width and height as "
            "fractions, such as 0.5, 0, 0.5, 1"
        )

    column = min(grid - 1, round(left * grid))
    row = min(grid - 1, round(top * grid))
    # Both ends are rounded, so the last patch may lie outside of the grid.
    columns = min(grid - column, max(1, round(width * grid)))
    rows = min(grid - row, max(1, round(height * grid)))
    return column, row, columns, rows


def check_text(text: Any, what: str = "text") -> str:
    """Return a text. Raise ValueError if it is empty, not a str, or not valid Unicode.

    Args:
        what: Name of the text in messages.
    """
    if not isinstance(text, str):
        raise ValueError(f"a {what} is a str, not {text!r}")
    if text.encode(errors="replace").decode() != text:
        raise ValueError(f"the {what} {text!r} is not UTF-8")
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    return text
