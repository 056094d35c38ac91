"""Evaluates every model of a pipeline once on the test split: zero-shot and fine-tuned retrieval, question answering,
the prompter's entities, and the controls."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from models.alpro import Alpro
from models.folder import ModelFolder
from shards.reader import ShardReader
from shards.schema import InputError
from stages.artifacts import Outcome, Resources, StageConfig, read_json, write_json
from stages.cache_prompts import read_entities, read_prompts
from stages.evaluation.controls import Shuffle, colours_only, reverse
from stages.evaluation.encode import Reorder, Texts, Videos, evaluator, load_model, uniform_frames
from stages.evaluation.entities import entity_accuracy
from stages.evaluation.metrics import Ranks, accuracy_by_type, chance_metrics, majority_baseline, retrieval_metrics
from stages.evaluation.qa import Questions, answer_logits
from stages.evaluation.retrieval import Gallery, encode_gallery, match_all, match_top_k
from stages.pictures import retrieval_picture
from stages.progress import progress
from stages.training.distributed import pick_device

VERSION = 3
ANSWER_COLUMNS = ("id", "type", "question", "answer", "predicted", "probability", "right")
TASKS = {"captions": "retrieval", "questions": "qa"}


class Config(StageConfig):
    """What is evaluated, and how."""

    retrieval: str = Field("", description="corpus whose test captions are queries; empty: no retrieval")
    qa: str = Field("", description="corpus whose test questions are asked; empty: no question answering")
    split: Literal["validation", "test"] = Field(
        "test", description="the split; validation while choices are still made"
    )
    protocol: Literal["all", "top_k"] = Field(
        "all", description="all: the matching head on every pair; top_k: on the k most similar"
    )
    k: int = Field(128, ge=1, description="pairs a query that top_k matches")
    least_share: float = Field(
        0.99, ge=0, le=1, description="share of the split's items that must have been decoded; below, it is an error"
    )
    text_length: int = Field(0, ge=0, description="most word pieces of a text; 0: as many as in the model's training")
    controls: bool = Field(False, description="also: colours alone, frames shuffled, frames reversed")
    contrasts: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of answers to tell apart, such as left and right"
    )
    seed: int = Field(0, ge=0, description="seed of the shuffled frames")


@dataclass
class Report:
    """Rows of the results table, metrics, and what is written beside them."""

    split: str
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, metric: str, value: float, items: int, chance: float | None, name: str) -> None:
        """One score with the number of items and chance (None: no meaning)."""
        self.rows.append(
            {"name": name, "what": what, "metric": metric, "value": value, "items": items, "chance": chance}
        )
        self.metrics[f"{self.split}/{name}"] = value

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Per-query results as Parquet."""
        pq.write_table(pa.Table.from_pylist(rows), self.out / f"{name}.parquet")


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `pretrained`, `retrieval`, `qa` (models), `prompter`, `prompts`, `vocabulary`, and corpora by name; those
    that a pipeline does not have are left out. Writes results.json and per-query tables."""
    device = pick_device(resources)
    report = Report(config.split, out)
    for name in dict.fromkeys(filter(None, (config.retrieval, config.qa))):
        there, asked = check_items(config, name, inputs[name])
        if there < asked:
            report.add(f"decoded of {name}", f"{there} of {asked}", 100 * there / asked, asked, None, f"decoded/{name}")
    parts = [
        part for part in (zero_shot, fine_tuned, questions, entities) if part.__name__ in available(config, inputs)
    ]
    with progress("evaluating", len(parts), "parts") as advance:
        for part in parts:
            part(config, inputs, report, device)
            advance()
    write_json(out / "results.json", report.rows)
    items = {f"{row['what']}, {row['metric']}": row["items"] for row in report.rows}
    return Outcome(items, report.metrics)


def check_items(config: Config, name: str, folder: Path) -> tuple[int, int]:
    """How many items of the split were decoded, and of how many. Raises InputError where they are too small a share,
    or where none has what is asked of this corpus; a pipeline calls it before it trains anything."""
    for wanted, column in ((config.retrieval, "captions"), (config.qa, "questions")):
        if wanted == name and not any(ShardReader(folder, config.split).column(column).to_pylist()):
            raise InputError(
                f"{name}: no {config.split} item has {column}; name some in the column split, raise "
                f"corpora.{name}.{config.split}, or leave evaluate.{TASKS[column]} empty"
            )
    if not (folder / "statistics.json").is_file():
        return 0, 0  # shards that were made elsewhere: what they lack is not known
    there, asked = read_json(folder / "statistics.json")["splits"][config.split]["items"]
    if asked and there < config.least_share * asked:
        raise InputError(
            f"{name}: {there} of {asked} {config.split} items could be decoded, less than evaluate.least_share = "
            f"{config.least_share:g}: scores would be of another test; see {folder / 'rejects.parquet'}"
        )
    return there, asked


def available(config: Config, inputs: dict[str, Path]) -> set[str]:
    needs = {
        "zero_shot": config.retrieval and "pretrained" in inputs,
        "fine_tuned": config.retrieval and "retrieval" in inputs,
        "questions": config.qa and "qa" in inputs,
        "entities": (config.retrieval or config.qa) and "prompts" in inputs,
    }
    return {name for name, present in needs.items() if present}


def zero_shot(config: Config, inputs: dict[str, Path], report: Report, device: torch.device) -> None:
    """Retrieval by the pre-trained model as it is."""
    folder = load_model(inputs["pretrained"], device)
    gallery = Gallery.of(inputs[config.retrieval], config.split)
    scores, texts, videos = score(folder, gallery, config, device)
    add_retrieval(report, "zero-shot retrieval", "zero_shot", scores, gallery)
    add_retrieval(report, "zero-shot by similarity", "zero_shot_vtc", similarity(texts, videos), gallery)


def fine_tuned(config: Config, inputs: dict[str, Path], report: Report, device: torch.device) -> None:
    """Retrieval by the fine-tuned model, seen and unseen combinations apart where the manifest tells; and controls."""
    folder = load_model(inputs["retrieval"], device)
    gallery = Gallery.of(inputs[config.retrieval], config.split)
    scores, _, _ = score(folder, gallery, config, device)
    ranks = add_retrieval(report, "fine-tuned retrieval", "retrieval", scores, gallery)
    add_seen_unseen(report, gallery, ranks)
    retrieval_pictures(gallery, scores, report.out)
    if config.controls:
        if (blind := colours_only(gallery)) is not None:
            add_retrieval(report, "control: colours alone", "colours_only", blind, gallery, ways=("t2v",))
        for name, reorder in (("shuffled", Shuffle(config.seed)), ("reversed", reverse)):
            scores, _, _ = score(folder, gallery, config, device, reorder)
            add_retrieval(report, f"control: frames {name}", f"retrieval_{name}", scores, gallery, ways=("t2v",))


def score(
    folder: ModelFolder, gallery: Gallery, config: Config, device: torch.device, reorder: Reorder | None = None
) -> tuple[np.ndarray, Texts, Videos]:
    """Scores (texts, videos) by the configured protocol."""
    model = cast(Alpro, folder.model)
    texts, videos = encode_gallery(
        evaluator(folder, device), gallery, folder.tokenizer, length_of(config, folder), device, reorder
    )
    scores = (
        match_all(model, texts, videos) if config.protocol == "all" else match_top_k(model, texts, videos, config.k)
    )
    return scores, texts, videos


def length_of(config: Config, folder: ModelFolder) -> int:
    return config.text_length or folder.preprocessing.text_length


def similarity(texts: Texts, videos: Videos) -> np.ndarray:
    return (texts.features @ videos.features.T).cpu().numpy()


def add_retrieval(
    report: Report, what: str, name: str, scores: np.ndarray, gallery: Gallery, ways: tuple[str, ...] = ("t2v", "v2t")
) -> Ranks:
    """Adds R@1, R@5, R@10 and MdR to the report and writes the rank of every query; returns the ranks of the texts."""
    metrics, t2v, v2t = retrieval_metrics(scores, gallery.video_of_text)
    chance = chance_metrics(gallery.video_of_text, scores.shape[1])
    for way, ranks in (("t2v", t2v), ("v2t", v2t)):
        for column in ("R1", "R5", "R10", "MdR") if way in ways else ():
            key, shown = f"{way}/{column}", f"{way} {column.replace('R', 'R@') if column != 'MdR' else column}"
            report.add(what, shown, metrics[key], len(ranks.better), chance[key], f"{name}/{key}")
    best = scores.argsort(axis=1)[:, ::-1][:, :5]
    rows = zip(gallery.texts, gallery.video_of_text, t2v.rank, scores, best, strict=True)
    report.table(
        f"{name}_t2v",
        [
            {
                "text": text,
                "id": gallery.ids[video],
                "rank": float(rank),
                "score": float(row[video]),
                "best": [gallery.ids[i] for i in first],
                "best_scores": row[first].tolist(),
            }
            for text, video, rank, row, first in rows
        ],
    )
    if "v2t" in ways:
        found = zip(gallery.ids, v2t.rank, scores.T, scores.T.argsort(axis=1)[:, ::-1][:, :5], strict=True)
        report.table(
            f"{name}_v2t",
            [
                {
                    "id": video,
                    "rank": float(rank),
                    "best": [gallery.texts[i] for i in first],
                    "best_scores": row[first].tolist(),
                }
                for video, rank, row, first in found
            ],
        )
    return t2v


def add_seen_unseen(report: Report, gallery: Gallery, ranks: Ranks) -> None:
    """R@1 apart for clips whose combination training showed and those whose it never did (the sample's `unseen`)."""
    marks = [gallery.reader[n].about["meta"].get("unseen") for n in gallery.numbers]
    if any(not isinstance(mark, bool) for mark in marks):
        return
    unseen = np.array(marks)[gallery.video_of_text]
    for name, chosen in (("seen", ~unseen), ("unseen", unseen)):
        if chosen.any():
            value = float(ranks.recall(1)[chosen].mean() * 100)
            report.add(
                f"fine-tuned retrieval, {name}",
                "t2v R@1",
                value,
                int(chosen.sum()),
                100 / ranks.gallery,
                f"retrieval/t2v/R1_{name}",
            )


def questions(config: Config, inputs: dict[str, Path], report: Report, device: torch.device) -> None:
    """Answers by type against the most frequent training answer; two-way contrasts; and with frames in other orders."""
    folder = load_model(inputs["qa"], device)
    asked = Questions.of(inputs[config.qa], config.split)
    if not asked.texts:
        return
    trained = Questions.of(inputs[config.qa], "train")
    baseline = majority_baseline(
        list(zip(trained.types, trained.answers, strict=True)), list(zip(asked.types, asked.answers, strict=True))
    )
    chance = accuracy_by_type(baseline, asked.types)
    orders: list[tuple[str, Reorder | None]] = [("", None)]
    if config.controls:
        orders += [("shuffled", Shuffle(config.seed)), ("reversed", reverse)]
    for name, reorder in orders:
        objective = evaluator(folder, device)
        logits = answer_logits(objective, asked, folder.tokenizer, length_of(config, folder), device, reorder=reorder)
        answers = [folder.answers[int(i)] for i in logits.argmax(1)]
        certain = logits.softmax(1).max(1).values.tolist()
        right = np.array([a == b for a, b in zip(answers, asked.answers, strict=True)])
        what, key = (f"control: frames {name}", f"qa_{name}") if name else ("question answering", "qa")
        for metric, value in accuracy_by_type(right, asked.types).items():
            kind = metric.removeprefix("acc").removeprefix("_")
            items = sum(t == kind for t in asked.types) if kind else len(asked.types)
            shown = kind.replace("_", " ") or "all questions"
            report.add(what, shown, value, items, chance[metric], f"{key}/{metric}")
        add_contrasts(report, what, key, config.contrasts, logits, folder.answers, asked)
        if not name:
            columns = zip(
                [asked.ids[v] for v in asked.video_of_question],
                asked.types,
                asked.texts,
                asked.answers,
                answers,
                certain,
                right,
                strict=True,
            )
            report.table(
                "qa",
                [
                    dict(
                        zip(
                            ("id", "type", "question", "answer", "predicted", "probability", "right"),
                            map(plain, row),
                            strict=True,
                        )
                    )
                    for row in columns
                ],
            )


def plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def add_contrasts(
    report: Report,
    what: str,
    key: str,
    contrasts: tuple[tuple[str, str], ...],
    logits: torch.Tensor,
    answers: list[str],
    asked: Questions,
) -> None:
    """For each pair of answers: of the questions whose answer is one of them, how many rank it above the other."""
    for pair in contrasts:
        items = [i for i, answer in enumerate(asked.answers) if answer in pair]
        if items and all(answer in answers for answer in pair):
            two = logits[items][:, [answers.index(answer) for answer in pair]].argmax(1).tolist()
            right = np.mean([pair[choice] == asked.answers[i] for i, choice in zip(items, two, strict=True)])
            report.add(
                what,
                f"{pair[0]} against {pair[1]}",
                float(right) * 100,
                len(items),
                50.0,
                f"{key}/{pair[0]}_or_{pair[1]}",
            )


def entities(config: Config, inputs: dict[str, Path], report: Report, device: torch.device) -> None:
    """The prompter's best entity for a clip against what is in it."""
    prompter = load_model(inputs["prompter"], device)
    folder = inputs[config.retrieval or config.qa]
    found = entity_accuracy(
        prompter, read_prompts(inputs["prompts"]), read_entities(inputs["vocabulary"]), folder, config.split, device
    )
    if found:
        report.add("prompter", "entity accuracy", found.accuracy, len(found.ids), found.best_constant, "entities/acc")
        rows = zip(found.ids, found.named, found.truth, strict=True)
        report.table("entities", [{"id": i, "named": n, "truth": t, "right": n in t} for i, n, t in rows])


def retrieval_pictures(gallery: Gallery, scores: np.ndarray, out: Path, each: int = 4) -> None:
    """pictures/retrieval.png: some queries whose video came first, and those whose video came last of all."""
    metrics_order = np.argsort(
        [(row > row[v]).sum() for row, v in zip(scores, gallery.video_of_text, strict=True)], kind="stable"
    )
    best = scores.argsort(axis=1)[:, ::-1][:, :4]
    queries = []
    for text in [*metrics_order[:each], *metrics_order[-each:]]:
        own = int(gallery.video_of_text[text])
        place = int((scores[text] > scores[text, own]).sum()) + 1
        found = [(middle_frame(gallery.reader, gallery.numbers[v]), gallery.ids[v], bool(v == own)) for v in best[text]]
        queries.append(
            (gallery.texts[text], f"its video, {gallery.ids[own]}, came {place} of {scores.shape[1]}", found)
        )
    (out / "pictures").mkdir(exist_ok=True)
    retrieval_picture(queries).save(out / "pictures" / "retrieval.png")


def middle_frame(reader: ShardReader, number: int) -> np.ndarray:
    return uniform_frames(reader, number, 3)[1].transpose(1, 2, 0)
