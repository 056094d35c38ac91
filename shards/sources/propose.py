"""Propose the `[columns]` of a table whose columns are not known, by what is in them.

The user reads, corrects and pastes them once, in place of rules that guess at every row.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, pairwise
from operator import contains
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import MAX_SECONDS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.cells import (
    LETTERS,
    SEVERAL,
    UNSPACED,
    fold_answer,
    has_words,
    read_captions,
    read_seconds,
    read_spans,
    read_text,
)
from alpro.shards.sources.form import (
    TABLE,
    TEMPLATE_COLUMN,
    WORDS,
    Columns,
    Form,
    Record,
    fold,
    read_cell,
    records_in,
    split_in,
    time_in,
)
from alpro.shards.sources.media import Folder, Notes, cut_extension
from alpro.shards.sources.rows import Items
from alpro.shards.sources.tables import Table
from alpro.shards.storage import is_url

EXAMINED_ROWS = 200
MIN_UNSPACED = 4  # Letters of a caption in a script without spaces; a class has fewer.
SHOWN_ROWS = 3
MAX_SHOWN_COLUMNS = 20
MAX_DEPTH = 4  # Levels of a JSON document in which records are looked for.
# Lines to complete where no column has one of these meanings.
NOT_FOUND = {
    "file": '# file = ""  # the column of the files (with `join`, of another list): none names files here',
    "captions answer": '# captions = ""  # the column of the texts, or `question` and `answer`',
}
Cells = dict[str, list[Any]]  # The cells of the examined rows by their columns.


class UnknownColumns(InputError):
    """Raised if the columns of a table are not known. The message ends with the lines to set.

    Args:
        score: How good the proposal is; whether it has texts comes first.
        rows: What the first records become with the proposal, as JSON.
    """

    def __init__(self, message: str, score: tuple[float, ...], rows: list[str]):
        super().__init__(message)
        self.score = score
        self.rows = rows


def unknown_columns(table: Table, items: Items) -> UnknownColumns:
    """Return the error for a table whose columns are not known, with a proposal for them."""
    document = table.document
    if document is None:
        # The lines of JSON Lines are a list, too.
        examined = islice(table.records(), EXAMINED_ROWS)
        document = [record for _, record in examined if isinstance(record, dict)]
    is_nested = table.extension in (".json", ".jsonl", ".ndjson")
    proposals = propose(document, is_nested, items.folder)
    columns, names, score = max(proposals, key=lambda proposal: proposal[2])
    check_header(table, columns, items.folder)
    lines = []
    for key, value in columns.items():
        unit = "  # in seconds" if key in ("end", "span") else ""
        lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}{unit}")
    for keys, line in NOT_FOUND.items():
        if not columns.keys() & keys.split():
            lines.append(line)

    form = Form.model_validate(columns | {"usual": True})
    records = records_in(document, form)
    preview = Items(items.root, Notes(), items.folder, None)
    rows: list[Row | Reject] = []
    for where, record in islice(records, SHOWN_ROWS):
        if isinstance(record, dict):
            rows += preview.add(where, record, form)
    rows += preview.rows()
    shown_rows = []
    for row in rows:
        text = row.model_dump_json(exclude={"id", "kind"}, exclude_defaults=True)
        shown_rows.append(text)

    block = "\n".join(["[corpora.data.columns]", *lines])
    shown = ", ".join(names[:MAX_SHOWN_COLUMNS])
    return UnknownColumns(
        f"{table.path}: the columns are not known ({shown}); correct these lines, and put them into the "
        f"configuration:\n\n{block}",
        score=score,
        rows=shown_rows,
    )


def check_header(table: Table, columns: Record, folder: Folder | None) -> None:
    """Raise InputError if the name of the column of files is itself a file: it is in the first row."""
    for name in Form.model_validate(columns).file_columns:
        is_name = table.document or fold(name) in WORDS["usual"]["file"]
        if folder and not is_name and folder.find(name, anywhere=True):
            raise InputError(
                f"{table.path}: line 1 is a row ({name}, ...); write the names of the columns above it, "
                "such as path,caption"
            )


def propose(
    document: Any, is_nested: bool, folder: Folder | None
) -> Iterator[tuple[dict[str, Any], list[str], tuple[float, ...]]]:
    """Yield the proposed columns, the columns that there are, and a score, for each place that may
    have the records of a document: how many columns are proposed, and which records have them
    all."""
    for path in dict.fromkeys(find_lists(document)) if is_nested else [""]:
        place = {"records": path} if path else {}
        pairs = records_in(document, Columns.model_validate(place))
        examined = islice(pairs, EXAMINED_ROWS)
        records = [record for _, record in examined if isinstance(record, dict)]

        cells = read_columns(records)
        columns = propose_columns(cells, folder)
        meanings = Form.model_validate(columns).meanings
        if path and "$value" in cells.keys() - meanings:
            continue  # These are the cells of a record.
        used = [cells[name] for name in meanings]
        complete = 0
        for row in zip(*used, strict=True):
            complete += all(map(read_text, row))
        share = complete / max(1, len(records))
        has_texts = not columns.keys().isdisjoint(("captions", "question"))
        count = sum(map(bool, columns.values()))
        # A cell beside others of its kind would repeat their texts.
        is_whole = "$value" not in meanings or columns.get("captions") == "$value"
        score = has_texts, count, share, is_whole, complete
        yield place | columns, [*cells], score


def find_lists(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the paths of a document that may lead to its records."""
    yield ""
    if isinstance(value, list) and value:
        for path in find_lists(value[0], depth):
            # `*` would be its entries.
            yield f"*.{path}" if path.startswith("*") else path
    if isinstance(value, dict) and value and depth < MAX_DEPTH:
        first = next(iter(value.values()))
        keys = [key for key in islice(value, 20) if isinstance(value[key], dict | list)]
        for key in [*keys, "*"]:
            inner = value.get(key, first)
            for path in find_lists(inner, depth + 1):
                yield f"{key}.{path}".rstrip(".")


