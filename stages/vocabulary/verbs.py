"""Recognize verbs in the third person that a tagger takes for plural nouns: "camera zooms in".

Terse captions have no article that would distinguish a plural from a verb, so a tagger makes the
same mistake in many of them. The corpus as a whole shows it: the word follows a noun or a pronoun,
the tagger is not confident, and the corpus has other forms of the verb.
"""

# On the 8,201 captions of DiDeMo, these take zooms, pans, stops, steps, flashes, climbs, talks,
# dances and places from the first 500 entities, and disappears, changes and spins stay. From the
# first 900 of MSVD and of 60,000 captions of MSR-VTT they take only scrambles.
# Fraction of a word's occurrences as a noun that follow a noun or a pronoun.
MIN_AFTER_NOUN = 0.5
# Fraction of a word's occurrences that are tagged as another part of speech.
MIN_OTHER = 0.15
# Occurrences of the forms in -ing and -ed, for each occurrence of singular and plural as a noun.
MIN_VERB_FORMS = 0.05


def get_stems(word: str) -> set[str]:
    """Return the words of which a word in -s may be a form, such as `cry` for `cries`."""
    if not word.endswith("s") or word.endswith("ss"):
        return set()
    candidates = {word[:-1]}
    if word.endswith("es"):
        candidates.add(word[:-2])
    if word.endswith("ies"):
        candidates.add(f"{word[:-3]}y")
    return candidates


def get_verb_forms(stem: str) -> set[str]:
    """Return the forms in -ing and -ed of a verb. Forms that English does not have do no harm."""
    forms = {f"{stem}ing", f"{stem}ed"}
    if stem.endswith("e"):
        forms |= {f"{stem[:-1]}ing", f"{stem}d"}
    elif stem.endswith("y"):
        forms.add(f"{stem[:-1]}ied")
    elif len(stem) > 2 and stem[-1] not in "aeiouwx":
        forms |= {f"{stem}{stem[-1]}ing", f"{stem}{stem[-1]}ed"}
    return forms
