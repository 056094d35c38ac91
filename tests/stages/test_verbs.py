"""Verbs that a tagger takes for plural nouns."""

from collections import Counter

import pytest

from alpro.stages.build_vocabulary import Config, list_nouns, select_words
from alpro.stages.vocabulary import verbs
from alpro.stages.vocabulary.nouns import Use


@pytest.mark.parametrize("form", ["zooming", "zoomed", "plays"])
def test_a_verb_after_its_subject_is_no_entity(form):
    """ "camera zooms in" is, "two dogs" is not, nor is a compound such as "football players"."""
    words = Counter(
        {
            ("zooms", Use.AFTER_NOUN): 15,
            ("zooms", Use.NOUN): 5,
            ("zooms", Use.OTHER): 5,
            ("zoom", Use.NOUN): 3,
            (form, Use.OTHER): 2,
            ("players", Use.AFTER_NOUN): 20,
            ("players", Use.OTHER): 5,
            ("dogs", Use.NOUN): 20,
            ("dogs", Use.OTHER): 5,
            ("dogged", Use.OTHER): 5,
        }
    )
    config = Config(entities=10)
    chosen, _ = select_words(list_nouns(words), config)
    is_verb = form != "plays"  # without another form of the verb, nothing tells it from a compound
    assert ("zooms" in dict(chosen)) != is_verb
    assert {"players", "dogs"} <= dict(chosen).keys()
    # The paper's rule: every noun counts.
    everything = Config(entities=10, min_noun_share=0)
    assert "zooms" in dict(select_words(list_nouns(words), everything)[0])


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("talks", "talking"),
        ("dances", "danced"),
        ("dances", "dancing"),
        ("cries", "cried"),
        ("stops", "stopping"),
        ("flashes", "flashed"),
    ],
)
def test_forms_of_a_verb(word, form):
    assert any(form in verbs.get_verb_forms(stem) for stem in verbs.get_stems(word))
