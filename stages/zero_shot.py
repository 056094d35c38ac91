"""Zero-shot evaluation: retrieval by the pre-trained model, entity accuracy of the prompter (paper, section 4.2)."""

from pathlib import Path

import torch

from alpro.stages import Stage
from alpro.stages.cache_prompts import read_entities, read_prompts
from alpro.stages.evaluation.encode import load_model
from alpro.stages.evaluation.entities import entity_accuracy
from alpro.stages.evaluation.metrics import ENTITY_ACCURACY, TABLE_VERSION, Queries, Score
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded, load_for_evaluation
from alpro.stages.evaluation.results import Results, add_rankers
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training.distributed import pick_device

VERSION = f"3 {TABLE_VERSION}"
STAGE = Stage(
    help="evaluate the pre-trained model and the prompter on the test split",
    kind="evaluation",
    inputs={
        "pretrained": "pretrain",
        "vocabulary": "build_vocabulary",
        "prompter": "train_prompter",
        "prompts": "cache_prompts",
    },
    corpora=True,
)


class Config(EvaluationConfig):
    """Zero-shot evaluation; its keys are set in `[evaluate]`."""


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `pretrained`, or `prompter`, `prompts` and `vocabulary`, or all of them; and the corpora by name.

    Writes results.json and per-query tables.
    """
    device = pick_device(resources)
    results = Results.of(config, inputs, out)
    if config.retrieval and "pretrained" in inputs:
        retrieval(config, inputs, results, device)
    if "prompts" in inputs:
        entities(config, inputs, results, device)
    return results.outcome()


def retrieval(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Retrieval by the pre-trained model, by each of its scores."""
    folder = load_for_evaluation(config, inputs["pretrained"], device)
    corpus = inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    add_rankers(results, "zero-shot", "zero_shot", folder, gallery, config, device)


def entities(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Accuracy of the prompter's most likely entity per clip."""
    prompter = load_model(inputs["prompter"], device)
    folder = inputs[config.retrieval or config.qa]
    prompts, names = read_prompts(inputs["prompts"]), read_entities(inputs["vocabulary"])
    score = entity_accuracy(prompter, prompts, names, folder, config.split, device, excluded(config, folder))
    if score:
        accuracy = Score(
            ENTITY_ACCURACY, score.right * 100.0, score.best_constant, Queries.of(score.ids, score.captions)
        )
        results.add(accuracy, "prompter", "entities")
        rows = zip(score.ids, score.named, score.truth, score.right.tolist(), strict=True)
        results.table("entities", [{"id": i, "named": n, "truth": t, "right": r} for i, n, t, r in rows])
