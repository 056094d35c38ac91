"""Layers of a configuration: a TOML file over its `base`, and changes over both.

The values are those of TOML until `PipelineConfig` validates them.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpro.artifact import flatten
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import read_text
from alpro.log import log
from alpro.pipeline.config.fields import find_field, is_text
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.config.tables import drop_alternatives, merge
from alpro.shards.storage import absolute
from alpro.stages.execution.interface import path_kind

CONFIGS = Path(__file__).with_name("shipped")
Values = dict[str, Any]


def shipped(folder: Path = CONFIGS) -> list[str]:
    """Return the names of the shipped configurations, or of the studies."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_config(source: str, folder: Path = Path(), shipped_in: Path = CONFIGS) -> Path:
    """Find a TOML file by its path in `folder`, by the name of a shipped one, or by its name in the
    folder `configs`."""
    refuse_credentials("--config", source)
    path = folder / os.path.expanduser(source)  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)
    for file in (path, shipped_in / f"{source}.toml", folder / "configs" / f"{source}.toml"):
        # A folder named `sample` hides no configuration of this name.
        if file.is_file():
            return file
    raise InputError(
        f"{source}: no such file; the shipped ones are {', '.join(shipped(shipped_in))}"
    )


def read_config(path: Path, below: tuple[Path, ...] = ()) -> Values:
    """Read a configuration file, with absolute paths, over its `base`."""
    log.debug(f"reading {path}")
    values = resolve_paths(read_toml(path), path.parent)
    if "base" in values:
        base = values.pop("base")
        # A base that leads back to this file would be read for ever.
        if not isinstance(base, str) or path in below:
            raise InputError(f"{path}: base must be another configuration (it is {base!r})")
        values = merge(read_config(find_config(base, path.parent), (*below, path)), values)
    return values


def read_toml(path: Path) -> Values:
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error

    # Of every key: the configuration is recorded in artifacts and shown in MLflow.
    for key, value in flatten(values).items():
        refuse_credentials(f"{path}: {key}", value)
    return values


def resolve_paths(value: Any, folder: Path, keys: tuple[str, ...] = ()) -> Any:
    """Make the paths among nested values absolute.

    Args:
        folder: the folder that relative paths are relative to.
        keys: the key of the value.
    """
    if isinstance(value, dict):
        return {key: resolve_paths(one, folder, (*keys, key)) for key, one in value.items()}
    if isinstance(value, list):
        return [resolve_paths(one, folder, (*keys, str(i))) for i, one in enumerate(value)]
    if not isinstance(value, str) or not value:
        return value

    field, _ = find_field(PipelineConfig, keys)
    kind = path_kind(field, value) if field else ""
    if kind == "root":  # maybe of another machine: links are not resolved
        return os.path.normpath(folder.absolute() / value)
    if kind == "file":
        return str(absolute(value, folder))
    if kind == "file or name":
        # A name on the hub looks like a path: only one that exists is one.
        path = absolute(value, folder)
        return str(path) if isinstance(path, Path) and path.exists() else value
    return value


def apply_change(values: Values, change: str) -> None:
    """Set the value of KEY=VALUE in nested values. Relative paths are relative to the current
    folder."""
    key, equals, text = change.partition("=")
    refuse_credentials(key.strip(), text)
    if not equals or not key.strip():
        raise InputError(f"{change}: write it as stage.key=value, such as pretrain.lr=1e-4")

    keys = tuple(key.strip().split("."))
    value = resolve_paths(parse_value(text, keys), Path.cwd(), keys)
    *parents, last = keys
    table: Any = values
    for parent in parents:
        key_or_index = table_key(table, parent, change)
        # Also where `false` stands for a stage that is left out.
        if isinstance(table, dict) and not isinstance(table.get(parent), dict | list):
            table[parent] = {}
        table = table[key_or_index]

    table[table_key(table, last, change)] = value
    if isinstance(table, dict):
        drop_alternatives(table, last, value)


def parse_value(text: str, keys: Sequence[str]) -> Any:
    """Parse the value of a change: TOML, or else plain text, such as a path without quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

    # A folder may be called 2024-01-01, 7 or true.
    _, annotation = find_field(PipelineConfig, keys)
    is_other = not isinstance(value, str | list)
    return text if is_other and is_text(annotation) else value


def table_key(table: Any, name: str, change: str) -> str | int:
    """Return a part of a change's key as the key of a table, or as the index of a list."""
    if isinstance(table, dict):
        return name
    if not isinstance(table, list) or not name.isdigit() or int(name) >= len(table):
        count = len(table) if isinstance(table, list) else 0
        raise InputError(f"{change}: {name!r} is no index of a list of {count} values")
    return int(name)
