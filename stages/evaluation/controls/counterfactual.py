"""Counterfactual captions: one noun, one verb or one direction word is swapped, and the rest stays as it is."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from alpro.models.templates import Templates
from alpro.stages.build_vocabulary import NON_OBJECTS
from alpro.stages.vocabulary.nouns import Word

WordKind = Literal["noun", "verb", "direction"]
PARTS: tuple[WordKind, ...] = ("noun", "verb", "direction")
OPPOSITES = (
    "left right, leftward rightward, leftwards rightwards, up down, upward downward, upwards downwards, above below, "
    "over under, top bottom, forward backward, forwards backwards, inside outside, clockwise counterclockwise"
)
DIRECTION_WORDS = {a: b for pair in map(str.split, OPPOSITES.split(",")) for a, b in (pair, pair[::-1])}
# Words whose swap changes nothing that is in the clip: nouns that are never entities, words of the templates, and verbs
# that say that something is in the clip.
UNCHANGING = {*NON_OBJECTS.split(), *["see", "sees", "seen", "show", "shows", "shown", "showing"]}
UNCHANGING |= {form for word in Templates().words() for form in (word, f"{word}s")}


class Swap(NamedTuple):
    """A caption (by its number) with one word swapped."""

    text: int
    part: WordKind
    word: str
    replacement: str
    caption: str


@dataclass(frozen=True)
class Pool:
    """Words that can replace another one of their kind, each with its lemma and its count in the captions."""

    words: list[tuple[str, str]]
    counts: np.ndarray

    def draw(self, shown: set[str], rng: np.random.Generator) -> str:
        """A word that is not in `shown`, with the frequency of the captions; empty if there is none."""
        allowed = np.array([not {stem(form), lemma} & shown for form, lemma in self.words], bool)
        counts = np.where(allowed, self.counts, 0)
        return self.words[rng.choice(len(counts), p=counts / counts.sum())][0] if counts.any() else ""


def swap_words(captions: Sequence[str], videos: Sequence[int], tagged: list[list[Word]], seed: int) -> list[Swap]:
    """Swaps one word of each part of speech in each caption, where it has one.

    videos: the video of each caption; tagged: the words of each caption. A noun is replaced by another noun of the
    captions in the same number, a verb by another verb with the same ending, both drawn with their frequencies in the
    captions, so that replacements are as frequent as the words that they replace; a direction word by its opposite. No
    replacement is in a caption of the same video, in any inflection. Words that the captions do not mostly use as this
    part of speech are neither swapped nor drawn.
    """
    rng = np.random.default_rng([seed, 53])
    usual = usual_parts(tagged)
    pools = word_pools(tagged, usual)
    shown: dict[int, set[str]] = {}
    for video, words in zip(videos, tagged, strict=True):
        shown.setdefault(video, set()).update(part for word in words for part in (stem(word.form), word.lemma))
    swaps = []
    for number, (caption, video, words) in enumerate(zip(captions, videos, tagged, strict=True)):
        for part in PARTS:
            places = [word for word in words if part_of(word, usual) == part]
            for place in rng.permutation(len(places)):
                word = places[place]
                if replacement := replace_word(word, part, pools, shown[video], rng):
                    text = with_word(caption, word, replacement)
                    swaps.append(Swap(number, part, word.form, replacement, text))
                    break
    return swaps


def replace_word(
    word: Word, part: WordKind, pools: dict[tuple[WordKind, str], Pool], shown: set[str], rng: np.random.Generator
) -> str:
    """A replacement that no caption of the video has; empty if there is none."""
    if part == "direction":
        opposite = DIRECTION_WORDS[word.form]
        return "" if stem(opposite) in shown else opposite
    return pools[part, inflection(word, part)].draw(shown, rng)


def usual_parts(tagged: list[list[Word]]) -> dict[str, str]:
    """The part of speech of most occurrences of each form; of several, the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for words in tagged:
        for word in words:
            counts.setdefault(word.form, Counter())[word.part] += 1
    return {form: min(parts, key=lambda part: (-parts[part], part)) for form, parts in counts.items()}


def part_of(word: Word, usual: dict[str, str]) -> WordKind | None:
    """The part of speech as which a word can be swapped, if any."""
    if word.form in DIRECTION_WORDS:
        return None if word.part == "VERB" else "direction"  # "the man left the room"
    if not word.form.isalpha() or word.form in UNCHANGING or usual[word.form] != word.part:
        return None
    return "noun" if word.part == "NOUN" else "verb" if word.part == "VERB" else None


def word_pools(tagged: list[list[Word]], usual: dict[str, str]) -> dict[tuple[WordKind, str], Pool]:
    """The nouns and verbs of the captions by their inflection, in alphabetical order."""
    counts: dict[tuple[WordKind, str], Counter[tuple[str, str]]] = {}
    for words in tagged:
        for word in words:
            if (part := part_of(word, usual)) in ("noun", "verb"):
                counts.setdefault((part, inflection(word, part)), Counter())[word.form, word.lemma] += 1
    return {
        key: Pool(sorted(pool), np.array([pool[word] for word in sorted(pool)], float)) for key, pool in counts.items()
    }


def inflection(word: Word, part: WordKind) -> str:
    """What a replacement must share, so that the caption stays grammatical: a noun's number, a verb's ending."""
    if part == "noun":
        return "singular" if word.form == word.lemma else "plural"
    return next((ending for ending in ("ing", "ed", "s") if word.form.endswith(ending)), "")


def stem(form: str) -> str:
    """A word without its ending, so that two inflections of a word are alike: run, runs; move, moves, moving.

    >>> [stem(word) for word in ("move", "moves", "moving", "dog", "dogs", "sees", "see")]
    ['mov', 'mov', 'mov', 'dog', 'dog', 'se', 'se']
    """
    return re.sub(r"(?<=..)(ing|ed|es|s|e)$", "", form)


def with_word(caption: str, word: Word, replacement: str) -> str:
    """The caption with a word replaced, in the case of the word; `a` and `an` before it follow the replacement.

    >>> with_word("Here is a ball", Word(10, "ball", "NOUN", "ball"), "arrow")
    'Here is an arrow'
    """
    end = word.start + len(word.form)
    before = re.sub(
        r"\b(a)n?(\s+)$",
        lambda article: f"{article[1]}{'n' if replacement[0] in 'aeiou' else ''}{article[2]}",
        caption[: word.start],
        flags=re.IGNORECASE,
    )
    capital = caption[word.start].isupper()
    return before + (replacement.capitalize() if capital else replacement) + caption[end:]
