"""Words that users give: prompt templates for entities (paper, section 3.2.2), one set for videos
and one for images; and lists of entities or answers, in the order of a model's head."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import regex
from pydantic import BaseModel, ConfigDict, Field, field_validator

from alpro.errors import InputError
from alpro.files import read_text

# Letters with their combining marks, such as the vowels of Hindi, and the joiners between letters of
# Persian and of Indic scripts.
WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*")
# The first letter of a word in a script that is written without spaces.
WITHOUT_SPACES = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
)
OFFICIAL = tomllib.loads(Path(__file__).with_name("templates.toml").read_text("utf-8"))


class Templates(BaseModel):
    """Prompt templates for entities by kind of sample, by default those of the official code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def _one_entity(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"{template!r} must contain {{}}, the place of the entity, exactly once"
                )
        return templates

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The templates for entities by kind of sample."""
        return {"video": self.video, "image": self.image}

    def words(self) -> set[str]:
        """All words of the templates, in lower case."""
        return set(words_of(" ".join(self.video + self.image)))


def words_of(text: str) -> list[str]:
    """The words of a text of any script, in lower case and with composed letters (NFC).

    >>> words_of("2 Balls, O'Neil's caf\u00e9")
    ['balls', 'o', 'neil', 's', 'café']
    """
    return WORD.findall(normalize("NFC", text.lower()))


def entities_in(texts: Iterable[str], entities: Iterable[str]) -> list[str]:
    """Those of `entities` that a text has as whole words, in the order of `entities`; of several
    words, as one phrase.

    >>> entities_in(["An ice cream.", "two balls"], ["cream", "ice cream", "ball"])
    ['cream', 'ice cream']
    """
    # Spaces around each word tell it from a part of another; a phrase is of one text.
    found = "\n".join(f" {' '.join(words_of(text))} " for text in texts)
    return [entity for entity in entities if (key := _phrase(entity)) and key in found]


@lru_cache(maxsize=4096)  # the same entities are looked for in each sample
def _phrase(entity: str) -> str:
    """What `entities_in` looks for; empty for an entity without letters."""
    words = " ".join(words_of(entity))
    if not words or WITHOUT_SPACES.match(words):
        return words
    return f" {words} "


def read_word_list(file: Path, key: str) -> list[str]:
    """Reads the words of a file in order: a JSON list, a JSON object of word to number
    (ans2label.json), or lines.

    If all lines end in a number, as in the official list of nouns (`word count`), the numbers are
    removed. `key` is the configuration key of the file, for messages. Raises InputError for other
    formats and for duplicate words.
    """
    where = f"{key} = {str(file)!r}"
    try:
        text = read_text(file)
        value = json.loads(text) if file.suffix.lower() == ".json" else parse_lines(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read: {reason}") from error

    if isinstance(value, dict):
        positions = list(value.values())
        # type(), since True is an int to isinstance().
        integers = all(type(position) is int for position in positions)
        consecutive = list(range(len(positions)))
        if not integers or sorted(positions) != consecutive:
            raise InputError(
                f"{where}: the numbers of its words are not 0 to {len(positions) - 1}, each once"
            )
        value = sorted(value, key=value.__getitem__)

    are_words = isinstance(value, list) and all(
        isinstance(word, str) and word.strip() for word in value
    )
    if not are_words:
        raise InputError(f"{where}: neither a list of words nor an object of word to number")

    words = [word.strip() for word in value]
    # Two outputs of a head would have one name.
    duplicates = [word for word, count in Counter(words).items() if count > 1]
    if duplicates:
        raise InputError(f"{where}: duplicate word {duplicates[0]!r}; remove one")
    return words


def parse_lines(text: str) -> list[str]:
    # Not `splitlines`, which also breaks at characters such as U+2028.
    lines = [line for line in text.split("\n") if line.strip()]
    words = []
    for line in lines:
        counted = re.fullmatch(r"(.*\S)\s+\d+", line.strip())
        # One line without a count: the digits are part of the words.
        if not counted:
            return lines
        words.append(counted[1])
    return words
