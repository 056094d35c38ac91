"""Changes of a configuration's values before they are validated: stages are left out, and sizes follow from names."""

import tomllib
from typing import Any

from alpro.errors import InputError
from alpro.models.encoder_names import normalization_of, text_sizes, video_sizes

OPTIONAL_STAGES = ("render_sample", "train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")


def without_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The values without the optional stages that are `false`, as `--set finetune_qa=false` makes them.

    >>> without_stages({"pretrain": False, "finetune_qa": {"lr": 1e-4}, "name": "a"})
    {'finetune_qa': {'lr': 0.0001}, 'name': 'a'}
    """
    return {key: value for key, value in values.items() if value is not False or key not in OPTIONAL_STAGES}


def with_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the sizes, normalization and tokenizer of the pre-trained encoders that they name.

    The sizes replace those of `[model]`: others could not be loaded. The depth of the text encoder is half that of the
    BERT unless `fusion_layer` says otherwise.
    """
    stages = [values[name] for name in ("train_prompter", "pretrain") if isinstance(values.get(name), dict)]
    model = dict(values.get("model", {}))
    for stage in stages:
        vit, bert = (name if isinstance(name := stage.get(key), str) else "" for key in ("vit", "bert"))
        if sizes := video_sizes(vit):
            model["video"] = {**model.get("video", {}), **sizes}
        if name := normalization_of(vit):
            stage.setdefault("normalization", name)
        if sizes := text_sizes(bert):
            model["text"] = {"fusion_layer": max(1, sizes["depth"] // 2), **model.get("text", {}), **sizes}
            values.setdefault("build_vocabulary", {}).setdefault("tokenizer", bert)
    return {**values, "model": model} if model else values


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
        if isinstance(at, list):
            at = at[_entry(at, parent, change)]
        elif isinstance(at, dict):
            at = at.setdefault(parent, {})
        else:
            raise InputError(f"--set {change}: {parent!r} is not in a table or list")
    if isinstance(at, list):
        at[_entry(at, last, change)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise InputError(f"--set {change}: {last!r} is not in a table or list")


def _entry(entries: list[Any], number: str, change: str) -> int:
    if not number.isdigit() or int(number) >= len(entries):
        raise InputError(f"--set {change}: {number!r} is not an index from 0 to {len(entries) - 1}")
    return int(number)
