"""Parts of files: the columns that say from when to when, and their times."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from alpro.shards.schema import MAX_SECONDS, MEDIA_EXTENSIONS
from alpro.shards.sources.cells import json_list
from alpro.shards.sources.columns import NAME_COLUMNS, TEXT_COLUMNS

# Names of columns, in lower case and letters alone: `start_time`, `Start (s)`, `startTime`.
STARTS = {
    *("start", "starttime", "starts", "startsec", "startseconds", "starttimestamp", "startts"),
    *("begin", "begintime", "tstart", "timestart", "clipstart", "segmentstart"),
}
ENDS = {
    *("end", "endtime", "ends", "endsec", "endseconds", "endtimestamp", "endts"),
    *("stop", "stoptime", "finish", "tend", "timeend", "clipend", "segmentend", "stopsec"),
    *("stoptimestamp", "stopts", "stopseconds"),
}
# Of one column with both times.
SPANS = {
    *("timestamp", "timestamps", "segment", "window", "span", "interval", "timespan", "timerange"),
    *("times", "ts"),
}
# Texts of parts. ActivityNet's `sentences` are one paragraph.
PART_TEXTS = tuple(name for name in TEXT_COLUMNS if name not in ("enCap", "name", "sentences"))
# Times in another unit than seconds.
OTHER_UNITS = re.compile(
    r"(?:start|begin|end|stop|clipstart|clipend)(?:ms|millis.*|frames?|framenumber|frameid|idx)"
)
MAX_LOOKED_AT = 20  # records without such columns, after which a table has none
SEPARATOR = re.compile(r"\s*(?:-->|[-–,;]|\bto\b)\s*")


@dataclass(frozen=True)
class Window:
    """From when to when a row is of its file, in seconds; None is the file's own start or end."""

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    @property
    def suffix(self) -> str:
        """What the default id of a row ends with: the rows of a file have different ones."""
        if not self:
            return ""
        end = "" if self.end is None else f"{self.end:g}"
        return f"@{self.start or 0:g}-{end}"

    def names_of_cut(self, name: str) -> list[str]:
        """The names of a file that was cut from a video, as of MSVD and VATEX: `<name>_33_46`,
        `<name>_000033_000046`."""
        if self.start is None or self.end is None:
            return []
        if PurePosixPath(name).suffix.lower() in MEDIA_EXTENSIONS:
            name = str(PurePosixPath(name).with_suffix(""))
        return [
            f"{name}_{self.start:g}_{self.end:g}",
            f"{name}_{int(self.start):06}_{int(self.end):06}",
        ]


WHOLE = Window()


@dataclass(frozen=True)
class WindowColumns:
    """The columns of a table that have windows: of their starts and ends, or one of both. note:
    what a user should know of them."""

    start: str = "start"
    end: str = "end"
    note: str = ""

    def window(self, record: dict[str, Any]) -> Window:
        """Raises ValueError for an invalid one."""
        if self.start == self.end:
            return Window(*span_of(record.get(self.start)))
        return Window(seconds_of(record.get(self.start)), seconds_of(record.get(self.end)))


START_AND_END = WindowColumns()
Records = Iterable[tuple[str, dict[str, Any] | str]]


def has_other_times(records: Records) -> bool:
    """Whether a record has columns of times that are not `start` and `end`, in any unit."""
    for _, record in records:
        if isinstance(record, dict) and (
            columns_of(record) != START_AND_END or any(map(has_other_unit, record))
        ):
            return True
    return False


def window_columns(records: Records) -> WindowColumns:
    """The columns that have the windows of a table's rows.

    `start` and `end` are windows. Columns of another name may also be the times of a longer video
    that the file was cut from, as in MSR-VTT: they are windows if rows of one file differ in them.
    """
    columns = START_AND_END
    in_other_units: set[str] = set()
    windows: dict[str, Window] = {}  # the first of each file
    are_times = False
    for number, (_, record) in enumerate(records):
        if isinstance(record, str):
            continue
        if columns == START_AND_END:
            columns = columns_of(record)
            if not {"start", "end"} & record.keys():
                in_other_units |= set(filter(has_other_unit, record))
        if columns == START_AND_END:
            if number < MAX_LOOKED_AT:
                continue
            break

        cells = [record.get(name) for name in (columns.start, columns.end)]
        are_times = are_times or any(map(is_time, cells))
        try:
            window = columns.window(record)
        except (ValueError, TypeError):
            continue
        name = str(next((record[key] for key in NAME_COLUMNS if key in record), ""))
        if window and windows.setdefault(name, window) != window:
            return replace(columns, note=f"{columns_text(columns)}: read as parts of the files")

    if columns == START_AND_END and in_other_units:
        shown = " and ".join(f"`{name}`" for name in sorted(in_other_units))
        return WindowColumns(
            note=f"{shown}: not used, because they are not seconds; each text is that of its whole "
            "file. For parts of files, write seconds into the columns `start` and `end`"
        )
    if not are_times:
        return START_AND_END
    return WindowColumns(
        note=f"{columns_text(columns)}: not used, because they may be times of a longer video that "
        "the files were cut from; each text is that of its whole file. If they are parts of the "
        "files, name the columns `start` and `end`, with a row for each part"
    )


