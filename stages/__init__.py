"""What each stage reads and writes, a module for each. Stages know models and shards, and neither Prefect nor who runs
them.

A stage's module has VERSION, a frozen `Config`, `run(config, inputs, out, resources) -> Outcome`, and `STAGE`: what the
command line, the launcher, the flows and the deployments need to know of it.
"""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

CORPUS_STAGES = ("decode_videos", "index_shards")  # each of their artifacts is a corpus


@dataclass(frozen=True)
class Stage:
    """A stage's declaration, in literals only: `declaration` reads it without importing the module.

    kind: `data` and `text` run in the pipeline's process and its pool `cpu`; the others hold a model and run in a
    process of their own and in the pool `gpu`. `training` may use several processes, `evaluation` writes results.json.
    inputs: the names of its inputs, each with the stage that builds it. A configuration may leave some out.
    corpora: whether it also reads corpora, under the names that the configuration gives them.
    """

    help: str  # completes "alpro STAGE: ..."
    kind: Literal["data", "text", "training", "model", "evaluation"]
    inputs: dict[str, str] = field(default_factory=dict)
    corpora: bool = False

    @property
    def sources(self) -> set[str]:
        """The stages that build its inputs."""
        return {*self.inputs.values(), *(CORPUS_STAGES if self.corpora else ())}


@cache
def declaration(stage: str) -> Stage:
    """The `STAGE` of a stage's module. Importing the modules would import torch, and take seconds."""
    tree = ast.parse((Path(__file__).parent / f"{stage}.py").read_text("utf-8"))
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.targets[0]) == "STAGE"
        ):
            return Stage(**{str(word.arg): ast.literal_eval(word.value) for word in node.value.keywords})
    raise LookupError(f"stages/{stage}.py does not declare STAGE")


def depth(stage: str) -> int:
    """The number of stages on the longest path to this one."""
    return 1 + max(map(depth, declaration(stage).sources), default=0)


def of_kind(*kinds: str) -> tuple[str, ...]:
    """The names of the stages of these kinds, in order."""
    return tuple(stage for stage in STAGES if declaration(stage).kind in kinds)


_NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
STAGES = tuple(sorted(_NAMES, key=depth))  # inputs first
INPUTS = {name for stage in STAGES for name in declaration(stage).inputs}
EVALUATIONS = of_kind("evaluation")
TRAININGS = of_kind("training")
WITH_MODEL = of_kind("training", "model", "evaluation")
