"""Evaluates the fine-tuned models: retrieval, question answering, and controls (paper, section
4)."""

from functools import partial
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
from alpro.stages.evaluation.scores import add_answers, add_rankers, unanswerable
from alpro.stages.execution.interface import Needs, Outcome, Pipeline, Resources, StageInputs

VERSION = f"16 {TABLE_VERSION}"


class Config(EvaluationConfig, frozen=True):
    """Evaluation. The stage `zero_shot` uses the same keys, except `controls`, `contrasts` and
    `seed`."""

    controls: tuple[ControlName, ...] = Field(
        default=(),
        description="shuffled, reversed, single_frame (the best one as a still clip), text_only "
        "(questions "
        "without the video)",
    )
    seed: int = Field(default=0, ge=0, description="seed of the shuffled frames")
    contrasts: tuple[tuple[str, str], ...] = Field(
        default=(), description="pairs of answers to compare, such as left and right"
    )


class Inputs(StageInputs):
    """The fine-tuned models, or one of them; the corpora of the evaluation."""

    retrieval: Path | None = None
    qa: Path | None = None
    corpora: dict[str, Path]


def needs(pipeline: Pipeline) -> Needs | None:
    """Where the pipeline fine-tunes a model, or starts from one that is fine-tuned, unless it
    fine-tunes it again."""
    config: Config = pipeline.evaluate
    tunings = {"retrieval": pipeline.finetune_retrieval, "qa": pipeline.finetune_qa}
    is_tuned = pipeline.start_task in tunings and tunings[pipeline.start_task] is None
    if not (config.corpora and (is_tuned or any(tunings.values()))):
        return None

    stages = {"retrieval": "finetune_retrieval", "qa": "finetune_qa"}
    folders = {pipeline.start_task: pipeline.start} if is_tuned and pipeline.start else {}
    return Needs(config, stages=stages, folders=folders, corpora=config.corpora)


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Writes results.json and per-query tables."""
    tasks = []
    if config.retrieval and inputs.retrieval:
        tasks.append(retrieval)
    if config.qa and inputs.qa:
        tasks.append(question_answering)

    # The widest of them decides the precision.
    models = [inputs.retrieval, inputs.qa]
    with evaluating(config, inputs.corpora, models, out, resources) as (results, device):
        with progress("evaluating", len(tasks), "tasks") as advance:
            for task in tasks:
                task(config, inputs, results, device)
                advance()
        return results.outcome()


def retrieval(config: Config, inputs: Inputs, results: Results, device: torch.device) -> None:
    """Retrieval by the fine-tuned model, by each of its scores; controls."""
    assert inputs.retrieval is not None
    model = Scorer.load(config, inputs.retrieval, device)
    corpus = inputs.corpora[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))

    matching, similarity = model.score(gallery)
    add_rankers(
        results,
        what="fine-tuned",
        name="retrieval",
        model=model,
        labels=gallery.labels,
        scored=(matching, similarity),
    )

    # By similarity, as `alpro search` ranks: the picture shows what a search would find.
    picture = results.out / "pictures" / "retrieval.png"
    draw_searches(gallery, similarity, extremes(gallery, similarity), picture)

    for control in controls_of(config):
        if control != "text_only":  # which is of answers: retrieval without the video is chance
            add_retrieval_control(results, control, config.seed, model, gallery)


def controls_of(config: Config) -> list[ControlName]:
    """The configured controls, in the order of the table of results."""
    return [control for control in CONTROLS if control in config.controls]


def question_answering(
    config: Config, inputs: Inputs, results: Results, device: torch.device
) -> None:
    """Accuracy by type with the most frequent training answer as chance level; two-way accuracy;
    controls."""
    config = config.model_copy(update={"frames": 0, "max_text_tokens": 0})  # those are of retrieval
    assert inputs.qa is not None
    model = Scorer.load(config, inputs.qa, device)
    corpus = inputs.corpora[config.qa]
    questions = Questions.of(corpus, config.split, excluded(config, corpus))
    add = partial(
        add_answers,
        results,
        answers=model.answers,
        asked=questions.items,
        video_ids=questions.video_ids,
        trained=Questions.of(corpus, "train").items,
        contrasts=config.contrasts,
    )

    # No training lifts the limit that the list of answers sets.
    results.warnings += unanswerable(questions.items, model.answers)
    add(what="question answering", name="qa", logits=model.answer(questions))
    for control in controls_of(config):
        logits = answer_under(control, config.seed, model, questions)
        add(what=f"control: {CONTROLS[control].label}", name=f"qa_{control}", logits=logits)
