"""Captions to entities, the most frequent M of their nouns; and a tokenizer from scratch."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from alpro.errors import InputError
from alpro.models.templates import Templates, fill
from alpro.shards.reader import index_batches
from alpro.stages import Stage
from alpro.stages.artifacts.store import FILE, FILE_OR_NAME, Outcome, Resources, StageConfig
from alpro.stages.vocabulary.nouns import Words, count_nouns
from alpro.stages.vocabulary.word_lists import read_word_list
from alpro.stages.vocabulary.word_pieces import load_tokenizer, train_tokenizer

VERSION = 3
STAGE = Stage(help="take entities and word pieces from the captions", kind="text")
# What names nothing that one could point at: amounts and kinds, places in the picture, the picture and its parts, words
# for anything.
NAMELESS = (
    "amount bit bunch couple half lot lots number pair part parts piece pieces series variety "
    "kind kinds sort sorts type types way ways "
    "back beginning bottom center centre corner corners end front inside left middle outside rest right side sides "
    "start top "
    "angle angles background backgrounds clip clips closeup closeups footage foreground frame frames image images "
    "lapse motion picture pictures scene scenes segment segments sequence sequences shot shots view views "
    "item items object objects other others stuff thing things time times"
)


class Config(StageConfig):
    """Which words are entities, and how text becomes word pieces."""

    entities: int = Field(1000, ge=2, description="the most frequent nouns that become entities (M in the paper)")
    entities_file: str = Field(
        "",
        description="a list of entities in place of the nouns of the captions, of which the first `entities` are "
        "taken, such as the official list: JSON, or lines of a word, with or without its count behind it",
        json_schema_extra=FILE,
    )
    tagger: str = Field(
        "embedded",
        description="a spaCy pipeline: embedded (this project's), or an installed one's name, such as en_core_web_sm",
        json_schema_extra=FILE_OR_NAME,
    )
    lemma: bool = Field(False, description="count `dogs` as `dog`, by the spaCy pipeline's lemmatizer")
    exclude: tuple[str, ...] = Field(
        tuple(NAMELESS.split()),
        description="nouns that are never entities; the default: amounts, kinds, places in the picture, the picture "
        "and its parts, words for anything. The words of the templates are left out in any case",
    )
    min_letters: int = Field(2, ge=1, description="letters below which a noun is left out")
    max_letters: int = Field(30, ge=1, description="letters above which a noun is left out")
    min_noun_share: float = Field(
        0.4, ge=0, le=1, description="a word that is a noun in less than this share of its occurrences is left out"
    )
    min_count: int = Field(2, ge=1, description="occurrences below which a noun is left out")
    templates: Templates = Templates()
    tokenizer: str = Field(
        "train",
        description="train: word pieces from these captions; or a tokenizer.json, or a BERT's folder or hub name",
        json_schema_extra=FILE_OR_NAME,
    )
    word_pieces: int = Field(8000, ge=50, description="most word pieces of a trained tokenizer")


@dataclass(frozen=True)
class Noun:
    """A noun of the captions: how often it occurs, and how often its forms do, as nouns or as something else."""

    name: str
    count: int
    occurrences: int


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: decoded corpora. Writes entities.parquet, left_out.parquet, rejects.parquet, tokenizer.json."""
    captions, without = read_captions(inputs)
    if not captions:
        raise InputError("the training split has no captions: there is nothing to take nouns from")
    nouns: list[Noun] = []
    if config.entities_file:
        entities, left_out = first_entities(config)
    else:
        nouns = join_forms(count_nouns(captions, config.tagger, config.lemma, resources))
        entities, left_out = choose(nouns, config)
    if config.tokenizer == "train":
        prompts = Counter(fill(t, "") for set_ in config.templates.kinds.values() for t in set_)
        tokenizer = train_tokenizer(captions + read_questions(inputs) + prompts, config.word_pieces)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.save(str(out / "tokenizer.json"))
    write(out / "entities.parquet", {"entity": pa.string(), "count": pa.int64()}, entities)
    write(out / "left_out.parquet", {"noun": pa.string(), "count": pa.int64(), "reason": pa.string()}, left_out)
    rejected = [(name, source, "no caption") for name, source in without]
    write(out / "rejects.parquet", {"id": pa.string(), "path": pa.string(), "reason": pa.string()}, rejected)
    found = {"captions": captions.total(), "distinct_captions": len(captions), "nouns": len(nouns)}
    found |= {"entities": len(entities), "left_out": len(left_out), "word_pieces": tokenizer.get_vocab_size()}
    return Outcome(found | {"samples_without_caption": len(without)})


