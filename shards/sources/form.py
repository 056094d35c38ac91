"""The meaning of a table's columns: a published form (forms.toml), or `[corpora.NAME.columns]`."""

import re
import tomllib
from collections.abc import Container, Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr

# Increase it if the same files give other rows: sources are then imported again.
VERSION = 15
FORMS_FILE = Path(__file__).with_name("forms.toml")
WORDS: dict[str, Any] = tomllib.loads(FORMS_FILE.read_text("utf-8"))
TEMPLATE_COLUMN = re.compile(r"\{([^{}]+?)(?::0(\d+))?\}")

NO_TEXT = {*WORDS["no_text"]["words"]}
Record = dict[str, Any]
Split = Literal["", "train", "validation", "test"]
# A single name may be written without brackets.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]


class Join(BaseModel):
    """Further columns of a record, from the record with the same key in another list or table."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    on: str
    """column of the record"""
    key: str = ""
    """column of the other record that has the same value"""
    list: str = ""
    """where the same JSON document has the other records"""


class Columns(BaseModel):
    """The columns of a table that has no published form. A column inside of an object has a dotted
    name, `meta.title`. A column that is not set has its usual name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    file: Names = ()
    """the video or image, relative to the folder of the table, or its URL: a column, or a template
    such as `{page_dir}/{videoid}`, or `{start:06}` for six digits; of several, the first whose
    columns a row has"""
    prefixes: Names = ()
    """what the names of files may begin with, such as `v_`"""
    anywhere: bool = False
    """whether a name also means the only file of that name in a subfolder"""
    url: str = ""
    """where the file is, if the folder has no media"""
    captions: Names = ()
    """texts, or lists of texts"""
    paragraph: Literal["", "row", "file"] = ""
    """whether the texts of a `row`, or of a `file`, are one caption"""
    question: str = ""
    """a question"""
    answer: str = ""
    """its answer; of a list, the most frequent"""
    questions: str = ""
    """lists of `{question, answer, type}`"""
    type: str = ""
    """its type; default: its first word"""
    options: Names = ()
    """the columns of the options, or the one with their list"""
    first_option: Literal["", "0", "1", "A"] = ""
    """the answer that means the first option; default: answers are texts of options"""
    start: str = ""
    """start of the part of the file, in seconds or as `01:02:03.5`"""
    end: str = ""
    """its end"""
    span: str = ""
    """both: `[1, 2.5]`, `0:01 - 0:03`"""
    split: str = ""
    """`train`, `validation` or `test`"""
    group: str = ""
    """items of a group stay in one split; default: the file"""
    id: str = ""
    """unique; default: the path without its extension, with the times"""
    kind: str = ""
    """`video` or `image`; default: by the file"""
    where: dict[str, str] = {}
    """rows to read: `{language = "English"}`"""
    records: str = ""
    """where a JSON document has its records: `data`, or `data.*.items` for the items of every
    key; the key is the column `$key`, of two the first `$outer`, and a record that is no object the
    column `$value`"""
    line: re.Pattern[str] | None = None
    """regular expression of a line of a text; its named groups are the columns"""
    join: Join | None = None
    """columns of another list: `{list = "videos", on = "video_id", key = "id"}`"""
    texts: Names = ()
    """folders of texts that have the names of the videos"""


class Form(Columns):
    """The meaning of the columns of a table."""

    title: str = "your columns"
    has: tuple[str, ...] = ()  # Columns that identify the form.
    lacks: tuple[str, ...] = ()
    format: str = ""  # Extension of its files, if its columns are common.
    usual: bool = False  # Whether columns that are not set have their usual names.
    _bound: dict[tuple[str, ...], "Form"] = PrivateAttr(default_factory=dict)

    def fits(self, columns: Iterable[str], extension: str) -> bool:
        """Return whether a table with these columns has this published form."""
        names = {*columns}
        is_format = self.format in ("", extension)
        return is_format and names.issuperset(self.has) and names.isdisjoint(self.lacks)

    def bind(self, record: Iterable[str]) -> "Form":
        """Return the form with the usual names that the columns of a record have."""
        columns = tuple(record)
        if not self.usual or columns in self._bound:
            return self._bound.get(columns, self)
        names = {fold(name): name for name in reversed(columns)}
        changes: dict[str, Any] = {}
        for key, words in WORDS["usual"].items():
            present = [names[word] for word in words if word in names]
            if present and key not in self.model_fields_set:
                changes[key] = present[0]
        self._bound[columns] = Form.model_validate(self.model_dump() | changes)
        return self._bound[columns]

    @cached_property
    def meanings(self) -> set[str]:
        """The columns that have a meaning. The others are stored as `meta`."""
        keys = "question answer questions type start end span url split group id kind"
        columns = {getattr(self, key) for key in keys.split()}
        columns.update(self.captions, self.options, self.file_columns)
        return columns - {""}

    @cached_property
    def file_columns(self) -> list[str]:
        parts = chain.from_iterable(map(parse_template, self.file))
        return [column for _, column, _ in parts]

    @property
    def text_columns(self) -> list[str]:
        asked = self.question if self.answer or self.join else ""
        return [*filter(None, (*self.captions, self.questions, asked))]


@lru_cache
def parse_template(template: str) -> list[tuple[str, str, int]]:
    """Return the columns of a template: what stands for each, its name, and the least number of
    digits. A template without braces is a column.

    >>> parse_template("{id}_{start:06}"), parse_template("id")
    ([('{id}', 'id', 0), ('{start:06}', 'start', 6)], [('id', 'id', 0)])
    """
    found = [*TEMPLATE_COLUMN.finditer(template)]
    if not found:
        return [(template, template, 0)]
    return [(match[0], match[1], int(match[2] or 0)) for match in found]


