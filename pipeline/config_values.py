"""Changes of a configuration's values before they are validated: stages are left out, and sizes follow from names."""

from typing import Any

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
