"""The languages of the texts in a table."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from alpro.shards.sources.cells import folded
from alpro.shards.sources.columns import NAME_COLUMNS

Records = Iterable[tuple[str, dict[str, Any] | str]]
LANGUAGE_COLUMNS = {"language", "lang", "langcode", "languagecode", "captionlanguage", "locale"}
ENGLISH = re.compile(r"(?i)en|eng|english|en[-_][a-z]{2}")
# caption_de, text-fr; not caption_id, which has numbers.
OF_LANGUAGE = re.compile(
    r"(?i)(?:captions?|sentence|text|description|cap)[ _-](?:"
    r"ar|bn|cn|cs|da|de|el|es|fa|fi|fr|he|hi|hu|it|ja|jp|ko|kr|ms|nl|no|pl|pt|ro|ru|sv|ta|te|th|tr|"
    r"uk|ur|vi|zh|ara|ces|deu|fra|ger|hin|ita|jpn|kor|nld|pol|por|rus|spa|tur|zho)|chCap"
)
MAX_NAMED = 5


@dataclass(frozen=True)
class Languages:
    """Which texts of a table are read: those with an English word in `column`, or all without one.
    note: what a user should know of them."""

    column: str = ""
    note: str = ""

    def is_read(self, record: dict[str, Any]) -> bool:
        language = str(record.get(self.column) or "").strip()
        return not language or bool(ENGLISH.fullmatch(language))


def languages_of(head: Records, read: Callable[[], Records]) -> Languages:
    """The languages of a table's texts.

    If files have texts in several, as in MSVD's release, the English ones are read. A column that
    differs between the files alone may be about the files: then all texts are read.

    head: the first records. read: reads all of them, which only a table with a column of languages
    needs.
    """
    names = [name for _, record in head if isinstance(record, dict) for name in record]
    other_columns = dict.fromkeys(filter(OF_LANGUAGE.fullmatch, names))
    if other_columns:
        shown = ", ".join(f"`{name}`" for name in other_columns)
        return Languages(note=f"{shown}: texts in other languages, which are not read")
    column = next((name for name in names if folded(name) in LANGUAGE_COLUMNS), "")
    if not column:
        return Languages()

    counts: Counter[str] = Counter()
    of_file: defaultdict[str, set[str]] = defaultdict(set)
    for _, record in read():
        language = str(record.get(column) or "").strip() if isinstance(record, dict) else ""
        if isinstance(record, dict) and language:
            counts[language] += 1
            name_cell = next((record[key] for key in NAME_COLUMNS if key in record), "")
            of_file[str(name_cell)].add(language)
    if len(counts) < 2:
        return Languages()

    english = [language for language in counts if ENGLISH.fullmatch(language)]
    differ_in_a_file = any(len(languages) > 1 for languages in of_file.values())
    if english and differ_in_a_file:
        others = [pair for pair in counts.most_common() if pair[0] not in english]
        count = sum(counts[language] for language in english)
        note = (
            f"`{column}`: English is read ({count} texts), not the other languages "
            f"({_shown(others)}); to read one of them, write a table of its rows alone"
        )
        return Languages(column, note)

    note = (
        f"`{column}`: texts in several languages ({_shown(counts.most_common())}) are all read; to "
        "read one, write a table of its rows alone"
    )
    return Languages(note=note)


def english_texts(value: Any) -> Any:
    """The English ones of texts by their languages, {"en": ...}, or of objects with a language;
    otherwise the value."""
    if isinstance(value, dict):
        english = [value[key] for key in value if ENGLISH.fullmatch(key)]
        return english[0] if len(english) == 1 else value
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return value

    english = []
    for each in value:
        column = next((key for key in each if folded(key) in LANGUAGE_COLUMNS), "")
        if ENGLISH.fullmatch(str(each.get(column) or "")):
            english.append(each)
    return english or value


def _shown(counts: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{language} {count}" for language, count in counts[:MAX_NAMED])
    return f"{shown}, ..." if len(counts) > MAX_NAMED else shown
