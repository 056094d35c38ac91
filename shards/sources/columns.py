"""The columns that annotation files and manifests have, and other names for them."""

import re
from functools import lru_cache
from typing import Any, Literal

from alpro.shards.sources.answers import options_of
from alpro.shards.sources.cells import folded

# Columns that contain the name of a video or image, and columns that contain captions; the first
# that a record has.
NAME_COLUMNS: tuple[str, ...] = (
    *("clip_name", "video_path", "image_path", "file_name", "filename", "video_name"),
    *("video", "video_id", "videoid", "videoID", "gif_name", "image", "path"),
    *("file_path", "filepath", "file", "media_path", "vid_name"),
    *("clip", "clip_id", "clip_path", "vid", "media", "media_file", "video_file", "youtube_id"),
    *("image_name", "image_file", "img_path", "img", "video_filename", "video_uid"),
)
TEXT_COLUMNS: tuple[str, ...] = (
    *("caption", "captions", "sentence", "text", "description", "enCap", "name"),
    *("prompt", "cap", "sentences", "desc", "narration", "clip_text"),
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
    # As Hugging Face's datasets reads them: what is held out is not trained on.
    "eval": "test",
    "evaluation": "test",
    "heldout": "test",
    "holdout": "test",
    "devel": "validation",
    "development": "validation",
    "restval": "train",  # of Karpathy's splits of COCO
}
NO_SPLIT = {"nan", "none", "null", "n/a", "-", "unknown"}

KNOWN = {
    *COLUMNS,
    *NAME_COLUMNS,
    *TEXT_COLUMNS,
    *("question", "answer", "answer_type", "sentences", "timestamps", "times", "sen_ids"),
    *("page_dir", "contentUrl"),
}
SPLIT_ALIASES = {"subset", "partition", "set", "datasplit", "datasetsplit", "splitname", "phase"}
CAPTION_ALIASES = (  # beside `path`
    *("text", "sentence", "description", "prompt", "cap", "desc", "narration", "clip_text"),
)
ANSWER_ALIASES = (  # beside options
    *("answer_idx", "answer_index", "answer_id", "correct_idx", "correct_index"),
    *("correct_answer", "correct_choice", "correct_answer_idx", "correct", "correct_option"),
    *("gt", "gt_answer", "ground_truth", "answer_label", "answer_number", "label"),
)
HAS_TEXTS = {*TEXTS, *TEXT_COLUMNS, "question", "sen_ids"}  # no column is taken for a caption
# Beside a question alone.
SEVERAL_ANSWERS = (
    *("answers", "multiple_choice_answer", "correct_answer", "ground_truth", "gt_answer"),
)
# Columns of captions under other names: caption_1, blip_caption, long_caption.
CAPTION = re.compile(r"(?i)(?:[a-z0-9]+[ _-])*captions?(?:[ _-][a-z]{2,})*|captions?text")
ENGLISH_CAPTION = re.compile(
    r"(?i)(?:captions?|sentence|text|description|cap)[ _-](?:en|eng|english)"
)
NUMBERED_CAPTION = re.compile(r"(?i)(?:caption|sentence|text|description)[ _-]?\d{1,2}")
NOT_CAPTION = re.compile(
    r"(?i)(?:^|[ _-])(?:ids?|idx|index|num|number|count|score|lang|language|source|model|time|len|"
    r"length|file|path|url|type|has|is)(?:$|[ _-])"
)


FOLDED = {folded(name): name for name in sorted(KNOWN, reverse=True)}


def split_in(text: str) -> Split | None:
    """The split that a text names; None if it names none, or several.

    >>> [split_in(text) for text in ("Train", "test1k", "held-out", "val set", "train_val", "x")]
    ['train', 'test', 'test', 'validation', None, None]
    """
    folded_text = text.strip().lower()
    if folded_text in NO_SPLIT:
        return ""
    if folded(text) in SPLIT_NAMES:
        return SPLIT_NAMES[folded(text)]

    splits = set()
    words = [word.removesuffix("set") for word in re.split(r"[^a-z]+", folded_text)]
    for word in words:
        if word and word in SPLIT_NAMES:
            splits.add(SPLIT_NAMES[word])
    # Not of "not_train".
    is_clear = len(splits) == 1 and not {"no", "non", "not"} & set(words)
    return splits.pop() if is_clear else None


@lru_cache
def is_split_alias(name: str) -> bool:
    return folded(name) in SPLIT_ALIASES


def with_usual_names(
    record: dict[str, Any], split_columns: set[str] | None = None
) -> dict[str, Any]:
    """A record with the usual names of its columns: their case does not count, and a column with
    another name for the split, the captions or the answer is renamed if that is clear. A name that
    is taken is kept.

    split_columns: the columns that name splits in the records so far; this record's is added. With
    it, a later record whose cell names no known split is refused, and not left without a split.

    >>> with_usual_names({"Video": "a.mp4", "Caption": "a dog", "subset": "training"})
    {'video': 'a.mp4', 'caption': 'a dog', 'split': 'training'}
    """
    # A record with usual names alone is not copied.
    if not {"path", "questions"} & record.keys() and record.keys() <= KNOWN:
        return record

    renamed: dict[str, Any] = {}
    for name, value in record.items():
        usual = name
        if name not in KNOWN:
            usual = FOLDED.get(folded(name), name)
        is_taken = usual in record or usual in renamed
        renamed[name if is_taken else usual] = value

    for question, answer in (("q", "a"), ("Q", "A")):
        if question in renamed and "question" not in renamed:
            renamed["question"] = renamed.pop(question)
            if answer in renamed and "answer" not in renamed:
                renamed["answer"] = renamed.pop(answer)
    if "split" not in renamed:
        split_columns = set() if split_columns is None else split_columns
        for name in list(filter(is_split_alias, renamed)):
            # An empty cell does not tell that the column names splits.
            cell = str(renamed[name] or "")
            if split_in(cell) or name in split_columns:
                split_columns.add(name)
                renamed["split"] = renamed.pop(name)
                break

    if "path" in renamed and not renamed.keys() & TEXTS:
        _rename_first(renamed, CAPTION_ALIASES, "caption")
    if HAS_TEXTS.isdisjoint(renamed):
        _rename_captions(renamed)

    if "question" in renamed and "answer" not in renamed:
        if "answers" in renamed and not set(ANSWER_ALIASES).isdisjoint(renamed):
            _rename_first(renamed, ("answers",), "options")
        has_options = bool(options_of(renamed)[0])
        _rename_first(renamed, ANSWER_ALIASES if has_options else SEVERAL_ANSWERS, "answer")
    return renamed


def _rename_captions(record: dict[str, Any]) -> None:
    """Makes numbered columns of captions (caption_1, caption_2), or the only column that is called
    a caption (blip_caption), or the English one of several languages, the captions of a record."""
    numbered = [name for name in record if NUMBERED_CAPTION.fullmatch(name)]
    if numbered:
        cells = [record.pop(name) for name in numbered]
        record["captions"] = [cell for cell in cells if isinstance(cell, str)]
        return

    named = []
    for name in record:
        if CAPTION.fullmatch(name) and not NOT_CAPTION.search(name):
            named.append(name)
    english = list(filter(ENGLISH_CAPTION.fullmatch, record))
    if len(named) != 1:
        named = english
    if len(named) == 1:
        record["caption"] = record.pop(named[0])


def _rename_first(record: dict[str, Any], names: tuple[str, ...], usual: str) -> None:
    """Renames the first of the columns that a record has."""
    for name in names:
        if name in record:
            record[usual] = record.pop(name)
            return
