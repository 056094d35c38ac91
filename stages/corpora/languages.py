"""A cheap test for captions in other languages than English, which the tagger, templates and `exclude` are made for."""

import re

# Frequent words that are none of the other list's, so without those that several languages have, such as "a" and "in".
ENGLISH_WORDS = "the an is are of and with to at his her their from by for while who that this it they"
OTHER_WORDS = (
    "der das und ein eine einer einem mit auf ist im zu den dem von "  # German
    "le les un une et est dans sur avec des du au qui elle "  # French
    "el los las una con del por que en se hombre mujer "  # Spanish
    "il gli che nel della di uno sta "  # Italian
    "os uma um com na da em homem mulher "  # Portuguese
    "het een van op met zijn och ett som av jest się w z bir ve bu"  # Dutch, Swedish, Polish, Turkish
)
ENGLISH, OTHERS = set(ENGLISH_WORDS.split()), set(OTHER_WORDS.split())


def looks_foreign(text: str) -> bool:
    """Whether most letters of a text are not Latin, or it has more frequent words of other languages than English ones.

    >>> [looks_foreign(text) for text in ("a dog runs", "ein Hund rennt", "\u72d7\u5728\u8dd1", "dog", "un chien")]
    [False, True, True, False, True]
    """
    letters = [letter for letter in text if letter.isalpha()]
    if 2 * sum(letter >= "\u0250" for letter in letters) > len(letters):  # after Latin and its extensions
        return True
    words = re.findall(r"\w+", text.lower())
    return sum(word in OTHERS for word in words) > sum(word in ENGLISH for word in words)
