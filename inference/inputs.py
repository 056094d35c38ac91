"""The check of texts from the command line, Python, the server and exported models.

The module imports nothing of this package, because exported models have a copy of it.
"""

from collections.abc import Iterable
from typing import Any


def check_texts(texts: Any, error: type[Exception] = ValueError) -> list[str]:
    """Return one or more texts as a list.

    Args:
        error: Raised if there are no texts, or if one of them is empty, not a str, or not valid Unicode.
    """
    is_list = isinstance(texts, Iterable) and not isinstance(texts, str)
    listed: list[Any] = [*texts] if is_list else [texts]
    if not listed:
        raise error(f"expected one or more texts, not {texts!r}")
    for text in listed:
        if not isinstance(text, str):
            raise error(f"a text is a str, not {text!r}")
        if text.encode(errors="replace").decode() != text:
            raise error(f"the text {text!r} is not UTF-8")
        if not text.strip():
            raise error("the text is empty")
    return listed
