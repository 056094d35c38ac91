"""Changes of a configuration's values before they are validated: stages are left out, and sizes follow from folders."""

import tomllib
from typing import Any

from alpro.errors import InputError
from alpro.models.initial import text_sizes, video_sizes

OPTIONAL_STAGES = ("render_sample", "train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")
LENGTHS = {"steps": "epochs", "epochs": "steps"}  # of a phase
ENCODER_STAGES = ("train_prompter", "pretrain")  # they create models, from pre-trained encoders if they name any


def without_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The values without the optional stages that are `false`, as `--set finetune_qa=false` makes them.

    >>> without_stages({"pretrain": False, "finetune_qa": {"lr": 1e-4}, "name": "a"})
    {'finetune_qa': {'lr': 0.0001}, 'name': 'a'}
    """
    return {key: value for key, value in values.items() if value is not False or key not in OPTIONAL_STAGES}


def with_sizes(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes of the model of each stage that creates one: `[model]`, with those of a CLIP (`vit`) or BERT in a local
    folder, because others could not be loaded. Such a BERT is also the tokenizer, unless there is one.

    A stage that names no such folder has the sizes of the other stage.
    """
    model = values.get("model", {})
    stages = {name: values[name] for name in ENCODER_STAGES if isinstance(values.get(name), dict)}
    models = {name: dict(model) for name in stages}
    for part, key, sizes_of in (("video", "vit", video_sizes), ("text", "bert", text_sizes)):
        names = {name: value for name, stage in stages.items() if isinstance(value := stage.get(key), str)}
        sizes = {name: found for name, value in names.items() if (found := sizes_of(value))}
        for name in stages if sizes else ():
            models[name][part] = model.get(part, {}) | sizes.get(name, next(iter(sizes.values())))
        if sizes and part == "text":
            values.setdefault("train_tokenizer", {}).setdefault("tokenizer", names[next(iter(sizes))])
    return models


def apply_change(values: dict[str, Any], change: str) -> None:
    """Applies "a.b=value" to nested values; the value is parsed as TOML, or else is plain text."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {change}: write it as stage.key=value, such as pretrain.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    at: Any = values
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = _key(at, parent, change)
        at = at.setdefault(inner, {}) if isinstance(at, dict) else at[inner]
    at[_key(at, last, change)] = value
    if last in LENGTHS and isinstance(at, dict):  # one of the two replaces the other
        at.pop(LENGTHS[last], None)


def _key(at: Any, part: str, change: str) -> Any:
    """The key of a table, or the index of a list, that a part of a change names."""
    if isinstance(at, dict):
        return part
    if not isinstance(at, list):
        raise InputError(f"--set {change}: {part!r} is not in a table or list")
    if not part.isdigit() or int(part) >= len(at):
        raise InputError(f"--set {change}: {part!r} is not an index from 0 to {len(at) - 1}")
    return int(part)
