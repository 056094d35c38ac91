"""What a run changes: values of its configuration, and the code since the run before it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from alpro.artifact import Record, flatten
from alpro.errors import InputError
from alpro.pipeline.config.command import Command, data_changes
from alpro.pipeline.config.load import load_config
from alpro.pipeline.config.pipeline_config import PipelineConfig

MAX_TEXT = 80  # characters of a value
UNCOMMITTED = ", with uncommitted changes"


def changed_values(arguments: Mapping[str, Any], settings: PipelineConfig) -> list[str]:
    """Return what the `--set` options of a run change, each as `KEY: OLD -> NEW`. The old value is the one
    that the configuration has without them.

    arguments: config, data and changes of the run. settings: its configuration.
    """
    changes = arguments["changes"]
    if not changes:
        return []

    try:
        original = load_config(Command(arguments["config"], data_changes(arguments["data"])))
    except InputError:  # only the changes make it valid
        return list(changes)

    before = flatten(original.model_dump(mode="json"))
    after = flatten(settings.model_dump(mode="json"))
    keys = dict.fromkeys(change.partition("=")[0].strip() for change in changes)

    lines = []
    for key in keys:
        lines += changes_below(key, before, after)
    return lines


def changes_below(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the changes of a value, or of the values of a table, among flat values.

    >>> old = {"qa.lr": 0.1, "qa.steps": 5}
    >>> changes_below("qa.lr", old, {"qa.lr": 0.2, "qa.steps": 5})
    ['qa.lr: 0.1 -> 0.2']
    >>> changes_below("qa", old, {"qa.lr": 0.1, "qa.steps": 6})
    ['qa.steps: 5 -> 6']
    >>> changes_below("qa", old, {"qa": None})
    ['qa: true -> false']
    >>> changes_below("qa.steps", old, old)
    ['qa.steps: 5, as before']
    """
    old = values_of(key, before)
    new = values_of(key, after)
    # A stage that is left out: `--set finetune_qa=false`.
    if key not in old and new == {key: None}:
        return [f"{key}: true -> false"]

    lines = []
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            lines.append(f"{name}: {value_text(old.get(name))} -> {value_text(new.get(name))}")
    if lines:
        return lines
    return [f"{key}: {value_text(new[key])}, as before" if key in new else f"{key}: as before"]


def values_of(key: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of a key, or the values of the table that it names."""
    return {
        name: value for name, value in flat.items() if name == key or name.startswith(f"{key}.")
    }


def value_text(value: Any) -> str:
    """Format a value as users write it in a configuration.

    >>> [value_text(value) for value in (0.0004, True, None, "", "films")]
    ['0.0004', 'true', 'none', '""', 'films']
    """
    if value is None:
        return "none"

    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def commit_text(commit: str) -> str:
    """Return the commit of a record, whose "+" stands for files that differ from it.

    >>> commit_text("0123abc+")
    '0123abc, with uncommitted changes'
    """
    return commit.removesuffix("+") + (UNCOMMITTED if commit.endswith("+") else "")


def changed_code(commit: str, earlier: Mapping[str, Any] | None) -> str:
    """How the code differs, or may differ, from that of the run before; empty for the same code and
    for the first run.

    earlier: the summary of that run.

    >>> changed_code("0123abc+", {"commit": "0123abc", "title": "sample 6e0aa0"})
    'commit 0123abc -> 0123abc, with uncommitted changes (before: sample 6e0aa0)'
    """
    if not earlier:
        return ""

    codes = f"{commit_text(earlier['commit'])} -> {commit_text(commit)}"
    if earlier["commit"] == commit:
        # No record has the changes themselves.
        if not commit.endswith("+"):
            return ""
        codes = f"{commit_text(commit)} in both runs, which may differ"
    return f"commit {codes} (before: {earlier['title']})"


def built_before(commit: str, records: Iterable[Record]) -> str:
    """Return the commits of artifacts that were built before a run, as an addition to its own; empty if
    they are the same."""
    commits = dict.fromkeys(record.run.get("commit", "") for record in records)
    others = [commit_text(other) for other in commits if other not in ("", commit)]
    return f"; stages that existed before: {' and '.join(others)}" if others else ""
