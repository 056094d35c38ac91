"""Propose the `[columns]` of a table whose columns are not known, by what is in them.

The user reads, corrects and pastes them once, in place of rules that guess at every row.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import MAX_SECONDS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.cells import has_words, read_captions, read_seconds, read_span, read_text
from alpro.shards.sources.form import (
    TABLE,
    WORDS,
    Columns,
    Form,
    Record,
    read_cell,
    records_in,
    split_in,
)
from alpro.shards.sources.media import Folder, Notes, cut_extension
from alpro.shards.sources.rows import Items
from alpro.shards.sources.tables import Table
from alpro.shards.storage import is_url

EXAMINED_ROWS = 200
SHOWN_ROWS = 3
MAX_DEPTH = 4  # Levels of a JSON document in which records are looked for.
OPTION_NAME = re.compile(r"\d|\(?[A-Ja-j][).:]?")
Cells = dict[str, list[Any]]  # The cells of the examined rows by their columns.


class UnknownColumns(InputError):
    """Raised if the columns of a table are not known. The message ends with the lines to set.

    Args:
        is_complete: Whether the proposal has files and texts.
        rows: What the first records become with the proposal, as JSON.
    """

    def __init__(self, message: str, is_complete: bool, rows: list[str]):
        super().__init__(message)
        self.is_complete = is_complete
        self.rows = rows


def unknown_columns(table: Table, items: Items) -> UnknownColumns:
    """Return the error for a table whose columns are not known, with a proposal for them."""
    columns, names, _ = max(propose(table, items.folder), key=lambda proposal: proposal[2])
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in columns.items()]
    if "file" not in columns:
        lines.append(f'# file = ""  # the column of the files: none names files of {items.root}')
    has_texts = "captions" in columns or "answer" in columns
    if not has_texts:
        lines.append('# captions = ""  # the column of the texts, or `question` and `answer`')

    form = Form.model_validate(columns | {"usual": True})
    records = records_in(table.document, form) if table.document else iter(table.head)
    preview = Items(items.root, Notes(), items.folder, None)
    rows: list[Row | Reject] = []
    for where, record in islice(records, SHOWN_ROWS):
        rows += preview.add(where, record, form) if isinstance(record, dict) else []
    rows += preview.rows()

    block = "\n".join(["[corpora.data.columns]", *lines])
    return UnknownColumns(
        f"{table.path}: the columns are not known ({', '.join(names)}); correct these lines, and put them into "
        f"the configuration:\n\n{block}",
        is_complete=has_texts and "file" in columns,
        rows=[row.model_dump_json(exclude={"id", "kind"}, exclude_defaults=True) for row in rows],
    )


def propose(
    table: Table, folder: Folder | None
) -> Iterator[tuple[dict[str, Any], list[str], tuple[float, ...]]]:
    """Yield the proposed columns, the columns that there are, and a score, for each place that may
    have the records of a table: how many columns are proposed, and which records have them all."""
    for path in dict.fromkeys(find_lists(table.document)) if table.document else [""]:
        found = table.records()
        if table.document:
            found = records_in(table.document, Columns(records=path))
        records = [record for _, record in islice(found, EXAMINED_ROWS) if isinstance(record, dict)]
        names = list(dict.fromkeys(name for record in records for name in find_columns(record)))
        cells = {name: [read_cell(record, name) for record in records] for name in names}
        columns = propose_columns(cells, folder)
        used = [cells[name] for name in Form.model_validate(columns).meanings]
        complete = sum(all(map(read_text, row)) for row in zip(*used, strict=True))
        score = (len(columns), complete / max(1, len(records)), complete)
        yield ({"records": path} if path else {}) | columns, names, score


def find_lists(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the paths of a document that may lead to its records."""
    yield ""
    if isinstance(value, list) and value:
        yield from find_lists(value[0], depth)
    if isinstance(value, dict) and value and depth < MAX_DEPTH:
        for key in [*islice(value, 20), "*"]:
            for path in find_lists(value.get(key, next(iter(value.values()))), depth + 1):
                yield f"{key}.{path}".rstrip(".")


