"""The completion scripts of shells: `alpro --completion bash`. They start no Python when a person presses Tab."""

import argparse
from collections.abc import Iterator
from typing import Any

import shtab

from alpro.pipeline.cli.arguments import user_path
from alpro.pipeline.config.pipeline_config import shipped
from alpro.pipeline.studies.study_config import shipped_studies

FILES = ("data", "videos", "video", "corpora", "model", "words", "tokenizer", "changes")  # besides those of `user_path`


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell, "bash" or "zsh"."""
    names = {"configs": shipped(), "studies": shipped_studies()}
    for command, action in actions_of(parser):
        if action.choices or action.nargs == 0:
            continue
        what = "studies" if command.prog.endswith(" study") else "configs"
        if action.metavar == "NAME_OR_FILE":
            action.complete = dict.fromkeys(("bash", "zsh"), f"_alpro_{what}")
        elif action.dest == "source":
            action.choices = names["configs"]
        elif action.type is user_path or (action.dest in FILES and "--set" not in action.option_strings):
            folder = action.metavar == "FOLDER" or action.dest == "workspace"
            action.complete = shtab.DIRECTORY if folder else shtab.FILE
    functions = "\n".join(function(shell, f"_alpro_{what}", values) for what, values in names.items())
    script: str = shtab.complete(parser, shell, preamble=functions)
    return script


def function(shell: str, name: str, values: list[str]) -> str:
    """A function of the shell that completes names and files."""
    words = " ".join(values)
    if shell == "bash":
        return f'{name}() {{ compgen -W "{words}" -- "$1"; compgen -f -- "$1"; }}'
    return f"{name}() {{ _alternative 'names:name:({words})' 'files:file:_files' }}"


def actions_of(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, Any]]:
    """The arguments of a parser and of all its commands, each with its parser."""
    for action in parser._actions:
        yield parser, action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions_of(command)
