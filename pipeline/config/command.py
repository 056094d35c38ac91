"""A command: a configuration, changes of its values, and the last stage to run."""

from collections.abc import Sequence
from dataclasses import dataclass

import tomli_w

from alpro.names import config_name


@dataclass(frozen=True)
class Command:
    """What a user asks a pipeline to run."""

    config: str  # name or file
    changes: tuple[str, ...] = ()  # each KEY=VALUE, where VALUE is TOML or plain text
    stage: str = ""  # empty: the whole pipeline

    @property
    def config_name(self) -> str:
        """Name of the configuration: `mine` for `studies/mine.toml`."""
        return config_name(self.config)

    @property
    def words(self) -> list[str]:
        """The words of the command line, after `alpro`."""
        words = ["run", *filter(None, [self.stage]), "--config", self.config]
        for change in self.changes:
            words += ["--set", change]
        return words


def text_change(key: str, text: str) -> str:
    """Return the change that sets a key to a text, whatever characters it has.

    >>> text_change("corpora.data.data", "my videos")
    'corpora.data.data="my videos"'
    """
    value = tomli_w.dumps({"value": text}).removeprefix("value = ").rstrip("\n")
    return f"{key}={value}"


def changed_key(change: str) -> str:
    """Return the key of a change.

    >>> changed_key("pretrain.lr = 1e-4")
    'pretrain.lr'
    """
    return change.partition("=")[0].strip()


def data_changes(data: str, changes: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the changes of `--data`, followed by those of `--set`."""
    return (text_change("corpora.data.data", data), *changes) if data else tuple(changes)
