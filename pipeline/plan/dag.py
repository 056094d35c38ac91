"""Former names of `plan` and `checks`, until the flow uses these."""

from collections.abc import Sequence
from pathlib import Path

from alpro.errors import InputError
from alpro.pipeline.config.command import Command, data_changes
from alpro.pipeline.plan.checks import check_test_items
from alpro.pipeline.plan.plan import Plan, make_plan, required
from alpro.pipeline.store.artifacts import Step, Store

Planned = Plan

__all__ = ["Plan", "Planned", "check_files", "check_test_items", "planned", "required"]


def planned(stage: str, config: str, data: str, changes: Sequence[str] | None, root: Path) -> Plan:
    """Return the plan of a command."""
    return make_plan(Command(config, data_changes(data, changes or ()), stage), root)


def check_files(steps: list[Step], store: Store) -> None:
    """Raise InputError if a step that has to run needs files that cannot be read."""
    for step in required(steps, store):
        if step.unreadable:
            raise InputError(step.unreadable)
