"""Evaluates the fine-tuned models: retrieval, question answering, and controls (paper, section 4)."""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages import Stage
from alpro.stages.artifacts.store import Outcome, Resources
from alpro.stages.corpora.pictures import retrieval_picture
from alpro.stages.evaluation.controls import Shuffle, colours_only, reverse
from alpro.stages.evaluation.encode import Reorder
from alpro.stages.evaluation.metrics import Ranks, accuracy_by_type, majority_baseline
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded, length_of, load_for_evaluation, score_pairs
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.evaluation.results import Results, add_retrieval
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.progress import progress
from alpro.stages.training.distributed import pick_device

VERSION = 4
STAGE = Stage(
    help="evaluate the fine-tuned models on the test split",
    kind="evaluation",
    inputs={"retrieval": "finetune_retrieval", "qa": "finetune_qa"},
    corpora=True,
)
ANSWER_COLUMNS = ("id", "type", "question", "answer", "predicted", "probability", "right")


class Config(EvaluationConfig):
    """Evaluation. The stage `zero_shot` uses the same keys, except `controls`, `contrasts` and `seed`."""

    controls: bool = Field(
        False, description="also evaluate the controls: colours only, shuffled frames, reversed frames"
    )
    contrasts: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of answers for two-way accuracy, such as left and right"
    )
    seed: int = Field(0, ge=0, description="random seed of the shuffled frames")


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: the models `retrieval` and `qa`, or one of them, and the corpora by name.

    Writes results.json and per-query tables.
    """
    device = pick_device(resources)
    results = Results.of(config, inputs, out)
    evaluations = {"retrieval": (config.retrieval, retrieval), "qa": (config.qa, question_answering)}
    tasks = [task for model, (corpus, task) in evaluations.items() if corpus and model in inputs]
    with progress("evaluating", len(tasks), "tasks") as advance:
        for task in tasks:
            task(config, inputs, results, device)
            advance()
    return results.outcome()


def retrieval(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Retrieval by the fine-tuned model, also by seen and unseen combinations if the manifest has them; controls."""
    folder = load_for_evaluation(config, inputs["retrieval"], device)
    corpus = inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    scores, _, _ = score_pairs(folder, gallery, config, device)
    ranks = add_retrieval(results, "fine-tuned retrieval", "retrieval", scores, gallery)
    add_seen_unseen(results, gallery, ranks)
    retrieval_pictures(gallery, scores, results.out)
    if config.controls:
        if (blind := colours_only(gallery)) is not None:
            add_retrieval(results, "control: colours alone", "colours_only", blind, gallery, ways=("t2v",))
        for name, reorder in (("shuffled", Shuffle(config.seed)), ("reversed", reverse)):
            scores, _, _ = score_pairs(folder, gallery, config, device, reorder)
            add_retrieval(results, f"control: frames {name}", f"retrieval_{name}", scores, gallery, ways=("t2v",))


def add_seen_unseen(results: Results, gallery: Gallery, ranks: Ranks) -> None:
    """R@1 separately for clips with combinations that training has and has not (the sample's column `unseen`)."""
    marks = [gallery.reader[n].about["meta"].get("unseen") for n in gallery.numbers]
    if any(not isinstance(mark, bool) for mark in marks):
        return
    unseen = np.array(marks)[gallery.video_of_text]
    for name, chosen in (("seen", ~unseen), ("unseen", unseen)):
        if chosen.any():
            value = float(ranks.recall(1)[chosen].mean() * 100)
            results.add(
                f"fine-tuned retrieval, {name}",
                "t2v R@1",
                value,
                int(chosen.sum()),
                100 / ranks.gallery,
                f"retrieval/t2v/R1_{name}",
            )


def question_answering(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Accuracy by type with the most frequent training answer as chance level; two-way accuracy; controls."""
    folder = load_for_evaluation(config, inputs["qa"], device)
    corpus = inputs[config.qa]
    questions = Questions.of(corpus, config.split, excluded(config, corpus))
    trained = Questions.of(corpus, "train")
    baseline = majority_baseline(
        list(zip(trained.types, trained.answers, strict=True)),
        list(zip(questions.types, questions.answers, strict=True)),
    )
    chance = accuracy_by_type(baseline, questions.types)
    orders: list[tuple[str, Reorder | None]] = [("", None)]
    if config.controls:
        orders += [("shuffled", Shuffle(config.seed)), ("reversed", reverse)]
    for name, reorder in orders:
        encoder = NormalizedModel.from_folder(folder, device)
        logits = answer_logits(encoder, questions, folder.tokenizer, length_of(config, folder), device, reorder=reorder)
        answers = [folder.answers[int(i)] for i in logits.argmax(1)]
        confidence = logits.softmax(1).max(1).values.tolist()
        right = np.array([a == b for a, b in zip(answers, questions.answers, strict=True)])
        what, key = (f"control: frames {name}", f"qa_{name}") if name else ("question answering", "qa")
        for metric, value in accuracy_by_type(right, questions.types).items():
            kind = metric.removeprefix("acc").removeprefix("_")
            items = sum(t == kind for t in questions.types) if kind else len(questions.types)
            shown = kind.replace("_", " ") or "all questions"
            results.add(what, shown, value, items, chance[metric], f"{key}/{metric}")
        add_contrasts(results, what, key, config.contrasts, logits, folder.answers, questions)
        if not name:
            columns = zip(
                [questions.ids[v] for v in questions.video_of_question],
                questions.types,
                questions.texts,
                questions.answers,
                answers,
                confidence,
                right.tolist(),
                strict=True,
            )
            results.table("qa", [dict(zip(ANSWER_COLUMNS, row, strict=True)) for row in columns])


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
        items = [i for i, answer in enumerate(questions.answers) if answer in pair]
        if items and all(answer in answers for answer in pair):
            two = logits[items][:, [answers.index(answer) for answer in pair]].argmax(1).tolist()
            right = np.mean([pair[choice] == questions.answers[i] for i, choice in zip(items, two, strict=True)])
            results.add(
                what,
                f"{pair[0]} against {pair[1]}",
                float(right) * 100,
                len(items),
                50.0,
                f"{key}/{pair[0]}_or_{pair[1]}",
            )


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
