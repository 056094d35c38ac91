"""The stages, a module for each. They use models and shards, and neither Prefect nor MLflow.

A stage's module has:

- VERSION, which is increased when its output changes for the same configuration and inputs;
- a frozen `Config`, and frozen `Inputs` with the folders that it reads;
- `run(config, inputs, out, resources) -> Outcome`.

`dag.py` says which steps a pipeline has, and where their inputs come from.

The command line and the deployments read this table, so that they need not import the stages.
"""

from typing import Literal

Kind = Literal["data", "corpus", "text", "training", "model", "evaluation"]

# Stages in an order in which they can run. Each runs in its own process. The deployments of `data`,
# `corpus` and `text` are in the pool `cpu`; the others hold a model, and are in the pool `gpu`. Each
# artifact of a `corpus` stage is a corpus. A `training` may use several processes. An `evaluation`
# writes results.json.
STAGES: dict[str, Kind] = {
    "render_sample": "data",
    "decode_videos": "corpus",
    "index_shards": "corpus",
    "train_tokenizer": "text",
    "build_vocabulary": "text",
    "train_prompter": "training",
    "cache_prompts": "model",
    "pretrain": "training",
    "finetune_retrieval": "training",
    "finetune_qa": "training",
    "evaluate": "evaluation",
}


def list_stages(*kinds: Kind) -> tuple[str, ...]:
    """List the names of the stages of these kinds, in order."""
    return tuple(name for name, kind in STAGES.items() if kind in kinds)


CORPUS_STAGES = list_stages("corpus")
EVALUATIONS = list_stages("evaluation")
TRAININGS = list_stages("training")
WITH_MODEL = list_stages("training", "model", "evaluation")
