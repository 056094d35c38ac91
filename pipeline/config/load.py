"""Loads the configuration of a command: a TOML file over its `base`, and changes over both.

The values are plain TOML until `PipelineConfig` validates them. Only TOML files are read here.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from alpro.errors import InputError
from alpro.pipeline.config.command import (
    MODEL_STAGES,
    SHARED,
    TEMPLATE_STAGES,
    Command,
    find_config,
    read_toml,
    suggest,
)
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.shards.credentials import refuse_credentials
from alpro.shards.storage import absolute
from alpro.stages.execution.interface import path_kind

# Keys of which a table has one. A layer that sets one of them replaces the others.
ALTERNATIVES = ({"steps", "epochs"}, {"manifest", "data", "shards"})

Values = dict[str, Any]


def read_settings(command: Command) -> PipelineConfig:
    """Load the configuration of a command: a TOML file, or a shipped one by name, over its base, with
    changes such as `pretrain.lr=1e-4`.

    Raises:
        InputError: If a value is invalid. The message is one line.
    """
    file_values = read_config(find_config(command.config))
    values = file_values
    for change in command.changes:
        keys, value = parse_change(change)
        # Relative paths are relative to the current folder.
        above = resolve_paths(value, Path.cwd(), keys)
        for key in reversed(keys):
            above = {key: above}
        try:
            values = merge(values, above)
        except InputError as error:
            raise InputError(f"{change}: {error}") from error
    try:
        settings = PipelineConfig.model_validate(share_tables(values))
    except ValidationError as error:
        line = error_line(error, PipelineConfig)
        raise InputError(f"{command.config}: {line}") from error

    # A file may have a corpus in reserve; one of `--data` must not be overlooked.
    defined = file_values.get("corpora", {})
    unread = settings.corpora.keys() - settings.used_corpora.keys() - defined.keys()
    for name in sorted(unread):
        options = " or ".join(f"corpora.{name}.data" for name in defined)
        raise InputError(f"corpora.{name}: no stage reads this corpus; set {options}")
    return settings.limited() if settings.max_steps else settings


def variations(command: Command) -> list[str]:
    """Return the changes of a command that make a variant of its configuration: all but those that
    name the user's files and models, and the resources."""
    varied = []
    for change in command.changes:
        keys, value = parse_change(change)
        field, _ = find_field(PipelineConfig, keys)
        kind = path_kind(field, str(value))
        # A model on the hub is a variant, as any other value.
        is_file = kind in ("file", "root") or (kind and Path(value).exists())
        if not is_file and keys[0] != "resources":
            varied.append(change)
    return varied


# Files.


def read_config(path: Path, below: tuple[Path, ...] = ()) -> Values:
    """Read a configuration file, with absolute paths, over its `base`."""
    values = resolve_paths(read_toml(path), path.parent)
    base = values.pop("base", None)
    if base is None:
        return values

    # A base that leads back to this file, by whatever path, would be read for ever.
    file = path.resolve()
    if not isinstance(base, str) or file in below:
        raise InputError(f"{path}: base must be another configuration (it is {base!r})")
    return merge(read_config(find_config(base, path.parent), (*below, file)), values)


def resolve_paths(value: Any, folder: Path, keys: tuple[str, ...] = ()) -> Any:
    """Make the paths among nested values absolute.

    Args:
        folder: the folder that relative paths are relative to.
        keys: the key of the value.
    """
    if isinstance(value, list):
        items = {str(index): one for index, one in enumerate(value)}
        return [*resolve_paths(items, folder, keys).values()]
    if isinstance(value, dict):
        return {
            key: resolve_paths(one, folder, (*keys, key)) for key, one in value.items()
        }
    if not isinstance(value, str) or not value:
        return value

    field, _ = find_field(PipelineConfig, keys)
    kind = path_kind(field, value)
    if kind == "root":  # maybe of another machine: links are not resolved
        return os.path.normpath(folder.absolute() / value)
    if not kind:
        return value

    path = absolute(value, folder)
    exists = isinstance(path, Path) and path.exists()
    # A name on the hub looks like a path: only one that exists is one.
    return str(path) if exists or kind != "file or name" else value


# Layers.


