"""The captions of the training splits of corpora, and their words, counted with their occurrences
as nouns by a spaCy part-of-speech tagger on all cores.

Equal captions are tagged once. Units and batches have fixed sizes, independent of the number of
workers, so that all matrix products have the same shapes and the counts do not depend on the number
of processes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from hashlib import sha256
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from alpro.errors import InputError
from alpro.files import digest, read_json, write_json
from alpro.log import progress
from alpro.shards.reader import index_batches
from alpro.stages.corpora.tables import UnitRecord
from alpro.stages.corpora.units import Unit, Units, finish_units, open_units
from alpro.stages.execution.interface import Corpora, Resources

if TYPE_CHECKING:
    from spacy.language import Language

VERSION = 2  # increase it if the same texts give other words


# Counts of lower-cased words, as nouns (True) and as other parts of speech.
Words = Counter[tuple[str, bool]]


class CaptionUnit(NamedTuple):
    """Distinct captions, and how often each occurs."""

    name: str
    texts: list[str]
    counts: list[int]

    def __str__(self) -> str:
        return self.name


WORDS = "words.json"  # a unit's rows (word, is_noun, count)

EMBEDDED = Path(__file__).parent / "noun_tagger" / "model"
CAPTIONS_PER_UNIT = 4096  # a unit takes about a second
MAX_LOCAL_UNITS = 8  # tagged in this process: starting workers would take longer
CAPTIONS_PER_BATCH = 256  # the fastest of 32 to 5000: the activations fit the cache
# spaCy stores every word; beyond this number the pipeline is loaded again. (Its memory zones discard
# the words of each unit, but tagging takes a fifth longer.)
MAX_VOCAB_WORDS = 300_000
# Components of spaCy pipelines that only take time.
UNUSED = [
    "parser",
    "senter",
    "sentencizer",
    "ner",
    "entity_ruler",
    "lemmatizer",
    "textcat",
]


def count_words(
    captions: Counter[str], tagger: str, out: Path, resources: Resources
) -> Words:
    """Count the words of captions, which have counts themselves, as nouns and as others.

    Args:
        out: The folder of the stage.
    """
    units = split_captions(captions, CAPTIONS_PER_UNIT)
    counted: Iterator[tuple[CaptionUnit, Words]]
    if len(captions) <= MAX_LOCAL_UNITS * CAPTIONS_PER_UNIT:
        counted = ((unit, tag_unit(unit, tagger)) for unit in units)
    else:
        counted = tag_in_workers(units, tagger, out, resources)

    total: Words = Counter()
    with progress("tagging", len(captions), "captions") as advance:
        for unit, words in counted:
            total.update(words)
            advance(len(unit.texts))
    return total


def split_captions(captions: Counter[str], size: int) -> Iterator[CaptionUnit]:
    """Split distinct captions and their counts into units of `size`; the last may be smaller."""
    remaining = iter(captions.items())
    number = 0
    while part := dict(islice(remaining, size)):
        yield CaptionUnit(f"captions {number}", [*part], [*part.values()])
        number += len(part)


def tag_in_workers(
    units: Iterable[CaptionUnit], tagger: str, out: Path, resources: Resources
) -> Iterator[tuple[CaptionUnit, Words]]:
    """Yield units of captions with their words, in order of completion."""
    store = open_units(out)
    work = partial(
        find_or_tag, tagger=tagger, version=tagger_version(tagger), store=store
    )
    for task, unit in finish_units(units, work, out, resources):
        rows = read_json(store.folder(unit.key) / WORDS)
        yield task, Counter({(word, is_noun): count for word, is_noun, count in rows})


def find_or_tag(task: CaptionUnit, tagger: str, version: str, store: Units) -> Unit:
    """Find the unit of the captions, or tag them."""

    def write(folder: Path) -> UnitRecord:
        rows = [
            (word, is_noun, n) for (word, is_noun), n in tag_unit(task, tagger).items()
        ]
        write_json(folder / WORDS, rows)
        return {}

    key = digest([version, task.texts, task.counts])
    return store.find_or_make(task.name, lambda: key, write)


def tagger_version(tagger: str) -> str:
    """Return a digest of what determines the tags of a text: this module's VERSION, spaCy's
    version, and the pipeline with its weights."""
    nlp = load_tagger(tagger)
    # Exclude the vocabulary, which grows with each text.
    weights = sha256(nlp.to_bytes(exclude=["vocab"])).hexdigest()
    return f"{VERSION} {metadata.version('spacy')} {weights}"


def tag_unit(unit: CaptionUnit, tagger: str) -> Words:
    """Count the words of a unit's texts, weighted by the counts of the texts."""
    nlp = load_tagger(tagger)
    # Imported here: spaCy is optional, and `load_tagger` says what to install.
    from spacy.symbols import LOWER, NOUN, POS
    from threadpoolctl import threadpool_limits

    # Counts by the id of a word, and whether it is a noun.
    counts: Counter[tuple[int, bool]] = Counter()
    # One thread, because the other cores process other units.
    with threadpool_limits(1, "blas"):
        docs = nlp.pipe(map(composed, unit.texts), batch_size=CAPTIONS_PER_BATCH)
        for doc, weight in zip(docs, unit.counts, strict=True):
            for word, tag in doc.to_array([LOWER, POS]).tolist():
                counts[word, tag == NOUN] += weight

        strings = nlp.vocab.strings
        words = Counter(
            {(strings[word], noun): count for (word, noun), count in counts.items()}
        )

    if len(nlp.vocab) > MAX_VOCAB_WORDS:
        load_tagger.cache_clear()
    return words


