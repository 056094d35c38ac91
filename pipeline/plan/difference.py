"""What the result of an artifact depends on, and what differs between several runs."""

import json
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

from alpro.artifact import Record, fingerprinted_config
from alpro.pipeline.config.command import SHARED
from alpro.stages import CORPUS_STAGES, STAGES

Kind = Literal["configuration", "data", "code", "version"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MISSING = "-"  # value of a run that lacks a name

Key = tuple[Kind, str]  # with the name of a value
Origin = Mapping[Key, str]


class Difference(NamedTuple):
    """A value that is not the same in all runs."""

    kind: Kind
    name: str
    values: tuple[str, ...]  # one for each run; `MISSING` if it has no value


def differences(*origins: Origin) -> list[Difference]:
    """Return what differs between runs, ordered by kind.

    Args:
        origins: the origin, or the recipe, of each run.
    """
    different = []
    # In order, and each once.
    for kind, name in dict.fromkeys(chain.from_iterable(origins)):
        values = tuple(one.get((kind, name), MISSING) for one in origins)
        if len(set(values)) > 1:
            different.append(Difference(kind, name, values))
    # The sort is stable: within a kind, names keep the order of the runs.
    return sorted(different, key=lambda one: KINDS.index(one.kind))


def recipe(record: Record) -> dict[Key, str]:
    """Return what the fingerprint of a record depends on.

    Args:
        record: the record of an artifact, or the description of a step that has not run.
    """
    values: dict[Key, str] = {}
    config = fingerprinted_config(record, without_effect(record))
    for key, value in config.items():
        values["configuration", setting_name(record, key)] = value_text(value)
    for name, source in record.inputs.items():
        values["data", f"{record.name} input {name}"] = source.fingerprint[:8]
    for name, digest in record.files.items():
        values["data", f"{record.name} file {name}"] = digest[:8]
    values["code", f"{record.stage} version"] = str(record.stage_version)
    return values


def without_effect(record: Record) -> set[str]:
    """Return the keys of a record's stage that no result depends on."""
    if record.stage not in STAGES:  # another version made it
        return set()
    module = import_module(f"alpro.stages.{record.stage}")
    return module.Config.without_effect(record.config)


def origin(*records: Record) -> Origin:
    """Return what the results of a run depend on.

    Records of one run may disagree, such as in their commit. All of their values are then listed.

    Args:
        records: the artifacts of a run, or an artifact with all that it was built from.
    """
    values: dict[Key, dict[str, None]] = {}
    present = {record.fingerprint for record in records}
    for record in records:
        described = recipe(record) | circumstances(record)
        for name, source in record.inputs.items():
            # The records of a run describe its artifacts. Of a removed one, only the fingerprint
            # is left.
            if source.fingerprint in present:
                del described["data", f"{record.name} input {name}"]

        for key, value in described.items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(different) for key, different in values.items()}


def circumstances(record: Record) -> dict[Key, str]:
    """Return what is recorded of a build and is not part of the fingerprint."""
    values: dict[Key, str] = {}
    if record.stage in CORPUS_STAGES:
        described = f"{record.fingerprint[:8]}: {count_text(record)}"
        values["data", f"corpus {corpus_name(record)}"] = described

    values["code", "commit"] = record.run.get("commit") or MISSING
    if record.precision:
        values["code", f"{record.name} precision"] = record.precision
    for package, version in record.versions.items():
        values["version", package] = version
    return values


def explain(wanted: Record, newest: Record | None) -> str:
    """Return why a step has to run: how it differs from the newest artifact of its name.

    Args:
        wanted: the description of the step.
        newest: the record of that artifact, if there is one.
    """
    if newest is None:
        return "no artifact of this configuration yet"

    changes = differences(recipe(newest), recipe(wanted))
    return ", ".join(map(describe, changes))


def describe(difference: Difference) -> str:
    """Return how a step differs from an earlier artifact."""
    if difference.kind == "data":  # digests say nothing to a reader
        return f"{difference.name} differs"
    old, new = difference.values
    return f"{difference.name} = {new} (previous run: {old})"


def setting_name(record: Record, key: str) -> str:
    """Return the key by which the user sets a value of a stage.

    Args:
        key: the value as STAGE.KEY.

    >>> setting_name(Record(stage="decode_videos", name="decode_videos clips"), "decode_videos.size")
    'corpora.clips.size'
    >>> setting_name(Record(stage="pretrain", name="pretrain"), "pretrain.model.video.depth")
    'model.video.depth'
    """
    stage, _, rest = key.partition(".")
    made_of = {source.stage for source in record.inputs.values()}
    # A stage that changes a corpus has a table of its own.
    if record.stage in CORPUS_STAGES and made_of.isdisjoint(CORPUS_STAGES):
        return f"corpora.{corpus_name(record)}.{rest}"

    # [model] and [templates] are set once. Only the prompter may have sizes of its own.
    is_shared = stage in SHARED.get(rest.partition(".")[0], ())
    return rest if is_shared and stage != "train_prompter" else key


def count_text(record: Record) -> str:
    """Return what the stage of an artifact counted, without zeros."""
    counts = record.counts.items()
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in counts if value
    )


def corpus_name(record: Record) -> str:
    """Return the corpus that an artifact is: `clips` for the step `decode_videos clips`."""
    return record.name.partition(" ")[2] or record.name


def value_text(value: Any) -> str:
    """Return a value as it is written in a configuration.

    >>> [value_text(value) for value in (0.0004, True, None, "", "films", ("a", 1))]
    ['0.0004', 'true', 'none', '""', 'films', '["a", 1]']
    """
    if value is None:
        return "none"
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, ensure_ascii=False)
