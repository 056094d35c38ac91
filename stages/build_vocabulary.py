"""Select the M most frequent nouns of the captions as entities."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from alpro.errors import InputError
from alpro.models.words import WORD, Templates, read_word_list
from alpro.stages.execution.interface import (
    Corpora,
    FilePath,
    Outcome,
    Resources,
    Share,
    StageConfig,
    StageInputs,
    file_or_word,
)
from alpro.stages.vocabulary.nouns import Words, composed, count_words, read_captions

VERSION = 8  # nouns are counted in one use
# Words that name no object: amounts and kinds, places in the image, the image and its parts, words
# that stand for anything, and what a camera does, which taggers take for nouns in terse captions.
NON_OBJECTS = (
    "amount bit bunch couple half lot lots number pair part parts piece pieces series variety "
    "kind kinds sort sorts type types way ways "
    "back beginning bottom center centre corner corners end front inside left middle outside "
    "rest right side sides start top "
    "angle angles background backgrounds clip clips closeup closeups footage foreground "
    "frame frames image images lapse motion picture pictures scene scenes segment segments "
    "sequence sequences shot shots view views "
    "item items object objects other others stuff thing things time times "
    "zoom zooms"
)
LETTERS = range(2, 31)  # allowed lengths of an entity
# A character that may be a word: Kana, Hangul or an ideograph.
SYLLABLE = re.compile(
    "[\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U000323af]"
)
MIN_COUNT = 2  # occurrences of an entity
ENTITIES = pa.schema([("entity", pa.string()), ("count", pa.int64())])


class Config(StageConfig, frozen=True):
    """Selection of entities."""

    entities: int = Field(default=1000, ge=2)
    """maximum number of entities (M in the paper)"""
    entities_file: FilePath = ""
    """a file of entities instead of nouns: a JSON list, or lines with a word and perhaps its
    count"""
    tagger: str = Field(default="embedded", json_schema_extra=file_or_word("embedded"))
    """embedded: the English tagger of this package; else an installed spaCy pipeline"""
    exclude: tuple[str, ...] = tuple(NON_OBJECTS.split())
    """nouns that are never entities; default: amounts, kinds, places"""
    min_noun_share: Share = 0.4
    """minimum fraction of a word's occurrences that are nouns"""
    templates: Templates = Templates()

    @field_validator("exclude")
    @classmethod
    def as_in_captions(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(composed(word.lower()) for word in words)


@dataclass(frozen=True)
class Candidate:
    """A noun of the captions, with its counts."""

    name: str
    count: int  # as a noun
    occurrences: int  # as any part of speech


class Inputs(StageInputs):
    """Decoded corpora."""

    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write entities.parquet."""
    captions, without = read_captions(inputs.corpora)
    nouns: list[Candidate] = []
    if config.entities_file:
        key = "build_vocabulary.entities_file"
        names = read_word_list(Path(config.entities_file), key)[: config.entities]
        entities = pa.table([names, [None] * len(names)], ENTITIES)
    else:
        nouns = list_nouns(count_words(captions, config.tagger, out, resources))
        chosen = select_words(nouns, config)
        columns = [[noun.name for noun in chosen], [noun.count for noun in chosen]]
        entities = pa.table(columns, ENTITIES)

    count = entities.num_rows
    if count < 2:
        few = f"{count} entities, and at least 2 are needed"
        if config.entities_file:
            raise InputError(f"{config.entities_file}: {few}")
        raise InputError(
            f"the captions have {few}: nouns that occur {MIN_COUNT} times, and of whose occurrences "
            f"{config.min_noun_share:.0%} are nouns (tagger = {config.tagger!r}); "
            "build_vocabulary.entities_file takes a list of your own"
        )
    pq.write_table(entities, out / "entities.parquet")

    # Fewer than M are no error: PEM has fewer classes then.
    warnings = []
    if count < config.entities:
        warnings.append(
            f"{count} entities: no more qualify, of {config.entities} that are asked for"
        )
    counts = {
        "captions": captions.total(),
        "distinct_captions": len(captions),
        "nouns": len(nouns),
        "entities": count,
        "samples_without_caption": without,
    }
    return Outcome(counts, warnings=warnings)


def list_nouns(words: Words) -> list[Candidate]:
    """List the nouns among counted words, the most frequent first, ties in alphabetical order."""
    nouns = []
    for (name, is_noun), count in words.items():
        if is_noun:
            nouns.append(Candidate(name, count, occurrences=count + words[name, False]))
    # A fixed order: ties at M must not depend on the order in which captions are read.
    return sorted(nouns, key=lambda noun: (-noun.count, noun.name))


def select_words(words: list[Candidate], config: Config) -> list[Candidate]:
    """Select the first M words that qualify as entities."""
    prompts = config.templates.words()
    prompts |= {f"{word}s" for word in prompts}  # plurals
    excluded = prompts.union(config.exclude)
    chosen = [
        word
        for word in words
        if is_word(word.name)
        and word.name not in excluded
        # Taggers sometimes take a verb or an adjective for a noun.
        and word.count >= config.min_noun_share * word.occurrences
        and word.count >= MIN_COUNT
    ]
    return chosen[: config.entities]


def is_word(name: str) -> bool:
    """Return whether a name is of letters alone, 2 to 30 or one syllable."""
    if not WORD.fullmatch(name):
        return False
    return len(name) in LETTERS or bool(SYLLABLE.fullmatch(name))
