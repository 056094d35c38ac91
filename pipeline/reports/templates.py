"""The templates of documents, in Markdown and HTML (`*.jinja`)."""

import html
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def escape(text: str) -> str:
    r"""Return a text that Markdown, also in a cell of a table, shows as it is.

    >>> escape("a|b *c* <d> finetune_qa")
    'a\\|b \\*c\\* &lt;d&gt; finetune_qa'
    """
    # Markdown ignores an underscore inside a word, and brackets without an address.
    special = r"[\\`*|~]|\b_|_\b|(?<=\])[(\[:]"
    line = text.replace("\n", " ")
    escaped = re.sub(special, r"\\\g<0>", line)
    return html.escape(escaped, quote=False)


def format_code(text: str) -> str:
    """Return a text as code in Markdown. A backtick would end it, and what follows be Markdown."""
    return escape(text) if "`" in text else f"`{text}`"


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "text": escape,
    "code": format_code,
    "duration": format_duration,
}


def render(template: str, **values: Any) -> str:
    """Return a document from its template. At most one blank line stands between two paragraphs."""
    text = ENVIRONMENT.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
