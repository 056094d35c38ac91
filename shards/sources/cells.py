"""Values in the cells of a table."""

import ast
import json
from contextlib import suppress
from typing import Any


def json_list(text: str) -> list[Any] | None:
    """Parses a list of JSON or, as pandas writes it, of Python, as in a CSV cell; None if the text
    is no list."""
    # `literal_eval` only builds literals: nothing in a cell is run.
    for parse in (json.loads, ast.literal_eval) if text.lstrip().startswith("[") else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text.strip())
            return value if isinstance(value, list) else None
    return None
