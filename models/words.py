"""Words that users give: prompt templates for entities, and lists of entities or answers.

Templates are described in the paper (section 3.2.2): one set for videos, one for images. Lists are in
the order of a model's head.
"""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated
from unicodedata import normalize

import regex
from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from alpro.errors import InputError

# Letters with their combining marks, such as the vowels of Hindi, and with the joiners between
# letters of Persian and Indic scripts.
WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*")
OFFICIAL = tomllib.loads(Path(__file__).with_name("templates.toml").read_text("utf-8"))


WORDS = TypeAdapter(
    list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]]
)


class Templates(BaseModel, frozen=True, extra="forbid"):
    """Prompt templates for entities by kind of sample, its keys. The defaults are the official code's."""

    video: tuple[str, ...] = Field(
        default=tuple(OFFICIAL["video"]),
        min_length=1,
        description="templates for videos; {} is replaced by the entity",
    )
    image: tuple[str, ...] = Field(
        default=tuple(OFFICIAL["image"]),
        min_length=1,
        description="templates for images; {} is replaced by the entity",
    )

    @field_validator("video", "image")
    @classmethod
    def _check_entity(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"{template!r} must contain {{}}, the place of the entity, exactly once"
                )
        return templates

    def words(self) -> set[str]:
        """Return all words of the templates, in lower case."""
        return set(find_words(" ".join(self.video + self.image)))


def find_words(text: str) -> list[str]:
    """Return the words of a text of any script, in lower case and with composed letters (NFC).

    >>> find_words("2 Balls, O'Neil's caf\u00e9")
    ['balls', 'o', 'neil', 's', 'café']
    """
    return WORD.findall(normalize("NFC", text.lower()))


def read_word_list(file: Path, key: str) -> list[str]:
    """Read the words of a file, in order.

    Args:
        file: A JSON list, a JSON object of word to number (ans2label.json), or lines. If all lines
            end in a number, as in the official list of nouns (`word count`), the numbers are
            removed.
        key: Configuration key of the file, for messages.

    Raises:
        InputError: If the file has another format, or a word twice.
    """
    where = f"{key} = {str(file)!r}"
    try:
        text = file.read_text("utf-8-sig")
        value = (
            json.loads(text) if file.suffix.lower() == ".json" else parse_lines(text)
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read: {error}") from error

    if isinstance(value, dict):
        by_number = {str(number): word for word, number in value.items()}
        value = [by_number.get(str(number)) for number in range(len(value))]
    try:
        words = WORDS.validate_python(value)
    except ValidationError as error:
        raise InputError(
            f"{where}: neither a list of words nor an object of words with the numbers 0, 1, 2 ..., "
            "each once"
        ) from error
    # Two outputs of a head must not have one name.
    duplicates = [word for word, count in Counter(words).items() if count > 1]
    if duplicates:
        raise InputError(f"{where}: duplicate word {duplicates[0]!r}; remove one")
    return words


def parse_lines(text: str) -> list[str]:
    """Return the lines of a text, without the counts that all of them may end in."""
    # `splitlines` would also break at characters such as U+2028.
    lines = [line for line in text.split("\n") if line.strip()]
    words = []
    for line in lines:
        counted = re.fullmatch(r"(.*\S)\s+\d+", line.strip())
        # If a line has no count, digits are part of the words.
        if not counted:
            return lines
        words.append(counted[1])
    return words
