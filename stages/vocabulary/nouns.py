"""The captions of the training splits of corpora, and their words, counted with their occurrences
as nouns by a spaCy part-of-speech tagger on all cores.

Equal captions are tagged once. Units and batches have fixed sizes, independent of the number of
workers, so that all matrix products have the same shapes and the counts do not depend on the number
of processes.
"""

import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unicodedata import normalize
from uuid import uuid4

from alpro.errors import InputError
from alpro.log import progress
from alpro.shards.reader import index_batches
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_units

if TYPE_CHECKING:
    from spacy.language import Language


class Use(Enum):
    """As what a word occurs."""

    NOUN = "noun"
    AFTER_NOUN = "noun that follows a noun or a pronoun, as a verb follows its subject"
    OTHER = "another part of speech"


Words = Counter[tuple[str, Use]]  # lower-cased words, in each use
CaptionUnit = tuple[list[str], list[int]]  # texts and their counts

EMBEDDED = Path(__file__).parent / "noun_tagger" / "model"
CAPTIONS_PER_UNIT = 4096  # about a second of work
MAX_LOCAL_UNITS = 8  # faster in this process than starting workers, which takes three seconds each
CAPTIONS_PER_BATCH = 256  # the fastest of 32 to 5000: the activations fit the cache
# spaCy stores every word; beyond this number the pipeline is loaded again. (Its memory zones would
# discard the words of each unit and take a fifth of the time to process them again.)
MAX_VOCAB_WORDS = 300_000
# The components of spaCy's pipelines that tagging needs.
TAGGING = {
    "tok2vec",
    "transformer",
    "curated_transformer",
    "tagger",
    "morphologizer",
    "attribute_ruler",
}
_tagging = threading.Lock()  # a pipeline's vocabulary is not thread-safe


def count_words(captions: Counter[str], tagger: str, resources: Resources) -> Words:
    """Counts the words of captions (which have counts themselves), each use apart."""
    units = split_captions(captions, CAPTIONS_PER_UNIT)
    tagged: Iterator[tuple[CaptionUnit, Words]]
    is_small = len(captions) <= MAX_LOCAL_UNITS * CAPTIONS_PER_UNIT
    if is_small or resources.worker_count == 1:
        tagged = ((unit, tag_unit(unit, tagger)) for unit in units)
    else:
        tagged = tag_in_workers(units, tagger, resources)

    total: Words = Counter()
    with progress("tagging", len(captions), "captions") as advance:
        for unit, counted in tagged:
            total.update(counted)
            advance(len(unit[0]))
    return total


def split_captions(captions: Counter[str], size: int) -> Iterator[CaptionUnit]:
    """Splits distinct captions and their counts into units of `size`; the last may be smaller."""
    remaining = iter(captions.items())
    while items := list(islice(remaining, size)):
        yield [text for text, _ in items], [count for _, count in items]


def tag_in_workers(
    units: Iterator[CaptionUnit], tagger: str, resources: Resources
) -> Iterator[tuple[CaptionUnit, Words]]:
    """Yields units with their words, in order of completion.

    The words come in files: through the pool's pipe, a worker that is killed in the middle of a
    large result would leave the pool waiting forever.
    """
    with TemporaryDirectory(prefix="alpro-") as folder:
        tag = partial(tag_to_file, tagger=tagger, folder=Path(folder))
        for unit, file in run_units(units, tag, resources):
            words = pickle.loads(file.read_bytes())  # of a process that this one has started
            file.unlink()
            yield unit, words


def tag_to_file(unit: CaptionUnit, tagger: str, folder: Path) -> Path:
    """Tags a unit; returns a file with its words."""
    words = tag_unit(unit, tagger)
    file = folder / uuid4().hex
    file.write_bytes(pickle.dumps(words))
    return file


