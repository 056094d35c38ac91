"""Changes of a configuration's values before they are validated: stages that are left out."""

from typing import Any

OPTIONAL_STAGES = ("render_sample", "train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")


def without_stages(values: dict[str, Any]) -> dict[str, Any]:
    """The values without the optional stages that are `false`, as `--set finetune_qa=false` makes them.

    >>> without_stages({"pretrain": False, "finetune_qa": {"lr": 1e-4}, "name": "a"})
    {'finetune_qa': {'lr': 0.0001}, 'name': 'a'}
    """
    return {key: value for key, value in values.items() if value is not False or key not in OPTIONAL_STAGES}
