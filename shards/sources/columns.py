"""The columns that annotation files and manifests have, and other names for them."""

from typing import Any, Literal

from alpro.shards.sources.answers import options_of

# Columns that contain the name of a video or image, and columns that contain captions; the first
# that a record has.
NAME_COLUMNS: tuple[str, ...] = (
    *("clip_name", "video_path", "image_path", "file_name", "filename", "video_name"),
    *("video", "video_id", "videoid", "videoID", "gif_name", "image", "path"),
    *("file_path", "filepath", "file", "media_path", "vid_name"),
)
TEXT_COLUMNS: tuple[str, ...] = (
    *("caption", "captions", "sentence", "text", "description", "enCap", "name"),
    *("prompt", "cap"),
)
# Columns of a manifest.
TEXTS = {"caption", "captions", "questions"}
COLUMNS = {"id", "path", "kind", "start", "end", "split", "group", *TEXTS}

Split = Literal["", "train", "validation", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "": "",
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}

KNOWN = {
    *COLUMNS,
    *NAME_COLUMNS,
    *TEXT_COLUMNS,
    *("question", "answer", "answer_type", "sentences", "timestamps", "times", "sen_ids"),
    *("page_dir", "contentUrl"),
}
FOLDED = {name.casefold(): name for name in sorted(KNOWN, reverse=True)}
SPLIT_ALIASES = ("subset", "partition")
CAPTION_ALIASES = ("text", "sentence", "description", "prompt", "cap")  # beside `path`
ANSWER_ALIASES = (  # beside options
    *("answer_idx", "answer_index", "answer_id", "correct_idx", "correct_index"),
    *("correct_answer", "correct_choice", "correct_answer_idx"),
)


def with_usual_names(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the usual names of its columns: their case does not count, and a column with
    another name for the split, the caption or the answer is renamed if that is clear. A name that
    is taken is kept.

    >>> with_usual_names({"Video": "a.mp4", "Caption": "a dog", "subset": "training"})
    {'video': 'a.mp4', 'caption': 'a dog', 'split': 'training'}
    """
    # A record with usual names alone is not copied.
    if "path" not in record and record.keys() <= KNOWN:
        return record

    renamed: dict[str, Any] = {}
    for name, value in record.items():
        usual = name
        if name not in KNOWN:
            usual = FOLDED.get(name.casefold(), name)
        is_taken = usual in record or usual in renamed
        renamed[name if is_taken else usual] = value

    if "q" in renamed and "question" not in renamed:
        renamed["question"] = renamed.pop("q")
        if "a" in renamed and "answer" not in renamed:
            renamed["answer"] = renamed.pop("a")

    if "split" not in renamed:
        for name in SPLIT_ALIASES:
            # An empty cell, as `-`, does not tell that the column names splits.
            cell = str(renamed.get(name) or "-")
            if cell.strip().lower() in SPLIT_NAMES:
                renamed["split"] = renamed.pop(name)
                break

    if "path" in renamed and not renamed.keys() & TEXTS:
        _rename_first(renamed, CAPTION_ALIASES, "caption")
    if "question" in renamed and "answer" not in renamed and options_of(renamed)[0]:
        _rename_first(renamed, ANSWER_ALIASES, "answer")
    return renamed


def _rename_first(record: dict[str, Any], names: tuple[str, ...], usual: str) -> None:
    """Renames the first of the columns that a record has."""
    for name in names:
        if name in record:
            record[usual] = record.pop(name)
            return
