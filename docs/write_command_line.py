"""Writes docs/command_line.md from the parser of the command line: `python docs/write_command_line.py`."""

import argparse
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from alpro.pipeline.cli.main import parser

HEAD = """# Command line

`alpro COMMAND --help` has the same and more. [operate.md](operate.md#output-of-a-run) lists the exit statuses.

## Commands

"""
SHARED = """
## Options of several commands

"""
MANY = 3  # an option of so many commands is listed once, one of two with the same text, too


def document() -> str:
    """The whole page."""
    commands = dict(leaves(parser(), ""))
    users = defaultdict(list)
    for command, _ in commands.values():
        for option in options(command):
            users[usage(option)].append(option)
    shared = {
        option: most_common(found)
        for option, found in users.items()
        if len(found) >= MANY or len(found) > len(set(map(text, found)))
    }
    lines = []
    for name, (command, help_) in commands.items():
        own = [f"`{one.metavar}`: {text(one)}" for one in command._actions if one.nargs == "?"]
        own += [f"`{usage(one)}`: {text(one)}" for one in options(command) if usage(one) not in shared]
        lines.append(f"`alpro {name}{arguments(command)}`: {help_}." + (f" {'; '.join(own)}." if own else ""))
    return HEAD + items(lines) + SHARED + items([f"`{option}`: {text(one)}." for option, one in shared.items()])


def leaves(command: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, tuple[argparse.ArgumentParser, str]]]:
    """The commands without subcommands: name, parser and help."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, child in action.choices.items():
                full = f"{name} {word}".strip()
                yield from list(leaves(child, full)) or [(full, (child, helps.get(word, "")))]


def arguments(command: argparse.ArgumentParser) -> str:
    """The positional arguments, such as " MODEL VIDEO"."""
    positional = [action for action in command._actions if not action.option_strings]
    names = [f"{action.metavar or action.dest}{'...' * (action.nargs in ('+', '*'))}" for action in positional]
    optional = [action.nargs in ("?", "*") for action in positional]
    return "".join(f" [{name}]" if free else f" {name}" for name, free in zip(names, optional, strict=True))


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if action.option_strings and action.dest != "help"]


def usage(action: argparse.Action) -> str:
    """Such as "-k N" or "--device auto|cpu|cuda"."""
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    return f"{action.option_strings[-1]}" + ("" if action.nargs == 0 else f" {value}")


def text(action: argparse.Action) -> str:
    return " ".join((action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").split())


def most_common(found: list[argparse.Action]) -> argparse.Action:
    texts = [text(action) for action in found]
    return max(found, key=lambda action: texts.count(text(action)))


def items(lines: list[str]) -> str:
    """A list, in lines that break outside of code spans."""
    joined = (re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), f"- {line}") for line in lines)
    wrapped = (textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in joined)
    return "\n".join(wrapped).replace("\0", " ") + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "command_line.md").write_text(document(), "utf-8")
