"""Filters of a search by the columns of an index, such as `kind=video`, `path~*/holidays/*` and `date>=2024-01-01`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alpro.errors import InputError
from alpro.inference.index import Index

TEXTS, SECONDS = ("id", "path", "kind"), ("start", "end")
COMPARE = {"<=": pc.less_equal, ">=": pc.greater_equal, "!=": pc.not_equal, "<": pc.less, ">": pc.greater}
COMPARE |= {"=": pc.equal}
FORM = re.compile(r"\s*([^<>=!~]*?)\s*(<=|>=|!=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


@dataclass(frozen=True)
class Filter:
    """A condition on a column. `~` compares with a pattern, in which * stands for any characters and ? for one."""

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Raises InputError for what is no COLUMN OPERATOR VALUE, or compares start or end with what is no number."""
        match = FORM.fullmatch(text)
        if not match or not match[1]:
            raise InputError(
                f"filter {text!r}: takes a column, one of = != < <= > >= ~ and a value, such as kind=video"
            )
        if match[1] in SECONDS and (match[2] == "~" or not re.search(NUMBER, match[3])):
            raise InputError(f"filter {text!r}: {match[1]} is compared with a number of seconds, by = != < <= > or >=")
        return cls(*match.groups())

    def fits(self, table: pa.Table) -> Any:
        """Which rows of a table fit, boolean, or null if they have no value."""
        own = self.column in (*TEXTS, *SECONDS)
        column = table[self.column] if own else pc.map_lookup(table["columns"], self.column, "first")
        if self.operator == "~":
            parts = ({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", self.value))
            return pc.match_substring_regex(column, f"(?s)^{''.join(parts)}$")
        compare, number = COMPARE[self.operator], re.search(NUMBER, self.value)
        if self.column in SECONDS:
            return compare(column, float(self.value))
        if self.column in TEXTS or not number:
            return compare(column, self.value)
        numbers = pc.cast(pc.if_else(pc.match_substring_regex(column, NUMBER), column, None), pa.float64())
        return compare(numbers, float(self.value))


def rows_that_fit(index: Index, filters: Sequence[str]) -> list[np.ndarray] | None:
    """For each part of an index which rows (N,) fit all filters, boolean; None without filters. A row without a value
    fits no filter of it. Raises InputError for an invalid filter, or a column that the index does not have."""
    parsed, columns = [Filter.parse(text) for text in filters], (*TEXTS, *SECONDS, *index.about.columns)
    if unknown := [one.column for one in parsed if one.column not in columns]:
        raise InputError(
            f"no column {unknown[0]!r}: this index has {', '.join(columns)}; `alpro index add --columns` adds others"
        )
    if not parsed:
        return None
    return [
        np.logical_and.reduce([pc.fill_null(one.fits(table), False).to_numpy() for one in parsed])
        for table in index.items
    ]
