"""Counts the words of captions and their occurrences as nouns, with a spaCy part-of-speech tagger on all cores.

Equal captions are tagged once. Units and batches have fixed sizes, independent of the number of workers, so that all
matrix products have the same shapes and the counts do not depend on the number of processes.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from alpro.errors import InputError
from alpro.progress import progress
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_units

# (form, word): the lower-cased form, and the noun that it is, empty for another part of speech.
Words = Counter[tuple[str, str]]
CaptionUnit = tuple[list[str], list[int]]  # texts and their counts

EMBEDDED = Path(__file__).parent / "noun_tagger" / "model"
CAPTIONS_PER_UNIT = 4096  # about a second of work
MAX_LOCAL_UNITS = 8  # faster in this process than starting workers, which takes three seconds each
CAPTIONS_PER_BATCH = 256  # the fastest of 32 to 5000: the activations fit the cache
# spaCy stores every word; beyond this number the pipeline is loaded again. (Its memory zones would discard the words of
# each unit and take a fifth of the time to process them again.)
MAX_VOCAB_WORDS = 300_000
# spaCy components that tagging does not need. Lemmatizers depend on `lemma`; third-party components are kept.
UNUSED_COMPONENTS = {"parser", "beam_parser", "ner", "beam_ner", "senter", "sentencizer", "entity_linker"}
UNUSED_COMPONENTS |= {"entity_ruler", "future_entity_ruler", "span_ruler", "span_finder", "spancat"}
UNUSED_COMPONENTS |= {"spancat_singlelabel", "textcat", "textcat_multilabel", "merge_entities", "merge_noun_chunks"}
UNUSED_COMPONENTS |= {"merge_subtokens", "doc_cleaner"}
LEMMATIZERS = {"lemmatizer", "trainable_lemmatizer"}
_tagging = threading.Lock()  # a Dask worker may have threads; a pipeline's vocabulary is not thread-safe


def count_words(captions: Counter[str], tagger: str, lemma: bool, resources: Resources) -> Words:
    """Counts each word in captions (which have counts themselves), and the noun that it is."""
    units = split_captions(captions, CAPTIONS_PER_UNIT)
    tag = partial(tag_unit, tagger=tagger, lemma=lemma)
    few = len(captions) <= MAX_LOCAL_UNITS * CAPTIONS_PER_UNIT or resources.worker_count == 1
    local = few and not resources.dask
    total: Words = Counter()
    with progress("tagging", len(captions), "captions") as advance:
        for unit, counted in ((u, tag(u)) for u in units) if local else run_units(units, tag, resources):
            total.update(counted)
            advance(len(unit[0]))
    return total


def split_captions(captions: Counter[str], size: int) -> Iterator[CaptionUnit]:
    """Splits distinct captions and their counts into units of `size`; the last may be smaller."""
    remaining = iter(captions.items())
    while items := list(islice(remaining, size)):
        yield [text for text, _ in items], [count for _, count in items]


def tag_unit(unit: CaptionUnit, tagger: str, lemma: bool = False) -> Words:
    """Counts the words of a unit's texts, weighted by the counts of the texts."""
    nlp = load_tagger(tagger, lemma)
    from spacy.symbols import LEMMA, LOWER, NOUN, POS
    from threadpoolctl import threadpool_limits

    counts: Counter[tuple[int, int]] = Counter()
    keys = [LOWER, POS, LEMMA if lemma else LOWER]
    # One thread: the other cores process other units.
    with _tagging, threadpool_limits(1, "blas"):
        for doc, weight in zip(nlp.pipe(unit[0], batch_size=CAPTIONS_PER_BATCH), unit[1], strict=True):
            for form, tag, word in doc.to_array(keys).tolist():
                counts[form, word if tag == NOUN else 0] += weight
        strings, words = nlp.vocab.strings, Words()
        for (form, word), count in counts.items():
            words[strings[form], strings[word].lower()] += count
    if len(nlp.vocab) > MAX_VOCAB_WORDS:
        load_tagger.cache_clear()
    return words


@lru_cache(maxsize=1)
def load_tagger(name: str, lemma: bool = False):
    """Loads a spaCy pipeline, once per process: the embedded one, or an installed one by name or folder.

    Only the components for tagging and, with `lemma`, the lemmatizer are kept. Raises InputError if spaCy, the pipeline
    or its lemmatizer is missing.
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
            f"build_vocabulary.tagger = {name!r}: not installed; "
            f"run 'python -m spacy download {name}', or use 'embedded'"
        ) from None
    factories = {component: nlp.get_pipe_meta(component).factory for component in nlp.component_names}
    for component, factory in factories.items():
        if factory in UNUSED_COMPONENTS or (factory in LEMMATIZERS and not lemma):
            nlp.remove_pipe(component)
    if lemma and not LEMMATIZERS & set(factories.values()):
        raise InputError(f"build_vocabulary.lemma: the spaCy pipeline {name!r} has no lemmatizer; use another tagger")
    # NumPy's matrix products are 2 to 3 times as fast as spaCy's BLIS.
    for _, pipe in nlp.pipeline:
        model = getattr(pipe, "model", None)
        for layer in model.walk() if model else ():
            if isinstance(layer.ops, NumpyOps):
                layer.ops = NumpyOps(use_blis=False)
    return nlp
