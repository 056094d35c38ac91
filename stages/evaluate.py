"""Evaluates the fine-tuned models: retrieval, question answering, and controls (paper, section 4)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from alpro.models.clip_prompter import load_clip
from alpro.progress import progress
from alpro.shards.pictures import retrieval_picture
from alpro.shards.reader import ShardReader
from alpro.stages.encoding.encode import embed_texts, encode_videos, similarities
from alpro.stages.evaluation.controls.columns import Value, in_subset
from alpro.stages.evaluation.controls.settings import ControlsConfig, Name
from alpro.stages.evaluation.controls.shortcuts import Answers, RetrievalControls, answers_under_controls
from alpro.stages.evaluation.metrics import (
    TABLE_VERSION,
    Ranks,
    Score,
    accuracy_scores,
    contrast_of,
    majority_baseline,
    retrieval_scores,
)
from alpro.stages.evaluation.protocol import excluded, length_of, load_for_evaluation, protocol_of
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.evaluation.results import Results, add_rankers, add_retrieval, evaluating
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.execution.interface import FILE_OR_NAME, OPTIONAL, Outcome, Resources
from alpro.stages.vocabulary.nouns import load_tagger

VERSION = f"8 {TABLE_VERSION}"
ANSWER_COLUMNS = ("id", "type", "question", "answer", "predicted", "probability", "right")


class Config(ControlsConfig):
    """Evaluation. The stage `zero_shot` uses the same keys, except `subsets`, `word_controls`, `controls`,
    `contrasts`, `seed`, `baseline` and those of question answering."""

    baseline: str = Field(
        "",
        description="a CLIP or SigLIP (hub name or folder) to compare retrieval with, by the mean "
        "embedding of the frames; empty: none",
        json_schema_extra=FILE_OR_NAME,
    )
    subsets: dict[Name, dict[str, Value]] = Field(
        {},
        description="subsets of the test items by name, for which text-to-video retrieval is also reported: columns of "
        'the manifest and their values, such as `news = { genre = "news" }`',
    )
    qa_frames: int = Field(0, ge=0, description="`frames` of question answering; 0: as in training")
    qa_max_text_tokens: int = Field(0, ge=0, description="`max_text_tokens` of questions; 0: as in training")
    contrasts: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of answers for two-way accuracy, such as left and right"
    )
    answer_groups: dict[Name, tuple[str, ...]] = Field(
        {},
        description="groups of answers by name, for whose questions accuracy is also reported",
        json_schema_extra=OPTIONAL,
    )

    def check_columns(self, folder: Path) -> None:
        super().check_columns(folder)
        if self.subsets:
            gallery = Gallery.of(folder, self.split, excluded(self, folder))
            for values in self.subsets.values():
                in_subset(gallery, values)


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: the models `retrieval` and `qa`, or one of them, and the corpora by name.

    Writes results.json and per-query tables.
    """
    if "counterfactual" in config.controls:
        load_tagger("embedded", True)  # raises InputError without spaCy, before the work
    evaluations = {"retrieval": (config.retrieval, retrieval), "qa": (config.qa, question_answering)}
    tasks = [task for model, (corpus, task) in evaluations.items() if corpus and model in inputs]
    with evaluating(config, inputs, out, resources) as (results, device):
        with progress("evaluating", len(tasks), "tasks") as advance:
            for task in tasks:
                task(config, inputs, results, device)
                advance()
        return results.outcome()


def retrieval(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Retrieval by the fine-tuned model, by each of its scores, and by matching on subsets; controls."""
    folder = load_for_evaluation(config, inputs["retrieval"], device)
    corpus = inputs[config.retrieval]
    gallery = Gallery.of(corpus, config.split, excluded(config, corpus))
    scores, ranks, encoded = add_rankers(results, "fine-tuned", "retrieval", folder, gallery, config, device)
    add_subsets(results, config.subsets, gallery, ranks["t2v"], protocol_of(config, folder))
    if config.baseline:
        add_baseline(results, config, gallery, folder.model.config.video.frames, device)
    retrieval_pictures(gallery, scores, results.out)
    RetrievalControls(results, config, folder, gallery, *encoded, device).add()


def add_baseline(results: Results, config: Config, gallery: Gallery, frames: int, device: torch.device) -> None:
    """Retrieval by the similarity of a CLIP or SigLIP that averages the embeddings of as many frames as ours sees."""
    baseline = load_clip(config.baseline, device, key="evaluate.baseline")
    baseline.model.set_frames(frames)
    texts = embed_texts(baseline.model, baseline.tokenizer, gallery.texts, 0, device)
    videos = encode_videos(baseline.normalized(device), gallery.reader, gallery.numbers, device)
    similarity = similarities(texts, videos.features).cpu().numpy()
    protocol = protocol_of(config, baseline, by_similarity=True)
    add_retrieval(results, "baseline: CLIP, frames averaged", "baseline", similarity, gallery, protocol=protocol)


def add_subsets(
    results: Results, subsets: dict[str, dict[str, Value]], gallery: Gallery, ranks: Ranks, protocol: str = ""
) -> None:
    """The metrics of the texts of each subset, ranked in the whole gallery."""
    for name, values in subsets.items():
        chosen = in_subset(gallery, values)
        subset, queries = ranks.select(chosen), gallery.queries("t2v").select(chosen)
        for score in retrieval_scores(subset, queries) if len(subset) else ():
            metric = replace(score.metric, key=f"{score.metric.key}_{name}")
            results.add(score._replace(metric=metric), f"fine-tuned retrieval, {name}", "retrieval", "t2v", protocol)


def question_answering(config: Config, inputs: dict[str, Path], results: Results, device: torch.device) -> None:
    """Accuracy by type with the most frequent training answer as chance level; two-way accuracy; controls."""
    config = config.model_copy(update={"frames": config.qa_frames, "max_text_tokens": config.qa_max_text_tokens})
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
        **answers_under_controls(config, folder, questions, device),
    }
    groups = {name: np.isin(questions.answers, members) for name, members in config.answer_groups.items()}
    for key, (what, answer) in asked.items():
        logits = answer()
        answers = [folder.answers[int(i)] for i in logits.argmax(1)]
        confidence = logits.softmax(1).max(1).values.tolist()
        right = np.array([a == b for a, b in zip(answers, questions.answers, strict=True)])
        for score in accuracy_scores(right, baseline, questions.types, questions.queries, groups):
            results.add(score, what, key)
        add_contrasts(results, what, key, config.contrasts, logits, folder.answers, questions)
        if key == "qa":
            ids = [questions.ids[video] for video in questions.video_of_question]
            asked_for = ids, questions.types, questions.texts, questions.answers
            columns = zip(*asked_for, answers, confidence, right.tolist(), strict=True)
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
