"""The meaning of a table's columns, a published form (forms.toml) or `[corpora.NAME.columns]`, and of
the texts, questions and times in its cells."""

import ast
import html
import json
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr

from alpro.shards.file_type import MEDIA_EXTENSIONS

# Increase it if the same files give other rows: sources are then imported again.
VERSION = 37
WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("forms.toml").read_text("utf-8")
)
# A column in a template of `file`, and the least number of its digits; without braces, all of it.
TEMPLATE_COLUMN = re.compile(r"(?s)\{([^{}]+?)(?::0(\d+))?\}|^(?!.*\{[^{}]+\}).+")
NO_TEXT = {*WORDS["no_text"]["words"]}
INVISIBLE = " \u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
# Tags of HTML; other texts in angle brackets are words, as the <PERSON> of CC12M.
INLINE_TAG = re.compile(
    r"(?i)</?(?:a|b|c|em|font|i|mark|s|small|span|strong|su[bp]|u)(?:\s+[\w-]+ *=[^<>]*)? */?>"
)
BLOCK_TAG = re.compile(
    r"(?i)<!--.*?-->|</?(?:body|br|div|h\d|hr|html|img|li|ol|p|table|t[dhr]|ul)(?:\s+[\w-]+ *=[^<>]*)? */?>"
)
MEDIA = "|".join(map(re.escape, sorted(MEDIA_EXTENSIONS)))
# Markup, addresses, names of files, names with a number, as in telemetry, and the mark of an option.
MEASUREMENT = re.compile(
    rf"(?i)<[^<>]*>|\S+://\S+|\S+(?:{MEDIA})\b|\w+ ?[:=(] ?[-+]?\d[\d.,/:]*|^\(?[a-j][).:]+$"
)
# Negative prompts, and the times of subtitles and lyrics. A caption may begin with the time on a clock.
TIME = r"\d+:\d\d(?::\d\d)?"
CUE = re.compile(
    rf"\W*(?:(?i:neg(?:ative)?[ _]prompt\s*:)|\[{TIME}\b|{TIME}[.,]\d|{TIME}\W+{TIME}|"
    rf"\d+\.\d+[\s,;-]+\d+\.\d+[\s,;:])|.*\d:\d\d[.,]\d+\W+{TIME}[.,]\d"
)
# Letters beside no digit, as in hashes and names of files; of scripts without spaces, all letters.
UNSPACED = re.compile(r"[^\W\d_\x00-\u0dff]")
WORD = re.compile(rf"{UNSPACED.pattern}|(?<![^\W_])[^\W\d_]+(?![^\W_])")
NUMBER = re.compile(r"\d+(?:(?:\.\d+){2}|,\d+)*")  # A date is one number.
SEVERAL = ("[", "{", "('", '("', "array([")  # how a cell of several values begins
WITHOUT_COMMAS = re.compile(r"(?s)\[.*['\"]\s+['\"].*\]")  # Python would join them.
LIST_OF_TEXTS = re.compile(r"(?:array\()?\[\s*['\"]")
LETTERS = "ABCDEFGHIJ"
NUMBERS = [str(number) for number in range(100)]
OPTION_NAMES = {"A": [*LETTERS], "0": NUMBERS, "1": NUMBERS[1:]}
OPTION_NAME = re.compile(rf"(?is)\(?[{LETTERS}\d](?:[).:]+(?:\s.*)?)?")
BEFORE_OPTION = re.compile(r"(?i)^\(?[A-J\d][).:]\s+")
OPTION_COLUMN = re.compile(WORDS["options"])
# A cell with several options, and a question that ends with them: "who? A. he B. she".
SEVERAL_OPTIONS = re.compile(r"""^(?:[\[{]|\(['"]|array\(\[)(?!\s*[\])}])|\|""")
OPTIONS_INSIDE = re.compile(WORDS["options_inside"])
BETWEEN_OPTIONS = re.compile(r"[|\n]")
# Between numbers, a space is as NumPy writes it: [1.  2.5].
BETWEEN_TIMES = re.compile(
    r"\s*(?<!^)(?:-->|[-–—~～;]|,\s|\bto\b)\s*|(?<=[\d.])\s+(?=[\d.])"
)

