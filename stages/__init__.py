"""What each stage reads and writes, a module for each. Stages know models and shards, and neither Prefect nor who runs
them.

A stage's module has VERSION, a frozen `Config`, `run(config, inputs, out, resources) -> Outcome`, and `STAGE`: what the
command line, the launcher, the flows and the deployments need to know of it.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

# In the order in which a pipeline runs them.
STAGES = (
    "render_sample",
    "decode_videos",
    "index_shards",
    "build_vocabulary",
    "train_prompter",
    "cache_prompts",
    "pretrain",
    "zero_shot",
    "finetune_retrieval",
    "finetune_qa",
    "evaluate",
)


@dataclass(frozen=True)
class Stage:
    """A stage's declaration, in literals only: `declaration` reads it without importing the module.

    kind: `data` and `text` run in the pipeline's process and its pool `cpu`; the others hold a model and run in a
    process of their own and in the pool `gpu`. `training` may use several processes, `evaluation` writes results.json.
    """

    help: str  # completes "alpro STAGE: ..."
    kind: Literal["data", "text", "training", "model", "evaluation"]


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


def of_kind(*kinds: str) -> tuple[str, ...]:
    """The names of the stages of these kinds, in order."""
    return tuple(stage for stage in STAGES if declaration(stage).kind in kinds)


EVALUATIONS = of_kind("evaluation")
TRAININGS = of_kind("training")
WITH_MODEL = of_kind("training", "model", "evaluation")
