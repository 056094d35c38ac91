"""Writes docs/configuration.md from the configuration's own classes: `python docs/write_configuration.py`."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from alpro.pipeline.config import PipelineConfig, shipped

TABLE = "| key | default | |\n| --- | --- | --- |"
HEAD = """# Configuration

A pipeline is one TOML file: `alpro run --config FILE`, or the name of one that ships ({names}).
`--set stage.key=value` changes a value on the command line, as often as needed, and reaches into lists:
`--set train_prompter.phases.0.steps=100`.
Unknown keys and values out of range are refused before anything runs.

The sizes in `[model]` are those of the prompter and of ALPRO; the defaults are the paper's. A stage whose table is
absent (`finetune_retrieval`, `finetune_qa`) is left out, and so is `render_sample`. `pretrained` takes the place of
`train_prompter` and `pretrain`.

This page is written by `docs/write_configuration.py`.
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD.format(names=", ".join(f"`{name}`" for name in shipped()))]
    plain = {name: field for name, field in PipelineConfig.model_fields.items() if model_of(field.annotation) is None}
    parts += ["## At the top", "\n".join([TABLE, *(row(name, field) for name, field in plain.items())])]
    for name, field in PipelineConfig.model_fields.items():
        model = model_of(field.annotation)
        if model is None:
            continue
        title = {"corpora": "corpora.NAME"}.get(name, name)
        parts += [f"## [{title}]", (model.__doc__ or "").strip().replace("\n    ", "\n")]
        parts += [table(model)] if rows_of(model, "") else []
    return "\n\n".join(parts) + "\n"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The configuration class inside an annotation such as Config | None or dict[str, Config]."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def table(model: type[BaseModel], prefix: str = "") -> str:
    rows = rows_of(model, prefix)
    return "\n".join([TABLE, *rows])


def rows_of(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        if name in ("model", "templates") and prefix == "" and inner is not None:
            continue  # given once, in a table of its own
        if inner is not None:
            rows += rows_of(inner, f"{prefix}{name}." if "tuple" not in str(field.annotation) else f"{prefix}{name}.N.")
        else:
            rows.append(row(f"{prefix}{name}", field))
    return rows


def row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {default(field)} | {field.description or ''}{choices(field)}{limits(field)} |"


def choices(field: FieldInfo) -> str:
    """The values that can be chosen, where they are few."""
    if get_origin(field.annotation) is not Literal:
        return ""
    return f" ({', '.join(f'`{value}`' for value in get_args(field.annotation))})"


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    value = field.default
    if isinstance(value, tuple) and len(str(value)) > 60:
        return f"{len(value)} of them"
    if value in ("", (), {}):
        return "empty"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def limits(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in SIGNS.items() if hasattr(m, key)]
    return f" ({', '.join(bounds)})" if bounds else ""


SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(document(), "utf-8")
