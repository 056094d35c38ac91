"""A command: a configuration, changes of its values, and the last stage to run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpro.artifact import Record

# Stages that create a model, which a model in `pretrained` replaces.
MODEL_STAGES = ("train_prompter", "pretrain")
# Stages that run without a table, and use [templates].
TEXT_STAGES = ("train_tokenizer", "build_vocabulary", "cache_prompts")
# Tables that are set once, and the stages whose configuration has a copy.
SHARED = {"model": MODEL_STAGES, "templates": TEXT_STAGES}


@dataclass(frozen=True)
class Command:
    """What a user asks a pipeline to run."""

    config: str = ""  # name or file
    changes: tuple[str, ...] = ()  # each KEY=VALUE, where VALUE is TOML or plain text
    stage: str = ""  # empty: the whole pipeline

    @property
    def config_name(self) -> str:
        """Name of the configuration: `mine` for `studies/mine.toml`."""
        return Path(self.config).name.removesuffix(".toml")

    @property
    def words(self) -> list[str]:
        """The words of the command line."""
        words = ["alpro", "run", *filter(None, [self.stage]), "--config", self.config]
        for change in self.changes:
            words += ["--set", change]
        return words


def command_of(record: Record) -> Command:
    """Return the command that builds an artifact, without a configuration if its record has none."""
    run = {"config": "", "changes": ()} | record.run.get("arguments", {})
    return Command(run["config"], tuple(run["changes"]), record.stage)


def data_changes(data: str, changes: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the change of `--data`, followed by the changes of `--set`."""
    replaced = [text_change("corpora.data.data", data)] if data else []
    return (*replaced, *changes)


def text_change(key: str, text: str) -> str:
    """Return the change that sets a key to a text, whatever characters it has.

    >>> text_change("corpora.data.data", "my videos")
    'corpora.data.data="my videos"'
    """
    # A string of JSON is one of TOML, which has no DEL.
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
    return f"{key}={quoted}"
