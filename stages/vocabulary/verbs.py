"""Verbs in the third person that a tagger takes for plural nouns: "camera zooms in".

Terse captions have no article that would tell a plural from a verb, so a tagger errs in many of
them in the same way. A whole corpus can tell: the word stands where a predicate stands, the tagger
is not sure of it, and the corpus has other forms of the verb.
"""

# On the 8,201 captions of DiDeMo, these take zooms, pans, stops, steps, flashes, climbs, talks,
# dances and places from the first 500 entities, and disappears, changes and spins stay. From the
# first 900 of MSVD and of 60,000 captions of MSR-VTT they take only scrambles.
MIN_AFTER_NOUN = 0.5  # of the occurrences as a noun: the share that follows a noun or a pronoun
MIN_OTHER = 0.15  # of all occurrences: the share that is tagged as no noun
MIN_VERB_FORMS = 0.05  # forms in -ing and -ed, for each occurrence of singular and plural as a noun


def stems(word: str) -> set[str]:
    """The words of which a word in -s may be a form: that of `cries` is `cry`."""
    if not word.endswith("s") or word.endswith("ss"):
        return set()
    found = {word[:-1]}
    if word.endswith("es"):
        found.add(word[:-2])
    if word.endswith("ies"):
        found.add(f"{word[:-3]}y")
    return found


def verb_forms(stem: str) -> set[str]:
    """The forms in -ing and -ed of a verb; some that English does not have do no harm."""
    forms = {f"{stem}ing", f"{stem}ed"}
    if stem.endswith("e"):
        forms |= {f"{stem[:-1]}ing", f"{stem}d"}
    elif stem.endswith("y"):
        forms.add(f"{stem[:-1]}ied")
    elif len(stem) > 2 and stem[-1] not in "aeiouwx":
        forms |= {f"{stem}{stem[-1]}ing", f"{stem}{stem[-1]}ed"}
    return forms
