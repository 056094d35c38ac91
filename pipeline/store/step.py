"""A step of a pipeline: a stage with everything that determines its result, an artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

from alpro.artifact import RECORD_VERSION, digest_of
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
