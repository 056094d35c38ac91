"""The controls know what they should and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.stages.evaluation.controls.columns import words_only
from alpro.stages.evaluation.controls.settings import Shuffle, reverse, still
from alpro.stages.evaluation.retrieval import Gallery


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(0, 5))
def test_shuffled_frames_are_the_same_frames_and_never_in_the_true_order(frames, seed):
    shuffled = Shuffle(seed)(frames)
    assert sorted(shuffled) == sorted(frames)
    assert (shuffled == frames) == (len(set(frames)) == 1)


def test_shuffling_is_seeded_and_another_for_each_clip():
    orders = [Shuffle(seed)(list(range(10))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    one = Shuffle(1)
    assert one(list(range(10))) != one(list(range(10)))


def test_shuffling_reaches_every_other_order():
    shuffle = Shuffle(0)
    assert {tuple(shuffle([1, 2, 3])) for _ in range(200)} == {(1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)}


def test_reversed_frames_are_backwards():
    assert reverse([0, 2, 4]) == [4, 2, 0]


def things(*colours: str) -> dict:
    return {"things": [{"kind": "ball", "colour": colour, "motion": "left"} for colour in colours]}


@pytest.fixture
def coloured(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["A red ball over the blue box", "it moves"], "meta": things("red", "blue")},
        {"id": "b", "captions": ["a red, red star"], "meta": things("red")},
        {"id": "c", "captions": ["a green reddish moon"], "meta": things("green")},
    ]
    return Gallery.of(corpus_of(tmp_path, rows), "train")


def test_the_colour_control_scores_the_overlap_of_colours_said_and_seen(coloured):
    """Shared over all: {red, blue} with {red} is 1 of 2; the second "red" of a text is one more that is not seen."""
    expected = [
        [1, 1 / 2, 0],
        [0, 0, 0],
        [1 / 3, 1 / 2, 0],
        [0, 0, 1],
    ]
    np.testing.assert_allclose(words_only(coloured, "things.colour"), expected)


def test_the_words_of_a_control_may_be_a_list_or_a_text(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["A DJ at a party"], "meta": {"tags": ["party", "dj"], "genre": "Pop music"}},
        {"id": "b", "captions": ["music for a party"], "meta": {"tags": ["party"], "genre": "news"}},
        {"id": "c", "captions": ["nothing"], "meta": {"tags": [], "genre": "news"}},
    ]
    gallery = Gallery.of(corpus_of(tmp_path, rows), "train")
    np.testing.assert_allclose(words_only(gallery, "tags"), [[1, 1 / 2, 0], [1 / 2, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(words_only(gallery, "genre"), [[0, 0, 0], [1 / 2, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(("path", "who"), [("things.colour", "b has no"), ("things", "a has no"), ("hues", "a has no")])
def test_a_video_without_the_column_is_a_mistake(corpus_of, tmp_path, path, who):
    rows = [{"id": "a", "captions": ["red"], "meta": things("red")}, {"id": "b", "captions": ["blue"]}]
    gallery = Gallery.of(corpus_of(tmp_path, rows), "train")
    with pytest.raises(InputError, match=rf"{tmp_path}: {who} words in column {path} "):
        words_only(gallery, path)


def test_a_column_without_a_word_is_a_mistake(coloured):
    with pytest.raises(InputError, match=r"no video has words in column things\.color "):
        words_only(coloured, "things.color")


def test_the_colour_control_of_the_sample_is_better_than_chance_and_not_perfect(clips):
    gallery = Gallery.of(clips, "test")
    scores = words_only(gallery, "things.colour")
    own = scores[np.arange(8), gallery.video_of_text]
    assert (own == scores.max(axis=1)).all()  # a full caption names every colour
    assert (scores == 1).sum() >= 8


def test_several_columns_are_known_together(corpus_of, tmp_path):
    """Words are counted over all columns; of a word with several spellings, any is the word, once in each place."""
    rows = [
        {"id": "a", "captions": ["a red ball goes to the left"], "meta": things("red") | {"way": "left|leftwards"}},
        {
            "id": "b",
            "captions": ["a red box goes leftwards"],
            "meta": things("red", "blue") | {"way": "left|leftwards"},
        },
        {"id": "c", "captions": ["a red star leaves"], "meta": things("red") | {"way": []}},
    ]
    gallery = Gallery.of(corpus_of(tmp_path, rows), "train")
    both = words_only(gallery, ("things.colour", "way"))
    np.testing.assert_allclose(both, [[1, 2 / 3, 1 / 2], [1, 2 / 3, 1 / 2], [1 / 2, 1 / 3, 1]])
    np.testing.assert_allclose(words_only(gallery, "way"), [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    with pytest.raises(InputError, match="a has no words in column hue "):
        words_only(gallery, ("things.colour", "hue"))


def test_a_word_is_the_same_with_and_without_its_spellings(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["a DJ"], "meta": {"tags": ["dj|deejay", "party"]}},
        {"id": "b", "captions": ["the deejay"], "meta": {"tags": ["DJ"]}},
    ]
    np.testing.assert_allclose(words_only(Gallery.of(corpus_of(tmp_path, rows), "train"), "tags"), [[1 / 2, 1]] * 2)


def test_everything_but_one_thing_of_the_sample(clips):
    """A full caption has every known word of its clip and no other known word, so its clip is one of the best."""
    gallery = Gallery.of(clips, "test")
    for paths in (
        ("things.colour", "words.motion", "words.relation"),
        ("things.kind", "things.colour", "words.relation"),
    ):
        scores = words_only(gallery, paths)
        assert (scores[np.arange(8), gallery.video_of_text] == 1).all()
        assert scores.max() == 1


def test_a_still_clip_has_one_frame():
    assert still(1)([3, 5, 7]) == [5, 5, 5]
