"""Proposes the `[columns]` of a table whose columns are not known, by what is in them. A user reads,
corrects and pastes them once, in place of rules that guess at every row."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import MAX_SECONDS
from alpro.shards.file_type import MEDIA_EXTENSIONS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.cells import has_words, read_captions, read_seconds, read_span, read_text
from alpro.shards.sources.form import (
    TABLE,
    Columns,
    Record,
    read_words,
    records_in,
    split_in,
    user_form,
)
from alpro.shards.sources.media import Folder, Notes, cut_extension
from alpro.shards.sources.rows import Items
from alpro.shards.sources.tables import Table
from alpro.shards.storage import is_url, suffix

ROWS = 200  # of a table that are looked at
SHOWN = 3  # rows that are shown as they would be read
DEPTH = 4  # of a JSON document
OPTION_NAME = re.compile(r"\d{1,2}|\(?[A-Ja-j][).:]?")
Records = Sequence[Record]
Proposal = dict[str, Any]  # columns by their keys


class UnknownColumns(InputError):
    """The columns of a table are not known. The message ends with a block for the configuration."""

    def __init__(self, message: str, is_complete: bool, rows: list[str]):
        """is_complete: whether the block has files and texts. rows: what the first records become."""
        super().__init__(message)
        self.is_complete = is_complete
        self.rows = rows


def unknown_columns(table: Table, items: Items) -> UnknownColumns:
    """Return the error of a table whose columns are not known, with what is proposed for them."""
    names, columns = max(propose(table, items.folder), key=lambda pair: len(pair[1]))
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in columns.items()]
    if "file" not in columns:
        lines.append(f'# file = ""  # the column of the files: none names files of {items.root}')
    has_texts = "captions" in columns or "answer" in columns
    if not has_texts:
        lines.append('# captions = ""  # the column of the texts, or `question` and `answer`')
    block = "\n".join(["[corpora.data.columns]", *lines])
    message = (
        f"{table.path}: the columns are not known ({', '.join(names)}); correct these lines, and put "
        f"them into the configuration:\n\n{block}"
    )
    form = user_form(Columns.model_validate(columns))
    records = records_in(table.document, form) if table.document else iter(table.head)
    preview = Items(items.root, Notes(), items.folder, None)
    rows: list[Row | Reject] = []
    for where, record in islice(records, SHOWN):
        rows += preview.add(where, record, form) if isinstance(record, dict) else []
    rows += preview.rows()
    shown = [row.model_dump_json(exclude={"id", "kind"}, exclude_defaults=True) for row in rows]
    return UnknownColumns(message, has_texts and "file" in columns, shown)


def propose(table: Table, folder: Folder | None) -> Iterator[tuple[list[str], Proposal]]:
    """Yield the columns of a table with what is proposed for them: of a JSON document, for each
    place that may have its records."""
    for path in dict.fromkeys(find_lists(table.document)) if table.document else [""]:
        found = table.records()
        if table.document:
            found = records_in(table.document, Columns(records=path))
        records = [record for _, record in islice(found, ROWS) if isinstance(record, dict)]
        names = list(dict.fromkeys(name for record in records for name in record))
        told = {"records": path} if path else {}
        yield names, told | propose_columns(records, names, folder)


def find_lists(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the paths of a document that may lead to its records."""
    yield ""
    if isinstance(value, list) and value:
        yield from find_lists(value[0], depth)
    if isinstance(value, dict) and value and depth < DEPTH:
        for key in [*islice(value, 20), "*"]:
            for path in find_lists(value.get(key, next(iter(value.values()))), depth + 1):
                yield f"{key}.{path}".rstrip(".")


