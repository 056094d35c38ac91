"""Captions to words and how often each is a noun, by a spaCy pipeline's part-of-speech tags, over all cores.

Captions that are equal are tagged once. They are divided into units and batches of fixed sizes, whatever the workers,
so that every product of matrices has the same shape, and the counts are the same, on one process or many.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from alpro.errors import InputError
from alpro.stages.artifacts.store import Resources
from alpro.stages.execution.progress import progress
from alpro.stages.execution.workers import do_units

Words = Counter[tuple[str, str]]  # (form, noun): the lower-cased form, and the noun that it is, empty where it is none
Unit = tuple[list[str], list[int]]  # texts, and how often each occurs

EMBEDDED = Path(__file__).parent / "noun_tagger" / "model"
CAPTIONS_PER_UNIT = 4096  # about a second of work
UNITS_ALONE = 8  # done sooner here than processes start, which takes each of them three seconds
CAPTIONS_PER_BATCH = 256  # of 32 to 5000 the fastest: what is between two layers fits the cache
# spaCy keeps every word that it met; then it is loaded anew. (Its memory zones would forget the words of each unit: a
# fifth of the time, to look at the same words again.)
WORDS_KEPT = 300_000
# Components of spaCy that no tag needs; lemmatizers are asked for by `lemma`. Components of others' are kept.
NOT_FOR_TAGS = {"parser", "beam_parser", "ner", "beam_ner", "senter", "sentencizer", "entity_linker", "entity_ruler"}
NOT_FOR_TAGS |= {"future_entity_ruler", "span_ruler", "span_finder", "spancat", "spancat_singlelabel", "textcat"}
NOT_FOR_TAGS |= {"textcat_multilabel", "merge_entities", "merge_noun_chunks", "merge_subtokens", "doc_cleaner"}
LEMMATIZERS = {"lemmatizer", "trainable_lemmatizer"}
_tagging = threading.Lock()  # a Dask worker may have threads; a pipeline's vocabulary is not for two at once


def count_nouns(captions: Counter[str], tagger: str, lemma: bool, resources: Resources) -> Words:
    """How often each word occurs in captions, given with how often each of them does, and as which noun."""
    units = divide(captions, CAPTIONS_PER_UNIT)
    tag = partial(tag_unit, tagger=tagger, lemma=lemma)
    few = len(captions) <= UNITS_ALONE * CAPTIONS_PER_UNIT or resources.worker_count == 1
    alone = few and not resources.dask
    total: Words = Counter()
    with progress("tagging", len(captions), "captions") as advance:
        for unit, counted in ((u, tag(u)) for u in units) if alone else do_units(units, tag, resources):
            total.update(counted)
            advance(len(unit[0]))
    return total


def divide(captions: Counter[str], size: int) -> Iterator[Unit]:
    """Distinct captions and their counts in units of a size; the last may be smaller."""
    left = iter(captions.items())
    while part := list(islice(left, size)):
        yield [text for text, _ in part], [count for _, count in part]


def tag_unit(unit: Unit, tagger: str, lemma: bool = False) -> Words:
    """The words of a unit's texts, each counted as often as its text occurs."""
    nlp = load_tagger(tagger, lemma)
    from spacy.symbols import LEMMA, LOWER, NOUN, POS
    from threadpoolctl import threadpool_limits

    counts: Counter[tuple[int, int]] = Counter()
    keys = [LOWER, POS, LEMMA if lemma else LOWER]
    # One thread: the other cores have units of their own.
    with _tagging, threadpool_limits(1, "blas"):
        for doc, weight in zip(nlp.pipe(unit[0], batch_size=CAPTIONS_PER_BATCH), unit[1], strict=True):
            for form, tag, noun in doc.to_array(keys).tolist():
                counts[form, noun if tag == NOUN else 0] += weight
        strings, found = nlp.vocab.strings, Words()
        for (form, noun), count in counts.items():
            found[strings[form], strings[noun].lower()] += count
    if len(nlp.vocab) > WORDS_KEPT:
        load_tagger.cache_clear()
    return found


@lru_cache(maxsize=1)
def load_tagger(name: str, lemma: bool = False):
    """The spaCy pipeline that tags: the embedded one, or an installed one's name or folder; loaded once a process.

    Of its components it has those that tags need and, with `lemma`, its lemmatizer. Raises InputError where spaCy, the
    pipeline or its lemmatizer is missing.
    """
    try:
        import spacy
        from thinc.api import NumpyOps
    except ImportError:
        raise InputError("build_vocabulary needs spaCy: pip install 'alpro-pipeline[vocabulary]'") from None
    try:
        nlp = spacy.load(EMBEDDED if name == "embedded" else name)
    except OSError:
        raise InputError(
            f"build_vocabulary.tagger = {name!r}: not installed; 'python -m spacy download {name}', or use 'embedded'"
        ) from None
    factories = {component: nlp.get_pipe_meta(component).factory for component in nlp.component_names}
    for component, factory in factories.items():
        if factory in NOT_FOR_TAGS or (factory in LEMMATIZERS and not lemma):
            nlp.remove_pipe(component)
    if lemma and not LEMMATIZERS & set(factories.values()):
        raise InputError(f"build_vocabulary.lemma: the spaCy pipeline {name!r} has no lemmatizer; use another tagger")
    # numpy's matrix products: 2 to 3 times as fast as those of BLIS, spaCy's own (benchmarks/nouns.py).
    for _, part in nlp.pipeline:
        model = getattr(part, "model", None)
        for layer in model.walk() if model else ():
            if isinstance(layer.ops, NumpyOps):
                layer.ops = NumpyOps(use_blis=False)
    return nlp
