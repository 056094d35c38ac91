"""Evaluates the fine-tuned models: retrieval, question answering, and controls (paper, section 4)."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from alpro.progress import progress
from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.controls import Answers, ControlName, add_retrieval_controls, answers_under_controls
from alpro.stages.evaluation.metrics import (
    TABLE_VERSION,
    Score,
    accuracy_scores,
    contrast_of,
    directions_of,
    majority_baseline,
)
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded, length_of, load_for_evaluation
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.evaluation.results import Results, add_rankers, evaluating
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.interface import Outcome, Resources

VERSION = f"9 {TABLE_VERSION}"
ANSWER_COLUMNS = ("id", "type", "question", "answer", "predicted", "probability", "right")


class Config(EvaluationConfig):
    """Evaluation. The stage `zero_shot` uses the same keys, except `controls`, `contrasts` and `seed`."""

    controls: tuple[ControlName, ...] = Field(
        (),
        description="controls to evaluate: shuffled, reversed (frames in a different order); single_frame (the best "
        "one as a still clip); text_only (questions without the video)",
    )
    seed: int = Field(0, ge=0, description="random seed of the shuffled frames")
    contrasts: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of answers for two-way accuracy, such as left and right"
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: the models `retrieval` and `qa`, or one of them, and the corpora by name.

    Writes results.json and per-query tables.
    """
    evaluations = {"retrieval": (config.retrieval, retrieval), "qa": (config.qa, question_answering)}
    tasks = [task for model, (corpus, task) in evaluations.items() if corpus and model in inputs]
    with evaluating(config, inputs, out, resources) as (results, device):
        with progress("evaluating", len(tasks), "tasks") as advance:
            for task in tasks:
                task(config, inputs, results, device)
                advance()
        return results.outcome()


def retrieval(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Retrieval by the fine-tuned model, by each of its scores; controls."""
    folder = load_for_evaluation(config, inputs["retrieval"], device)
    gallery = Gallery.of(inputs[config.retrieval], config.split, excluded(config, inputs[config.retrieval]))
    scores = add_rankers(results, "fine-tuned", "retrieval", folder, gallery, config, device)
    retrieval_pictures(gallery, directions_of(scores)[0], results.out)
    add_retrieval_controls(results, config, config.controls, config.seed, folder, gallery, device)


def question_answering(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Accuracy by type with the most frequent training answer as chance level; two-way accuracy; controls."""
    config = config.model_copy(update={"frames": 0, "max_text_tokens": 0})  # those are of retrieval
    folder = load_for_evaluation(config, inputs["qa"], device)
    corpus = inputs[config.qa]
    questions = Questions.of(corpus, config.split, excluded(config, corpus))
    trained = Questions.of(corpus, "train")
    baseline = majority_baseline(
        list(zip(trained.types, trained.answers, strict=True)),
        list(zip(questions.types, questions.answers, strict=True)),
    )
    encoder, length = folder.normalized(device), length_of(config, folder)
    asked: dict[str, tuple[str, Answers]] = {
        "qa": ("question answering", partial(answer_logits, encoder, questions, folder.tokenizer, length, device)),
        **answers_under_controls(config.controls, config.seed, config, folder, questions, device),
    }
    for key, (what, answer) in asked.items():
        logits = answer()
        answers = [folder.answers[int(i)] for i in logits.argmax(1)]
        right = np.array([a == b for a, b in zip(answers, questions.answers, strict=True)])
        for score in accuracy_scores(right, baseline, questions.types, questions.queries):
            results.add(score, what, key)
        add_contrasts(results, what, key, config.contrasts, logits, folder.answers, questions)
        if key == "qa":
            ids, confidence = questions.queries.ids, logits.softmax(1).max(1).values.tolist()
            columns = ids, questions.types, questions.texts, questions.answers, answers, confidence, right.tolist()
            results.table("qa", [dict(zip(ANSWER_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)])


def add_contrasts(
    results: Results,
    what: str,
    key: str,
    contrasts: tuple[tuple[str, str], ...],
    logits: torch.Tensor,
    answers: list[str],
    questions: Questions,
) -> None:
    """Two-way accuracy: of the questions answered by one of a pair, how many rank it above the other one."""
    for pair in contrasts:
        asked = np.array([answer in pair for answer in questions.answers])
        if asked.any() and all(answer in answers for answer in pair):
            two = logits[asked][:, [answers.index(answer) for answer in pair]].argmax(1).tolist()
            right = np.array([pair[choice] for choice in two]) == np.array(questions.answers)[asked]
            results.add(Score(contrast_of(pair), right * 100.0, 50.0, questions.queries.select(asked)), what, key)


def retrieval_pictures(gallery: Gallery, scores: np.ndarray, out: Path, each: int = 4) -> None:
    """Draws pictures/retrieval.png: the queries with the best and the worst ranks of their videos."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    by_rank = np.argsort(
        [(row > row[v]).sum() for row, v in zip(scores, gallery.video_of_text, strict=True)], kind="stable"
    )
    best = scores.argsort(axis=1)[:, ::-1][:, :4]
    queries = []
    for text in [*by_rank[:each], *by_rank[-each:]]:
        own = int(gallery.video_of_text[text])
        place = int((scores[text] > scores[text, own]).sum()) + 1
        retrieved = [
            (middle_frame(gallery.reader, gallery.numbers[v]), gallery.ids[v], bool(v == own)) for v in best[text]
        ]
        queries.append(
            (gallery.texts[text], f"its video, {gallery.ids[own]}, came {place} of {scores.shape[1]}", retrieved)
        )
    (out / "pictures").mkdir(exist_ok=True)
    retrieval_picture(queries).save(out / "pictures" / "retrieval.png")


def middle_frame(reader: ShardReader, number: int) -> np.ndarray:
    """The first frame (H, W, 3) of the second of three equal segments of a sample."""
    sample = reader[number]
    return sample.frames([len(sample) // 3])[0]
