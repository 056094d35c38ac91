"""The languages of the texts in a table."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alpro.shards.sources.cells import folded
from alpro.shards.sources.columns import NAME_COLUMNS

LANGUAGE_COLUMNS = {"language", "lang", "langcode", "languagecode", "captionlanguage", "locale"}
ENGLISH = re.compile(r"(?i)en|eng|english|en[-_][a-z]{2}")
# caption_de, text-fr
OF_LANGUAGE = re.compile(r"(?i)(?:captions?|sentence|text|description|cap)[ _-][a-z]{2,3}|chCap")
MAX_NAMED = 5


@dataclass(frozen=True)
class Languages:
    """Which texts of a table are read: those of all languages, or the English ones. note: what a
    user should know of them."""

    column: str = ""
    english_only: bool = False
    note: str = ""

    def is_read(self, record: dict[str, Any]) -> bool:
        language = str(record.get(self.column) or "").strip()
        return not self.english_only or not language or bool(ENGLISH.fullmatch(language))


def has_languages(records: Iterable[tuple[str, dict[str, Any] | str]]) -> bool:
    """Whether a record has a column of languages, or of texts in one."""
    for _, record in records:
        for name in record if isinstance(record, dict) else ():
            if folded(name) in LANGUAGE_COLUMNS or OF_LANGUAGE.fullmatch(name):
                return True
    return False


def languages_of(records: Iterable[tuple[str, dict[str, Any] | str]]) -> Languages:
    """The languages of a table's texts.

    If files have texts in several, as in MSVD's release, the English ones are read. A column that
    differs between the files alone may be about the files: then all texts are read.
    """
    column = ""
    counts: Counter[str] = Counter()
    of_file: defaultdict[str, set[str]] = defaultdict(set)
    other_columns: dict[str, None] = {}
    for number, (_, record) in enumerate(records):
        if isinstance(record, str):
            continue
        for name in record if number == 0 else ():
            if folded(name) in LANGUAGE_COLUMNS:
                column = name
            is_english = ENGLISH.fullmatch(re.split("[ _-]", name)[-1])
            if OF_LANGUAGE.fullmatch(name) and not is_english:
                other_columns[name] = None
        if not column:
            break
        language = str(record.get(column) or "").strip()
        if language:
            counts[language] += 1
            name_cell = next((record[key] for key in NAME_COLUMNS if key in record), "")
            of_file[str(name_cell)].add(language)

    if other_columns:
        shown = ", ".join(f"`{name}`" for name in other_columns)
        return Languages(note=f"{shown}: texts in other languages, which are not read")
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
        return Languages(column, english_only=True, note=note)

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
