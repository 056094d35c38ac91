"""The cells of a table, and the names of its columns."""

import ast
import io
import json
import re
import tokenize
from contextlib import suppress
from functools import lru_cache
from typing import Any
from unicodedata import normalize

ARRAY = re.compile(r"(?s)(?:np\.)?array\((\[.*\])(?:, dtype=\w+)?\)")
TEXTS_IN_PARENTHESES = re.compile(r"""(?s)\(\s*['"].*['"],?\s*\)""")


@lru_cache
def folded(name: str) -> str:
    """The name of a column as names are compared: without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", normalize("NFKC", name).casefold())


def json_list(text: str) -> list[Any] | None:
    """Parses a list of JSON or, as pandas and NumPy write it, of Python, as in a CSV cell; None if
    the text is no list.

    >>> [json_list(text) for text in ('["a", 1]', "['a' 'b']", "('a', 'b')", "[a]", "(a)")]
    [['a', 1], ['a', 'b'], ['a', 'b'], None, None]
    """
    stripped = text.strip()
    array = ARRAY.fullmatch(stripped)
    if array:
        stripped = array[1]
    if not stripped.startswith("[") and not TEXTS_IN_PARENTHESES.fullmatch(stripped):
        return None

    # `literal_eval` only builds literals: nothing in a cell is run.
    for parse in (json.loads, separate_texts, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            value = parse(stripped)
            return list(value) if isinstance(value, list | tuple) else None
    return None


def separate_texts(text: str) -> list[str]:
    """The texts of an array of NumPy, which has no commas: Python would join them to one. Raises
    ValueError for anything else."""
    texts = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING and token.string[0] in "\"'":
            texts.append(ast.literal_eval(token.string))
        elif token.string.strip() not in ("[", "]", ""):
            raise ValueError("not only texts")
    return texts
