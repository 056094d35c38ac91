"""The form of the deployments on Prefect's page: JSON schemas of the parameters of the flows.

The server validates parameters against these schemas when it creates a run, so a value out of bounds is refused before
a worker starts anything. The schemas of stage values come from the classes that validate the configuration files.
"""

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from alpro.pipeline.config import STAGE_CONFIGS, shipped
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluate import Config as Evaluate

KINDS = ("integer", "number", "boolean", "string")  # of values that have a field of their own
# Keys that a stage has, but that are configured elsewhere: by shared tables, or by the corpus.
ELSEWHERE = {"model", "templates", "manifest"}

ConfigName = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"title": "shipped", "type": "string", "enum": shipped()},
                {"title": "file", "type": "string", "minLength": 1},
            ]
        }
    ),
]
Changes = Annotated[
    list[str],
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": r"^\s*\w[\w-]*(\.[\w-]+)*\s*=[^\n]*$"}}),
]
Internal = Annotated[str, SkipJsonSchema()]  # accepted, but not in the form
InternalObject = Annotated[dict[str, Any], SkipJsonSchema()]


def values_type(stage: str) -> Any:
    """The type of the parameter `values` of a stage's flow: an object with a typed, bounded and optional field for
    each plain value of its configuration."""
    return Annotated[dict[str, Any], WithJsonSchema(form_of(stage))]


def form_of(stage: str) -> dict[str, Any]:
    """The schema of a stage's configuration without defaults and required keys: a field that is left empty keeps the
    value of the configuration. Lists and tables of free form are left out; `changes` can set them."""
    schema = import_module(f"alpro.stages.{stage}").Config.model_json_schema()
    if table_of(stage) == "evaluate":  # the other keys of its class are set in the tables of other stages
        schema["properties"] = {k: v for k, v in schema["properties"].items() if k in Evaluate.model_fields}
    return _fields(schema, schema.get("$defs", {}))


def table_of(stage: str) -> str:
    """The table of the configuration that a stage has its values from."""
    if stage in CORPUS_STAGES:
        return "corpora"
    return stage if stage in STAGE_CONFIGS else "evaluate"


def _fields(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        if "$ref" in field:
            field = {**definitions[field["$ref"].rpartition("/")[2]], **field}
        if name in ELSEWHERE:
            continue
        kept = {key: value for key, value in field.items() if key not in ("default", "$ref", "path", "required")}
        kept["title"], kept["position"] = name, len(fields)
        if field.get("type") in KINDS:
            # A switch has no empty state: it would show false where the configuration has true.
            fields[name] = kept | ({"enum": [True, False]} if field["type"] == "boolean" else {})
        elif field.get("type") == "object" and field.get("properties"):
            inner = _fields(field, definitions)
            if inner["properties"]:
                about = {key: kept[key] for key in ("title", "description", "position") if key in kept}
                fields[name] = about | inner
    return {"type": "object", "properties": fields, "additionalProperties": False}


def changes_of(stage: str, values: Mapping[str, Any], corpora: list[str]) -> list[str]:
    """The values of a stage's form as changes, such as "pretrain.lr=0.0005". Values of a stage that is configured by
    the tables of the corpora are those of each corpus.

    >>> changes_of("pretrain", {"lr": 5e-4, "weights": {"pem": 0}, "schedule": "phase"}, [])
    ['pretrain.lr=0.0005', 'pretrain.weights.pem=0', 'pretrain.schedule="phase"']
    """
    table = table_of(stage)
    tables = [f"corpora.{name}" for name in corpora] if table == "corpora" else [table]
    plain = [(key, json.dumps(value, ensure_ascii=False)) for key, value in leaves(values)]  # the same as in TOML
    return [f"{table}.{key}={value}" for table in tables for key, value in plain]


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of nested tables and lists, with their keys joined by dots.

    >>> list(leaves({"a": {"b": 1}, "c": [2, {"d": 3}], "e": None}))
    [('a.b', 1), ('c.0', 2), ('c.1.d', 3)]
    """
    if isinstance(values, Mapping | list | tuple):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif values is not None:
        yield prefix, values