def merge(below: Any, above: Any) -> Any:
    """Lay a value over another. Tables are merged, so that an empty one changes nothing, and a table
    over a list replaces the values with its indices; other values are replaced.

    >>> merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    >>> merge({"a": {"b": 1}, "c": [1, 2]}, {"a": {}, "c": {"1": 3}})
    {'a': {'b': 1}, 'c': [1, 3]}
    >>> merge({"manifest": "clips.jsonl"}, {"data": "videos"})
    {'data': 'videos'}
    """
    if isinstance(below, list) and isinstance(above, dict):
        items = {str(index): value for index, value in enumerate(below)}
        if not above.keys() <= items.keys():
            raise InputError("a list has only the indices of its values, from 0")
        return [*merge(items, above).values()]
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above

    replaced: set[str] = set()
    for keys in ALTERNATIVES:
        if any(above.get(key) for key in keys):
            replaced |= keys - above.keys()
    # Existing shards are used unchanged: keys of other data do not apply.
    kept = {} if above.get("shards") else below
    table = {key: value for key, value in kept.items() if key not in replaced}
    for key, value in above.items():
        table[key] = merge(table.get(key), value)
    return table


def parse_change(change: str) -> tuple[tuple[str, ...], Any]:
    """Return the parts of the key and the value of KEY=VALUE. A value is TOML, or else plain text,
    such as a path without quotes."""
    key, equals, text = change.partition("=")
    refuse_credentials(key.strip(), text)
    if not equals or not key.strip():
        raise InputError(
            f"{change}: write it as stage.key=value, such as pretrain.lr=1e-4"
        )

    keys = tuple(key.strip().split("."))
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, text

    # A folder may be called 2024-01-01, 7 or true.
    _, annotation = find_field(PipelineConfig, keys)
    is_text = str in (annotation, *get_args(annotation))
    return keys, text if is_text and not isinstance(value, str | list) else value


def share_tables(values: Values) -> Values:
    """Leave out stages that are `false` or that `pretrained` replaces, and copy [model] and
    [templates], which are set once, to the stages that have them."""
    # TOML has no value for "none". Every other stage is part of each pipeline.
    left_out = [
        key
        for key, field in PipelineConfig.model_fields.items()
        if field.default is None and values.get(key) is False
    ]
    if values.get("pretrained"):
        left_out += MODEL_STAGES
    values = {key: {} for key in TEMPLATE_STAGES} | values | dict.fromkeys(left_out)

    for key, stages in SHARED.items():
        for stage in stages:
            table = values.get(stage)
            if not isinstance(table, dict):
                continue
            if table.get(key) and stage != "train_prompter":
                raise InputError(f"{stage}.{key}: set it once, in [{key}]")
            values[stage] = merge({key: values.get(key, {})}, table)
    return values


# Keys of the configuration classes.


def find_field(
    model: type[BaseModel], keys: Sequence[str]
) -> tuple[FieldInfo | None, Any]:
    """Find what a dotted key of a configuration names.

    Returns:
        The field, or the field that holds the table or list with the value, and the value's type.
        None for a key that no class has.
    """
    field = None
    annotation: Any = model
    for key in keys:
        for kind in (annotation, *get_args(annotation)):
            if get_origin(kind) in (dict, tuple):
                # A key or an index: the second type of dict[K, V], the first of tuple[T, ...].
                annotation = get_args(kind)[get_origin(kind) is dict]
                break
        else:
            field = list_fields(annotation).get(key)
            if field is None:
                return None, None
            annotation = field.annotation
    return field, annotation


def list_fields(annotation: Any) -> dict[str, FieldInfo]:
    """Return the fields of a table, also of `Table | None`."""
    fields: dict[str, FieldInfo] = {}
    for kind in (annotation, *get_args(annotation)):
        fields |= getattr(kind, "model_fields", {})
    return fields


def error_line(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error of a validation in a line: key, message and value."""
    # A mistyped key comes first: it is also missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    *parents, last = map(str, first["loc"] or [""])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        _, table = find_field(model, parents)
        fields = list_fields(table)
        # As seed=1, in place of pretrain.seed=1.
        tables = [key for key in fields if last in list_fields(fields[key].annotation)]
        hint = (
            f"set it in a table: {', '.join(tables)}"
            if tables
            else suggest(last, fields)
        )
        message = f"unknown key; {hint}"
    # A whole table would be too long for the line.
    elif not isinstance(first["input"], dict | BaseModel):
        message += f" (it is {first['input']!r})"
    # The check of a whole configuration has no key.
    return f"{'.'.join([*parents, last])}: {message}".removeprefix(": ")
