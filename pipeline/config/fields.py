"""Fields of configuration classes by their dotted keys, and messages about invalid values."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from alpro.pipeline.config.files import suggest


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
                # A key or an index; of tuple[T, ...] the last argument is an ellipsis.
                annotation = [one for one in get_args(kind) if one is not ...][-1]
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
        fields = list_fields(table).items()
        names = [field.alias or name for name, field in fields]
        message = f"unknown key; {suggest(last, names, 'the keys are')}"
    # A whole table would be too long for the line.
    elif not isinstance(first["input"], dict | BaseModel):
        message += f" (it is {first['input']!r})"
    key = ".".join([*parents, last])
    return f"{key}: {message}" if key else message
