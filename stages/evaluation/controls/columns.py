"""Columns of the manifest in evaluation: subsets of the test items, and words that a control knows."""

import re
from collections import Counter
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.stages.evaluation.retrieval import Gallery

Value = bool | int | str


def in_subset(gallery: Gallery, values: dict[str, Value]) -> np.ndarray:
    """The texts (T,), boolean, whose video has these values in the manifest's columns. Raises InputError if no video
    has a value in one of the columns."""
    rows = [about(gallery, number) for number in gallery.numbers]
    for column in values:
        if all(row.get(column) is None for row in rows):
            raise InputError(f"{gallery.reader.folder}: no column {column} (evaluate.subsets)")
    videos = np.array([all(row.get(column) == value for column, value in values.items()) for row in rows])
    return videos[gallery.video_of_text]


def words_only(gallery: Gallery, paths: str | tuple[str, ...]) -> np.ndarray:
    """Scores (texts, videos) of a ranker that knows only the words of a video at paths into the manifest's columns:
    their overlap with those words that the text mentions. Raises InputError as `video_words`."""
    paths = (paths,) if isinstance(paths, str) else paths
    by_path = [video_words(gallery, path) for path in paths]
    videos = [[word for words in of_video for word in words] for of_video in zip(*by_path, strict=True)]
    # Each spelling stands for the word with the most spellings, so that `left` is also `left|leftwards`.
    known: dict[str, tuple[str, ...]] = {}
    for word in sorted({word for words in videos for word in words}, key=lambda word: (-len(word), word)):
        for spelling in word:
            known.setdefault(spelling, word)
    shown = [Counter(known[word[0]] for word in words) for words in videos]
    mentioned = [Counter(known[word] for word in words_of(text) if word in known) for text in gallery.texts]
    return np.array([[(a & b).total() / max(1, (a | b).total()) for b in shown] for a in mentioned], np.float32)


def video_words(gallery: Gallery, path: str) -> list[list[tuple[str, ...]]]:
    """The words of each video, each with its spellings, at a dotted path into the manifest's columns: `tags` for a text
    or a list of texts, `objects.label` for a list of tables with the key `label`. Raises InputError if a video lacks
    the column, if it has something else there, or if no video has a word."""
    keys, words = path.split("."), []
    for number, video in zip(gallery.numbers, gallery.ids, strict=True):
        row = about(gallery, number)
        values = values_at(row, keys)
        if keys[0] not in row or not all(isinstance(value, str) for value in values):
            raise InputError(f"{gallery.reader.folder}: {video} has no words in column {path} (evaluate.word_controls)")
        words.append([word for value in values for word in spellings_of(value)])
    if not any(words):
        raise InputError(f"{gallery.reader.folder}: no video has words in column {path} (evaluate.word_controls)")
    return words


def spellings_of(text: str) -> list[tuple[str, ...]]:
    """The words of a text in lower case, each with its spellings.

    >>> spellings_of("Goes left|leftwards")
    [('goes',), ('left', 'leftwards')]
    """
    return [tuple(word.split("|")) for word in re.findall(r"[\w'-]+(?:\|[\w'-]+)*", text.lower())]


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def values_at(value: Any, keys: list[str]) -> list[Any]:
    """The values at a path of keys; of a list, those of all its items.

    >>> values_at({"objects": [{"label": "dog"}, {"label": "ball"}]}, ["objects", "label"])
    ['dog', 'ball']
    """
    if isinstance(value, list):
        return [found for item in value for found in values_at(item, keys)]
    if not keys:
        return [value]
    return values_at(value[keys[0]], keys[1:]) if isinstance(value, dict) and keys[0] in value else []


def about(gallery: Gallery, number: int) -> dict[str, Any]:
    """The further columns of a sample's row in the manifest."""
    return gallery.reader[number].about["meta"]
