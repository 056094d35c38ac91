"""What each stage reads and writes, a module for each. Stages know models and shards, and neither
Prefect nor who runs them.

A stage's module has:

- VERSION, which rises when its output changes for the same configuration and inputs;
- a frozen `Config`, and frozen `Inputs` with the folders that it reads;
- `needs(pipeline) -> Needs | None`: whether a pipeline has this stage, and where its inputs come from. The stages that
  make a corpus have none: `pipeline/plan/corpora.py` has a step for each corpus;
- `run(config, inputs, out, resources) -> Outcome`.

This table is what the command line, the launcher and the deployments need to know of the stages,
without importing them.
"""

from typing import Literal

Kind = Literal["data", "text", "training", "model", "evaluation"]

# In an order in which they can run. `data` and `text` run in the pipeline's process and in the pool
# `cpu`; the others hold a model and run in a process of their own and in the pool `gpu`. `training`
# may use several processes, `evaluation` writes results.json.
STAGES: dict[str, Kind] = {
    "render_sample": "data",
    "decode_videos": "data",
    "index_shards": "data",
    "train_tokenizer": "text",
    "build_vocabulary": "text",
    "train_prompter": "training",
    "cache_prompts": "model",
    "pretrain": "training",
    "zero_shot": "evaluation",
    "finetune_retrieval": "training",
    "finetune_qa": "training",
    "evaluate": "evaluation",
}
CORPUS_STAGES = ("decode_videos", "index_shards")  # each of their artifacts is a corpus


def of_kind(*kinds: Kind) -> tuple[str, ...]:
    """The names of the stages of these kinds, in order."""
    return tuple(name for name, kind in STAGES.items() if kind in kinds)


EVALUATIONS = of_kind("evaluation")
TRAININGS = of_kind("training")
WITH_MODEL = of_kind("training", "model", "evaluation")
