"""Captions to entities: the nouns by spaCy's part-of-speech tags, the most frequent M; and a tokenizer from scratch."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from models.templates import IMAGE_TEMPLATES, VIDEO_TEMPLATES
from shards.reader import read_index
from shards.schema import InputError
from stages.artifacts import Outcome, Resources, StageConfig
from stages.progress import progress
from stages.word_pieces import load_tokenizer, train_tokenizer
from stages.workers import work_pool

VERSION = 1
TAGGER = Path(__file__).parent / "noun_tagger" / "model"
WORD = re.compile(r"[a-z][a-z'-]*[a-z]")
CAPTIONS_PER_UNIT = 20_000


class Config(StageConfig):
    """Which words are entities, and how text becomes word pieces."""

    entities: int = Field(1000, ge=2, description="the most frequent nouns that become entities (M in the paper)")
    tagger: str = Field(
        "embedded",
        description="a spaCy pipeline: embedded (this project's), or an installed one's name, such as en_core_web_sm",
    )
    exclude: tuple[str, ...] = Field(
        (), description="nouns that are never entities; the words of the prompt templates are left out in any case"
    )
    least_count: int = Field(2, ge=1, description="occurrences below which a noun is left out")
    tokenizer: str = Field(
        "train",
        description="train: word pieces from these captions; or a tokenizer.json, or a BERT's folder or hub name",
    )
    word_pieces: int = Field(8000, ge=50, description="most word pieces of a trained tokenizer")


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: decoded corpora. Writes entities.parquet, left_out.parquet, rejects.parquet, tokenizer.json."""
    captions, without = read_captions(inputs)
    if not captions:
        raise InputError("the training split has no captions: there is nothing to take nouns from")
    counts = count_nouns(captions, config.tagger, resources)
    entities, left_out = choose(counts, config)
    texts = captions + [t.format("") for t in VIDEO_TEMPLATES + IMAGE_TEMPLATES] + read_questions(inputs)
    tokenizer = (
        train_tokenizer(texts, config.word_pieces) if config.tokenizer == "train" else load_tokenizer(config.tokenizer)
    )
    tokenizer.save(str(out / "tokenizer.json"))
    columns = ["entity", "count"]
    pq.write_table(
        pa.table(dict(zip(columns, map(list, zip(*entities, strict=True)), strict=True))), out / "entities.parquet"
    )
    rows = [{"noun": n, "count": c, "reason": r} for n, c, r in left_out]
    schema = pa.schema([("noun", pa.string()), ("count", pa.int64()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "left_out.parquet")
    rejected = [{"id": i, "path": p, "reason": "no caption"} for i, p in without]
    reject_schema = pa.schema([("id", pa.string()), ("path", pa.string()), ("reason", pa.string())])
    pq.write_table(pa.Table.from_pylist(rejected, schema=reject_schema), out / "rejects.parquet")
    found = {"captions": len(captions), "nouns": len(counts), "entities": len(entities), "left_out": len(left_out)}
    numbers = found | {"word_pieces": tokenizer.get_vocab_size(), "samples_without_caption": len(without)}
    return Outcome(numbers)


def read_captions(inputs: dict[str, Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """The captions of every training split, and (id, source) of the training samples that have none."""
    captions: list[str] = []
    without: list[tuple[str, str]] = []
    for folder in inputs.values():
        for row in read_index(folder, ["id", "split", "source", "captions"]).to_pylist():
            if row["split"] == "train":
                captions += row["captions"]
                if not row["captions"]:
                    without.append((row["id"], row["source"]))
    return captions, without


def read_questions(inputs: dict[str, Path]) -> list[str]:
    """The questions of every training split, for the tokenizer's sake."""
    found = []
    for folder in inputs.values():
        for row in read_index(folder, ["split", "questions"]).to_pylist():
            found += [q["question"] for q in row["questions"] if row["split"] == "train"]
    return found


def count_nouns(captions: list[str], tagger: str, resources: Resources) -> Counter[str]:
    """How often each noun occurs, lower-cased. Many captions are tagged by many processes."""
    distinct = Counter(captions)
    texts = list(distinct)
    units = [texts[i : i + CAPTIONS_PER_UNIT] for i in range(0, len(texts), CAPTIONS_PER_UNIT)]
    weights = [[distinct[text] for text in unit] for unit in units]
    with progress("tagging", len(texts), "captions") as advance:
        total: Counter[str] = Counter()
        for unit, counted in zip(units, _map(units, weights, tagger, resources), strict=True):
            total.update(counted)
            advance(len(unit))
    return total


def _map(units: list[list[str]], weights: list[list[int]], tagger: str, resources: Resources) -> Iterator[Counter[str]]:
    if len(units) == 1:
        yield tag_unit(units[0], weights[0], tagger)
        return
    with work_pool(resources) as pool:
        yield from pool.map(tag_unit, units, weights, [tagger] * len(units))


def tag_unit(texts: list[str], weights: list[int], tagger: str) -> Counter[str]:
    """The nouns of texts, each counted as often as its text occurs."""
    nlp = load_tagger(tagger)
    counts: Counter[str] = Counter()
    for doc, weight in zip(nlp.pipe(texts), weights, strict=True):
        for token in doc:
            if token.pos_ == "NOUN":
                counts[token.text.lower()] += weight
    return counts


def load_tagger(name: str):
    """The spaCy pipeline that tags: the embedded one, or an installed one by name."""
    try:
        import spacy
    except ImportError:
        raise InputError("build_vocabulary needs spaCy: pip install 'alpro-pipeline[vocabulary]'") from None
    try:
        return spacy.load(TAGGER if name == "embedded" else name, exclude=["parser", "ner", "lemmatizer"])
    except OSError:
        raise InputError(
            f"build_vocabulary.tagger = {name!r}: not installed; 'python -m spacy download {name}', or use 'embedded'"
        ) from None


def choose(counts: Counter[str], config: Config) -> tuple[list[tuple[str, int]], list[tuple[str, int, str]]]:
    """The M most frequent nouns with their counts, ties in alphabetical order; and the others with the reason.

    Raises InputError where there are fewer than asked.
    """
    template_words = set(re.findall(r"[a-z]+", " ".join(VIDEO_TEMPLATES + IMAGE_TEMPLATES).lower()))
    chosen: list[tuple[str, int]] = []
    left_out: list[tuple[str, int, str]] = []
    for noun, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if not WORD.fullmatch(noun):
            left_out.append((noun, count, "not a word"))
        elif noun in template_words:
            left_out.append((noun, count, "a word of the prompt templates"))
        elif noun in config.exclude:
            left_out.append((noun, count, "excluded by the configuration"))
        elif count < config.least_count:
            left_out.append((noun, count, f"fewer than {config.least_count} times"))
        elif len(chosen) == config.entities:
            left_out.append((noun, count, f"below the {config.entities} most frequent"))
        else:
            chosen.append((noun, count))
    if len(chosen) < config.entities:
        raise InputError(
            f"build_vocabulary.entities = {config.entities}, but the captions have {len(chosen)} nouns that qualify; "
            f"add --set build_vocabulary.entities={len(chosen)}, or lower least_count"
        )
    return chosen, left_out