def find_columns(record: Record, prefix: str = "") -> Iterator[str]:
    """Yield the columns of a record, also those inside of objects and of lists of objects."""
    for key, value in record.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            yield from find_columns(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def propose_columns(cells: Cells, folder: Folder | None) -> dict[str, Any]:
    """Return the columns by their keys, as far as their contents tell."""
    proposed = propose_file(cells, folder)
    free = [name for name in cells if name not in str(proposed)]

    def fitting(fits: Callable[[Any], bool]) -> list[str]:
        """Return the free columns of which most cells fit."""
        columns = []
        for name in free:
            filled = [cell for cell in cells[name] if read_text(cell).strip()]
            if 2 * sum(map(fits, filled)) > len(filled):
                columns.append(name)
        return columns

    for key, fits in {"split": is_split, "span": is_span, "question": is_question}.items():
        usual = getattr(TABLE.bind(cells), key)
        for name in [usual] if usual else fitting(fits)[:1]:
            proposed[key] = name
            free.remove(name)
    for start, end in pairwise([] if "span" in proposed else fitting(is_time)):
        times = {
            (read_seconds(a), read_seconds(b))
            for a, b in zip(cells[start], cells[end], strict=True)
        }
        # The width and the height of files are also two numbers.
        if len(times) > 1 and all((first or 0) < (last or 0) for first, last in times):
            proposed |= {"start": start, "end": end}
    if "question" in proposed:
        return proposed | propose_answer(cells, proposed["question"], free)
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
    return bool(words) and (words[-1].endswith(("?", "？")) or first in WORDS["questions"])


def is_caption(cell: Any) -> bool:
    """Return whether a cell has a text of several words."""
    with suppress(ValueError):
        text = next(read_captions(cell), "")
        return " " in text and has_words(text)
    return False


def propose_file(cells: Cells, folder: Folder | None) -> dict[str, Any]:
    """Return the column whose cells name files, with the folder that they lack, or that of URLs."""
    for name in cells:
        texts = [read_text(cell).strip() for cell in cells[name]]
        if all(map(is_url, texts)):
            return {"file": name}
        folders: Counter[str] = Counter()
        for text in filter(None, texts):
            with suppress(ValueError):
                path = folder.find(text, anywhere=True) if folder else None
                if path:
                    folders[cut_extension(path).removesuffix(cut_extension(text))] += 1
        if 2 * folders.total() > len(texts):
            inside = "".join(folders) if len(folders) == 1 else ""
            file = f"{inside}{{{name}}}" if inside else name
            return {"file": file} | ({"anywhere": True} if len(folders) > 1 else {})
    return {}


def propose_answer(cells: Cells, question: str, names: list[str]) -> dict[str, Any]:
    """Return the column of the answers, and those of the options if answers are their names."""
    # The types of questions are often their first words.
    types = [read_text(cell).casefold().split()[:1] for cell in cells[question]]
    columns = {name: [read_text(cell).strip() for cell in cells[name]] for name in names}
    texts = {
        name: cells
        for name, cells in columns.items()
        if all(map(has_words, cells)) and [[cell.casefold()] for cell in cells] != types
    }
    for name, answers in columns.items():
        options = [other for other in texts if other != name]
        numbers = [int(answer) for answer in answers if answer.isdecimal()]
        is_row_number = (
            numbers == [*range(numbers[0], numbers[0] + len(answers))] if numbers else False
        )
        # One column may have the list of all.
        are_options = len(options) > 1 or any(texts[each][0][0] == "[" for each in options)
        if are_options and not is_row_number and all(map(OPTION_NAME.fullmatch, answers)):
            first = "1" if min(numbers, default=0) else "0" if numbers else "A"
            return {"answer": name, "options": options, "first_option": first}
    after = [name for name in texts if [*cells].index(name) > [*cells].index(question)]
    return {"answer": [*after, *texts][0]} if texts else {}


def hides_options(table: Table) -> bool:
    """Return whether the answers of a table may be names of options that nothing tells: they would
    be answers of their own."""
    form = table.bound
    names = [name for name in table.columns if name == form.answer or name not in form.meanings]
    records = table.head_records
    cells = {name: [record.get(name) for record in records] for name in [*names, form.question]}
    return not form.options and "options" in propose_answer(cells, form.question, names)