Time = float | None  # in seconds
FilePart = tuple[tuple[Time, Time], list[Any]]  # a start, an end, and cells of captions
Record = dict[str, Any]
Split = Literal["", "train", "validation", "test"]
# A single name may be written without brackets. An empty text stands for no name.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: tuple(filter(None, [value])) if isinstance(value, str) else value
    ),
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
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
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
    """the columns of the options, or the one with their list or with `a|b`"""
    first_option: Annotated[Literal["", "0", "1", "A"], BeforeValidator(str)] = ""
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
        """Return the form with the usual names of a record; a published one has those that people add."""
        columns = tuple(record)
        if columns in self._bound:
            return self._bound[columns]
        names = {fold(name): name for name in reversed(columns)}
        keys = WORDS["usual"] if self.usual else WORDS["added"]
        taken = {self.question, self.answer} if self.usual else self.meanings
        changes: Record = {}
        for key in keys:
            present = [names[word] for word in WORDS["usual"][key] if word in names]
            is_free = key not in self.model_fields_set
            if present and is_free and present[0] not in taken:
                changes[key] = present[0]
        bound = self.model_dump(exclude_unset=True) | self.drop_clip_times(changes)
        self._bound[columns] = Form.model_validate(bound)
        return self._bound[columns]

    def override(self, user_form: "Form") -> "Form":
        """Return the form with the keys that a user has set."""
        own = user_form.drop_clip_times(self.model_dump(exclude_unset=True))
        changes = user_form.model_dump(exclude_unset=True, exclude={"title", "usual"})
        return Form.model_validate(own | changes)

    def drop_clip_times(self, keys: Record) -> Record:
        """Return keys without times, and without the video's id, if `file` contains a time: each file
        is already the clip."""
        times = keys.keys() & {"start", "end", "span"}
        if any(keys[key] in self.file_columns for key in times):
            return keys | dict.fromkeys(times | keys.keys() & {"id"}, "")
        return keys

    @cached_property
    def file_columns(self) -> list[str]:
        """The columns in the templates of the names of files."""
        matches = chain(*map(TEMPLATE_COLUMN.finditer, self.file))
        return [match[1] or match[0] for match in matches]

    @cached_property
    def partner_column(self) -> str:
        """The column whose value is the id of a record in another table, or an empty name."""
        return self.join.on if self.join and not self.join.list else ""

    @cached_property
    def meanings(self) -> set[str]:
        """The columns that have a meaning. The others are stored as `meta`."""
        keys = "question answer questions type start end span url split group id kind"
        columns = {getattr(self, key) for key in keys.split()}
        columns.update(self.file_columns, self.captions, self.options)
        return columns - {""}

    def has_texts(self, columns: Collection[str]) -> bool:
        """Return whether one of some columns has texts."""
        asked = self.question if self.answer or self.join else ""
        return has_any((*self.captions, self.questions, asked), columns)


def has_any(names: Iterable[str], columns: Collection[str]) -> bool:
    """Return whether one of the names, which may be empty, is a column, or is inside of one."""
    named = filter(None, names)
    return any(name in columns or name.split(".")[0] in columns for name in named)


@lru_cache(4096)
def fold(name: str) -> str:
    """Return a name as names of columns are compared: without case, spaces, `-` and `_`."""
    return re.sub(r"[\s_-]", "", normalize("NFKC", name).casefold())


FORMS = [Form.model_validate(values) for values in WORDS["form"]]
TABLE, UNKNOWN, LIST, BESIDE, SAMPLE, WHOLE_FILES = (
    Form.model_validate(WORDS[name])
    for name in ("table", "no_table", "list", "beside", "sample", "whole_files")
)


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


