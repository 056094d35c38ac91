"""Counting nouns in captions: the embedded tagger, and counts that do not depend on the units."""

import random
from collections import Counter

import pytest
import spacy
from spacy.training import Example

from alpro.errors import InputError
from alpro.stages.build_vocabulary import nouns_of
from alpro.stages.execution.interface import Resources
from alpro.stages.vocabulary import nouns
from alpro.stages.vocabulary.nouns import count_words, load_tagger, tag_unit


def tagged_nouns(*captions: str) -> Counter[str]:
    """The nouns of captions by the embedded tagger, with their counts."""
    words = tag_unit((list(captions), [1] * len(captions)), "embedded")
    return Counter({noun.name: noun.count for noun in nouns_of(words)})


CAPTIONS = [  # constructions that are frequent in captions and rare in treebanks
    ("a dog and a cat sleep on the sofa", "dog cat sofa"),
    ("The Woman is cutting vegetables in her kitchen.", "woman vegetables kitchen"),
    ("he runs quickly", ""),
    ("a man talks about a car", "man car"),
    ("a chef mixes dough in a bowl", "chef dough bowl"),
    ("a group of people dance", "group people"),
    ("a man wears a striped shirt", "man shirt"),
    ("women talking and laughing", "women"),
    ("he s standing by the window", "window"),
    ("a reporter narrates and explains the weather", "reporter weather"),
    ("two kids are jumping up and down", "kids"),
    ("a cat drinks milk from a bottle", "cat milk bottle"),
]


def test_the_embedded_tagger_tags_the_nouns_of_captions():
    results = {caption: (set(tagged_nouns(caption)), set(nouns.split())) for caption, nouns in CAPTIONS}
    wrong = {caption: actual - expected for caption, (actual, expected) in results.items()}
    assert not any(wrong.values()), wrong
    missed = [word for actual, expected in results.values() for word in expected - actual]
    assert len(missed) <= 1, missed  # of 23


def test_word_counts_are_weighted_by_captions_and_part_of_speech(resources):
    captions = Counter({"a dog is sleeping": 3, "a small dog and a cat": 1})
    words = count_words(captions, "embedded", resources)
    others = {"a": 5, "is": 3, "sleeping": 3, "small": 1, "and": 1}
    assert words == {("dog", True): 4, ("cat", True): 1} | {(word, False): count for word, count in others.items()}


def captions_of(number: int) -> Counter[str]:
    """Captions of words that a tagger is not sure of, in lengths of 1 to 14 words, some of them more than once."""
    rng = random.Random(3)
    words = ["a", "the", "man", "dog", "cooks", "talks", "dance", "plays", "striped", "hits", "up", "s", "show", "cut"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(number)]
    return Counter({text: rng.randint(1, 3) for text in texts})


def test_counts_do_not_depend_on_the_units(resources, monkeypatch, inline_pool):
    """Nor on whether they go to a pool."""
    captions = captions_of(150)
    whole = count_words(captions, "embedded", resources)
    assert whole.total() == sum(len(text.split()) * count for text, count in captions.items())
    for unit, batch, workers in ((40, 1, 2), (7, 3, 1), (64, 64, 2), (100, 256, 1)):
        monkeypatch.setattr(nouns, "CAPTIONS_PER_UNIT", unit)
        monkeypatch.setattr(nouns, "CAPTIONS_PER_BATCH", batch)
        some = Resources(workers=workers, device="cpu")
        assert count_words(captions, "embedded", some) == whole, (unit, batch, workers)
    shuffled = list(captions.items())
    random.Random(4).shuffle(shuffled)
    assert count_words(Counter(dict(shuffled)), "embedded", resources) == whole


def test_a_tagger_with_a_large_vocabulary_is_reloaded(monkeypatch):
    monkeypatch.setattr(nouns, "MAX_VOCAB_WORDS", 10)
    before = load_tagger("embedded")
    assert load_tagger("embedded") is before  # once a process
    assert tag_unit((["a dog sleeps"], [1]), "embedded")["dog", True] == 1
    assert load_tagger("embedded") is not before


def test_a_tagger_that_is_not_installed_raises_an_input_error():
    with pytest.raises(InputError, match=r"tagger = 'en_core_web_none'.*'embedded'"):
        load_tagger("en_core_web_none")


@pytest.fixture(scope="module")
def other_tagger(tmp_path_factory) -> str:
    """A spaCy pipeline with components as many models have them, most of no use for tags."""
    folder = tmp_path_factory.mktemp("taggers") / "other"
    nlp = spacy.load(nouns.EMBEDDED)
    nlp.add_pipe("sentencizer", first=True)
    nlp.add_pipe("attribute_ruler").add([[{"LOWER": "gizmo"}]], {"POS": "NOUN"})
    known = {"heads": [1, 1], "deps": ["A", "ROOT"], "entities": ["O", "U-A"], "cats": {"A": 1.0, "B": 0.0}}
    example = Example.from_dict(nlp.make_doc("a gizmo"), known)
    for name in ("parser", "ner", "textcat"):
        nlp.add_pipe(name).initialize(lambda: [example], nlp=nlp)
    nlp.to_disk(folder)
    return str(folder)


def test_only_the_tagging_components_of_another_pipeline_run(other_tagger):
    assert load_tagger(other_tagger).pipe_names == ["tok2vec", "morphologizer", "attribute_ruler"]
    assert tag_unit((["the gizmo shines"], [1]), other_tagger)["gizmo", True] == 1