def propose_columns(records: Records, names: list[str], folder: Folder | None) -> Proposal:
    """Return the columns by their keys, as far as what is in them tells."""
    proposed = propose_file(records, names, folder)
    rest = [name for name in names if name not in str(proposed)]

    def fitting(fits: Callable[[Any], bool]) -> list[str]:
        """The other columns of which most cells fit."""
        columns = []
        for name in rest:
            cells = [record[name] for record in records if read_text(record.get(name)).strip()]
            if 2 * sum(map(fits, cells)) > len(cells):
                columns.append(name)
        return columns

    tests = {"split": is_split, "span": is_span, "question": is_question}
    for key, fits in tests.items():
        usual = getattr(TABLE.bind(names), key)
        for name in [usual] if usual else fitting(fits)[:1]:
            proposed[key] = name
            rest.remove(name)
    if "span" not in proposed:
        proposed |= propose_times(records, fitting(is_time))
    if "question" in proposed:
        return proposed | propose_answer(records, rest)
    texts = fitting(is_caption)
    return proposed | ({"captions": texts[0] if len(texts) == 1 else texts} if texts else {})


def is_split(cell: Any) -> bool:
    return bool(split_in(read_text(cell)))


def is_span(cell: Any) -> bool:
    with suppress(ValueError):
        return None not in read_span(cell)
    return False


def is_time(cell: Any) -> bool:
    with suppress(ValueError):
        return 0 <= (read_seconds(cell) or 0) <= MAX_SECONDS
    return False


def is_question(cell: Any) -> bool:
    first, *words = read_text(cell).casefold().split() or [""]
    return bool(words) and (words[-1].endswith(("?", "？")) or first in read_words("questions"))


def is_caption(cell: Any) -> bool:
    """Return whether a cell has a text of several words."""
    with suppress(ValueError):
        text = next(read_captions(cell), "")
        return " " in text and has_words(text)
    return False


def propose_file(records: Records, names: list[str], folder: Folder | None) -> Proposal:
    """Return the column whose cells name files, with what is before them in the paths of the files,
    or a column of URLs."""
    for name in names:
        cells = [read_text(record.get(name)).strip() for record in records]
        if all(is_url(cell) and suffix(cell) in MEDIA_EXTENSIONS for cell in cells):
            return {"file": name}
        before: Counter[str] = Counter()
        for cell in filter(None, cells):
            with suppress(ValueError):
                path = folder.find(cell, anywhere=True) if folder else None
                if path:
                    before[cut_extension(path).removesuffix(cut_extension(cell))] += 1
        if 2 * before.total() > len(records):
            prefix = "".join(before) if len(before) == 1 else ""
            is_inside = {"anywhere": True} if len(before) > 1 else {}
            return {"file": f"{prefix}{{{name}}}" if prefix else name} | is_inside
    return {}


def propose_answer(records: Records, names: list[str]) -> Proposal:
    """Return the column of the answers, and those of the options if answers are their names."""
    columns = {name: [read_text(record.get(name)).strip() for record in records] for name in names}
    texts = {name: cells for name, cells in columns.items() if all(map(has_words, cells))}
    for name, cells in columns.items():
        options = [other for other in texts if other != name]
        # One column may have the list of all.
        are_options = len(options) > 1 or any(texts[each][0][0] == "[" for each in options)
        numbers = [int(cell) for cell in cells if cell.isdecimal()]
        if are_options and all(map(OPTION_NAME.fullmatch, cells)) and max(numbers, default=0) <= 9:
            first = "1" if min(numbers, default=0) else "0" if numbers else "A"
            return {"answer": name, "options": options, "first_option": first}
    shortest = sorted(texts, key=lambda name: len("".join(texts[name])))
    return dict.fromkeys(("answer",), shortest[0]) if shortest else {}


def propose_times(records: Records, names: list[str]) -> Proposal:
    """Return two columns beside each other whose times are a start and an end in every row."""
    for start, end in pairwise(names):
        times = {
            (read_seconds(record.get(start)), read_seconds(record.get(end))) for record in records
        }
        # The width and the height of files are also two numbers.
        if len(times) > 1 and all((first or 0) < (last or 0) for first, last in times):
            return {"start": start, "end": end}
    return {}


def hides_options(table: Table) -> bool:
    """Return whether the answers of a table may be the names of options that nothing tells: they
    would be answers of their own."""
    form = table.bound
    if not (form.usual and form.question and form.answer) or form.options:
        return False
    names = [name for name in table.columns if name == form.answer or name not in form.meanings]
    return "options" in propose_answer(table.head_records, names)
