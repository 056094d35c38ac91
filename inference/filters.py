"""Filters of an index: conditions that a person types, such as `kind=video duration<10 dog`.

A filter has one or more conditions, between spaces or semicolons, and a clip must fit all of them.
A condition is a column, an operator and a value; a value with spaces is in double quotes. `~`
compares with a pattern, in which * stands for any characters and ? for one. What is only a word
must be in the caption, the file name or the id. Upper and lower case are the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alpro.errors import InputError

if TYPE_CHECKING:
    from alpro.inference.index import Index

TEXT_COLUMNS = ("id", "path", "kind", "caption")
SECONDS_COLUMNS = ("start", "end", "duration")
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
MINUTES = re.compile(r"(\d+):(\d{1,2}(?:\.\d+)?)")
CONDITION = re.compile(
    r"""
    (?: (?P<column> "[^"]+" | [^\s;<>=!~"]+ ) \s* (?P<operator> <=|>=|!=|<>|==|=~|~=|[=<>~] ) \s* )?
    (?P<value> "[^"]*" | [^\s;"]* )
    """,
    re.VERBOSE,
)
SAME_OPERATORS = {"==": "=", "<>": "!=", "=~": "~", "~=": "~"}  # as other languages write them
SECOND_WORDS = {"s", "sec", "secs", "second", "seconds"}  # after a number of seconds
OTHER_WORDS = {"or", "not", "|", "||"}  # of search engines, which join or negate conditions
SEPARATORS = re.compile(r"[\s;]*")
IGNORED_WORDS = {"and", "&", "&&", ","}  # between conditions


@dataclass(frozen=True)
class Condition:
    """A condition on a column; without a column, a word in the caption, the file name or the id."""

    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        needs_quotes = not self.column or re.search(r"[\s;]", self.value)
        quote = '"' if needs_quotes else ""
        return f"{self.column}{self.operator}{quote}{self.value}{quote}"


def parse_filter(text: str, columns: Sequence[str]) -> list[Condition]:
    """The conditions of a filter. columns: those of the index.

    Raises InputError for a column that the index does not have, a value that is no number of
    seconds, a quote that is not closed, and what is neither a condition nor a word.
    """
    # pyarrow refuses lone surrogates, which an argument becomes that is not UTF-8.
    if text.encode(errors="replace").decode() != text:
        raise InputError(f"filter {text!r}: not valid Unicode")
    if text.count('"') % 2:
        raise InputError(f"filter {text!r}: a double quote is not closed")

    conditions: list[Condition] = []
    position = SEPARATORS.match(text).end()  # type: ignore[union-attr] # matches anything
    while position < len(text):
        match = CONDITION.match(text, position)
        assert match is not None  # a value may be empty
        condition = _condition(match, columns)

        # Also for an empty match, which would be found here for ever.
        if condition is None:
            raise InputError(
                f"filter {text!r}: takes a column, one of = != < <= > >= ~ and a value, such as "
                "kind=video, or a word"
            )
        word = "" if condition.column else match["value"].lower()
        is_unit = bool(conditions) and conditions[-1].column in SECONDS_COLUMNS
        if word in OTHER_WORDS:
            raise InputError(
                f"filter {text!r}: a clip must fit all conditions; `{word}` is no condition: filter "
                "twice, use !=, or write the word in double quotes"
            )
        if word not in IGNORED_WORDS and not (is_unit and word in SECOND_WORDS):
            conditions.append(condition)

        position = SEPARATORS.match(text, match.end()).end()  # type: ignore[union-attr]
    return conditions


def _condition(match: re.Match[str], columns: Sequence[str]) -> Condition | None:
    """The condition of a match of CONDITION; None if it is neither a condition nor a word."""
    written, operator, value = match.group("column", "operator", "value")
    operator = SAME_OPERATORS.get(operator, operator)
    if value.startswith('"'):
        value = value.strip('"')
    else:
        # A comma may stand between conditions, as in `kind=video, ball`.
        value = value.rstrip(",") or value
    if not written:
        is_word = value and value[0] not in "=<>!~"
        before, colon, _ = value.partition(":")
        if (
            colon
            and before.lower() in (*TEXT_COLUMNS, *SECONDS_COLUMNS)
            and match["value"][0] != '"'
        ):
            raise InputError(f"filter {match[0]!r}: write {value.replace(':', '=', 1)}")
        return Condition("", "", value) if is_word else None

    written = written.strip('"')
    # Columns of a manifest may differ in their case alone: then the exact name counts.
    same = [name for name in columns if name.lower() == written.lower()]
    if not same:
        raise InputError(
            f"no column {written!r}: this index has {', '.join(columns)}; "
            "`alpro index add --columns` adds others"
        )

    column = written if written in same else same[0]
    if column in SECONDS_COLUMNS and (operator == "~" or seconds_of(value) is None):
        raise InputError(
            f"filter {match[0]!r}: {column} is compared with a number of seconds, "
            "by = != < <= > or >="
        )
    return Condition(column, operator, value)


def seconds_of(text: str) -> float | None:
    """Seconds, also as 90s or 1:30; None if it is neither.

    >>> [seconds_of(text) for text in ("90", "90s", "1:30", "soon")]
    [90.0, 90.0, 90.0, None]
    """
    minutes = MINUTES.fullmatch(text)
    if minutes:
        return 60 * int(minutes[1]) + float(minutes[2])
    number = text.removesuffix("s")
    # The pattern first: `float` also takes nan, inf and 1_000.
    if not re.search(NUMBER, number):
        return None
    return float(number)


def filter_mask(index: "Index", filters: Sequence[str]) -> np.ndarray:
    """Which clips (N,) of an index fit all filters, boolean.

    Columns are TEXT_COLUMNS, which are compared as texts, SECONDS_COLUMNS, and those that the index
    keeps of its manifest, whose numbers are compared as numbers. A clip without a value fits no
    condition on it. Raises InputError for an invalid filter (`parse_filter`).
    """
    mask = np.ones(len(index), bool)
    for condition in conditions_of(index, filters):
        if not condition.column:
            fits = _has_word(index, condition.value)
        elif condition.column in SECONDS_COLUMNS:
            fits = _compare_seconds(index, condition)
        elif condition.column in TEXT_COLUMNS:
            fits = _compare_texts(index.items[condition.column], condition)
        else:
            fits = _compare_own_column(index, condition)
        # A comparison with a null is null.
        mask &= pc.fill_null(fits, False).to_numpy()
    return mask


def conditions_of(index: "Index", filters: Sequence[str]) -> list[Condition]:
    """The conditions of all filters. Raises InputError for an invalid one."""
    columns = (*TEXT_COLUMNS, *SECONDS_COLUMNS, *index.about.columns)
    conditions = []
    for text in filters:
        conditions += parse_filter(text, columns)
    return conditions


def _folded(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without differences of case, or of composed and decomposed accents."""
    are_ascii = pc.all(pc.string_is_ascii(texts)).as_py()
    if not are_ascii:
        # pyarrow's utf8_normalize("NFC") decomposes.
        composed = [text and normalize("NFC", text) for text in texts.to_pylist()]
        texts = pa.chunked_array([composed], pa.string())
    return pc.utf8_lower(texts)


