"""Check whether the columns that a known table only stores may have a meaning."""

from alpro.shards.sources.form import OPTION_NAME, TABLE, Form, fold, has_any, read_text
from alpro.shards.sources.propose import (
    Cells,
    find_first,
    has_split_flag,
    is_constant,
    is_marked,
    is_split,
    is_text,
    may_name_options,
    propose_times,
    read_columns,
)
from alpro.shards.sources.tables import Table


def hides_meanings(table: Table) -> bool:
    """Return whether columns that are only stored may be the splits, times, without which an item is
    a whole file, or options, whose names would be answers of their own.

    Keys that the user has set are not questioned.
    """
    form = table.bound
    has_user_form = table.user_form is not TABLE
    all_cells = read_columns(table.head_records)
    has_times = form.span or (form.start and form.end)
    # Half of a part may have the other half under another name; groups and types may be splits.
    kept = {form.answer, form.start, form.end, form.group, form.type}
    used = form.meanings - kept
    named = {name: all_cells[name] for name in all_cells if has_any([name], used)}
    cells = {name: all_cells[name] for name in all_cells if name not in named}

    if not has_user_form:
        has_split = find_first(cells, is_split) or has_split_flag(cells)
        if has_split and not form.split:
            return True
        # Names of columns tell times, or the end of a part whose start is known.
        times = propose_times(cells, are_named=True).values()
        if form.usual and (
            (not has_times and any(times))
            or (not form.question and hides_texts(form, named, cells))
        ):
            return True

    # The answers may be in another table.
    is_asked = form.question and form.answer in cells
    is_told = "options" in table.form.model_fields_set
    return bool(is_asked and not is_told and may_name_options(form.answer, cells))


def hides_texts(form: Form, named: Cells, cells: Cells) -> bool:
    """Return whether captions are objects, whose columns have dotted names, or options beside their
    names, or if another column has texts, questions or the same prompt for all files."""
    captions = [named.get(name, []) for name in form.captions]
    # Under another name, the same text may be the label of a class.
    is_prompt = "prompt" in map(fold, form.captions) and is_constant(captions[0])
    has_prompt = is_prompt or find_first(named, is_marked)
    answers = [*map(read_text, cells.get(form.answer, ()))]
    if answers and all(map(OPTION_NAME.fullmatch, answers)):
        return True
    return not all(captions) or bool(has_prompt and find_first(cells, is_text))