def unwrap(value: Any) -> Any:
    """Return the value in a list of one value; any other value unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


@lru_cache
def split_in(text: str) -> Split | None:
    """Return the split that a text names: empty for an empty text, None for none or several.

    >>> [split_in(text) for text in ("Train", "test1k", "held-out", "val set", "nan", "x", "train_val")]
    ['train', 'test', 'test', 'validation', '', None, None]
    """
    if text.strip().lower() in NO_TEXT | {"-", "unknown"}:
        return ""
    found = re.findall("[a-z]+", text.lower())
    words = {fold(text), *(word.removesuffix("set") for word in found)}
    if not words.isdisjoint(("no", "non", "not")):  # "not_train"
        return None
    names = WORDS["splits"].items()
    splits = [split for split, known in names if not words.isdisjoint(known)]
    return splits[0] if len(splits) == 1 else None


def parse_cell(value: Any) -> Any:
    """Return the list or object that a text is in JSON or, as pandas writes it, in Python; any other
    value unchanged. Raises ValueError for a list of texts that is neither.

    >>> [parse_cell(text) for text in ('["a", 1]', "['a', 'b']", "('a', 'b')", "[a]", "(a)")]
    [['a', 1], ['a', 'b'], ['a', 'b'], '[a]', '(a)']
    """
    if not isinstance(value, str) or not value.lstrip().startswith(SEVERAL):
        return value
    text = value.strip()
    errors = (ValueError, SyntaxError, RecursionError, MemoryError)
    with suppress(*errors):
        return json.loads(text)
    if not WITHOUT_COMMAS.fullmatch(text):
        with suppress(*errors):
            # It only builds literals: nothing in a cell is run.
            parsed = ast.literal_eval(text)
            return [*parsed] if isinstance(parsed, tuple) else parsed
    if LIST_OF_TEXTS.match(text):
        raise ValueError("a list that is cut off, or of NumPy; write it as JSON")
    return value


def read_text(value: Any) -> str:
    """Return a cell as a text: 0 is "0", 2.0 of a column with gaps is "2", and False is "false"."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def clean_text(value: Any) -> str:
    """Return a cell as a person reads it: without tags, entities and further spaces.

    >>> clean_text("<b>Tom &amp; Jerry</b>&#39;s  <i>house</i>"), clean_text("5 &lt; 6")
    ("Tom & Jerry's house", '5 < 6')
    """
    # Exports of databases may have escaped a text twice.
    text = html.unescape(html.unescape(read_text(value)))
    return " ".join(BLOCK_TAG.sub(" ", INLINE_TAG.sub("", text)).split())


def has_words(text: str) -> bool:
    """Return whether a text says something: boxes, times, hashes, measurements and subtitles, which
    have the time at which they are shown, do not.

    >>> [has_words(text) for text in ("2 dogs", "a", "一只狗", "10,000 runners", "on 24.12.2023 a man")]
    [True, True, True, True, True]
    >>> [has_words(text) for text in ("3:00 am, an empty street", "10:30 on a station clock")]
    [True, True]
    >>> [has_words(text) for text in ("0 0.5 0.4", "Car 0.00 0 -1.58", "00:01 --> 00:02", "4d7a21")]
    [False, False, False, False]
    >>> [has_words(text) for text in ("[iso: 100] [ev: 0.7]", "https://host/a", "clip_0001.mp4")]
    [False, False, False]
    """
    rest = "" if CUE.match(text) else MEASUREMENT.sub(" ", text)
    return len(WORD.findall(rest)) >= max(1, len(NUMBER.findall(rest)))


