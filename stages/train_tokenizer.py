"""Train a WordPiece tokenizer on the captions, or copy the tokenizer of a BERT.

This is a stage of its own because the prompter depends on the tokenizer and not on the entities: one
prompter serves many vocabularies.
"""

from collections import Counter
from pathlib import Path

from pydantic import Field

from alpro.models.word_pieces import load_tokenizer, train_tokenizer
from alpro.models.words import Templates
from alpro.stages.execution.interface import (
    Corpora,
    Outcome,
    Resources,
    StageConfig,
    StageInputs,
    file_or_word,
)
from alpro.stages.vocabulary.nouns import read_captions, read_questions

VERSION = 1


class Config(StageConfig, frozen=True):
    """The tokenizer of all models."""

    tokenizer: str = Field(default="train", json_schema_extra=file_or_word("train"))
    """train: from the captions; else a tokenizer.json, or a BERT's folder or hub name"""
    word_pieces: int = Field(default=8000, ge=50)
    """maximum word pieces of a trained tokenizer"""
    templates: Templates = Templates()


class Inputs(StageInputs):
    """Decoded corpora. A tokenizer that is not trained has none."""

    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write tokenizer.json."""
    counts: dict[str, int] = {}
    if config.tokenizer == "train":
        captions, _ = read_captions(inputs.corpora)
        # Fine-tuning for question answering uses the same tokenizer.
        questions = read_questions(inputs.corpora)

        # Each template once, so that the words of prompts are tokens.
        templates = config.templates.video + config.templates.image
        prompts = Counter(template.replace("{}", "") for template in templates)
        texts = captions + questions + prompts
        tokenizer = train_tokenizer(texts, config.word_pieces)
        counts = {"captions": captions.total()}
    else:
        tokenizer = load_tokenizer(config.tokenizer)

    tokenizer.save(str(out / "tokenizer.json"))
    return Outcome(counts | {"word_pieces": tokenizer.get_vocab_size()})
