"""A step of a pipeline: a stage with everything that determines its result; which steps have to run, and why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

from alpro.artifact import RECORD_VERSION, digest_of, flatten, has_no_effect
from alpro.errors import InputError
from alpro.pipeline.store.artifacts import Store
from alpro.shards.storage import Location, absolute
from alpro.stages.execution.interface import StageConfig


@dataclass(frozen=True)
class Step:
    """A stage with everything that determines its result, and so its fingerprint."""

    stage: str
    name: str  # name for users: the stage, and the corpus if there are several
    config: StageConfig
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # outside files: name, or STAGE.KEY, to SHA-256 or version
    paths: Mapping[str, Location] = field(default_factory=dict)  # their locations; not part of the fingerprint
    unchanged: Callable[[], bool] | None = None  # whether the local outside files are unchanged
    missing: str = ""  # why the outside files cannot be read on this machine; the step cannot run then

    @property
    def blocked(self) -> str:
        """Why this step cannot run on this machine: outside files of it, or of an input, cannot be read."""
        return self.missing or next((f"needs {s.name}" for s in self.inputs.values() if s.blocked), "")

    @property
    def module(self) -> ModuleType:
        return import_module(f"alpro.stages.{self.stage}")

    @cached_property
    def fingerprint(self) -> str:
        return digest_of(self._recipe())

    @property
    def description(self) -> dict[str, Any]:
        """The part of the artifact record that is known before the stage runs."""
        return {
            "version": RECORD_VERSION,
            "name": self.name,
            "fingerprint": self.fingerprint,
            **self._recipe(),
            "paths": {name: str(absolute(path)) for name, path in self.paths.items()},
        }

    def _recipe(self) -> dict[str, Any]:
        inputs = {name: {"stage": step.stage, "fingerprint": step.fingerprint} for name, step in self.inputs.items()}
        return {
            "stage": self.stage,
            "stage_version": self.module.VERSION,
            "config": self.config.model_dump(mode="json"),
            "inputs": inputs,
            "files": dict(self.files),
        }


def needed(steps: list[Step], stage: str) -> list[Step]:
    """The steps of one stage and everything that they depend on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        raise InputError(f"this configuration has no stage {stage}")
    for step in reversed(steps):
        if step.fingerprint in wanted:
            wanted |= {other.fingerprint for other in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted]


def required(steps: list[Step], store: Store) -> list[Step]:
    """The steps whose artifacts exist or have to be built, in order.

    An input is built only for a step that runs: if decoded shards were deleted but everything that was computed from
    them exists, nothing is decoded again.
    """
    inputs = {other.fingerprint for step in steps for other in step.inputs.values()}
    exists = {step.fingerprint: bool(store.find(step)) for step in steps}
    wanted = {step.fingerprint for step in steps if step.fingerprint not in inputs}
    for step in reversed(steps):
        if step.fingerprint in wanted and not exists[step.fingerprint]:
            wanted |= {other.fingerprint for other in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted or exists[step.fingerprint]]


def reason(step: Step, store: Store) -> str:
    """Why a step has to run: what differs from the most similar artifact of the same name."""
    others = [record for _, record in store.all() if record["name"] == step.name]
    if not others:
        return "no artifact yet"
    changes = [differences(record, step.description) for record in reversed(others)]  # the newest first
    fewest = min(changes, key=len)
    return ", ".join(fewest[:3]) + (f" and {len(fewest) - 3} more" if len(fewest) > 3 else "")


def differences(record: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """What differs between an artifact's record and a step's description, of all that decides the fingerprint."""
    changes = []
    if record["stage_version"] != description["stage_version"]:
        changes.append("the stage's code has a new version")
    files = record["files"].keys() & description["files"].keys()
    old, new = (flatten(one["config"], f"{one['stage']}.") for one in (record, description))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in files and not has_no_effect(key):
            changes.append(f"{key} = {new.get(key)!r} (was {old.get(key)!r})")
    for what, kind in (("input", "inputs"), ("files of", "files")):
        old, new = record[kind], description[kind]
        changes += [f"{what} {name}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return changes