def tag_unit(unit: CaptionUnit, tagger: str) -> Words:
    """Counts the words of a unit's texts, weighted by the counts of the texts."""
    nlp = load_tagger(tagger)
    # Imported here: spaCy is optional, and `load_tagger` says what to install.
    from spacy.symbols import LOWER, NOUN, POS, PRON, PROPN
    from threadpoolctl import threadpool_limits

    texts, weights = unit
    # By the numbers of words: whether each is a noun, and whether it follows one.
    counts: Counter[tuple[int, bool, bool]] = Counter()
    words: Words = Counter()
    # One thread: the other cores process other units.
    with _tagging, threadpool_limits(1, "blas"):
        docs = nlp.pipe(map(composed, texts), batch_size=CAPTIONS_PER_BATCH)
        for doc, weight in zip(docs, weights, strict=True):
            follows = False
            for word, tag in doc.to_array([LOWER, POS]).tolist():
                counts[word, tag == NOUN, follows] += weight
                follows = tag in (NOUN, PROPN, PRON)

        for (word, is_noun, follows), count in counts.items():
            use = Use.OTHER
            if is_noun:
                use = Use.AFTER_NOUN if follows else Use.NOUN
            words[nlp.vocab.strings[word], use] += count

    if len(nlp.vocab) > MAX_VOCAB_WORDS:
        load_tagger.cache_clear()
    return words


def composed(text: str) -> str:
    """A text in the spelling of taggers, with composed letters (NFC): macOS decomposes accents."""
    return text if text.isascii() else normalize("NFC", text)


@lru_cache(maxsize=1)
def load_tagger(name: str) -> "Language":
    """Loads a spaCy pipeline, once per process: the embedded one, or an installed one by name or
    folder.

    Only the components for tagging are kept. Raises InputError if spaCy or the pipeline is missing.
    """
    try:
        import spacy
        from thinc.api import NumpyOps
    except ImportError:
        raise InputError(
            "build_vocabulary needs spaCy: pip install 'alpro-pipeline[vocabulary]'"
        ) from None

    try:
        nlp = spacy.load(EMBEDDED if name == "embedded" else name)
    except OSError:
        raise InputError(
            f"build_vocabulary.tagger = {name!r}: not installed; "
            f"run 'python -m spacy download {name}', or use 'embedded'"
        ) from None

    # Others, such as a parser, only take time.
    for component in list(nlp.component_names):
        if nlp.get_pipe_meta(component).factory not in TAGGING:
            nlp.remove_pipe(component)

    # NumPy's matrix products are 2 to 3 times as fast as spaCy's BLIS.
    for _, pipe in nlp.pipeline:
        model = getattr(pipe, "model", None)
        if model is None:  # a component of rules
            continue
        for layer in model.walk():
            if isinstance(layer.ops, NumpyOps):
                layer.ops = NumpyOps(use_blis=False)
    return nlp


def read_captions(corpora: Mapping[str, Path]) -> tuple[Counter[str], list[tuple[str, str]]]:
    """The captions with their counts, and (id, source) of training samples without a caption.
    Memory holds each distinct caption once. Raises InputError if there are none."""
    captions: Counter[str] = Counter()
    without: list[tuple[str, str]] = []
    for folder in corpora.values():
        for row in training_rows(folder, ["id", "source", "captions"]):
            captions.update(row["captions"])
            if not row["captions"]:
                without.append((row["id"], row["source"]))

    if not captions:
        raise InputError("the training split has no captions; check the splits of the corpora")
    return captions, without


def read_questions(corpora: Mapping[str, Path]) -> Counter[str]:
    """The questions with their counts."""
    questions: Counter[str] = Counter()
    for folder in corpora.values():
        for row in training_rows(folder, ["questions"]):
            questions.update(q["question"] for q in row["questions"])
    return questions


def training_rows(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of the training split of a corpus, a batch of which is in memory."""
    for batch in index_batches(folder, ["split", *columns]):
        for row in batch.to_pylist():
            # Captions of the test split must not choose entities or word pieces.
            if row["split"] == "train":
                yield row