def read_captions(value: Any) -> Iterator[str]:
    """Yield the texts of a cell: a text, or a list of texts. Raises ValueError for anything else."""
    value = parse_cell(value)
    if isinstance(value, dict):
        raise ValueError(
            f"a caption is an object with {', '.join(value)}; name a key, captions = 'COLUMN.KEY', or "
            "with records = 'COLUMN' each object is a record with its times"
        )
    if isinstance(value, list):
        for each in value:
            if isinstance(each, list):
                raise ValueError("captions are not a list of strings")
            yield from read_captions(each)
    elif isinstance(value, str):
        # Markup alone is a text, too, which has no words.
        text = clean_text(value) or value.strip()
        if text.strip(INVISIBLE).lower() not in NO_TEXT:
            yield text
    elif read_text(value):
        raise ValueError("captions are not a list of strings")


def read_questions(record: Record, form: Form) -> Iterator[dict[str, str]]:
    """Yield the question of a record, and those of its list. Raises ValueError for an incomplete one."""
    if clean_text(read_cell(record, form.question)):
        yield read_question(record, form)
    listed = parse_cell(read_cell(record, form.questions)) or []
    if not isinstance(listed, list) or not all(
        isinstance(each, dict) for each in listed
    ):
        raise ValueError(
            "questions are not a list of {question, answer}; `question` in `columns` names one text"
        )
    for each in listed:
        yield read_question(each, TABLE.bind(each))


def read_question(record: Record, form: Form) -> dict[str, str]:
    """Return the question of a record, its answer and its type, which is as in the name of a metric:
    [a-z0-9_-]+.

    >>> form = TABLE.bind(["question", "answer"])
    >>> texts = ("What's", "(what", "Yes/No", "?")
    >>> [read_question({"question": text, "answer": "x"}, form)["type"] for text in texts]
    ['what', 'what', 'yes_no', 'other']
    """
    cell = parse_cell(read_cell(record, form.question))
    if isinstance(cell, list | dict):
        raise ValueError("the question is not a text; write a record for each question")
    question = clean_text(cell)
    answer = read_answer(record, form)
    if not question or not answer:
        raise ValueError("empty question or answer")
    if "options" not in form.model_fields_set and OPTION_NAME.fullmatch(answer):
        answer = read_likely_option(record, form, question, answer)
    kind = read_text(read_cell(record, form.type)) or question.split()[0]
    word = re.sub(r"(?<=\w)['’]\w*", "", kind.lower())
    word = re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"
    return {"question": question, "answer": answer, "type": word}


def read_answer(record: Record, form: Form) -> str:
    """Return the answer of a record: of several, the most frequent, of equally frequent ones the
    first; of options, the text of the right one. Raises ValueError if no option matches."""
    value = parse_cell(read_cell(record, form.answer))
    if isinstance(value, list):
        # VQA has objects with the key `answer`.
        texts = (
            each.get("answer") if isinstance(each, dict) else each for each in value
        )
        counts = Counter(map(clean_text, texts))
        value = max(filter(None, counts), key=counts.__getitem__, default="")
    if isinstance(value, dict):
        raise ValueError("the answer is neither a text nor a number")
    answer = re.sub(r"^(-?\d+)\.0$", r"\1", clean_text(value))
    if form.options and answer:
        return read_option(record, form, answer)
    return answer


def read_likely_option(record: Record, form: Form, question: str, answer: str) -> str:
    """Return the text of an answer that may name an option. Raises ValueError if no option is like it."""
    columns = filter(lambda name: OPTION_COLUMN.fullmatch(fold(name)), record)
    names = [name for name in columns if name != form.answer]
    cells = "|".join(filter(None, map(read_text, map(record.get, names))))
    # A single text is no list of options.
    if SEVERAL_OPTIONS.search(cells) or OPTIONS_INSIDE.search(question):
        return read_option(record, Form(options=(*names,)), answer)
    return answer


