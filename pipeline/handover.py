"""What a pipeline hands to the deployment of a stage: the stage's step with everything that decides its result.

So the machine that runs the stage needs neither the configuration's file nor the videos of the corpora that it reads,
only their artifacts: fingerprints are those of the machine that runs the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from alpro.errors import InputError
from alpro.pipeline.artifacts.store import Step
from alpro.shards.storage import absolute, located
from alpro.stages import STAGES
from alpro.stages.execution.interface import Resources


class HandedStep(BaseModel):
    """A `Step` as plain values; inputs are named by their fingerprints."""

    stage: str
    name: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    paths: dict[str, str]
    source: str = ""
    fingerprint: str


class Handover(BaseModel):
    """A step and its inputs, the last being the step to run, and where its run belongs in MLflow."""

    experiment: str
    parent_run: str
    resources: Resources
    steps: list[HandedStep]
    arguments: dict[str, Any] = {}

    @classmethod
    def of(
        cls, step: Step, experiment: str, parent_run: str, resources: Resources, arguments: dict[str, Any]
    ) -> Handover:
        steps = [
            HandedStep(
                stage=one.stage,
                name=one.name,
                config=one.config.model_dump(mode="json"),
                inputs={name: other.fingerprint for name, other in one.inputs.items()},
                files=dict(one.files),
                paths={name: str(absolute(path)) for name, path in one.paths.items()},
                source=one.source,
                fingerprint=one.fingerprint,
            )
            for one in with_inputs(step)
        ]
        return cls(experiment=experiment, parent_run=parent_run, resources=resources, steps=steps, arguments=arguments)

    def step(self) -> Step:
        """The step to run. Raises InputError if the code here computes another fingerprint."""
        steps: dict[str, Step] = {}
        for one in self.steps:
            inputs = {name: steps[fingerprint] for name, fingerprint in one.inputs.items()}
            paths = {name: located(path) for name, path in one.paths.items()}
            try:
                if one.stage not in STAGES:
                    raise ValueError("unknown stage")
                config = import_module(f"alpro.stages.{one.stage}").Config.model_validate(one.config)
                step = Step(one.stage, one.name, config, inputs, one.files, paths, source=one.source)
                if step.fingerprint != one.fingerprint:
                    raise ValueError("other fingerprint")
            except (ImportError, ValueError) as error:
                raise InputError(
                    f"{one.name}: this machine and the one that runs the pipeline have different versions of this "
                    "project; install the same one on both"
                ) from error
            steps[one.fingerprint] = step
        return step


def with_inputs(step: Step) -> Iterator[Step]:
    """A step and everything that it rests on, inputs first, each once."""
    steps: dict[str, Step] = {}

    def visit(one: Step) -> None:
        if one.fingerprint not in steps:
            for other in one.inputs.values():
                visit(other)
            steps[one.fingerprint] = one

    visit(step)
    yield from steps.values()
