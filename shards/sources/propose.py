"""Propose the `[columns]` of a table whose columns are not known, or may have a meaning although they
are only stored, by what is in them.

The user reads, corrects and pastes them once, in place of rules that guess at every row.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice, pairwise, product
from operator import itemgetter
from typing import Any

from alpro.errors import InputError
from alpro.shards.clip import MAX_SECONDS
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.form import (
    CUE,
    OPTION_NAME,
    SEVERAL_OPTIONS,
    TABLE,
    UNSPACED,
    WORDS,
    Columns,
    Form,
    Record,
    fold,
    has_any,
    has_words,
    parse_cell,
    read_captions,
    read_cell,
    read_seconds,
    read_span,
    read_spans,
    read_text,
    split_in,
    unwrap,
)
from alpro.shards.sources.media import Folder, Notes, is_image
from alpro.shards.sources.rows import Items
from alpro.shards.sources.tables import Table, records_in
from alpro.shards.storage import is_url

EXAMINED_ROWS = 200
MIN_UNSPACED = 4  # Letters of a caption in a script without spaces; a class has fewer.
SHOWN_ROWS = 3
MAX_SHOWN_COLUMNS = 20
MAX_DEPTH = 4  # Levels of a JSON document in which records are looked for.
# In the names of columns.
NOT_SECONDS = re.compile(
    r"(?i:frame|image|bild|beeld|fotogram|кадр|帧|フレーム|프레임|毫秒|ミリ秒|밀리|milli|micro|nano|start_min|end_min|hour|stunde|\(min\))|Ms\b"
    # `ss.ms` are seconds, as ELAN writes.
    r"|(?<!ss\.)(?:\b|_)(?i:ms|msec|us|ns|minutes?|ticks?|samples?|idx|index)\b"
)
LABELS = WORDS["labels"]
# The mark at the end of a question; that of Greek looks like a semicolon.
QUESTION_MARK = re.compile(r"[?？؟]$|[\u0370-\u03ff]\W*;$")
TEMPLATE = re.compile(r"\{[^{}]+\}")  # in the name of a column
# In ids, paths and texts with the word of a split.
NO_SPLIT = re.compile(r"(?i) (?!set$)|/|[_-]\d|\d{5}")
Cells = dict[str, list[Any]]  # The cells of the examined rows by their columns.


class UnknownColumns(InputError):
    """Raised if the columns of a table are not known. The message ends with the lines to set.

    Args:
        problem: What is not known.
        score: How good the proposal is; whether it has texts comes first.
        rows: What the first records become with the proposal, as JSON.
    """

    def __init__(
        self,
        problem: str,
        block: str,
        score: tuple[float, ...],
        rows: list[str],
    ):
        super().__init__(
            f"{problem}; correct these lines, and put them into the configuration:\n\n{block}"
        )
        # For commands that read no configuration.
        self.without_lines = (
            f"{problem}; set `columns` in a configuration, decode with it (`alpro run decode_videos`), "
            'and name the corpus: "decode_videos data"'
        )
        self.score = score
        self.rows = rows


def unknown_columns(table: Table, items: Items) -> UnknownColumns:
    """Return the error for a table whose columns are not known, with a proposal for them."""
    # The lines of JSON Lines are a list, too.
    document = table.document or table.head_records
    is_nested = table.extension in (".json", ".jsonl", ".ndjson")
    places = [*dict.fromkeys(find_lists(document))] if is_nested else [""]
    proposals = (propose(document, place, items.folder) for place in places)
    score, columns, names = max(proposals, key=itemgetter(0))

    if table.form.where:
        columns["where"] = table.form.where  # as of conversations
    form = Form.model_validate(columns | {"usual": True})
    header = {name: [name] for name in names if not is_nested}
    if find_first(header, is_caption) and propose_file(header, items.folder):
        raise InputError(
            f"{table.path}: line 1 is a row ({names[0]}, ...); write the names of the columns above it, "
            "such as path,caption"
        )

    lines = ["[corpora.data.columns]"]
    for key, value in columns.items():
        # An object is a table of TOML.
        line = (
            f"{key} = {json.dumps(value, ensure_ascii=False, separators=(', ', ' = '))}"
        )
        lines.append(line if value else WORDS["unknown"].get(key, line))
    not_found = WORDS["not_found"].items()
    lines += [
        line for keys, line in not_found if columns.keys().isdisjoint(keys.split())
    ]

    preview = Items(items.root, Notes(), items.folder)
    rows: list[Row | Reject] = []
    for entry, record in islice(records_in(document, form), SHOWN_ROWS):
        rows += preview.add(entry, record, form)
    rows += preview.rows()
    return UnknownColumns(
        f"{table.path}: the columns are not known ({', '.join(names[:MAX_SHOWN_COLUMNS])})",
        block="\n".join(lines),
        score=score,
        rows=[
            row.model_dump_json(exclude={"id", "kind"}, exclude_defaults=True)
            for row in rows
        ],
    )


def hides_meanings(table: Table) -> bool:
    """Return whether columns that are only stored may be the splits, times, without which an item is
    a whole file, or options, whose names would be answers of their own.

    Keys that the user has set are not questioned.
    """
    form = table.bound
    all_cells = read_columns(table.head_records)
    # Half of a part may have the other half under another name; groups and types may be splits.
    kept = {form.answer, form.start, form.end, form.group, form.type}
    used = form.meanings - kept
    stored = {name: all_cells[name] for name in all_cells if not has_any([name], used)}
    questions = (hides_splits, hides_times, hides_questions)
    if table.user_form is TABLE and any(
        hides(table, all_cells, stored) for hides in questions
    ):
        return True

    # The answers may be in another table.
    is_asked = bool(form.question) and form.answer in stored
    is_told = "options" in table.form.model_fields_set
    return is_asked and not is_told and may_name_options(form.answer, stored)


def hides_splits(table: Table, all_cells: Cells, stored: Cells) -> bool:
    """Return whether a stored column may name the split of each row, or tell whether it is in one."""
    if table.bound.split in all_cells:
        return False
    return bool(find_first(stored, is_split)) or has_flag(stored)


def hides_times(table: Table, all_cells: Cells, stored: Cells) -> bool:
    """Return whether stored columns may be the times of a part, or the end of one whose start is known."""
    form = table.bound
    has_times = {form.start, form.end} <= all_cells.keys()
    # A form whose clips are whole files has an empty `span`.
    has_times |= "span" in table.form.model_fields_set
    files = all_cells.get("".join(form.file_columns[:1]), [])
    if not has_times and propose_times(stored, files, are_named=True):
        return True

    # Beside other seconds, `start` and `end` may be frames.
    seconds = {name: stored[name] for name in stored if not NOT_SECONDS.search(name)}
    pair = [find_fitting(seconds, is_time, time) for time in ("start", "end")]
    return form.usual and min(map(len, pair)) > 1


def hides_questions(table: Table, all_cells: Cells, stored: Cells) -> bool:
    """Return whether the texts that are read may be options, questions, or the prompt of all files."""
    form = table.bound
    if form.question or not form.usual:
        return False
    # Beside an answer, they are options.
    if form.answer:
        return True
    texts = {name: all_cells.get(name, []) for name in form.captions}
    if find_first(texts, is_marked) and find_first(
        stored, lambda cell: has_words(read_text(cell))
    ):
        return True

    # The prompt of all files, beside texts that differ.
    is_prompt = len({*map(str, chain(*texts.values()))}) == 1
    differ = {name: stored[name] for name in stored if has_several(stored[name])}
    return is_prompt and bool(find_first(differ, is_caption))


def propose(
    document: Any, place: str, folder: Folder | None
) -> tuple[tuple[float, ...], Record, list[str]]:
    """Return a score, the proposed columns of the records at a place of a document, and the columns
    that there are. The score compares, in this order, whether there are texts, whether most records
    have all proposed columns, how many are proposed, and how many records have them all."""
    columns: Record = {"records": place} if place else {}
    pairs = records_in(document, Columns.model_validate(columns))
    examined = map(itemgetter(1), islice(pairs, EXAMINED_ROWS))
    records = [record for record in examined if isinstance(record, dict)]
    cells = read_columns(records)
    columns |= propose_columns(cells, folder)
    form = Form.model_validate(columns)
    meanings = form.meanings
    # A text that is repeated for each of its answers, or times, is one.
    repeated = {form.answer, form.start, form.end, form.span}
    used = [map(read_text, cells[name]) for name in meanings - repeated]
    rows = [*zip(*used, strict=True)]
    complete = [*filter(all, rows)]
    # Beside a single cell of a record, its others have no meaning.
    is_cell = bool(place) and "$value" in cells.keys() - meanings
    has_texts = not (is_cell or columns.keys().isdisjoint(("captions", "question")))
    count = sum(map(bool, columns.values())) - bool(place)
    score = (
        has_texts,
        2 * len({*complete}) > len(rows),
        count,
        "$value" not in meanings,
        len({*complete}),
    )
    return score, columns, [*cells]


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
    cells: Cells = {}
    for name in chain.from_iterable(map(find_columns, records)):
        if name not in cells:
            cells[name] = [read_cell(record, name) for record in records]
    return cells


def find_columns(record: Record, prefix: str = "") -> Iterator[str]:
    """Yield the columns of a record, also those inside of objects and of lists of objects, without
    those that would be templates."""
    for key, value in record.items():
        with suppress(ValueError):
            # A key such as 0-5 has the times of its text, and is no column.
            if is_span(key):
                continue
        if TEMPLATE.search(key):
            continue
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            yield from find_columns(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def propose_columns(cells: Cells, folder: Folder | None) -> Record:
    """Return the columns by their keys, as far as their contents tell."""
    proposed = propose_file(cells, folder)
    file = proposed.get("file", "")
    free = {name: cells[name] for name in cells if name != file}
    usual = TABLE.bind(cells)
    ids = cells.get(usual.id, [])
    if len({*map(read_text, ids)}) < len(ids):
        # A number within each file is no id.
        proposed["id"] = ""

    tests = {"split": is_split, "question": is_question}
    for key, fits in tests.items():
        name = getattr(usual, key)
        if name not in free:
            name = find_first(free, fits)
        if name:
            proposed[key] = name
            free.pop(name)
    if "split" not in proposed and has_flag(free):
        proposed["split"] = ""
    is_asked = "question" in proposed
    times = propose_times(free, cells.get(file, []), are_named=is_asked)
    for name in filter(None, times.values()):
        free.pop(name)
    proposed |= times

    if is_asked:
        proposed |= propose_answer(free)
        free.pop(proposed.get("answer", ""), None)
    texts = [*find_fitting(free, is_caption)]
    # Prompts, and names of the people who wrote the texts, are no captions.
    texts = [name for name in texts if has_several(free[name])] or texts
    # Beside a usual name of captions, the others are metadata such as titles; beside a text of no
    # column, they are of its kind.
    texts = [name for name in texts if name in (*usual.captions, "$value")] or texts
    # Beside an answer, texts are captions or options, or questions that are not known as such.
    is_unclear = bool(usual.answer and usual.captions)
    if is_asked:
        is_unclear = bool(texts) and not (usual.captions or "options" in proposed)
    if is_unclear:
        proposed["captions"] = ""
    elif texts and not (is_asked or usual.answer):
        proposed["captions"] = unwrap(texts)
    return proposed


def find_fitting(cells: Cells, fits: Callable[[Any], bool], time: str = "") -> Cells:
    """Return the columns, or those with the name of a time, of which most cells fit, without those
    that are empty."""
    columns: Cells = {}
    for name in cells:
        filled = [*filter(read_text, cells[name])]
        fitting = 0
        for cell in filled:
            with suppress(ValueError):
                fitting += fits(cell)
        if 2 * fitting > len(filled) and time in ("", time_in(name)):
            columns[name] = cells[name]
    return columns


def find_first(cells: Cells, fits: Callable[[Any], bool], time: str = "") -> str:
    """Return the first column that fits, or an empty name."""
    return next(iter(find_fitting(cells, fits, time)), "")


def time_in(name: str) -> str:
    """Return which time of a part the name of a column tells: start, end, span or length; nothing, or
    other, if it tells none.

    >>> [time_in(name) for name in ("clipStart", "end_time", "Début (s)", "TIMESTAMP", "weekend")]
    ['start', 'end', 'start', 'span', '']
    """
    names = name.rpartition(".")[2], *re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)
    words = [*map(fold, names)]
    # The first word tells: "Ende in s" is no start.
    for times in (("other",), ("start", "end"), ("span", "length")):
        for word, time in product(words, times):
            if word in WORDS["times"][time]:
                return time
    return ""


def is_split(cell: Any) -> bool:
    """Return whether a cell is the name of a split, and no text, path or id with such a word."""
    text = read_text(cell)
    return bool(split_in(text)) and not NO_SPLIT.search(text)


def has_flag(cells: Cells) -> bool:
    """Return whether a column tells of a row whether it is in one split, such as is_test, or true."""
    labels = {name: cells[name] for name in cells if fold(name) in LABELS["names"]}
    is_label = find_first(
        labels, lambda cell: read_text(cell).lower() in LABELS["words"]
    )
    return bool(is_label) or not {*map(fold, cells)}.isdisjoint(WORDS["flags"])


def is_span(cell: Any) -> bool:
    return all(map(is_time, chain.from_iterable(read_spans(cell))))


def is_time(cell: Any) -> bool:
    # The times in a list of objects are lists.
    if isinstance(cell, list):
        return all(map(is_time, cell))
    return 0 <= (read_seconds(cell) or 0) <= MAX_SECONDS


def has_several(cells: list[Any]) -> bool:
    """Return whether cells differ."""
    return len({*map(str, cells)}) > 1


def has_digits(cell: Any) -> bool:
    return read_text(cell)[:1].isdigit()


def is_marked(cell: Any) -> bool:
    return bool(QUESTION_MARK.search(read_text(cell)))


def is_question(cell: Any) -> bool:
    text = read_text(cell).casefold()
    return is_long(text) and (is_marked(text) or text.split()[0] in WORDS["questions"])


def is_caption(cell: Any) -> bool:
    """Return whether a cell has a text of several words that is no question."""
    text = next(read_captions(cell), "")
    return is_long(text) and has_words(text) and not is_question(text)


def is_long(text: str) -> bool:
    """Return whether a text has several words, or several letters of a script without spaces."""
    return len(text.split()) > 1 or len(UNSPACED.findall(text)) >= MIN_UNSPACED


def propose_file(cells: Cells, folder: Folder | None) -> Record:
    """Return the column whose cells name files, or files in subfolders, or are URLs."""

    def names_file(cell: Any, anywhere: bool) -> bool:
        # As Windows writes a path.
        name = read_text(unwrap(cell)).replace("\\", "/")
        return bool(folder and folder.find(name, anywhere=anywhere))

    for anywhere in (False, True):
        names = [*find_fitting(cells, partial(names_file, anywhere=anywhere))]
        # The keys of many files in one record are no columns.
        if names and (len(names) < 3 or len(cells[names[0]]) > 1):
            # A picture of a video may have its own column.
            name = min(
                names, key=lambda name: is_image(read_text(unwrap(cells[name][0])))
            )
            return {"file": name} | ({"anywhere": True} if anywhere else {})
    # Beside files, an address may be that of a page.
    url = "" if folder and folder.media else find_first(cells, is_url)
    return {"file": url} if url else {}


def propose_times(
    cells: Cells,
    files: list[Any],
    are_named: bool = False,
) -> dict[str, str]:
    """Return the columns of times: those with names of times, spans of clocks, or numbers that cut files
    into parts. They are empty for several starts, a start and a length, and other units than seconds,
    and unless times must be named, `span` is if other numbers may be times."""
    in_one = find_fitting(cells, is_span)
    numbers = find_fitting(cells, is_time)
    starts = [*find_fitting(numbers, is_time, "start")]
    end = find_first(numbers, is_time, "end")
    span = find_first(in_one, is_span, "span") or find_first(
        in_one, lambda cell: bool(CUE.match(read_text(cell)))
    )
    if not (span or end):
        span = find_first(in_one, is_span, "start")  # start_end, from_to
    times = {"span": span}
    if not span:
        pair = [*starts[:1], end] if starts and end else find_parts(numbers, files)
        times = dict(zip(["start", "end"], pair, strict=False))
    # An end that cannot be read, such as a timecode, is no more than a length.
    length = find_first(numbers, is_time, "length") or find_first(
        cells, has_digits, "end"
    )
    has_length = length and find_first(cells, has_digits, "start")
    is_unclear = (times and len(starts) > 1) or (has_length and not times)
    if is_unclear or any(map(NOT_SECONDS.search, times.values())):
        return {"start": "", "span": ""}
    may_be_times = in_one or len({*numbers} - {length}) > 1
    return times or ({"span": ""} if may_be_times and not are_named else {})


def find_parts(cells: Cells, files: list[Any]) -> tuple[str, ...]:
    """Return two adjacent columns that are starts and ends by their numbers: starts are before ends, and
    most parts of a file follow one another, unless the names are a known pair."""
    for pair in pairwise(cells):
        with suppress(ValueError, TypeError):
            spans = zip(*map(cells.__getitem__, pair), strict=True)
            named = zip(map(str, files), map(read_span, spans), strict=False)
            parts: list[Any] = sorted(named)
            follow = [
                part[1] <= later[0]
                for (file, part), (other, later) in pairwise(parts)
                if file == other
            ]
            # A length may grow as an end does.
            are_parts = 2 * sum(follow) > len(follow) and time_in(pair[1]) != "length"
            if are_parts or [*map(fold, pair)] in WORDS["times"]["pairs"]:
                return pair
    return ()


def propose_answer(cells: Cells) -> Record:
    """Return the column of the answers: the first with such a name, or the only one. `options` is empty
    if the answers may be names of options, whose columns the user names."""
    # A list beside other columns may have the options.
    names = [
        name
        for name in cells
        if re.fullmatch(WORDS["answers"], fold(name))
        and not any(map(SEVERAL_OPTIONS.search, map(read_text, cells[name])))
    ]
    if len(cells) == 1:
        names = [*cells]
    if not names:
        return {"options": ""}
    hidden = {"options": ""} if may_name_options(names[0], cells) else {}
    return {"answer": names[0]} | hidden


def may_name_options(answer: str, cells: Cells) -> bool:
    """Return whether all answers may be names of options that other columns have: letters, digits,
    or names of columns."""
    answers: list[Any] = []
    # The reject of its row tells a list as NumPy writes it.
    with suppress(ValueError):
        for cell in map(parse_cell, cells[answer]):
            answers += cell if isinstance(cell, list) else [cell]
    texts = filter(None, map(read_text, answers))
    are_names = all(text in cells or OPTION_NAME.fullmatch(text) for text in texts)
    # A column `a` beside `b` is the first option.
    is_option = fold(answer) == "a" and "b" in map(fold, cells)
    return is_option or (are_names and len(cells) > 1)
