"""A step of a pipeline: a stage with everything that determines its result."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType

from alpro.artifact import Record, Source, compute_fingerprint
from alpro.shards.storage import Location, absolute
from alpro.stages import CORPUS_STAGES
from alpro.stages.execution.interface import FILE_OR_NAME, StageConfig


@dataclass(frozen=True)
class Step:
    """A stage with everything that determines its result, and so its fingerprint."""

    stage: str
    name: str  # name for users: the stage, and the corpus if there are several
    config: StageConfig
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    # SHA-256 or version of outside files, by the name of an input or STAGE.KEY.
    digests: Mapping[str, str] = field(default_factory=dict)
    # Inputs that no step builds, such as a model folder of the user's. Only their digests count.
    given: Mapping[str, Location] = field(default_factory=dict)
    # Tells whether local outside files are unchanged.
    recheck: Callable[[], bool] | None = None
    # Why outside files cannot be read on this machine. The step cannot run then.
    unreadable: str = ""

    @property
    def hub_models(self) -> dict[str, str]:
        """The models that its configuration names and that are no local files, by key."""
        return {
            key: value
            for key, (value, kind) in self.config.path_values.items()
            if kind == FILE_OR_NAME["path"]
            and f"{self.stage}.{key}" not in self.digests
        }

    @property
    def hub_commits(self) -> dict[str, str]:
        """The commits of the hub's models that are named without a revision, as the hub's cache has
        them, by STAGE.KEY."""
        # Slow to import.
        from alpro.models.pretrained import HubName

        commits: dict[str, str] = {}
        for key, model in self.hub_models.items():
            # A timm model is named without its organisation.
            for name in (model, f"timm/{model}"):
                # Not in the cache, or not a name alone.
                with suppress(OSError, ValueError):
                    folder = HubName(name).snapshot(local=True)
                    commits[f"{self.stage}.{key}"] = folder.name
        return commits

    @property
    def manifest(self) -> Path | None:
        """The imported source of a corpus, or of the corpus that it is made of; None for shards, for
        the sample, and for a step that makes no corpus."""
        if self.stage not in CORPUS_STAGES:
            return None
        if "manifest" in self.given:
            return Path(self.given["manifest"])
        return next((step.manifest for step in self.inputs.values()), None)

    @property
    def module(self) -> ModuleType:
        return import_module(f"alpro.stages.{self.stage}")

    @cached_property
    def description(self) -> Record:
        """The artifact's record as it is known before the stage runs."""
        inputs = {
            name: Source(step.stage, step.fingerprint)
            for name, step in self.inputs.items()
        }
        record = Record(
            name=self.name,
            stage=self.stage,
            stage_version=self.module.VERSION,
            config=self.config.model_dump(mode="json"),
            inputs=inputs,
            files=dict(self.digests),
            paths={name: str(absolute(path)) for name, path in self.given.items()},
        )
        without_effect = self.config.without_effect(record.config)
        fingerprint = compute_fingerprint(record, without_effect)
        return replace(record, fingerprint=fingerprint)

    @property
    def fingerprint(self) -> str:
        return self.description.fingerprint
