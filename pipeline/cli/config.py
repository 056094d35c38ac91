"""`alpro config ...`: the shipped configurations, a configuration with all its values, and a file to start from."""

import json as json_format
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from alpro.errors import InputError
from alpro.pipeline.cli.options import WORKSPACE, File, Json, Source, Workspace, print_json

if TYPE_CHECKING:
    from alpro.pipeline.config.pipeline_config import PipelineConfig

group = App(name="config", help="List, show and copy configurations.")


@group.command(name="list")
def list_configs(*, json: Json = False) -> None:
    """List the shipped configurations."""
    from alpro.pipeline.config.pipeline_config import CONFIGS, shipped
    from alpro.pipeline.reports.terminal import console

    # The first line of a configuration file, which is a comment.
    first = {name: (CONFIGS / f"{name}.toml").read_text("utf-8").partition("\n")[0] for name in shipped()}
    described = {name: line.removeprefix("#").strip() for name, line in first.items()}
    if json:
        print_json(described)
        return
    width = max(map(len, described)) + 2
    wrapper = textwrap.TextWrapper(console.width, subsequent_indent=" " * width, break_on_hyphens=False)
    for name, text in described.items():
        print(wrapper.fill(f"{name:{width}}{text}"))


@group.command(name="show")
def show_config(config: str, /, *, source: Source = Source(), workspace: Workspace = WORKSPACE) -> None:
    """Print a configuration with all its values, as TOML.

    Parameters
    ----------
    config
        A shipped configuration, or a TOML file, as for `alpro run --config`.
    """
    from alpro.pipeline.config.pipeline_config import load_config

    print(to_toml(values_of(load_config(config, source.data, source.changes(workspace)))), end="")


@group.command(name="init")
def init_config(file: File, /, *, source: Annotated[str, Parameter(name="--from")] = "own_videos") -> None:
    """Write a copy of a shipped configuration to edit.

    Parameters
    ----------
    file
        The file to write, NAME.toml.
    source
        The shipped configuration.
    """
    from alpro.pipeline.config.pipeline_config import CONFIGS, shipped

    if source not in shipped():
        raise InputError(f"{source}: no such shipped configuration; those are {', '.join(shipped())}")
    if file.suffix != ".toml" or not re.fullmatch(r"[\w-]+", file.stem):
        raise InputError(f"{file}: the file must be named NAME.toml, with letters, digits, _ and - in NAME")
    text = (CONFIGS / f"{source}.toml").read_text("utf-8").replace(f"--config {source}", f"--config {file}")
    text = text.replace(f'\nname = "{source}"\n', f'\nname = "{file.stem}"\n')
    note = f"# From the shipped configuration {source}. docs/configuration.md describes every key.\n"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(note + text)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    print(f"{file}: edit it, then run: alpro run --config {file}")


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
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json_format.dumps(key)


def toml_value(value: Any) -> str:
    """A value on one line. JSON's strings, numbers and booleans are also TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_key(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json_format.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
