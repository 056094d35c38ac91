"""Self-contained HTML pages from the templates of this folder."""

import base64
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from alpro.files import atomic_write

TEMPLATES = Path(__file__).parent
KINDS = {b"\x89PNG": "image/png", b"<?xm": "image/svg+xml"}


@dataclass(frozen=True)
class Picture:
    """A picture of a page. width: its natural width in pixels; 0 for drawings, which have any size."""

    caption: str
    uri: str
    width: int = 0

    @classmethod
    def of(cls, content: bytes, caption: str) -> "Picture":
        """A PNG or SVG file as a part of the page."""
        kind = KINDS[content[:4]]
        width = struct.unpack(">I", content[16:20])[0] if kind == "image/png" else 0
        return cls(caption, f"data:{kind};base64,{base64.b64encode(content).decode()}", width)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Renders a template into one file that needs no other."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(f"{template}.html.jinja").render(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path
