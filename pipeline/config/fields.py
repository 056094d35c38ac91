"""Fields of configuration classes by their dotted keys, and messages about invalid values."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

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
        # Finds the table of `Table | None`.
        for kind in (annotation, *get_args(annotation)):
            fields = getattr(kind, "model_fields", {})
            if key in fields:
                field = fields[key]
                annotation = field.annotation
                break
            if get_origin(kind) in (dict, tuple):
                # A key or an index; of tuple[T, ...] the last argument is an ellipsis.
                annotation = [one for one in get_args(kind) if one is not ...][-1]
                break
        else:
            return None, None
    return field, annotation


def error_line(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error of a validation in a line: key, message and value."""
    # A mistyped key comes first: it is also missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    message = error_message(first, model)
    return f"{key}: {message}" if key else message


def error_message(error: ErrorDetails, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        *parents, key = map(str, error["loc"])
        names = list_keys(model, parents)
        return f"unknown key; {suggest(key, names, 'the keys are')}"

    message = error["msg"].removeprefix("Value error, ")
    # A whole table would be too long for the line.
    if "input" in error and not isinstance(error["input"], dict | BaseModel):
        message += f" (it is {error['input']!r})"
    return message


def list_keys(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    """Return the keys of a table."""
    _, annotation = find_field(model, parents)
    names = []
    # Finds the table of `Table | None`.
    for kind in (annotation, *get_args(annotation)):
        fields = getattr(kind, "model_fields", {})
        names += [field.alias or name for name, field in fields.items()]
    return names
