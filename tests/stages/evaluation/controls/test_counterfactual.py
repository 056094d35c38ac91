"""Counterfactual captions: which words are swapped, and for what."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpro.stages.evaluation.controls.counterfactual import DIRECTION_WORDS, Swap, stem, swap_words, with_word
from alpro.stages.vocabulary.nouns import Word, tag_texts

PARTS = {"dog": "NOUN", "dogs": "NOUN", "cat": "NOUN", "cats": "NOUN", "video": "NOUN", "arrow": "NOUN"}
PARTS |= {"runs": "VERB", "sleeps": "VERB", "running": "VERB", "left": "ADV", "right": "ADV", "above": "ADP"}


def tagged(*captions: str, **parts: str) -> list[list[Word]]:
    """The words of captions with their parts of speech by hand; `parts` replaces some."""
    all_words = []
    for caption in captions:
        words, start = [], 0
        for form in caption.split():
            start = caption.index(form, start)
            part = (PARTS | parts).get(form.lower(), "X")
            lemma = form.lower().removesuffix("s") if part == "NOUN" else form.lower()
            words.append(Word(start, form.lower(), part, lemma))
            start += len(form)
        all_words.append(words)
    return all_words


def swapped(captions: list[str], videos: list[int], seed: int = 0, **parts: str) -> list[tuple[int, str, str]]:
    swaps = swap_words(captions, videos, tagged(*captions, **parts), seed)
    assert all(swap.caption.split() != captions[swap.text].split() for swap in swaps)
    return [(swap.text, swap.part, swap.caption) for swap in swaps]


def test_one_word_of_each_part_of_speech_is_swapped():
    """Each has one candidate: the other singular noun, the other verb in -s, the opposite direction."""
    captions = ["A dog runs left", "a cat sleeps", "an arrow above"]
    actual = swap_words(captions, [0, 1, 2], tagged(*captions), 0)
    assert [swap for swap in actual if swap.part != "noun"] == [
        Swap(0, "verb", "runs", "sleeps", "A dog sleeps left"),
        Swap(0, "direction", "left", "right", "A dog runs right"),
        Swap(1, "verb", "sleeps", "runs", "a cat runs"),
        Swap(2, "direction", "above", "below", "an arrow below"),
    ]
    nouns = {swap.text: swap.caption for swap in actual if swap.part == "noun"}
    assert nouns[0] in ("A cat runs left", "An arrow runs left")
    assert nouns[1] in ("a dog sleeps", "an arrow sleeps")
    assert nouns[2] in ("a dog above", "a cat above")


@pytest.mark.parametrize(
    ("captions", "videos"),
    [
        (["a dog", "a cat"], [0, 0]),  # the only other noun is in another caption of the same video
        (["a dog", "two cats"], [0, 1]),  # ... is in another number
        (["a dog", "a video"], [0, 1]),  # ... is not in the clip in either case
        (["it runs", "it is running"], [0, 1]),  # ... has another ending
        (["left", "right"], [0, 0]),
        (["a dog"], [0]),
    ],
)
def test_a_caption_without_a_replacement_has_no_counterfactual(captions, videos):
    assert swapped(captions, videos) == []


def test_no_inflection_of_a_word_that_the_video_shows_replaces_another():
    """Of video 0, "dogs" says that there is a dog, and of video 1, "cats" that there is a cat."""
    captions = ["a cat", "dogs", "a dog", "cats", "an arrow"]
    assert swapped(captions, [0, 0, 1, 1, 2])[0] == (0, "noun", "an arrow")
    assert swapped(captions, [0, 0, 1, 1, 2])[1][:2] == (2, "noun")


def test_a_direction_word_that_is_a_verb_stays():
    assert swapped(["he left"], [0], left="VERB") == []
    assert swapped(["he left"], [0]) == [(0, "direction", "he right")]


def test_a_word_that_is_mostly_something_else_is_not_swapped():
    """ "runs" is a noun once and a verb twice."""
    captions = ["runs", "runs fast", "runs slowly", "sleeps"]
    words = tagged(*captions)
    words[0][0] = words[0][0]._replace(part="NOUN")
    assert {(swap.text, swap.part) for swap in swap_words(captions, [0, 1, 2, 3], words, 0)} == {
        (1, "verb"),
        (2, "verb"),
        (3, "verb"),
    }


def test_replacements_are_as_frequent_as_in_the_captions():
    """Of the captions that a dog may be replaced with, three in four name a cat."""
    captions = ["a dog"] * 400 + ["a cat"] * 30 + ["an arrow"] * 10
    drawn = Counter(text for number, _, text in swapped(captions, list(range(440))) if number < 400)
    assert drawn["a cat"] / 400 == pytest.approx(0.75, abs=0.07)
    assert drawn.total() == 400


def test_swaps_are_seeded():
    captions = ["a dog", "a cat", "an arrow"] * 10
    videos = list(range(30))
    assert swapped(captions, videos, 1) == swapped(captions, videos, 1) != swapped(captions, videos, 2)


words_of_captions = st.sampled_from([*PARTS, "a", "the"])


@given(st.lists(st.lists(words_of_captions, min_size=1, max_size=5).map(" ".join), min_size=1, max_size=6), st.data())
def test_a_swap_changes_one_word_and_says_nothing_that_the_video_shows(captions, data):
    videos = data.draw(st.lists(st.integers(0, 2), min_size=len(captions), max_size=len(captions)))
    for swap in swap_words(captions, videos, tagged(*captions), 3):
        before, after = captions[swap.text].split(), swap.caption.split()
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b and {a, b} != {"a", "an"}]
        assert changed == [(swap.word, swap.replacement)]
        shown = {
            stem(word) for c, v in zip(captions, videos, strict=True) if v == videos[swap.text] for word in c.split()
        }
        assert stem(swap.replacement) not in shown


def test_the_article_follows_the_replacement():
    assert with_word("There is an arrow", Word(12, "arrow", "NOUN", "arrow"), "dog") == "There is a dog"
    assert with_word("A  dog", Word(3, "dog", "NOUN", "dog"), "arrow") == "An  arrow"
    assert with_word("Dogs run", Word(0, "dogs", "NOUN", "dog"), "cats") == "Cats run"
    assert with_word("banana dog", Word(7, "dog", "NOUN", "dog"), "arrow") == "banana arrow"


def test_opposites_are_pairs():
    assert all(DIRECTION_WORDS[other] == word and other != word for word, other in DIRECTION_WORDS.items())


def test_captions_tagged_by_the_embedded_tagger():
    captions = ["In this video a woman sings on stage", "we see how a dog runs to the left", "two dogs play"]
    words = tag_texts(captions)
    for caption, of_caption in zip(captions, words, strict=True):
        assert [caption[word.start :].lower().startswith(word.form) for word in of_caption] == [True] * len(of_caption)
    swaps = {(swap.text, swap.part): swap.caption for swap in swap_words(captions, [0, 1, 2], words, 0)}
    nouns = {0: swaps.pop((0, "noun")), 1: swaps.pop((1, "noun"))}
    assert nouns[0] in ("In this video a dog sings on stage", "In this video a woman sings on dog")
    assert nouns[1] in ("we see how a woman runs to the left", "we see how a stage runs to the left")
    assert swaps == {
        (0, "verb"): "In this video a woman runs on stage",
        (1, "verb"): "we see how a dog sings to the left",
        (1, "direction"): "we see how a dog runs to the right",
    }