def read_columns(records: list[Record]) -> Cells:
    """Return the cells of records by their columns."""
    names: dict[str, None] = {}
    for record in records:
        names |= dict.fromkeys(find_columns(record))
    cells: Cells = {}
    for name in names:
        cells[name] = [read_cell(record, name) for record in records]
    return cells


def find_columns(record: Record, prefix: str = "") -> Iterator[str]:
    """Yield the columns of a record, also those inside of objects and of lists of objects, without
    those that would be templates."""
    for key, value in record.items():
        if TEMPLATE_COLUMN.search(key):
            continue
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            yield from find_columns(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def propose_columns(cells: Cells, folder: Folder | None) -> dict[str, Any]:
    """Return the columns by their keys, as far as their contents tell."""
    proposed = propose_file(cells, folder)
    named = Form.model_validate(proposed).meanings
    free = [name for name in cells if name not in named]

    def find(fits: Callable[[Any], bool]) -> Cells:
        return find_fitting({name: cells[name] for name in free}, fits)

    usual = TABLE.bind(cells)
    ids = [*map(read_text, cells.get(usual.id, ()))]
    if len({*ids}) < len(ids):
        # A number within each file is no id.
        proposed["id"] = ""
    tests = {"split": is_split, "span": is_span, "question": is_question}
    for key, fits in tests.items():
        usual_name = getattr(usual, key)
        names = [usual_name] if usual_name in free else [*find(fits)]
        if names:
            proposed[key] = names[0]
            free.remove(names[0])
    if "span" not in proposed:
        proposed |= propose_times(find(is_time), [*cells])

    if "question" in proposed:
        # Answers follow their questions.
        names = [*cells]
        position = names.index(proposed["question"])
        free.sort(key=lambda name: names.index(name) < position)
        answers = {name: cells[name] for name in free}
        return proposed | propose_answer(answers)

    texts = [*find(is_caption)]
    if texts:
        proposed["captions"] = texts[0] if len(texts) == 1 else texts
    return proposed


def find_fitting(cells: Cells, fits: Callable[[Any], bool]) -> Cells:
    """Return the columns of which most cells fit, without those that are empty."""
    columns: Cells = {}
    for name in cells:
        filled = [cell for cell in cells[name] if read_text(cell).strip()]
        fitting = 0
        for cell in filled:
            with suppress(ValueError):
                fitting += fits(cell)
        if 2 * fitting > len(filled):
            columns[name] = cells[name]
    return columns


def is_split(cell: Any) -> bool:
    """Return whether a cell is the name of a split, and no text with such a word."""
    text = read_text(cell)
    most_words = 2 if text.lower().endswith("set") else 1
    return bool(split_in(text)) and len(text.split()) <= most_words


def is_span(cell: Any) -> bool:
    return all(None not in span for span in read_spans(cell))


def is_time(cell: Any) -> bool:
    return 0 <= (read_seconds(cell) or 0) <= MAX_SECONDS


def is_question(cell: Any) -> bool:
    text = read_text(cell).casefold()
    has_mark = text.endswith(("?", "？"))
    return is_long(text) and (has_mark or text.split()[0] in WORDS["questions"])


def is_caption(cell: Any) -> bool:
    """Return whether a cell has a text of several words that is no question."""
    text = next(read_captions(cell), "")
    return is_long(text) and has_words(text) and not is_question(text)


def is_long(text: str) -> bool:
    """Return whether a text has several words, or several letters of a script without spaces."""
    return len(text.split()) > 1 or len(UNSPACED.findall(text)) >= MIN_UNSPACED


def propose_file(cells: Cells, folder: Folder | None) -> dict[str, Any]:
    """Return the column whose cells name files, with the folder that they lack, or are URLs."""
    urls: dict[str, Any] = {}
    for name in cells:
        # As Windows writes a path.
        texts = [read_text(cell).strip().replace("\\", "/") for cell in cells[name]]
        if all(map(is_url, texts)):
            urls = urls or {"file": name}
        if folder is None:
            continue
        folders: Counter[str] = Counter()
        for text in filter(None, texts):
            with suppress(ValueError):
                path = folder.find(text, anywhere=True)
                if path:
                    name_end = cut_extension(text)
                    inside = cut_extension(path).removesuffix(name_end)
                    folders[inside] += 1
        if 2 * folders.total() <= len(texts):
            continue
        inside = min(folders)
        if len(folders) > 1 or "{" in inside:
            return {"file": name, "anywhere": True}
        return {"file": f"{inside}{{{name}}}" if inside else name}
    return urls


def propose_times(cells: Cells, names: list[str]) -> dict[str, Any]:
    """Return two columns of times: those with names of times, or adjacent columns of the table of
    which the first is always the smaller."""
    starts = [name for name in cells if time_in(name) == "start"]
    ends = [name for name in cells if time_in(name) == "end"]
    if starts and ends:
        return {"start": starts[0], "end": ends[0]}

    for start, end in pairwise(names):
        if not cells.keys() >= {start, end}:
            continue
        pairs = {
            *zip(map(read_time, cells[start]), map(read_time, cells[end]), strict=True)
        }
        times = [
            (first, last)
            for first, last in pairs
            if first is not None and last is not None
        ]
        # The width and the height of files are also two numbers.
        if len(times) > 1 and all(first < last for first, last in times):
            return {"start": start, "end": end}
    return {}


def read_time(cell: Any) -> float | None:
    """Return a time in seconds, or None of a cell that has none."""
    with suppress(ValueError):
        return read_seconds(cell)
    return None


def propose_answer(cells: Cells) -> dict[str, Any]:
    """Return the column of the answers, and those of the options if each answer is one of them, or
    is the name of one."""
    columns = {
        name: [read_text(cell).strip() for cell in cells[name]] for name in cells
    }
    texts = []
    for name, column in columns.items():
        if 2 * sum(map(has_words, column)) > len(column):
            texts.append(name)
    # The names of options differ in their last character, or one column has the list of all.
    stems = Counter(name[:-1] for name in texts)
    options = [name for name in texts if stems[name[:-1]] == max(stems.values()) > 1]
    lists = [name for name in texts if columns[name][0].startswith(SEVERAL)]
    is_list = not options
    options = options or lists[:1]
    # Columns that are named as answers are, first.
    others = [name for name in columns if name not in options]
    others.sort(key=lambda name: fold(name) not in WORDS["usual"]["answer"])

    rows = [*zip(*(columns[name] for name in options), strict=True)]
    last = 9 if is_list else len(options)
    names = {*LETTERS.casefold(), *map(str, range(last + 1))}
    for name in others if options else ():
        answers = [*filter(None, columns[name])]
        if not is_list and all(map(contains, rows, columns[name])):
            return {"answer": name, "options": options}
        are_names = names.issuperset(map(fold_answer, answers))
        if answers and are_names and not is_row_number(name, answers):
            first = "1" if answers[0].isdecimal() else "A"
            if "0" in answers or options[0].endswith("0"):
                first = "0"
            return {"answer": name, "options": options, "first_option": first}
    answers = [name for name in others if any(map(has_words, columns[name]))]
    for name in (*answers, *lists):
        return {"answer": name}
    return {}


def is_row_number(name: str, cells: list[str]) -> bool:
    """Return whether the cells of a column, unless it is named as answers are, count the rows."""
    if fold(name) in WORDS["usual"]["answer"]:
        return False
    return cells in (
        [str(row + first) for row in range(len(cells))] for first in (0, 1)
    )


def hides_meanings(table: Table) -> bool:
    """Return whether the stored columns of a table may be splits, times, without which an item is a
    whole file, or options, whose names would be answers of their own."""
    form = table.bound
    stored = read_columns(table.head_records)
    for name in form.meanings:
        stored.pop(name, None)

    def find_times(time: str, fits: Callable[[Any], bool]) -> Cells:
        columns = {name: stored[name] for name in stored if time_in(name) == time}
        return find_fitting(columns, fits)

    is_told = form.span or (form.start and form.end)
    starts = form.start or find_times("start", is_time)
    has_times = find_times("span", is_span) or (starts and find_times("end", is_time))
    has_split = not form.split and find_fitting(stored, is_split)
    if has_split or (has_times and not is_told):
        return True

    if not (form.question and form.answer) or form.options:
        return False
    answers = [record.get(form.answer) for record in table.head_records]
    proposed = propose_answer({form.answer: answers} | stored)
    is_text_of_option = proposed == {
        "answer": form.answer,
        "options": proposed.get("options"),
    }
    return "options" in proposed and not is_text_of_option
