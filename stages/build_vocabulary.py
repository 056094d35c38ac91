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
    FILE,
    Corpora,
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
LEFT_OUT = pa.schema(
    [("noun", pa.string()), ("count", pa.int64()), ("reason", pa.string())]
)


class Config(StageConfig, frozen=True):
    """Selection of entities."""

    entities: int = Field(
        default=1000, ge=2, description="maximum number of entities (M in the paper)"
    )
    entities_file: str = Field(
        default="",
        description="a file of entities instead of nouns: a JSON list, or lines with a word and "
        "perhaps its count",
        json_schema_extra=FILE,
    )
    tagger: str = Field(
        default="embedded",
        description="embedded: the English tagger of this package; else an installed spaCy "
        "pipeline",
        json_schema_extra=file_or_word("embedded"),
    )
    exclude: tuple[str, ...] = Field(
        default=tuple(NON_OBJECTS.split()),
        description="nouns that are never entities; default: amounts, kinds, places",
    )
    min_noun_share: Share = Field(
        default=0.4,
        description="minimum fraction of a word's occurrences that are nouns",
    )
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
    """Write entities.parquet and left_out.parquet."""
    captions, without = read_captions(inputs.corpora)
    nouns: list[Candidate] = []
    entities: Chosen = []
    left_out: LeftOut = []
    if config.entities_file:
        key = "build_vocabulary.entities_file"
        words = read_word_list(Path(config.entities_file), key)
        entities = [(word, None) for word in words[: config.entities]]
    else:
        nouns = list_nouns(count_words(captions, config.tagger, out, resources))
        entities, left_out = select_words(nouns, config)

    for name, schema, rows in (
        ("entities", ENTITIES, entities),
        ("left_out", LEFT_OUT, left_out),
    ):
        values = [dict(zip(schema.names, row, strict=True)) for row in rows]
        table = pa.Table.from_pylist(values, schema)
        pq.write_table(table, out / f"{name}.parquet")
    # Checked after the tables are written: left_out.parquet says why words do not qualify.
    if len(entities) < 2:
        few = f"{len(entities)} entities, and at least 2 are needed"
        if config.entities_file:
            raise InputError(f"{config.entities_file}: {few}")
        raise InputError(
            f"the captions have {few}; {out / 'left_out.parquet'} says why other nouns do not "
            f"qualify (tagger = {config.tagger!r}), and build_vocabulary.entities_file takes a list "
            "of your own"
        )

    # Fewer than M are no error: PEM has fewer classes then.
    warnings = []
    if len(entities) < config.entities:
        warnings.append(
            f"{len(entities)} entities: no more qualify, of {config.entities} that are asked for"
        )
    counts = {
        "captions": captions.total(),
        "distinct_captions": len(captions),
        "nouns": len(nouns),
        "entities": len(entities),
        "left_out": len(left_out),
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


Chosen = list[tuple[str, int | None]]  # entities and their counts
LeftOut = list[tuple[str, int | None, str]]  # nouns, their counts and the reasons


def select_words(words: list[Candidate], config: Config) -> tuple[Chosen, LeftOut]:
    """Select the most frequent nouns (M entities), and say why the others are left out.

    Returns:
        The entities with their counts, and the others with the reason, in the order of `words`.
    """
    prompts = config.templates.words()
    prompts |= {f"{word}s" for word in prompts}  # plurals

    chosen: Chosen = []
    left_out: LeftOut = []
    for word in words:
        reason = exclusion_reason(word, config, prompts)
        # Only a noun that qualifies otherwise can be below the first M.
        if not reason and len(chosen) == config.entities:
            reason = f"below the {config.entities} most frequent"
        if reason:
            left_out.append((word.name, word.count, reason))
        else:
            chosen.append((word.name, word.count))
    return chosen, left_out


def exclusion_reason(word: Candidate, config: Config, prompts: set[str]) -> str:
    """Return why a noun cannot be in the vocabulary; empty if it can.

    Args:
        prompts: The words of the templates.
    """
    if not WORD.fullmatch(word.name):
        return "not of letters alone"
    if len(word.name) not in LETTERS and not SYLLABLE.fullmatch(word.name):
        return f"not {LETTERS[0]} to {LETTERS[-1]} letters"
    if word.name in prompts:
        return "a word of the prompt templates"
    if word.name in config.exclude:
        return "excluded by the configuration"
    # Taggers sometimes take a verb or an adjective for a noun.
    if word.count < config.min_noun_share * word.occurrences:
        return f"a noun in less than {config.min_noun_share:.0%} of its occurrences"
    if word.count < MIN_COUNT:
        return f"fewer than {MIN_COUNT} times"
    return ""
