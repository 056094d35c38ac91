"""`alpro config ...`: the shipped configurations, a configuration with all its values, and a file to start from."""

import argparse
import json
import re
import textwrap
from typing import Any

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import CONFIGS, SHARED, PipelineConfig, load_config, shipped
from alpro.pipeline.reports.terminal import console


def list_configs(arguments: argparse.Namespace) -> None:
    """`alpro config list`. JSON: the descriptions by name."""
    described = {name: description((CONFIGS / f"{name}.toml").read_text("utf-8")) for name in shipped()}
    if arguments.json:
        print(json.dumps(described, indent=1))
        return
    width = max(map(len, described)) + 2
    for name, text in described.items():
        print(
            textwrap.fill(
                text,
                console.width,
                break_on_hyphens=False,
                initial_indent=f"{name:{width}}",
                subsequent_indent=" " * width,
            )
        )


def description(text: str) -> str:
    """The first line of a configuration file, which is a comment."""
    return text.partition("\n")[0].removeprefix("#").strip()


def show_config(arguments: argparse.Namespace) -> None:
    """`alpro config show`."""
    print(to_toml(values_of(load_config(arguments.config, arguments.data, arguments.changes))), end="")


def init_config(arguments: argparse.Namespace) -> None:
    """`alpro config init`: a copy of a shipped configuration, with its comments."""
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


def values_of(config: PipelineConfig) -> dict[str, Any]:
    """The values of a configuration, with all defaults, as `load_config` accepts them."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, stage in SHARED:  # set once, in the top-level table
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
