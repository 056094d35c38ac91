"""The rows of the results table: scores beside what chance would reach."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages.evaluate import Config, Report, add_contrasts, add_retrieval, add_seen_unseen, available
from stages.evaluation.metrics import retrieval_metrics
from stages.evaluation.qa import Questions
from stages.evaluation.retrieval import Gallery


@pytest.fixture
def report(tmp_path) -> Report:
    return Report("test", tmp_path)


@pytest.fixture
def gallery_of(corpus_of, tmp_path):
    """gallery_of(captions a video, videos): a gallery of the test split; every other video is unseen."""

    def make(captions: int, videos: int) -> Gallery:
        rows = [
            {
                "id": f"v{n}",
                "split": "test",
                "captions": [f"ball {n} {c}" for c in range(captions)],
                "meta": {"unseen": n % 2 == 1},
            }
            for n in range(videos)
        ]
        return Gallery.of(corpus_of(tmp_path / "corpus", rows), "test")

    return make


@pytest.mark.parametrize("captions", [1, 3])
def test_a_ranker_that_knows_nothing_reaches_chance(captions, report, gallery_of):
    """The mean over many random rankings is what the column `chance` says."""
    gallery = gallery_of(captions, 12)
    add_retrieval(report, "nothing", "nothing", np.zeros((12 * captions, 12)), gallery)
    chance = {row["metric"]: row["chance"] for row in report.rows}
    rng = np.random.default_rng(0)
    draws = [retrieval_metrics(rng.random((12 * captions, 12)), gallery.video_of_text)[0] for _ in range(1500)]
    for metric, expected in chance.items():
        way, name = metric.split()
        mean = np.mean([draw[f"{way}/{name.replace('@', '')}"] for draw in draws])
        assert expected == pytest.approx(mean, rel=0.05), metric


def test_the_rows_say_what_was_asked_of_how_many(report, gallery_of, tmp_path):
    add_retrieval(report, "by hand", "hand", np.eye(4) + 0.1, gallery_of(1, 4))
    assert [(row["metric"], row["value"], row["items"]) for row in report.rows] == [
        *(("t2v R@1", 100, 4), ("t2v R@5", 100, 4), ("t2v R@10", 100, 4), ("t2v MdR", 1, 4)),
        *(("v2t R@1", 100, 4), ("v2t R@5", 100, 4), ("v2t R@10", 100, 4), ("v2t MdR", 1, 4)),
    ]
    assert report.metrics["test/hand/t2v/R1"] == 100
    assert not any("@" in name for name in report.metrics)
    ranks = pq.read_table(tmp_path / "hand_t2v.parquet").to_pylist()
    assert [(row["id"], row["rank"], row["best"][0]) for row in ranks] == [(f"v{n}", 1.0, f"v{n}") for n in range(4)]


def test_seen_and_unseen_are_told_apart(report, gallery_of):
    gallery = gallery_of(1, 4)
    scores = np.eye(4)
    scores[1] = [1, 0, 0, 0]  # of the unseen v1 and v3 one is not found
    ranks = add_retrieval(report, "x", "x", scores, gallery)
    report.rows.clear()
    add_seen_unseen(report, gallery, ranks)
    assert [(row["value"], row["items"], row["chance"]) for row in report.rows] == [(100, 2, 25), (50, 2, 25)]
    assert report.metrics["test/retrieval/t2v/R1_unseen"] == 50


def test_contrasts_tell_two_answers_apart_among_the_questions_with_one_of_them(report):
    answers = ["left", "right", "up"]
    asked = Questions(None, [], [], [], ["left", "left", "right", "up"], [], np.zeros(4, int))
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    add_contrasts(report, "what", "qa", (("left", "right"), ("up", "sideways")), logits, answers, asked)
    assert [(row["metric"], row["items"], row["chance"]) for row in report.rows] == [("left against right", 3, 50.0)]
    assert report.metrics["test/qa/left_or_right"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("config", "inputs", "parts"),
    [
        ({"retrieval": "clips"}, ["pretrained", "retrieval"], {"zero_shot", "fine_tuned"}),
        ({"retrieval": "clips"}, ["pretrained", "prompts"], {"zero_shot", "entities"}),
        ({"qa": "clips"}, ["pretrained", "retrieval", "qa"], {"questions"}),
        ({}, ["pretrained", "retrieval", "qa", "prompts"], set()),
    ],
)
def test_what_a_pipeline_does_not_have_is_left_out(config, inputs, parts):
    assert available(Config(**config), dict.fromkeys(inputs, Path())) == parts
