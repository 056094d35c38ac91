"""The plan of a command: its steps, which of them have to run, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.pipeline.config.command import Command
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.difference import Difference, differences, recipe, shorten
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.models import read_settings
from alpro.pipeline.plan.steps import build_steps
from alpro.pipeline.store.artifacts import Step, Store


@dataclass(frozen=True)
class Plan:
    """A command with its configuration, its steps in order, and the store of the workspace."""

    command: Command
    settings: PipelineConfig
    steps: list[Step]
    store: Store


def make_plan(command: Command, workspace: Path) -> Plan:
    """Plan the stage of a command or, without one, the whole pipeline.

    Raises:
        InputError: The configuration is invalid, or a file that decides a fingerprint fails.
    """
    settings = read_settings(command)
    workspace.mkdir(parents=True, exist_ok=True)
    settings, steps = build_steps(settings, Digests(workspace / "digests.sqlite"))
    if command.stage:
        steps = needed(steps, command.stage)
    return Plan(command, settings, steps, Store(workspace / "artifacts"))


def needed(steps: list[Step], stage: str) -> list[Step]:
    """Return the steps of one stage and everything that they depend on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        stages = list(dict.fromkeys(step.stage for step in steps))
        close = get_close_matches(stage, stages, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"no stage {stage!r}; {hint}this configuration has {', '.join(stages)}")

    # From the end, because inputs come before their users.
    for step in reversed(steps):
        if step.fingerprint in wanted:
            wanted |= {source.fingerprint for source in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted]


def required(steps: list[Step], store: Store) -> list[Step]:
    """Return the steps whose artifacts exist or have to be built, in order.

    An input is built only for a step that runs: if decoded shards were deleted but everything that
    was computed from them exists, nothing is decoded again.
    """
    exists = {step.fingerprint: bool(store.find(step)) for step in steps}
    inputs = {source.fingerprint for step in steps for source in step.inputs.values()}
    wanted = exists.keys() - inputs  # the results that no other step reads

    for step in reversed(steps):
        if step.fingerprint in wanted and not exists[step.fingerprint]:
            wanted |= {source.fingerprint for source in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted or exists[step.fingerprint]]


def explain(step: Step, records: Sequence[Record]) -> str:
    """Return why a step has to run: how it differs from the most similar of earlier records.

    Args:
        records: the records of earlier artifacts, oldest first.
    """
    wanted = recipe(step.description)
    found = [
        differences(recipe(record), wanted)
        # Newest first: `min` returns the first of equals.
        for record in reversed(records)
        if record.name == step.name
    ]
    if not found:
        return "no artifact of this configuration yet"

    fewest = min(found, key=len)
    # The line stays readable after a change of many values.
    shown = [describe(one) for one in fewest[:3]]
    more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
    return ", ".join(shown) + more


def describe(difference: Difference) -> str:
    """Return how a step differs from an earlier artifact."""
    if difference.kind == "data":  # digests say nothing to a reader
        return f"{difference.name} differs"
    old, new = map(shorten, difference.values)
    return f"{difference.name} = {new} (previous run: {old})"
