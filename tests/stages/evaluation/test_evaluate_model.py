"""A model that reads off how the brightness of a clip goes is scored: rows, intervals, controls."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from alpro.files import read_json
from alpro.stages.evaluation.evaluate_model import Asked, add_ranking, evaluate_model
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import bootstrap_interval

CONTROLS = ("shuffled", "reversed", "single_frame", "text_only")


@pytest.fixture
def captions(clips_of_brightness):
    return Gallery.read(clips_of_brightness, "test")


@pytest.fixture
def questions(clips_of_brightness):
    return Gallery.read(clips_of_brightness, "test", column="questions")


def gallery_of(relevant):
    """A gallery without frames, by which videos are right for each text."""
    items = [
        [f"ball {text}" for text in np.flatnonzero(right)]
        for right in np.transpose(relevant)
    ]
    ids = [f"v{video}" for video in range(len(items))]
    return Gallery([], ids, items, merged=True)


def values_of(results):
    """The scores by name."""
    return {row["name"]: row["value"] for row, _ in results.scores}


@pytest.fixture
def results():
    """The ranking of three videos. A score that is not a number is the lowest."""
    scores = np.array(
        [
            [0.5, np.nan, 0.1],
            [0.2, 0.9, np.nan],
            [0.1, 0.2, np.nan],
        ]
    )
    results = Results("mine")
    both = {"t2v": scores, "v2t": scores}
    gallery = gallery_of(np.eye(3))
    add_ranking(results, "matching", "by matching", both, gallery, "by hand")
    return results


def test_a_row_says_what_was_asked_of_how_many(results):
    row = {
        "model": "mine",
        "name": "matching/v2t/MdR",
        "table": "retrieval",
        "what": "by matching",
        "direction": "v2t",
        "protocol": "by hand",
        "metric": "MdR",
        "value": 1,
        "low": None,
        "high": None,
        "unit": "rank",
        "higher_is_better": False,
        "statistic": "median",
        "items": 3,
        "chance": 2.0,
        "baseline": "chance",
    }
    assert row | {"videos": 3} in results.rows()
    assert values_of(results)["matching/t2v/R1"] == pytest.approx(200 / 3)


def test_a_table_lists_the_best_items_of_each_query(results):
    row = results.tables["matching_t2v"].to_pylist()[0]
    assert row["text"] == "ball 0"
    assert row["id"] == "v0"
    assert row["rank"] == 1.0
    assert row["best"] == ["v0", "v2", "v1"]
    assert row["best_scores"] == [0.5, 0.1, -np.inf]
    assert results.tables["matching_t2v"]["rank"].to_pylist() == [1, 1, 3]


def test_a_text_with_several_right_videos_has_their_average_precision():
    """The video without a text is in the gallery of texts, and is no query."""
    results = Results("mine")
    scores = np.array([[3.0, 2, 1], [1, 2, 3]])
    gallery = gallery_of([[1, 0, 1], [1, 0, 0]])

    both = {"t2v": scores, "v2t": scores}
    add_ranking(results, "similarity", "", both, gallery, "by hand")

    values = values_of(results)
    assert values["similarity/t2v/mAP"] == pytest.approx(
        100 * ((1 + 2 / 3) / 2 + 1 / 3) / 2
    )
    assert values["similarity/t2v/R1"] == 50
    assert {row["items"] for row in results.rows()} == {2}


def test_the_queries_of_a_score_give_its_value_and_interval(
    reading, captions, questions, tmp_path
):
    results = evaluate_model(reading(), captions, Asked(controls=CONTROLS[:2], top_k=3))
    asked = Asked(controls=CONTROLS[:2], contrasts=(("rising", "falling"),))
    results.extend(evaluate_model(reading(), questions, asked))

    results.write(tmp_path, "test")

    table = pq.read_table(tmp_path / "scores.parquet")
    rows = {row["name"]: row for row in read_json(tmp_path / "results.json")}
    assert set(table["score"].to_pylist()) == set(rows)
    for name, row in rows.items():
        part = table.filter(pc.equal(table["score"], name))
        values = part["value"].to_numpy()
        ids = np.array(part["id"].to_pylist())
        statistic, interval = np.median, None
        if row["statistic"] == "mean":
            statistic, interval = np.mean, bootstrap_interval(values, ids)
        assert (row["value"], row["items"]) == (statistic(values), 4), name
        assert (row["low"], row["high"]) == (interval or (None, None)), name
        assert sorted(ids) == ["down0", "down1", "up0", "up1"]


def test_retrieval_under_every_control(reading, captions):
    """Each text has two clips that match it equally. Backwards it matches the others; shuffled
    clips neither rise nor fall; of single frames every clip has bright and dark ones, so that all
    pairs tie."""
    results = evaluate_model(
        reading(), captions, Asked(controls=CONTROLS, seed=5, top_k=3)
    )

    ranks = {
        name: value
        for name, value in values_of(results).items()
        if name.endswith("t2v/MdR")
    }
    assert ranks == {
        "similarity/t2v/MdR": 1.5,
        "matching/t2v/MdR": 1.5,
        "similarity_shuffled/t2v/MdR": 2.5,
        "similarity_reversed/t2v/MdR": 3.5,
        "similarity_single_frame/t2v/MdR": 2.5,
    }
    protocols = {row["name"].split("/")[0]: row["protocol"] for row in results.rows()}
    assert protocols.pop("matching") == "top 3, 4 frames"
    assert set(protocols.values()) == {"all pairs, 4 frames"}


def test_answers_under_every_control(reading, questions, clips_of_brightness):
    """Bright frames say "rising", dark frames "falling" with more certainty. The clip of text_only
    is the mean color, zero after normalization: it is not darker than grey."""
    model = reading(certainty=2.0)
    training = Gallery.read(clips_of_brightness, "train", column="questions").questions
    contrasts = (("rising", "falling"), ("rising", "sideways"))
    asked = Asked(controls=CONTROLS, contrasts=contrasts, training_questions=training)

    results = evaluate_model(model, questions, asked)

    expected = {
        "qa": 100,
        "qa_shuffled": 0,
        "qa_reversed": 0,
        "qa_single_frame": 50,
        "qa_text_only": 50,
    }
    values = values_of(results)
    for name, value in expected.items():
        assert values[f"{name}/acc"] == values[f"{name}/acc_how"] == value, name
    assert {row["chance"] for row in results.rows()} == {50}
    assert values["qa_reversed/rising_or_falling"] == 0
    assert "qa/rising_or_sideways" not in values
    blank = model.alpro.seen[-1]
    assert tuple(blank.shape) == (1, 4, 3, 32, 32)
    assert not blank.any()
