"""The records inside of a record: data sets of clips and annotation programs write one object for
each file, with its texts in lists or objects of its own.

{"video": "a.mp4", "segments": [{"start": 0, "end": 1, "caption": "a dog"}]}   also other names
{"video": "a.mp4", "questions": [{"question": "...", "answer": "..."}]}        also `qa`, ...
{"data": {"video": "a.mp4"}, "annotations": [{"result": [...]}]}               Label Studio
{"meta": {...}, "data": {"a-Scene-001": {"caption": {"content": "..."}}}}      Vript
{"file": {...}, "metadata": {...}, "attribute": {...}}                         VIA 3
{"_via_img_metadata": {"a.mp4-1": {"filename": "a.mp4", ...}}}                 VIA 2
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from alpro.shards.schema import MEDIA_EXTENSIONS
from alpro.shards.sources.cells import folded, json_list
from alpro.shards.sources.columns import FOLDED, NAME_COLUMNS, TEXT_COLUMNS, split_in

Record = dict[str, Any]
# What the names of lists of parts contain. Comments, tags or subtitles have texts, too.
PARTS = (
    *("annotation", "segment", "event", "clip", "scene", "shot", "moment", "part", "caption"),
    *("narration", "chapter", "interval", "action", "window", "description", "proposal", "item"),
)

VIA_TABLES = ("file", "metadata", "attribute", "view")  # of a project of VIA 3


def records_of(record: Record) -> Iterator[Record]:
    """The records inside of a record, each with the name of its file, or the record itself."""
    for value in record.values():
        # Most records have neither: this loop is all that each of them costs.
        is_nested = isinstance(value, list | dict)
        if is_nested or (isinstance(value, str) and value[:2] in ("[{", '{"')):
            break
    else:
        yield record
        return

    if "file_attributes" in record:  # of VIA 2
        yield of_via_2(record)
        return
    if is_vript(record):
        for name, part in record["data"].items():
            yield {**part, "video": name, "video_id": name}
        return
    if is_label_studio(record):
        yield of_label_studio(record)
        return
    yield from _of_list(record)


def is_vript(value: Record) -> bool:
    """Whether an object has the clips of a video, by their names."""
    clips = value.get("data")
    if not isinstance(value.get("meta"), dict) or not isinstance(clips, dict) or not clips:
        return False
    return all(isinstance(clip, dict) and "caption" in clip for clip in clips.values())


def is_label_studio(value: Record) -> bool:
    """Whether an object is a task of Label Studio, with its results."""
    results = value.get("annotations", value.get("completions"))
    return isinstance(value.get("data"), dict) and isinstance(results, list)


def of_label_studio(task: Record) -> Record:
    """The record of a task: the columns of its data, and the texts that people wrote. A single
    field of texts is that of the captions, whatever its name."""
    texts: defaultdict[str, list[Any]] = defaultdict(list)
    for annotation in _objects(task.get("annotations", task.get("completions"))):
        if annotation.get("was_cancelled"):
            continue
        for result in _objects(annotation.get("result")):
            if result.get("type") == "textarea":
                text = _object(result.get("value")).get("text") or []
                texts[str(result.get("from_name"))] += text if isinstance(text, list) else [text]

    record = dict(task["data"])
    if not _names(record):
        for key, value in task["data"].items():
            if _is_media_name(value):
                record["video"] = record.pop(key)
                break
    if len(texts) == 1:
        record["captions"] = next(iter(texts.values()))
    else:
        record |= texts
    return record


def of_via_2(record: Record) -> Record:
    """The record of a file, with what people wrote of it, in JSON or as a cell of a table."""
    attributes = record["file_attributes"]
    if isinstance(attributes, str):
        with suppress(ValueError, RecursionError):
            attributes = json.loads(attributes)
    return {**attributes, **record} if isinstance(attributes, dict) else record


def via_records(value: Record) -> list[Record] | None:
    """The records of a project of VIA; None if it is not one."""
    images = value.get("_via_img_metadata")
    if isinstance(images, dict):
        return _objects(list(images.values()))

    tables = [value.get(name) for name in VIA_TABLES]
    files, metadata, attributes, views = map(_object, tables)
    if not all(isinstance(table, dict) for table in tables):
        return None

    records = []
    for annotation in _objects(list(metadata.values())):
        view = _object(views.get(str(annotation.get("vid"))))
        about: Record = {}
        times = annotation.get("z")
        if isinstance(times, list) and len(times) > 1:
            about |= {"start": times[0], "end": times[-1]}
        for attribute_id, cell in _object(annotation.get("av")).items():
            attribute = _object(attributes.get(attribute_id))
            # Of a choice, the cell is the key of one of its options.
            options = _object(attribute.get("options"))
            about[str(attribute.get("aname"))] = options.get(str(cell), cell)

        file_ids = view.get("fid_list")
        for file_id in file_ids if isinstance(file_ids, list) else []:
            file = _object(files.get(str(file_id)))
            records.append({"video": file.get("src") or file.get("fname"), **about})
    return records


def _object(value: Any) -> Record:
    """The object; an empty one for a value that should be an object and is not."""
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Record]:
    """The objects of what should be a list of them."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _of_list(record: Record) -> Iterator[Record]:
    """The objects of the only list of a record that has texts, each with the other columns; a
    record with texts of its own is not looked into, except for its questions."""
    names = _names(record)
    if "path" in names:  # a row of a manifest
        yield record
        return

    has_texts = False
    lists = {}
    for key, value in record.items():
        usual = FOLDED.get(folded(key), key)
        if isinstance(value, str) and value[:2] == "[{":
            value = json_list(value)
        if _are_records(value) and _have_texts(key, value, is_caption=usual in TEXT_COLUMNS):
            lists[key] = value
        elif usual in (*TEXT_COLUMNS, "question"):
            has_texts = True

    asked = [key for key in lists if _is_question(lists[key][0])]
    keys = asked if has_texts else list(lists)
    if len(keys) != 1 or not names:
        yield record
        return

    about = {key: value for key, value in record.items() if key != keys[0]}
    # The split of Perception Test's videos.
    details = record.get("metadata")
    if isinstance(details, dict) and split_in(str(details.get("split") or "")):
        about.setdefault("split", details["split"])
    for part in lists[keys[0]]:
        if any(_is_media_name(part[key]) for key in _names(part)):
            # A part is a file of its own.
            yield {**{key: about[key] for key in about.keys() - set(names)}, **part}
        else:
            yield {**about, **part}


def _names(record: Record) -> list[str]:
    """The columns of a record that name a file."""
    names = []
    for key, value in record.items():
        is_name = FOLDED.get(folded(key)) in NAME_COLUMNS
        if is_name and isinstance(value, str | int):
            names.append(key)
    return names


def _is_media_name(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return PurePosixPath(value).suffix.lower() in MEDIA_EXTENSIONS


def _are_records(value: Any) -> TypeGuard[list[Record]]:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) for each in value)


def _is_question(part: Record) -> bool:
    columns = {folded(key) for key in part}
    return bool(columns & {"question", "q"})


def _have_texts(key: str, parts: list[Record], is_caption: bool) -> bool:
    """Whether the objects of a list are records: questions, or texts in a list that is named as the
    parts of a file are. is_caption: those of a column of captions may be texts alone (Karpathy's
    sentences): only with times they are parts."""
    if _is_question(parts[0]):
        return True
    columns = {FOLDED.get(folded(name), folded(name)) for name in parts[0]}
    if is_caption:
        return bool({"start", "segment", "timestamp"} & columns)
    are_parts = any(word in folded(key) for word in PARTS)
    return are_parts and bool(columns & set(TEXT_COLUMNS) - {"name"})