@lru_cache(4096)
def fold(name: str) -> str:
    """Return a name as names of columns are compared: without case, spaces, `-` and `_`."""
    return re.sub(r"[\s_-]", "", normalize("NFKC", name).casefold())


FORMS = [Form.model_validate(values) for values in WORDS["form"]]
TABLE = Form.model_validate(WORDS["table"])
LIST = Form.model_validate(WORDS["list"])
BESIDE = Form.model_validate(WORDS["beside"])
SAMPLE = Form.model_validate(WORDS["sample"])


def read_cell(record: Record, column: str) -> Any:
    """Return a cell; a dotted column is one inside of an object, or of each object of a list. A
    form has an empty name for a column that there is not: its cell is None."""
    if not column:
        return None
    if column in record or "." not in column:
        return record.get(column)
    value: Any = record
    for key in column.split("."):
        if isinstance(value, list):
            value = [each.get(key) for each in value if isinstance(each, dict)]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def time_in(name: str) -> str:
    """Return which time of a part the name of a column tells: start, end or span; or nothing.

    >>> [time_in(name) for name in ("clipStart", "end_time", "Begin (s)", "TIMESTAMP", "weekend")]
    ['start', 'end', 'start', 'span', '']
    """
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}
    for time, names in WORDS["times"].items():
        if not words.isdisjoint(names):
            return time
    return ""


def has_any(columns: Container[str], names: Iterable[str]) -> bool:
    """Return whether there is one of some columns, or of the objects that they are in."""
    return any(name in columns or name.split(".")[0] in columns for name in names)


@lru_cache
def split_in(text: str) -> Split | None:
    """Return the split that a text names, an empty one if it is empty; None if it names none, or
    several.

    >>> [split_in(text) for text in ("Train", "test1k", "held-out", "val set", "nan", "x", "train_val")]
    ['train', 'test', 'test', 'validation', '', None, None]
    """
    if text.strip().lower() in NO_TEXT | {"-", "unknown"}:
        return ""
    words = {fold(text)}
    for word in re.findall("[a-z]+", text.lower()):
        words.add(word.removesuffix("set"))
    if not words.isdisjoint(("no", "non", "not")):  # "not_train"
        return None
    splits: list[Split] = []
    for split, names in WORDS["splits"].items():
        if not words.isdisjoint(names):
            splits.append(split)
    return splits[0] if len(splits) == 1 else None


def find_form(document: Any, extension: str) -> Form | None:
    """Return the published form whose columns the records inside of a document have."""
    for form in FORMS:
        if form.records:
            _, first = next(records_in(document, form), ("", ""))
            # A reason in place of a record has no columns.
            if form.fits(first, extension):
                return form
    return None


def records_in(document: Any, form: Columns) -> Iterator[tuple[str, Record | str]]:
    """Yield the records of a JSON document with their places, joined with the records of its other
    list; a reason in place of an invalid record."""
    join = form.join if form.join and form.join.list else None
    partners: dict[str, Record | str] = {}
    others = walk(document, join.list.split("."), "") if join else ()
    for _, partner in others:
        if join and isinstance(partner, dict):
            key = str(partner.get(join.key))
            if partners.setdefault(key, partner) != partner:
                reason = f"two entries of `{join.list}` have the {join.key} {key}"
                partners[key] = reason

    path = form.records.split(".") if form.records else []
    for where, record in walk(document, path, "entry"):
        if join and isinstance(record, dict):
            key = str(record.get(join.on))
            reason = f"no entry of `{join.list}` has the {join.key} {key}"
            found = partners.get(key, reason)
            yield where, found if isinstance(found, str) else found | record
        else:
            yield where, record


def walk(
    value: Any,
    path: list[str],
    where: str,
    outer: Record | None = None,
) -> Iterator[tuple[str, Record | str]]:
    """Yield the records at a path of keys, where `*` is each key, and each entry of a list is one.

    Args:
        outer: The texts, numbers and objects around, which the record has too, with the innermost
            key as `$key`, and the one around it as `$outer`; None at the top of a document, whose
            own texts describe the document.
    """
    around = outer or {}
    has_records = isinstance(value, list) and any(
        isinstance(each, dict) for each in value
    )
    # A list of texts in an object is a cell.
    if isinstance(value, list) and (path or has_records or not around):
        rest = path[1:] if path[:1] == ["*"] else path
        for number, each in enumerate(value, 1):
            yield from walk(
                each,
                rest,
                f"{where} {number}",
                around,
            )
        return

    if not path:
        columns = value if isinstance(value, dict) else {"$value": value}
        yield where, around | columns
    elif isinstance(value, dict):
        key, *rest = path
        if outer is not None:
            # Beside one key, objects describe its records; beside `*`, they are others of its kind.
            kinds = str | int | float if key == "*" else str | int | float | dict
            cells = {
                name: cell for name, cell in value.items() if isinstance(cell, kinds)
            }
            around = around | cells
            around.pop(key, None)
        names = value if key == "*" else value.keys() & {key}
        for name in names:
            keys = {"$outer": around["$key"]} if "$key" in around else {}
            inner = around | keys | {"$key": name} if key == "*" else around
            yield from walk(
                value[name],
                rest,
                f"{where} {name!r}",
                inner,
            )