def composed(text: str) -> str:
    """Return a text with composed letters (NFC), as taggers spell them: macOS decomposes accents."""
    return normalize("NFC", text)


@lru_cache(maxsize=1)
def load_tagger(name: str) -> "Language":
    """Load a spaCy pipeline once per process, with the components for tagging only.

    Args:
        name: `embedded`, or the name or folder of an installed pipeline.

    Raises:
        InputError: If spaCy or the pipeline is missing.
    """
    try:
        import spacy
        from thinc.api import NumpyOps
    except ImportError:
        raise InputError(
            "build_vocabulary needs spaCy: pip install 'alpro-pipeline[vocabulary]'"
        ) from None

    try:
        nlp = spacy.load(EMBEDDED if name == "embedded" else name, exclude=UNUSED)
    except OSError:
        raise InputError(
            f"build_vocabulary.tagger = {name!r}: not installed; "
            f"run 'python -m spacy download {name}', or use 'embedded'"
        ) from None

    # NumPy's matrix products are 2 to 3 times as fast as spaCy's BLIS.
    for _, pipe in nlp.pipeline:
        model = getattr(pipe, "model", None)
        if model is None:  # a component of rules
            continue
        for layer in model.walk():
            if isinstance(layer.ops, NumpyOps):
                layer.ops = NumpyOps(use_blis=False)
    return nlp


def read_captions(corpora: Corpora) -> tuple[Counter[str], int]:
    """Read the captions of the training splits. Memory holds each distinct caption once.

    Returns:
        The captions with their counts, and the number of samples without a caption.

    Raises:
        InputError: If there are no captions.
    """
    captions: Counter[str] = Counter()
    without = 0
    for texts in training_texts(corpora.values(), "captions"):
        captions.update(texts)
        without += not texts

    if not captions:
        raise InputError(
            "the training split has no captions; check the splits of the corpora"
        )
    return captions, without


def read_questions(corpora: Corpora) -> Counter[str]:
    """Read the questions of the training splits with their counts."""
    asked = chain.from_iterable(training_texts(corpora.values(), "questions"))
    return Counter(question["question"] for question in asked)


def training_texts(folders: Iterable[Path], column: str) -> Iterator[list[Any]]:
    """Yield the captions or the questions of each sample in the training splits of corpora. A batch
    of rows is in memory."""
    for folder in folders:
        for batch in index_batches(folder, ["split", column]):
            for row in batch.to_pylist():
                # Captions of the test split must not decide entities or tokens.
                if row["split"] == "train":
                    yield row[column]
