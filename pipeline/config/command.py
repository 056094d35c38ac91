"""A command: a configuration, changes of its values, and the last stage to run; and the TOML files
that it may name. Nothing here is slow to import."""

import json
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alpro.artifact import Record, flatten
from alpro.errors import InputError
from alpro.files import expand_home, read_text
from alpro.shards.credentials import refuse_credentials

CONFIGS = Path(__file__).with_name("shipped")
STUDIES = CONFIGS / "studies"
# Stages that create a model, which a model in `pretrained` replaces.
MODEL_STAGES = ("train_prompter", "pretrain")
# Stages that run without a table, and use [templates].
TEMPLATE_STAGES = ("train_tokenizer", "build_vocabulary", "cache_prompts")
DATA = "corpora.data.data"  # what `--data` sets
# Tables that are set once, and the stages whose configuration has a copy.
SHARED = {"model": MODEL_STAGES, "templates": TEMPLATE_STAGES}


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
    return Command(run["config"], tuple(run["changes"]), record.name)


def text_change(key: str, text: str) -> str:
    """Return the change that sets a key to a text, whatever characters it has.

    >>> text_change("corpora.data.data", "my videos")
    'corpora.data.data="my videos"'
    """
    # A string of JSON is one of TOML, which has no DEL.
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")
    return f"{key}={quoted}"


# Files.


def shipped(folder: Path = CONFIGS) -> list[str]:
    """Return the names of the shipped configurations, or of the studies."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_config(source: str, folder: Path = Path(), shipped_in: Path = CONFIGS) -> Path:
    """Find a TOML file by its path in `folder`, or by the name of a shipped one."""
    refuse_credentials("--config", source)
    path = folder / expand_home(source)
    for file in (path, shipped_in / f"{source}.toml"):
        # A folder named `sample` does not hide the shipped configuration.
        if file.is_file():
            return file

    hint = suggest(source, shipped(shipped_in))
    raise InputError(f"{source}: no such file; {hint}")


def suggest(name: str, names: Collection[str]) -> str:
    """Return a hint with the closest name, or with all names.

    >>> suggest("pretrian", ["pretrain", "evaluate"])
    "did you mean 'pretrain'?"
    >>> suggest("x", ["pretrain", "evaluate"])
    'there are pretrain, evaluate'
    """
    close = get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: If it cannot be read, or has credentials, which MLflow would display.
    """
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error

    for key, value in flatten(values).items():
        refuse_credentials(f"{path}: {key}", value)
    return values
