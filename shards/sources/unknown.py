"""What to do with a table whose columns are not known: which of them look like the names of files,
and which like texts."""

from collections.abc import Iterable, Set
from contextlib import suppress
from typing import Any

from alpro.errors import InputError
from alpro.shards.sources.columns import NAME_COLUMNS, TEXTS
from alpro.shards.sources.media_files import MediaFiles

Records = Iterable[tuple[str, dict[str, Any] | str]]
CHATS = ("conversations", "messages", "conversation", "response")  # of instruction data
MAX_NAMED = 3
WORDS = 2  # that a text has at least


def missing_columns(columns: Set[str], head: Records, media: MediaFiles | None) -> tuple[str, str]:
    """What a table without a known column of files or of texts lacks, and what to do.

    columns: those of all records. head: its first records. media: the files that it may name.
    """
    chat = next((name for name in CHATS if name in columns), "")
    if chat:
        return "caption or question", (
            f"write the texts of `{chat}` into columns question and answer, or caption, beside a "
            "column video"
        )
    if "question" in columns and "answer" not in columns:
        return "answer", "name the column of the right answers, or of their numbers, answer"

    records = [record for _, record in head if isinstance(record, dict)]
    name = next((name for name in NAME_COLUMNS if name in columns), "")
    steps = []
    has_texts = bool(columns & TEXTS)
    if name and has_texts:
        # Only a manifest that is not on this machine is not read by this name.
        return "path", f"rename `{name}` path"
    if not name:
        named = [key for key in columns if media and _name_files(records, key, media)]
        if named:
            steps.append(f"{_shown(named)} names files: rename it video")
        else:
            steps.append("name the column of the files path, or video")
    if not has_texts:
        texts = [key for key in columns - {name} if _has_texts(records, key)]
        if texts:
            rename = "it" if len(texts) == 1 else "the right one"
            steps.append(f"{_shown(texts)} may be the texts: rename {rename} caption")
        else:
            steps.append("name the column of the texts caption")

    if not name and len(steps) == 2 and all(step.startswith("name ") for step in steps):
        steps.append("if line 1 is a row, add one with the names of the columns above it")
    missing = "caption, captions or questions" if name else "path"
    return missing, "; ".join(steps)


def _name_files(records: list[dict[str, Any]], key: str, media: MediaFiles) -> bool:
    """Whether a cell of a column is the name of a file."""
    for record in records:
        cell = record.get(key)
        if isinstance(cell, str | int) and str(cell).strip():
            with suppress(ValueError, InputError):
                if media.match(media.relative(str(cell))):
                    return True
    return False


def _has_texts(records: list[dict[str, Any]], key: str) -> bool:
    """Whether most cells of a column are texts of several words."""
    texts = 0
    for record in records:
        cell = record.get(key)
        if isinstance(cell, list) and cell:
            cell = cell[0]
        is_text = isinstance(cell, str) and not cell.startswith(("[", "{", "http"))
        texts += is_text and len(str(cell).split()) >= WORDS
    return texts * 2 > len(records)


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join(f"`{name}`" for name in ordered[:MAX_NAMED])
    return f"{shown}, ..." if len(ordered) > MAX_NAMED else shown
