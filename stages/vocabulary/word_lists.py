"""Lists of words that people bring: the names of entities or answers, in the order of a model's head."""

import json
import re
from pathlib import Path

from alpro.errors import InputError


def read_word_list(file: Path, key: str) -> list[str]:
    """The words of a file in their order: a JSON list, a JSON object of word to number (ans2label.json), or lines.

    Lines that all end in a number, as in the official list of nouns (`word count`), are read without it. `key` is what
    the file was given for, and stands in messages. Raises InputError for anything else, and for a word that is there
    twice.
    """
    where = f"{key} = {str(file)!r}"
    try:
        text = file.read_text("utf-8")
        value = json.loads(text) if file.suffix == ".json" else lines_of(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(value, dict):
        numbers = list(value.values())
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise InputError(f"{where}: the numbers of its words are not 0 to {len(numbers) - 1}, each once")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise InputError(f"{where}: it is neither a list of words nor an object of word to number")
    words = [word.strip() for word in value]
    if len(set(words)) != len(words):
        twice = next(word for number, word in enumerate(words) if word in words[:number])
        raise InputError(f"{where}: {twice!r} is there twice")
    return words


def lines_of(text: str) -> list[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    counted = [re.fullmatch(r"(.*\S)\s+\d+", line.strip()) for line in lines]
    return [match[1] for match in counted if match] if all(counted) else lines
