"""Prompt templates: the official ones, and others."""

import pytest
from pydantic import ValidationError

from alpro.models.words import Templates, fill


def test_the_default_templates_are_the_official_ones():
    videos = [f"A {what} of {a} {{}}." for what in ("footage", "video", "portrait", "video footage") for a in ARTICLES]
    images = [f"A {what} of {a} {{}}." for what in ("photo", "picture", "good photo", "good picture") for a in ARTICLES]
    assert list(Templates().video) == videos
    assert list(Templates().image) == images
    assert Templates().kinds == {"video": tuple(videos), "image": tuple(images)}


ARTICLES = ("a", "the", "one")


def test_the_words_of_templates_are_lower_case_without_the_placeholder():
    assert Templates(video=("Ein Film: {}!",), image=("{} (2x Foto)",)).words() == {"ein", "film", "x", "foto"}


def test_the_placeholder_is_replaced_literally():
    assert fill("A {} in {curly} 100 %.", "{0}%s") == "A {0}%s in {curly} 100 %."


@pytest.mark.parametrize("wrong", ["A dog.", "{} and {}", ""])
def test_a_template_needs_exactly_one_placeholder(wrong):
    for kind in ("video", "image"):
        with pytest.raises(ValidationError, match="replaced by the entity"):
            Templates.model_validate({kind: (wrong,)})
