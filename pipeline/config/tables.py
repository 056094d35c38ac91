"""Tables of a configuration: which stages have them, and how one is laid over another."""

from typing import Any

from alpro.stages import TRAININGS

# Stages that create a model, which a model in `pretrained` replaces.
MODEL_STAGES = ("train_prompter", "pretrain")
# Stages that run without a table, and use [templates].
TEXT_STAGES = ("train_tokenizer", "build_vocabulary", "cache_prompts")
# Tables that are set once, and the stages whose configuration has a copy.
SHARED = {"model": MODEL_STAGES, "templates": TEXT_STAGES}
# The table of a stage that has that of another one.
TABLE_OF = {"zero_shot": "evaluate"}

# Keys of which a table has one. A layer that sets one of them replaces the others.
ALTERNATIVES = ({"steps", "epochs"}, {"manifest", "data", "shards"})


def merge(below: Any, above: Any) -> Any:
    """Lay a value over another. Tables are merged, so that an empty one changes nothing; other
    values are replaced.

    >>> merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    >>> merge({"a": {"b": 1}}, {"a": {}})
    {'a': {'b': 1}}
    >>> merge({"manifest": "clips.jsonl"}, {"data": "videos"})
    {'data': 'videos'}
    """
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above

    table = dict(below)
    for key, value in above.items():
        drop_alternatives(table, key, value)
        table[key] = merge(table[key], value) if key in table else value
    return table


def drop_alternatives(table: dict[str, Any], key: str, value: Any) -> None:
    """Remove the keys that a new value replaces."""
    for keys in ALTERNATIVES:
        if key in keys and value:
            for other in keys - {key}:
                table.pop(other, None)


def covers(changed: str, key: str) -> bool:
    """Return whether a change of one key has set another, which may be in its table.

    >>> covers("pretrain.lr", "pretrain.lr"), covers("pretrain", "pretrain.lr"), covers("pre", "pretrain")
    (True, True, False)
    """
    return key == changed or key.startswith(f"{changed}.")


def is_of_step(key: str, step: str) -> bool:
    """Return whether a key is in the configuration of a step.

    >>> is_of_step("corpora.clips.size", "decode_videos clips"), is_of_step("model.video", "pretrain")
    (True, True)
    >>> is_of_step("pretrain.lr", "finetune_qa")
    False
    """
    stage, _, corpus = step.partition(" ")
    tables = [f"corpora.{corpus}" if corpus else TABLE_OF.get(stage, stage)]
    tables += [table for table, stages in SHARED.items() if stage in stages]
    if stage in TRAININGS:
        tables.append("max_steps")
    return any(covers(table, key) or covers(key, table) for table in tables)
