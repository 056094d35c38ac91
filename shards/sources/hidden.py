"""Check whether the columns that a known table only stores may have a meaning."""

from alpro.shards.sources.form import TABLE, Form
from alpro.shards.sources.media import Folder
from alpro.shards.sources.propose import (
    Cells,
    find_first,
    has_split_flag,
    is_split,
    is_time,
    may_name_options,
    propose_answer,
    propose_file,
    propose_times,
    read_answers,
    read_columns,
)
from alpro.shards.sources.tables import Table
from alpro.shards.storage import is_url


def hides_meanings(table: Table, folder: Folder | None) -> bool:
    """Return whether columns that are only stored may be the files, splits, times, without which an
    item is a whole file, or options, whose names would be answers of their own.

    Keys that the user has set are not questioned.
    """
    form = table.bound
    has_user_form = table.user_form is not TABLE
    all_cells = read_columns(table.head_records)
    # A half of a part is kept: the other half may have another name.
    has_times = form.span or (form.start and form.end)
    kept = {form.answer} if has_times else {form.answer, form.start, form.end}
    used = form.meanings - kept
    cells = {name: all_cells[name] for name in all_cells if name not in used}

    if not has_user_form:
        files = form.file_columns[:1]
        named = {name: all_cells[name] for name in files if name in all_cells}
        if form.usual and hides_file(named, cells, folder):
            return True
        has_split = find_first(cells, is_split) or has_split_flag(cells)
        if has_split and not form.split:
            return True
        if form.usual and not has_times and hides_times(form, cells):
            return True

    # The answers may be in another table.
    is_asked = form.question and form.answer in cells
    if not is_asked or form.options or "options" in table.user_form.model_fields_set:
        return False
    return hides_options(form.answer, cells) or (
        not has_user_form and may_name_options(form.answer, cells)
    )


def hides_file(named: Cells, cells: Cells, folder: Folder | None) -> bool:
    """Return whether the column with a usual name of files has no file, and another one has."""
    if propose_file(named, folder):
        return False
    other = propose_file(cells, folder).get("file", "")
    return bool(other) and not any(map(is_url, cells[other]))


def hides_times(form: Form, cells: Cells) -> bool:
    """Return whether names of columns tell times, or the end of a part whose start is known."""
    ends = (find_first(cells, is_time, time) for time in ("end", "length"))
    has_end = form.start and not form.end and any(ends)
    times = propose_times(cells, [], are_named=True)
    return bool(has_end or any(times.values()))


def hides_options(answer: str, cells: Cells) -> bool:
    """Return whether answers are names of options: with the options, they read differently."""
    proposed = propose_answer(cells)
    if not proposed.get("options"):
        return False
    return read_answers(cells, proposed) != read_answers(cells, {"answer": answer})
