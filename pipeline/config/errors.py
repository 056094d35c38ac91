"""Errors of pydantic on one line."""

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

ALIASES = {"learning_rate": "lr"}  # other names of keys, which are not spelled alike


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error of a model's validation, with its place and, for an unknown key, a suggestion."""
    errors = error.errors()
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_suggest(first['loc'], model)}"
    elif "input" in first and not isinstance(first["input"], dict | BaseModel):
        message += f" (it is {first['input']!r})"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where + ': ' if where else ''}{message}{more}"


def _suggest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    at: Any = model
    for part in loc[:-1]:
        if isinstance(part, int) or not hasattr(at, "model_fields"):
            continue
        field = at.model_fields.get(part)
        if field is None:
            continue
        at = next((t for t in (field.annotation, *_inner(field.annotation)) if hasattr(t, "model_fields")), None)
    names = [field.alias or name for name, field in getattr(at, "model_fields", {}).items()]
    close = [ALIASES[name]] if (name := str(loc[-1])) in ALIASES else get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(names)}" if names else ""


def _inner(annotation: Any) -> list[Any]:
    return [t for arg in get_args(annotation) for t in (arg, *_inner(arg))]
