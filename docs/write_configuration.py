"""Write docs/configuration.md from the configuration classes.

python docs/write_configuration.py
"""

import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.stages.training.config import TrainingConfig

TABLE = "| key | default | description |\n|---|---|---|"
HEAD = """# Configuration

A pipeline is one TOML file: `alpro run --config FILE`. FILE is a path or the name of a shipped configuration.
`alpro config show NAME` prints one of these with all its values. A file with
`base = "NAME"` is laid over another: tables are merged, lists replaced.

`--set stage.key=value` changes a value, also in lists: `--set train_prompter.phases.0.steps=100`. The value is TOML, or
text without quotes. `--data X` is `--set corpora.data.data=X`. Unknown keys and values out of range are refused before
anything runs.

`[model]` is for ALPRO and the prompter; `[train_prompter.model]` overrides it. The defaults are the paper's. A pipeline
skips `finetune_retrieval`, `finetune_qa` and `render_sample` if their table is absent."""
SHARED = """## Training stages

{stages} share these keys. Their own sections list further keys and other defaults."""
# Tables whose keys another page explains.
EXPLAINED = {
    "columns": "which columns of a table mean what: [the keys](prepare_data.md#tables)"
}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of "}


def document() -> str:
    """Return the text of the page."""
    tables = {
        name: find_model(field.annotation)
        for name, field in PipelineConfig.model_fields.items()
    }
    top = [
        row(name, field)
        for name, field in PipelineConfig.model_fields.items()
        if tables[name] is None
    ]
    parts = [*map(wrap, HEAD.split("\n\n")), "## Top level", table(top)]
    training = [
        name
        for name, model in tables.items()
        if model and issubclass(model, TrainingConfig)
    ]
    shared = list_rows(TrainingConfig)
    described = {key_and_description(line) for line in shared}
    for name, model in tables.items():
        if model is None:
            continue
        if name in training[:1]:
            parts += shared_section(training)
        title = {"corpora": "corpora.NAME"}.get(name, name)
        parts += [f"## [{title}]", inspect.cleandoc(model.__doc__ or "")]
        rows = list_rows(model)
        if name in training:
            parts.append("Besides [the keys of all training stages](#training-stages):")
            own = [line for line in rows if line not in shared]
            rows = [shorten(line, described) for line in own]
            described |= set(map(key_and_description, own))
        if rows:
            parts.append(table(rows))
    return "\n\n".join(parts) + "\n"


def shared_section(names: list[str]) -> list[str]:
    """Return the section on the keys that all training stages share."""
    *first, last = (f"`[{name}]`" for name in names)
    shared = SHARED.format(stages=f"{', '.join(first)} and {last}")
    return [*map(wrap, shared.split("\n\n")), table(list_rows(TrainingConfig))]


def wrap(paragraph: str) -> str:
    """Wrap a paragraph into lines of at most 120 characters that break outside of code spans."""
    joined = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), paragraph)
    return textwrap.fill(
        joined, 120, break_long_words=False, break_on_hyphens=False
    ).replace("\0", " ")


def find_model(annotation: Any) -> type[BaseModel] | None:
    """Return the class inside an annotation such as Config | None or dict[str, Config]."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def table(rows: list[str]) -> str:
    return "\n".join([TABLE, *rows])


def list_rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a row for each key, including the keys of nested tables."""
    rows = []
    for name, field in model.model_fields.items():
        inner = find_model(field.annotation)
        if name in ("model", "templates") and prefix == "" and inner is not None:
            continue  # these have their own sections
        if name in EXPLAINED:
            rows.append(f"| `{prefix}{name}` | `{{}}` | {EXPLAINED[name]} |")
        elif inner is not None:
            rows += list_rows(
                inner,
                f"{prefix}{name}."
                if "tuple" not in str(field.annotation)
                else f"{prefix}{name}.N.",
            )
        else:
            rows.append(row(f"{prefix}{name}", field))
    return rows


def key_and_description(line: str) -> tuple[str, str]:
    """Return the key and the description of a row."""
    name, _, description = line.split(" | ", 2)
    return name, description


def shorten(line: str, described: set[tuple[str, str]]) -> str:
    """Return the row of a key, without the description if a table above has it."""
    name, value, _ = line.split(" | ", 2)
    return f"{name} | {value} | |" if key_and_description(line) in described else line


def row(name: str, field: FieldInfo) -> str:
    # A description of several lines would end the table.
    description = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {default(field)} | {description}{choices(field)}{limits(field)} |"


def choices(field: FieldInfo) -> str:
    """Return the allowed values of a Literal, if the description does not name them all."""
    values = (
        get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    )
    if all(str(value) in (field.description or "") for value in values):
        return ""
    return f" ({', '.join(f'`{toml(value)}`' for value in values)})"


def default(field: FieldInfo) -> str:
    """Return the default as a table cell; for a long list, its length."""
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, tuple) and len(str(value)) > 60:
        return f"a list of {len(value)}"
    return f"`{toml(value)}`"


def limits(field: FieldInfo) -> str:
    """Return the bounds of a number, such as " (≥0, <1)"."""
    bounds = [
        f"{sign}{toml(bound)}"
        for constraint in field.metadata
        for key, sign in SIGNS.items()
        if (bound := getattr(constraint, key, None)) is not None
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def toml(value: Any) -> str:
    """Return a value in TOML's spelling.

    >>> [toml(value) for value in (True, 2147483648, 1e-06, "auto", (0.9, 0.98), {})]
    ['true', '2147483648', '1e-6', '"auto"', '[0.9, 0.98]', '{}']
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(document(), "utf-8")
