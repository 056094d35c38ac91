"""The records of a JSON document, in the forms in which data sets and programs nest them.

[{...}, {...}]                                    a list of records
{"data": [{...}, {...}]}                          the same under a key
{"train": [{...}], "test": [{...}]}               any of these forms for each split
{"a.mp4": {...}, "b.mp4": {...}}                  records by their videos; also lists of records
{"a.mp4": "a dog", "b.mp4": ["a cat", "a pet"]}   captions by their videos
{"video": ["a.mp4"], "caption": ["a dog"]}        columns; of pandas, {"video": {"0": "a.mp4"}}
{"videos": [...], "sentences": [...]}             MSR-VTT
{"images": [...], "annotations": [...]}           COCO, with `videos` or `images`
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from alpro.shards.schema import MEDIA_EXTENSIONS
from alpro.shards.sources.cells import folded
from alpro.shards.sources.columns import FOLDED, NAME_COLUMNS, split_in
from alpro.shards.sources.nested import is_label_studio, is_vript, via_records

Record = dict[str, Any]
Entries = Iterator[tuple[str, Record | str]]
NOT_AN_OBJECT = "not a JSON object"
# Keys under which a document has its list of records.
LISTS = (
    *("data", "annotations", "items", "records", "samples", "rows", "videos", "captions"),
    *("questions", "database", "results", "images", "clips", "entries", "examples"),
)


def entries(value: Any) -> Entries | None:
    """The records of a document, or why one is none; None if the document is itself a record, or of
    no known form."""
    if isinstance(value, list):
        return _of_list(value)
    if not isinstance(value, dict) or not value or _is_record(value):
        return None
    of_via = via_records(value)
    if of_via:
        return _of_list(of_via)
    has_sentences = isinstance(value.get("sentences"), list)
    has_videos = isinstance(value.get("videos", []), list)
    if has_sentences and has_videos:
        return _videos_with_sentences(value)

    media = next((key for key in ("videos", "images") if _are_records(value.get(key))), None)
    if media and _are_records(value.get("annotations")):
        return _coco(value[media], value["annotations"], media.removesuffix("s"))

    columns = _columns(value)
    if columns:
        return _of_columns(columns)
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return _of_rows(value["columns"], value["data"])
    if all(key.strip() and split_in(key) for key in value):
        return _by_split(value)

    # The records, if one key has them. Others, such as `info` or `licenses`, are about the file.
    wrapped = next((key for key in LISTS if _are_records(value.get(key))), None)
    if wrapped:
        return _of_list(value[wrapped])

    by_video = value.get("database", value)  # of YouCook2
    if isinstance(by_video, dict) and _are_by_video(by_video):
        return _by_video(by_video)
    return None


def _is_record(value: Record) -> bool:
    """Whether an object is about one file."""
    if is_vript(value) or is_label_studio(value):
        return True
    for key, part in value.items():
        is_name = FOLDED.get(folded(key)) in NAME_COLUMNS
        if is_name and isinstance(part, str | int):
            return True
    return False


def _are_records(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) for each in value)


def _are_texts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(each, str) for each in value)


def _are_by_video(value: Record) -> bool:
    """Whether the keys are videos. Those of single texts must be files: an object of texts is often
    something else."""
    parts = value.values()
    if all(isinstance(part, dict | list) for part in parts):
        return True

    extensions = {PurePosixPath(key).suffix.lower() for key in value}
    are_files = extensions <= set(MEDIA_EXTENSIONS)
    return are_files and all(isinstance(part, str | dict | list) for part in parts)


def _columns(value: Record) -> dict[str, list[Any]] | None:
    """The columns of a document that is a table, one of which names files; None if it is not."""
    if not any(FOLDED.get(folded(key)) in NAME_COLUMNS for key in value):
        return None

    columns = {}
    for key, part in value.items():
        # pandas writes a column as an object of its rows.
        cells = list(part.values()) if isinstance(part, dict) else part
        if not isinstance(cells, list):
            return None
        columns[key] = cells

    lengths = {len(cells) for cells in columns.values()}
    has_one_length = len(lengths) == 1
    return columns if len(columns) > 1 and has_one_length else None


def _of_list(records: list[Any]) -> Entries:
    are_names = bool(records) and all(isinstance(record, str) for record in records)
    for number, record in enumerate(records, 1):
        if are_names:
            record = {"video_id": record}
        yield f"entry {number}", record if isinstance(record, dict) else NOT_AN_OBJECT


def _of_rows(columns: list[Any], rows: list[Any]) -> Entries:
    """The records of pandas' orientation `split`."""
    names = [str(column) for column in columns]
    for number, row in enumerate(rows, 1):
        is_row = isinstance(row, list) and len(row) == len(names)
        yield f"row {number}", dict(zip(names, row, strict=True)) if is_row else "not a row"


