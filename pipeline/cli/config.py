"""`alpro config ...`: the shipped configurations, a configuration with all its values, and a file to start from."""

import argparse
import json
import re
import textwrap
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.pipeline.cli.arguments import (
    add_action,
    add_group,
    add_json,
    add_source_options,
    add_workspace,
    changes_of,
    print_json,
    user_path,
)

if TYPE_CHECKING:
    from alpro.pipeline.config.pipeline_config import PipelineConfig


def add_config_commands(commands: Any) -> None:
    """`alpro config ...`: the commands about configurations."""
    actions = add_group(commands, "config", "list, show and copy configurations")
    add_json(add_action(actions, "list", list_configs, "list the shipped configurations"))
    show = add_action(actions, "show", show_config, "print a configuration with all its values, as TOML")
    show.add_argument("config", metavar="NAME_OR_FILE", help="as for `alpro run --config`")
    add_source_options(show)
    add_workspace(show, "folder of the artifacts that --pretrained may name")
    init = add_action(actions, "init", init_config, "write a copy of a shipped configuration to edit")
    init.add_argument("file", type=user_path, metavar="FILE", help="the file to write, NAME.toml")
    init.add_argument(
        "--from", dest="source", default="own_videos", metavar="NAME", help="the configuration (default: own_videos)"
    )


def list_configs(arguments: argparse.Namespace) -> None:
    """`alpro config list`. JSON: the descriptions by name."""
    from alpro.pipeline.config.pipeline_config import CONFIGS, shipped
    from alpro.pipeline.reports.terminal import console

    described = {name: description((CONFIGS / f"{name}.toml").read_text("utf-8")) for name in shipped()}
    if arguments.json:
        print_json(described)
        return
    width = max(map(len, described)) + 2
    wrapper = textwrap.TextWrapper(console.width, subsequent_indent=" " * width, break_on_hyphens=False)
    for name, text in described.items():
        print(wrapper.fill(f"{name:{width}}{text}"))


def description(text: str) -> str:
    """The first line of a configuration file, which is a comment."""
    return text.partition("\n")[0].removeprefix("#").strip()


def show_config(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.config.pipeline_config import load_config

    print(to_toml(values_of(load_config(arguments.config, arguments.data, changes_of(arguments)))), end="")


def init_config(arguments: argparse.Namespace) -> None:
    """`alpro config init`: a copy of a shipped configuration, with its comments."""
    from alpro.pipeline.config.pipeline_config import CONFIGS, shipped

    path, source = arguments.file, arguments.source
    if source not in shipped():
        raise InputError(f"{source}: no such shipped configuration; those are {', '.join(shipped())}")
    if path.suffix != ".toml" or not re.fullmatch(r"[\w-]+", path.stem):
        raise InputError(f"{path}: the file must be named NAME.toml, with letters, digits, _ and - in NAME")
    text = (CONFIGS / f"{source}.toml").read_text("utf-8").replace(f"--config {source}", f"--config {path}")
    text = text.replace(f'\nname = "{source}"\n', f'\nname = "{path.stem}"\n')
    note = f"# From the shipped configuration {source}. docs/configuration.md describes every key.\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(note + text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    print(f"{path}: edit it, then run: alpro run --config {path}")


def values_of(config: "PipelineConfig") -> dict[str, Any]:
    """The values of a configuration, with all defaults, as `load_config` accepts them."""
    from alpro.pipeline.config.pipeline_config import SHARED

    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, stage in SHARED:  # set once, in the top-level table; a prompter may have sizes of its own
        if stage != "train_prompter" or values.get(stage, {}).get(key) == values[key]:
            values.get(stage, {}).pop(key, None)
    return values


def to_toml(values: dict[str, Any], table: str = "") -> str:
    """Nested values as TOML. The tables of a table follow its other values; lists of tables are inline.

    >>> print(to_toml({"a": {"b": {"c": [1.5, {"d": True}]}}, "e": "x"}), end="")
    e = "x"
    <BLANKLINE>
    [a.b]
    c = [1.5, {d = true}]
    """
    tables = {key: value for key, value in values.items() if isinstance(value, dict) and value}
    lines = [f"{toml_key(key)} = {toml_value(value)}\n" for key, value in values.items() if key not in tables]
    if table and lines:
        lines.insert(0, f"\n[{table}]\n")
    prefix = f"{table}." if table else ""
    return "".join([*lines, *(to_toml(value, prefix + toml_key(key)) for key, value in tables.items())])


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def toml_value(value: Any) -> str:
    """A value on one line. JSON's strings, numbers and booleans are also TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_key(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
