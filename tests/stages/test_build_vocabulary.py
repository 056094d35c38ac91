"""Captions to entities."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from alpro.errors import InputError
from alpro.models.words import Templates
from alpro.stages import build_vocabulary
from alpro.stages.build_vocabulary import Candidate, Config, exclusion_reason, nouns_of, select_words

GERMAN = Templates(video=("Ein Film: {}.",), image=("Ein Foto: {}.",))
THINGS = "camera hand kitchen man screen square street"
PICTURE = "background clip corner frame left right scene scenes shot start view"


def nouns(**counts: int) -> list[Candidate]:
    """Nouns that occur only as nouns, with their counts."""
    return nouns_of(Counter({(name, True): count for name, count in counts.items()}))


@pytest.mark.parametrize(
    ("counts", "config", "chosen"),
    [
        ({"tree": 5, "ball": 7, "star": 5, "box": 5, "moon": 2}, {"entities": 3}, "ball box star"),  # by the alphabet
        ({"ball": 3, "box": 2, "star": 1}, {"entities": 4}, "ball box"),  # few
        ({"hügel": 3, "улица": 2, "3d": 9}, {}, "hügel улица"),
        ({"film": 4, "video": 3, "foto": 2, "ball": 2}, {"templates": GERMAN}, "video ball"),
        # The most frequent nouns of real captions, of MSR-VTT and WebVid, with words for the image among them.
        (dict.fromkeys(f"{THINGS} {PICTURE}".split(), 9), {}, THINGS),
    ],
)
def test_entities_are_the_most_frequent_nouns_for_things(counts, config, chosen):
    entities, left_out = select_words(nouns(**counts), Config(**config))
    assert " ".join(name for name, _ in entities) == chosen
    assert [counts[name] for name, _ in entities] == [count for _, count in entities]
    assert {name for name, *_ in [*entities, *left_out]} == counts.keys()


def test_left_out_nouns_have_a_reason():
    words = nouns(video=90, x2=80, animal=70, ball=60, box=50, s=40, internationalizationinternational=30, photos=20)
    words += nouns(fish=2, rarity=1)
    words += nouns_of(Counter({("talks", True): 39, ("talks", False): 61}))
    config = Config(entities=2, exclude=("animal",))
    chosen, left_out = select_words(words, config)
    with pytest.raises(InputError, match="1 nouns"):
        select_words(nouns(ball=3, box=1), config)
    assert chosen == [("ball", 60), ("box", 50)]
    assert left_out == [
        ("video", 90, "a word of the prompt templates"),
        ("x2", 80, "not of letters alone"),
        ("animal", 70, "excluded by the configuration"),
        ("s", 40, "not 2 to 30 letters"),
        ("internationalizationinternational", 30, "not 2 to 30 letters"),
        ("photos", 20, "a word of the prompt templates"),
        ("fish", 2, "below the 2 most frequent"),
        ("rarity", 1, "fewer than 2 times"),
        ("talks", 39, "a noun in less than 40% of its occurrences"),
    ]


@pytest.mark.parametrize(("share", "chosen"), [(0.0, "dog play up"), (0.3, "dog play"), (0.31, "dog"), (1.0, "dog")])
def test_a_word_is_an_entity_if_it_is_a_noun_often_enough(share, chosen):
    words = Counter({("dog", True): 9, ("play", True): 3, ("play", False): 7, ("up", True): 2, ("up", False): 98})
    config = Config(min_noun_share=share)
    assert " ".join(noun.name for noun in nouns_of(words) if not exclusion_reason(noun, config, set())) == chosen


def test_only_training_captions_are_read_and_samples_without_are_counted_and_listed(corpus_of, tmp_path, resources):
    rows = [
        {"id": "one", "captions": ["a dog is sleeping", "a dog and a cat"]},
        {"id": "two", "captions": ["a cat is sleeping"]},
        {"id": "silent", "questions": [{"question": "which xylophone is it?", "answer": "none", "type": "which"}]},
        {"id": "validation", "split": "validation", "captions": ["a horse", "a horse runs", "a horse stands"]},
        {"id": "test", "split": "test", "captions": ["a cow", "a cow runs", "a cow stands"]},
    ]
    small = corpus_of(tmp_path / "small", rows)
    outcome = build_vocabulary.run(Config(entities=2), {"small": small}, tmp_path, resources)
    table = pq.read_table(tmp_path / "entities.parquet").to_pylist()
    assert table == [{"entity": "cat", "count": 2}, {"entity": "dog", "count": 2}]
    assert outcome.counts["captions"] == outcome.counts["distinct_captions"] == 3
    assert pq.read_table(tmp_path / "left_out.parquet").num_rows == outcome.counts["nouns"] - 2
    assert outcome.counts["samples_without_caption"] == 1
    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert rejects == [{"id": "silent", "path": "silent", "reason": "no caption"}]


def test_no_training_captions_raise_an_input_error(corpus_of, tmp_path, resources):
    folder = corpus_of(tmp_path / "corpus", [{"id": "test", "split": "test", "captions": ["a cow"]}])
    with pytest.raises(InputError, match="no captions"):
        build_vocabulary.run(Config(entities=2), {"corpus": folder}, tmp_path, resources)