def columns_of(record: dict[str, Any]) -> WindowColumns:
    """The columns of a record whose names are those of times; by default `start` and `end`."""
    if "start" in record or "end" in record:
        return START_AND_END

    names = {re.sub(r"\(.*\)|[^a-z]", "", name.lower()): name for name in record}
    start = next((names[name] for name in names if name in STARTS), "")
    end = next((names[name] for name in names if name in ENDS), "")
    if start and end:
        return WindowColumns(start, end)

    span = next((names[name] for name in names if name in SPANS), "")
    return WindowColumns(span, span) if span else START_AND_END


def has_other_unit(name: str) -> bool:
    """Whether a column's name is that of a time that is not in seconds, such as `start_frame`."""
    return OTHER_UNITS.fullmatch(re.sub("[^a-z]", "", name.lower())) is not None


def columns_text(columns: WindowColumns) -> str:
    return " and ".join(f"`{name}`" for name in dict.fromkeys((columns.start, columns.end)))


def is_time(value: Any) -> bool:
    """Whether a cell has a time or a list of times; a date has none."""
    if isinstance(value, str):
        value = json_list(value) or SEPARATOR.split(value.strip(" ()"))
    if not isinstance(value, list):
        value = [value]
    if value and isinstance(value[0], list):
        value = value[0]
    try:
        times = [seconds_of(time) for time in value]
    except (ValueError, TypeError):
        return False
    return any(time is not None and time <= MAX_SECONDS for time in times)


def parts_of(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record; or one for each of its captions, if it has lists of as many times, as Panda-70M
    and HowTo100M do, and one for each of its questions, if it has lists of as many answers."""
    # Most records have no lists: this loop is all that each of them costs.
    list_count = 0
    for value in record.values():
        if isinstance(value, list) or (isinstance(value, str) and value[:1] == "["):
            list_count += 1
    if list_count < 2:
        yield record
        return

    questions = record.get("question")
    answers = record.get("answer")
    if isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers):
        for question, answer in zip(questions, answers, strict=True):
            yield {**record, "question": question, "answer": answer}
        return

    columns = columns_of(record)
    names = [name for name in dict.fromkeys((columns.start, columns.end)) if name in record]
    text_column = next((name for name in PART_TEXTS if name in record), "")
    lists = {}
    for name in [*names, text_column] if names and text_column else ():
        cell = record[name]
        listed = json_list(cell) if isinstance(cell, str) else cell
        if isinstance(listed, list):
            lists[name] = listed

    lengths = {len(listed) for listed in lists.values()}
    is_complete = len(lists) == len(names) + 1 and len(lengths) == 1
    # Two times in one column are from when to when: they are no list of times.
    are_spans = is_complete and all(isinstance(span, list) for span in lists[names[0]])
    if not is_complete or (len(names) == 1 and not are_spans):
        yield record
        return

    for index in range(lengths.pop()):
        part = {name: listed[index] for name, listed in lists.items()}
        yield {**record, **part}


def span_of(value: Any) -> tuple[float | None, float | None]:
    """The two times of a cell, such as [1, 2.5], or 00:01 - 00:03; None of an empty one.

    Raises ValueError for anything else.
    """
    if isinstance(value, str) and value.strip():
        value = json_list(value) or SEPARATOR.split(value.strip(" ()"))
    if not value:
        return None, None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{value!r} is not a start and an end")
    start, end = value
    return seconds_of(start), seconds_of(end)


def seconds_of(value: Any) -> float | None:
    """A time in seconds, which may be hours, minutes and seconds, such as 01:02:03.5; None if there
    is none.

    Raises ValueError for anything else.
    """
    if value is None or str(value).strip().lower() in ("", "nan", "none", "null"):
        return None
    if isinstance(value, str) and ":" in value:
        digits = value.strip().replace(",", ".")
        parts = [float(part) for part in digits.split(":")]
        if len(parts) > 3 or any(part < 0 for part in parts):
            raise ValueError(f"{value!r} is not a time, such as 01:02:03.5")

        seconds = 0.0
        for place, part in enumerate(reversed(parts)):
            seconds += part * 60**place
        return seconds
    try:
        return float(value)
    except TypeError:
        raise ValueError(f"{value!r} is not a time; write a row for each part") from None