def _folded_text(text: str) -> str:
    """As `_folded`, by the same tables."""
    composed = pa.scalar(normalize("NFC", text))
    return pc.utf8_lower(composed).as_py()


def _matches(texts: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Which texts match a pattern as a whole."""
    wildcards = {"*": ".*", "?": "."}
    parts = re.split(r"([*?])", _folded_text(pattern))

    regex = "".join(wildcards.get(part) or re.escape(part) for part in parts)
    return pc.match_substring_regex(_folded(texts), f"(?s)^{regex}$")


def _has_word(index: "Index", word: str) -> pa.ChunkedArray:
    pattern = f"*{word}*"
    names = pc.replace_substring_regex(index.items["path"], "^.*/", "")
    # `or_` of true and null is null: a clip without a caption would never fit.
    fits = pc.fill_null(_matches(names, pattern), False)
    for column in ("caption", "id"):
        has_word = _matches(index.items[column], pattern)
        fits = pc.or_(fits, pc.fill_null(has_word, False))
    return fits


def _compare_texts(texts: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    if condition.operator == "~":
        return _matches(texts, condition.value)
    compare = COMPARE[condition.operator]
    return compare(_folded(texts), _folded_text(condition.value))


def _compare_seconds(index: "Index", condition: Condition) -> pa.ChunkedArray:
    values = index.items[condition.column]
    if condition.column == "duration" and len(index) and values.null_count == len(values):
        raise InputError(
            f"{index.folder}: this index has no durations; a new index has them, for videos"
        )
    compare = COMPARE[condition.operator]
    return compare(values, seconds_of(condition.value))


def _compare_own_column(index: "Index", condition: Condition) -> pa.ChunkedArray:
    """A column of the manifest: numbers if the value is a number, else texts."""
    values = pc.map_lookup(index.items["columns"], condition.column, "first")
    if condition.operator == "~" or not re.search(NUMBER, condition.value):
        return _compare_texts(values, condition)

    is_number = pc.match_substring_regex(values, NUMBER)
    # Null first: the cast of a column fails at its first text, such as "many".
    numbers = pc.cast(pc.if_else(is_number, values, None), pa.float64())
    return COMPARE[condition.operator](numbers, float(condition.value))
