"""Every command that a message, a help text or a page of this package names exists."""

import argparse
import re
from pathlib import Path

import pytest

import alpro
from alpro.pipeline.cli import main as cli

ROOT = Path(next(iter(alpro.pipeline.__path__))).parent
FILES = [
    path
    for folder in ("alpro", "models", "shards", "stages", "inference", "pipeline")
    for path in (ROOT / folder).rglob("*")
]
TEXTS = {path: path.read_text("utf-8") for path in FILES if path.suffix in (".py", ".jinja", ".toml")}
NAMED = sorted({match[1] for text in TEXTS.values() for match in re.finditer(r"`alpro ([a-z][^`]*)`", text)})


def exists(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """Whether a command has these words, up to the first that is no name of a command."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups or not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return True
    choices = groups[0].choices
    return words[0] in choices and exists(choices[words[0]], words[1:])


def test_commands_are_found_in_the_sources():
    assert {"run", "data inspect", "artifacts ls"} <= {re.sub(r" [A-Z{].*", "", name) for name in NAMED}
    assert exists(cli.parser(), ["data", "inspect", "FINGERPRINT"])
    assert not exists(cli.parser(), ["inspect", "FINGERPRINT"])
    assert not exists(cli.parser(), ["data", "look"])


@pytest.mark.parametrize("command", NAMED)
def test_a_named_command_exists(command):
    assert exists(cli.parser(), command.split())
