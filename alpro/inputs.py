"""The check of texts from the command line, Python, the server and exported models.

The module imports nothing of this package, because exported models have a copy of it.
"""

from typing import Any


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