def read_option(record: Record, form: Form, answer: str) -> str:
    """Return the text of the option that an answer names. Raises ValueError if it names no option."""
    options = unwrap([parse_cell(read_cell(record, name)) for name in form.options])
    own_names = [] if form.first_option else [*form.options]
    if isinstance(options, dict):
        own_names = [*options]
        options = [*options.values()]
    if isinstance(options, str) and BETWEEN_OPTIONS.search(options.strip()):
        options = BETWEEN_OPTIONS.split(options.strip())
    if not isinstance(options, list):
        raise ValueError(f"`{form.options[0]}` is not a list of options")

    # Marks are removed only if they are in sequence: "A. Lincoln" beside "I. Newton" is a name.
    texts = [*map(clean_text, options)]
    matches = filter(None, map(BEFORE_OPTION.match, texts))
    marks = [fold_answer(match[0]) for match in matches]
    for names in OPTION_NAMES.values():
        if sorted(marks) == [*map(fold_answer, names[: len(texts)])]:
            own_names = marks
            texts = [BEFORE_OPTION.sub("", text) for text in texts]

    # The names of the options take precedence over their positions.
    named = [
        *zip(own_names, texts, strict=False),
        *zip(OPTION_NAMES.get(form.first_option, texts), texts, strict=False),
    ]
    wanted = {fold_answer(answer), fold_answer(BEFORE_OPTION.sub("", answer))}
    for name, text in named:
        if fold_answer(name) in wanted:
            return text
    raise ValueError(
        f"the answer {answer!r} matches none of the {len(texts)} options (those in a question do not count); "
        "set, in `columns`, `options`, `first_option`, how answers call the first (0, 1 or A), or `records`"
    )


def fold_answer(text: str) -> str:
    return text.casefold().strip("().: ")


def read_parts(record: Record, form: Form, captions: list[Any]) -> list[FilePart]:
    """Return the parts of its file that a record is about, each with its captions: one, or as many
    as its lists of times and of captions have. Raises ValueError if a time is invalid."""
    spans: Any = read_cell(record, form.span)
    if not form.span:
        cells = read_cell(record, form.start), read_cell(record, form.end)
        spans = tuple(map(parse_cell, cells))
        if all(isinstance(times, list) for times in spans):
            spans = [*zip(*spans, strict=True)]
    times = read_spans(spans)
    if len(times) == 1:
        return [(times[0], captions)]

    columns = [*map(parse_cell, captions)]
    lengths = {isinstance(texts, list) and len(texts) for texts in columns}
    if lengths != {len(times)}:
        raise ValueError("not as many captions as times; write a row for each part")
    return [(time, texts) for time, *texts in zip(times, *columns, strict=True)]


def read_spans(value: Any) -> list[tuple[Time, Time]]:
    """Return the spans of a cell, which has one or a list of them."""
    value = parse_cell(value)
    has_several = isinstance(value, list) and any(
        isinstance(each, list | tuple) for each in value
    )
    return [*map(read_span, value if has_several else [value])]


def read_span(value: Any) -> tuple[Time, Time]:
    """Return the two times of a cell, such as [1, 2.5], or 00:01 - 00:03; None of an empty one."""
    if isinstance(value, str):
        value = BETWEEN_TIMES.split(value.strip(" ()[]")) if value.strip() else None
    if value is None:
        return None, None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{value!r} is not a start and an end")
    start, end = map(read_seconds, value)
    if start is not None and end is not None and start >= end:
        raise ValueError(f"start {start} is not before end {end}")
    return start, end


def read_seconds(value: Any) -> Time:
    """Return a time in seconds, also of 01:02:03.5 and pandas' durations; None for an empty cell."""
    text = read_text(value).removeprefix("0 days ").replace(",", ".").removesuffix("s")
    if text.lower() in NO_TEXT:
        return None

    try:
        numbers = [float(part) for part in text.split(":", maxsplit=2)]
        if len(numbers) > 1 and min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{value!r} is not a time in seconds, such as 62.5 or 00:01:02.5"
        ) from None
    seconds = 0.0
    for number in numbers:
        seconds = 60 * seconds + number
    return seconds