def write(path: Path, columns: Mapping[str, pa.DataType], rows: list[tuple]) -> None:
    """A table of rows, whose columns have types though there be no row."""
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(columns.values())]
    pq.write_table(pa.table(arrays, names=list(columns)), path)


def read_captions(inputs: dict[str, Path]) -> tuple[Counter[str], list[tuple[str, str]]]:
    """The captions of every training split with how often each occurs, and (id, source) of the training samples that
    have none. What is held in memory is the text of each different caption, once."""
    captions: Counter[str] = Counter()
    without: list[tuple[str, str]] = []
    for folder in inputs.values():
        for row in (
            row for batch in index_batches(folder, ["id", "split", "source", "captions"]) for row in batch.to_pylist()
        ):
            if row["split"] == "train":
                captions.update(row["captions"])
                if not row["captions"]:
                    without.append((row["id"], row["source"]))
    return captions, without


def read_questions(inputs: dict[str, Path]) -> Counter[str]:
    """The questions of every training split, for the tokenizer's sake."""
    found: Counter[str] = Counter()
    for folder in inputs.values():
        for row in (row for batch in index_batches(folder, ["split", "questions"]) for row in batch.to_pylist()):
            if row["split"] == "train":
                found.update(q["question"] for q in row["questions"])
    return found


def join_forms(words: Words) -> list[Noun]:
    """The nouns of counted words, the most frequent first, ties in alphabetical order.

    A form is one noun mostly, of itself or of its lemma; its occurrences as no noun are counted with that one.
    """
    by_form: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (form, noun), times in words.items():
        by_form[form][noun] += times
    counts: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for found in by_form.values():
        otherwise = found.pop("", 0)
        if found:
            counts.update(found)
            occurrences.update(found)
            occurrences[max(sorted(found), key=found.__getitem__)] += otherwise
    nouns = [Noun(name, counts[name], occurrences[name]) for name in counts]
    return sorted(nouns, key=lambda noun: (-noun.count, noun.name))


Entities = list[tuple[str, int | None]]  # with their counts
LeftOut = list[tuple[str, int | None, str]]  # with their counts, and the reason


def first_entities(config: Config) -> tuple[Entities, LeftOut]:
    """The first M words of `entities_file`, as they are; and the others. Raises InputError if there are fewer."""
    words = read_word_list(Path(config.entities_file), "build_vocabulary.entities_file")
    if len(words) < config.entities:
        raise InputError(
            f"build_vocabulary.entities = {config.entities}, but {config.entities_file} has {len(words)} words"
        )
    rest: LeftOut = [(word, None, f"below the first {config.entities}") for word in words[config.entities :]]
    return [(word, None) for word in words[: config.entities]], rest


def choose(nouns: list[Noun], config: Config) -> tuple[Entities, LeftOut]:
    """The M most frequent nouns with their counts; and the others with the reason. Both in the order given.

    Raises InputError where there are fewer than asked.
    """
    prompts = config.templates.words()
    prompts |= {f"{word}s" for word in prompts}
    chosen: Entities = []
    left_out: LeftOut = []
    for noun in nouns:
        reason = why_not(noun, config, prompts)
        if not reason and len(chosen) == config.entities:
            reason = f"below the {config.entities} most frequent"
        if reason:
            left_out.append((noun.name, noun.count, reason))
        else:
            chosen.append((noun.name, noun.count))
    if len(chosen) < config.entities:
        raise InputError(
            f"build_vocabulary.entities = {config.entities}, but the captions have {len(chosen)} nouns that qualify; "
            f"add --set build_vocabulary.entities={len(chosen)}, or lower min_count"
        )
    return chosen, left_out


def why_not(noun: Noun, config: Config, prompts: set[str]) -> str:
    """Why a noun cannot be an entity, empty where it can. `prompts` are words that stand in the templates."""
    if not noun.name.isalpha():
        return "not of letters alone"
    if len(noun.name) < config.min_letters:
        return f"fewer than {config.min_letters} letters"
    if len(noun.name) > config.max_letters:
        return f"more than {config.max_letters} letters"
    if noun.name in prompts:
        return "a word of the prompt templates"
    if noun.name in config.exclude:
        return "excluded by the configuration"
    if noun.count < config.min_noun_share * noun.occurrences:
        return f"a noun in less than {config.min_noun_share:.0%} of its occurrences"
    if noun.count < config.min_count:
        return f"fewer than {config.min_count} times"
    return ""