def _by_split(value: Record) -> Entries:
    """The records of parts, each of which is a document that is named as a split."""
    for split, part in value.items():
        of_part = entries(part)
        if of_part is None:
            yield f"entry {split!r}", NOT_AN_OBJECT
            continue
        for where, record in of_part:
            if isinstance(record, dict):
                record = {"split": split} | record
            yield f"{split}: {where}", record


def _of_columns(columns: dict[str, list[Any]]) -> Entries:
    rows = zip(*columns.values(), strict=True)
    for number, cells in enumerate(rows, 1):
        record = dict(zip(columns, cells, strict=True))
        yield f"entry {number}", record


def _by_video(value: Record) -> Entries:
    for name, part in value.items():
        where = f"entry {name!r}"
        if isinstance(part, dict) and _are_records(part.get("annotations")):
            # YouCook2: the other keys of the video apply to each of its segments.
            about = {key: cell for key, cell in part.items() if key != "annotations"}
            for annotation in part["annotations"]:
                yield where, {**about, **annotation, "video": name}
        elif isinstance(part, dict):
            yield where, _named(part, name)
        elif _are_records(part):
            for record in part:
                yield where, _named(record, name)
        elif isinstance(part, str) or (part and _are_texts(part)):
            yield where, {"video": name, "caption": part}
        else:
            yield where, NOT_AN_OBJECT


def _named(record: Record, name: str) -> Record:
    """A record with the key that it has in a document as its video, unless the record itself names
    a file: then the key is a number, or that of a list."""
    for key, part in record.items():
        is_file = FOLDED.get(folded(key)) in NAME_COLUMNS and isinstance(part, str)
        if is_file and PurePosixPath(part).suffix.lower() in MEDIA_EXTENSIONS:
            return record
    is_list = name in LISTS or (not PurePosixPath(name).suffix and name.isdecimal())
    return record if is_list and _is_record(record) else {**record, "video": name}


def _coco(media: list[Record], annotations: list[Record], kind: str) -> Entries:
    """The annotations of COCO's form, each with the name of its file."""
    names = {}
    for each in media:
        media_id = each.get("id")
        columns = (key for key in NAME_COLUMNS if each.get(key))
        name_column = next(columns, None)
        name = media_id if name_column is None else each[name_column]
        names[str(media_id)] = str(name)

    id_column = f"{kind}_id"
    for number, annotation in enumerate(annotations, 1):
        where = f"annotation {number}"
        media_key = str(annotation.get(id_column))
        if media_key not in names:
            yield where, f"no {kind} has the id {media_key}"
            continue

        # Neither id is a text: the name of the file stands for both.
        record = {**annotation, "video": names[media_key]}
        for column in ("id", id_column):
            record.pop(column, None)
        yield where, record


def _videos_with_sentences(value: Record) -> Entries:
    """The videos of MSR-VTT, each with its captions as `sen_ids`."""
    captions: defaultdict[str, list[Any]] = defaultdict(list)
    for sentence in value["sentences"]:
        if isinstance(sentence, dict):
            name = str(sentence.get("video_id"))
            captions[name].append(sentence.get("caption") or "")

    videos: dict[str, Record] = {}
    for video in value.get("videos") or []:
        if isinstance(video, dict):
            videos[str(video.get("video_id"))] = video

    # None is left out: also videos without captions, and captions of videos that are not listed.
    for name in {**videos, **captions}:
        video = videos.get(name, {})
        record = {
            **video,
            "video_id": name,
            "sen_ids": captions.get(name, []),
        }
        yield f"video {name!r}", record
