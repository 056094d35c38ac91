"""What each stage reads and writes, a module for each. Stages know models and shards, and neither Prefect nor who runs
them.

A stage's module has VERSION, a frozen `Config`, and `run(config, inputs, out, resources) -> Outcome`. STAGES is what
the command line, the plan, the launcher and the deployments need to know of it.
"""

from dataclasses import dataclass, field
from typing import Literal

CORPUS_STAGES = ("decode_videos", "index_shards")  # each of their artifacts is a corpus


@dataclass(frozen=True)
class Stage:
    """A stage in the DAG.

    kind: `data` and `text` run in the pipeline's process and in the pool `cpu`; the others hold a model and run in a
    process of their own and in the pool `gpu`. `training` may use several processes, `evaluation` writes results.json.
    inputs: the names of its inputs, each with the stage that builds it. A configuration may leave some out.
    corpora: whether it also reads corpora, under the names that the configuration gives them.
    """

    kind: Literal["data", "text", "training", "model", "evaluation"]
    inputs: dict[str, str] = field(default_factory=dict)
    corpora: bool = False


STAGES = {  # the DAG: inputs before the stages that read them
    "render_sample": Stage("data"),
    "decode_videos": Stage("data", {"sample": "render_sample"}),
    "index_shards": Stage("data"),
    "train_tokenizer": Stage("text", corpora=True),
    "build_vocabulary": Stage("text", corpora=True),
    "train_prompter": Stage("training", {"tokenizer": "train_tokenizer"}, corpora=True),
    "cache_prompts": Stage(
        "model", {"vocabulary": "build_vocabulary", "prompter": "train_prompter"}
    ),
    "pretrain": Stage(
        "training",
        {
            "tokenizer": "train_tokenizer",
            "vocabulary": "build_vocabulary",
            "prompter": "train_prompter",
            "prompts": "cache_prompts",
        },
        corpora=True,
    ),
    "zero_shot": Stage(
        "evaluation",
        {
            "pretrained": "pretrain",
            "vocabulary": "build_vocabulary",
            "prompter": "train_prompter",
            "prompts": "cache_prompts",
        },
        corpora=True,
    ),
    "finetune_retrieval": Stage("training", {"model": "pretrain"}, corpora=True),
    "finetune_qa": Stage("training", {"model": "pretrain"}, corpora=True),
    "evaluate": Stage(
        "evaluation", {"retrieval": "finetune_retrieval", "qa": "finetune_qa"}, corpora=True
    ),
}


def of_kind(*kinds: str) -> tuple[str, ...]:
    """The names of the stages of these kinds, in order."""
    return tuple(name for name, stage in STAGES.items() if stage.kind in kinds)


INPUTS = {name for stage in STAGES.values() for name in stage.inputs}
EVALUATIONS = of_kind("evaluation")
TRAININGS = of_kind("training")
WITH_MODEL = of_kind("training", "model", "evaluation")
