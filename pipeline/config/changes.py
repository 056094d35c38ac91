"""Changes of a configuration's values before they are validated: stages are left out, and sizes follow from names."""

import tomllib
from typing import Any

from alpro.errors import InputError
from alpro.models.encoder_names import normalization_of, text_sizes, video_sizes

OPTIONAL_STAGES = ("render_sample", "train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")
ENCODER_STAGES = ("train_prompter", "pretrain")  # they create models, from pre-trained encoders if they name any


def without_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The values without the optional stages that are `false`, as `--set finetune_qa=false` makes them.

    >>> without_stages({"pretrain": False, "finetune_qa": {"lr": 1e-4}, "name": "a"})
    {'finetune_qa': {'lr': 0.0001}, 'name': 'a'}
    """
    return {key: value for key, value in values.items() if value is not False or key not in OPTIONAL_STAGES}


def forget_followed(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Removes from `values` the keys that follow from an encoder that `more` names: what an earlier file says of a
    different encoder does not apply to it."""
    for stage in ENCODER_STAGES:
        vit, bert = encoders_of(more.get(stage))
        if normalization_of(vit) and isinstance(values.get(stage), dict):
            values[stage].pop("normalization", None)
        model = values.get("model")
        if text_sizes(bert) and isinstance(model, dict) and isinstance(model.get("text"), dict):
            model["text"].pop("fusion_layer", None)


def with_sizes(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Completes the values of stages that name pre-trained encoders: with the normalization of the ViT and the
    tokenizer of the BERT, unless they are set. Returns the sizes of the model of each of these stages.

    The sizes of an encoder replace those of `[model]`: others could not be loaded. The depth of the text encoder is
    half that of the BERT unless `fusion_layer` says otherwise. A stage that names no encoder of a kind has that of the
    other stage.
    """
    model = values.get("model", {})
    stages = {name: values[name] for name in ENCODER_STAGES if isinstance(values.get(name), dict)}
    video, text = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for name, stage in stages.items():
        vit, bert = encoders_of(stage)
        if sizes := video_sizes(vit):
            video[name] = {**model.get("video", {}), **sizes}
        if normalization := normalization_of(vit):
            stage.setdefault("normalization", normalization)
        if sizes := text_sizes(bert):
            text[name] = {"fusion_layer": max(1, sizes["depth"] // 2), **model.get("text", {}), **sizes}
            values.setdefault("build_vocabulary", {}).setdefault("tokenizer", bert)
    models = {}
    for name in stages:
        models[name] = dict(model)
        for part, sizes_of in (("video", video), ("text", text)):
            if sizes_of:
                models[name][part] = sizes_of.get(name, next(iter(sizes_of.values())))
    return models


def encoders_of(stage: Any) -> tuple[str, str]:
    """The names of the ViT and the BERT in a stage's table; empty if it has none."""
    table = stage if isinstance(stage, dict) else {}
    vit, bert = (name if isinstance(name := table.get(key), str) else "" for key in ("vit", "bert"))
    return vit, bert


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


def _key(at: Any, part: str, change: str) -> Any:
    """The key of a table, or the index of a list, that a part of a change names."""
    if isinstance(at, dict):
        return part
    if not isinstance(at, list):
        raise InputError(f"--set {change}: {part!r} is not in a table or list")
    if not part.isdigit() or int(part) >= len(at):
        raise InputError(f"--set {change}: {part!r} is not an index from 0 to {len(at) - 1}")
    return int(part)
