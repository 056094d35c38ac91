"""Evaluates the fine-tuned models: retrieval, question answering, and controls (paper, section 4)."""

from pathlib import Path

import torch
from pydantic import Field

from alpro.log import progress
from alpro.stages.evaluation.controls import (
    CONTROLS,
    ControlName,
    add_retrieval_control,
    answer_under,
)
from alpro.stages.evaluation.gallery import Gallery, Questions, draw_searches, extremes
from alpro.stages.evaluation.metrics import TABLE_VERSION
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded
from alpro.stages.evaluation.results import Results, evaluating
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.evaluation.scores import add_answers, add_rankers
from alpro.stages.execution.interface import Outcome, Resources

VERSION = f"15 {TABLE_VERSION}"


class Config(EvaluationConfig):
    """Evaluation. The stage `zero_shot` uses the same keys, except `controls`, `contrasts` and `seed`."""

    controls: tuple[ControlName, ...] = Field(
        default=(),
        description="shuffled, reversed, single_frame (the best one as a still clip), text_only (questions "
        "without the video)",
    )
    seed: int = Field(default=0, ge=0, description="seed of the shuffled frames")
    contrasts: tuple[tuple[str, str], ...] = Field(
        default=(), description="pairs of answers to compare, such as left and right"
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: the models `retrieval` and `qa`, or one of them, and the corpora by name.

    Writes results.json and per-query tables.
    """
    evaluations = {
        "retrieval": (config.retrieval, retrieval),
        "qa": (config.qa, question_answering),
    }
    tasks = [task for model, (corpus, task) in evaluations.items() if corpus and model in inputs]
    with evaluating(config, inputs, out, resources) as (results, device):
        with progress("evaluating", len(tasks), "tasks") as advance:
            for task in tasks:
                task(config, inputs, results, device)
                advance()
        return results.outcome()


def retrieval(
    config: Config, inputs: dict[str, Path], results: Results, device: torch.device
) -> None:
    """Retrieval by the fine-tuned model, by each of its scores; controls."""
    model = Scorer.load(config, inputs["retrieval"], device)
    corpus = inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    scored = model.score(gallery)
    add_rankers(results, "fine-tuned", "retrieval", model, gallery.labels, scored)
    similarity = scored[1]
    draw_searches(
        gallery,
        similarity,
        extremes(gallery, similarity),
        results.out / "pictures" / "retrieval.png",
    )
    for control in (name for name in CONTROLS if name in config.controls and name != "text_only"):
        add_retrieval_control(results, control, config.seed, model, gallery)


def question_answering(
    config: Config, inputs: dict[str, Path], results: Results, device: torch.device
) -> None:
    """Accuracy by type with the most frequent training answer as chance level; two-way accuracy; controls."""
    config = config.model_copy(update={"frames": 0, "max_text_tokens": 0})  # those are of retrieval
    model = Scorer.load(config, inputs["qa"], device)
    corpus = inputs[config.qa]
    questions = Questions.of(corpus, config.split, excluded(config, corpus))
    asked = (
        questions.items,
        questions.video_ids,
        Questions.of(corpus, "train").items,
        config.contrasts,
    )
    add_answers(results, "question answering", "qa", model.answer(questions), model.answers, *asked)
    for control in (name for name in CONTROLS if name in config.controls):
        logits = answer_under(control, config.seed, model, questions)
        add_answers(
            results,
            f"control: {CONTROLS[control].label}",
            f"qa_{control}",
            logits,
            model.answers,
            *asked,
        )
