"""What is evaluated, before fine-tuning and after it: rows of the results table, with fake models whose answers are
known."""

from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from alpro.errors import InputError
from alpro.pipeline.reports.results import tables
from alpro.stages import evaluate, zero_shot
from alpro.stages.evaluation import results as evaluation_results
from alpro.stages.evaluation.entities import Named
from alpro.stages.evaluation.gallery import Labels
from alpro.stages.evaluation.metrics import ACCURACY, Queries, Score, retrieval_metrics
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items
from alpro.stages.evaluation.qa import add_answers
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.retrieval import add_retrieval
from alpro.stages.evaluation.statistics import bootstrap_interval
from tests.stages.evaluation.conftest import also_in_training, evaluated, statistics


@pytest.fixture
def results(tmp_path) -> Results:
    return Results("test", tmp_path)


def labels_of(captions: int, videos: int) -> Labels:
    """Some videos with so many captions each."""
    ids = [f"v{n}" for n in range(videos)]
    texts = [f"ball {n} {c}" for n in range(videos) for c in range(captions)]
    return Labels(ids, texts, np.eye(videos, dtype=bool).repeat(captions, axis=0))


@pytest.mark.parametrize("captions", [1, 3])
def test_a_ranker_that_knows_nothing_reaches_chance(captions, results):
    """The mean over many random rankings is what the column `chance` says."""
    labels = labels_of(captions, 12)
    add_retrieval(results, "nothing", "nothing", np.zeros((12 * captions, 12)), labels)
    chance = {row["name"].removeprefix("nothing/"): row["chance"] for row in results.rows}
    rng = np.random.default_rng(0)
    draws = [retrieval_metrics(rng.random((12 * captions, 12)), labels.relevant) for _ in range(1500)]
    for name, expected in chance.items():
        assert expected == pytest.approx(np.mean([draw[name] for draw in draws]), rel=0.05), name


def test_the_rows_say_what_was_asked_of_how_many(results, tmp_path):
    """A score that is not a number is the lowest, in the tables too: an argsort alone puts it first."""
    scores = np.array([[0.5, np.nan, 0.1], [0.2, 0.9, np.nan], [0.1, 0.2, np.nan]])
    add_retrieval(results, "by hand", "hand", scores, labels_of(1, 3))
    assert [(row["direction"], row["metric"], round(row["value"]), row["items"]) for row in results.rows] == [
        *(("t2v", "R@1", 67, 3), ("t2v", "R@5", 100, 3), ("t2v", "R@10", 100, 3), ("t2v", "MdR", 1, 3)),
        *(("v2t", "R@1", 67, 3), ("v2t", "R@5", 100, 3), ("v2t", "R@10", 100, 3), ("v2t", "MdR", 1, 3)),
    ]
    assert results.rows[-1] | {"low": 0, "high": 0} == {
        "name": "hand/v2t/MdR",
        "table": "retrieval",
        "what": "by hand",
        "direction": "v2t",
        "protocol": "all pairs",
        "metric": "MdR",
        "value": 1,
        "low": 0,
        "high": 0,
        "unit": "rank",
        "higher_is_better": False,
        "statistic": "median",
        "items": 3,
        "videos": 3,
        "independent_videos": 3.0,
        "chance": 2.0,
        "baseline": "chance",
    }
    assert results.metrics["test/hand/t2v/R1"] == pytest.approx(200 / 3)
    rows = pq.read_table(tmp_path / "hand_t2v.parquet").to_pylist()
    assert [(row["text"], row["id"], row["rank"], row["score"], row["best"]) for row in rows] == [
        ("ball 0 0", "v0", 1.0, 0.5, ["v0", "v2", "v1"]),
        ("ball 1 0", "v1", 1.0, 0.9, ["v1", "v0", "v2"]),
        ("ball 2 0", "v2", 3.0, -np.inf, ["v1", "v0", "v2"]),
    ]
    assert rows[0]["best_scores"] == [0.5, 0.1, -np.inf]
    back = pq.read_table(tmp_path / "hand_v2t.parquet").to_pylist()
    assert [row["best"][0] for row in back[:2]] == ["ball 0 0", "ball 1 0"]


def test_a_score_counts_its_queries_and_their_videos(results):
    """And what the videos count for: three of four questions are of one."""
    queries = Queries.of(["a", "a", "b", "a"], ["1", "2", "3", "4"])
    results.add(Score(ACCURACY, np.array([100.0, 0.0, 100.0, 0.0]), 25.0, queries), "by hand", "qa")
    (row,) = results.rows
    assert (row["value"], row["items"], row["videos"], row["independent_videos"]) == (50, 4, 2, 1.6)


def test_contrasts_tell_two_answers_apart_among_the_questions_with_one_of_them(results):
    answers, truth = ["left", "right", "up"], ["left", "left", "right", "up"]
    asked = [{"question": "to?", "answer": answer, "type": "to"} for answer in truth]
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    pairs = (("left", "right"), ("up", "sideways"))
    add_answers(results, "what", "qa", logits, answers, asked, ["v"] * 4, asked, pairs)
    row = results.rows[-1]
    assert (len(results.rows), row["metric"], row["items"], row["chance"]) == (3, "left against right", 3, 50.0)
    assert results.metrics["test/qa/left_or_right"] == pytest.approx(200 / 3)


def test_missing_items_are_counted_in_what_is_asked(corpus_of, tmp_path):
    """Captions for retrieval, questions for question answering: not videos, which may have many of either."""
    question = {"question": "what?", "answer": "ball", "type": "what"}
    row = {"id": "a", "split": "test", "captions": ["a ball"], "questions": [question]}
    folder = statistics(corpus_of(tmp_path, [row]), items=(1, 2), captions=(20, 40), questions=(90, 100))
    both = EvaluationConfig(retrieval="a", qa="a", min_decoded_share=0.5)
    assert check_items(both, "a", folder) == [("captions", 20, 40), ("questions", 90, 100)]
    assert check_items(EvaluationConfig(qa="a", min_decoded_share=0.9), "a", folder) == [("questions", 90, 100)]
    with pytest.raises(InputError, match="90 of 100"):
        check_items(EvaluationConfig(qa="a"), "a", folder)
    with pytest.raises(InputError, match="20 of 40"):
        check_items(EvaluationConfig(retrieval="a"), "a", folder)
    rows = Results.of(both, {"a": folder}, tmp_path).rows
    assert [(row["what"], row["metric"], row["value"], row["items"]) for row in rows] == [
        ("captions of a", "20 of 40", 50, 40),
        ("questions of a", "90 of 100", 90, 100),
    ]


@pytest.mark.parametrize(("module", "model", "top_k"), [(evaluate, "retrieval", 2), (zero_shot, "pretrained", 0)])
def test_evaluation_in_bfloat16(module, model, top_k, clips_of_brightness, reading, tmp_path, monkeypatch):
    """The scores of the fake model are exact in bfloat16."""
    reading("retrieval" if module is evaluate else "pretrain")
    controls = {"controls": ("reversed", "single_frame")} if module is evaluate else {}
    values = []
    for kind in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(evaluation_results, "precision", lambda *_, kind=kind: kind)
        config = {"retrieval": "clips", "top_k": top_k, **controls}
        rows = evaluated(module, clips_of_brightness, tmp_path / str(kind), (model,), **config)
        values.append({name: row["value"] for name, row in rows.items()})
    assert values[0] == values[1]


def test_every_score_has_its_interval_protocol_and_queries(clips_of_brightness, reading, tmp_path):
    """The queries of each score in scores.parquet give its value. The embeddings of the fake model are random."""
    reading("qa")
    wanted = {
        "retrieval": "clips",
        "qa": "clips",
        "controls": ("shuffled", "reversed"),
        "contrasts": (("rising", "falling"),),
    }
    wanted |= {"top_k": 3}
    rows = evaluated(evaluate, clips_of_brightness, out := tmp_path / "out", ("retrieval", "qa"), **wanted)
    table = pq.read_table(out / "scores.parquet")
    texts = {
        "t2v": {"light rising", "light falling"},
        "v2t": {"light rising", "light falling"},
        "": {"how does it go?"},
    }
    assert set(table["score"].to_pylist()) == set(rows)
    for name, row in rows.items():
        part = table.filter(pc.equal(table["score"], name))
        values, ids = part["value"].to_numpy(), part["id"].to_pylist()
        assert len(values) == row["items"]
        assert row["value"] == {"mean": np.mean, "median": np.median}[row["statistic"]](values), name
        assert sorted(ids) == ["down0", "down1", "up0", "up1"]
        interval = bootstrap_interval(values, np.array(ids, object), row["statistic"])
        assert (row["low"], row["high"]) == (interval or (None, None)), name
        assert set(part["text"].to_pylist()) == texts[row["direction"]]
    protocols = {name.split("/")[0]: row["protocol"] for name, row in rows.items() if row["table"] == "retrieval"}
    assert protocols == {
        "retrieval": "top 3, 4 frames",
        "retrieval_vtc": "all pairs, 4 frames",
        "retrieval_shuffled": "top 3, 4 frames",
        "retrieval_reversed": "top 3, 4 frames",
    }
    assert rows["retrieval_vtc/t2v/R1"]["what"] == "fine-tuned by similarity"


def test_the_protocol_is_the_one_that_is_asked_for(clips_of_brightness, reading, tmp_path, monkeypatch):
    model, pairs = reading(), []
    head = model.vtm_head.forward
    monkeypatch.setattr(model.vtm_head, "forward", lambda fused: pairs.append(len(fused)) or head(fused))
    for top_k, expected in ((0, 16), (1, range(4, 9))):  # of each text and of each video the first
        pairs.clear()
        wanted = {"retrieval": "clips", "top_k": top_k}
        evaluated(evaluate, clips_of_brightness, tmp_path / str(top_k), ("retrieval",), **wanted)
        assert sum(pairs) == expected if isinstance(expected, int) else sum(pairs) in expected


def test_answers_with_their_baseline_probabilities_and_controls(clips_of_brightness, reading, tmp_path):
    """The baseline says what training says most, "falling": right for half of the test questions."""
    reading("qa")
    wanted = {"qa": "clips", "controls": ("shuffled", "reversed"), "contrasts": (("rising", "falling"),)}
    actual = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("qa",), **wanted)
    scores = {name: (row["value"], row["chance"], row["items"]) for name, row in actual.items()}
    assert scores["qa/acc"] == scores["qa/acc_how"] == (100, 50, 4)
    assert scores["qa_reversed/acc"] == scores["qa_shuffled/acc"] == (0, 50, 4)
    assert scores["qa/rising_or_falling"] == (100, 50, 4)
    assert scores["qa_reversed/rising_or_falling"] == (0, 50, 4)
    rows = pq.read_table(tmp_path / "out" / "qa.parquet").to_pylist()
    ways = {"up0": "rising", "down0": "falling", "up1": "rising", "down1": "falling"}
    answers = [(row["id"], row["answer"], row["predicted"], row["right"]) for row in rows]
    assert answers == [(name, way, way, True) for name, way in ways.items()]
    certain = float(torch.tensor([3.0, 0.0, 0.0]).softmax(0)[0])
    assert [row["probability"] for row in rows] == pytest.approx([certain] * 4)
    assert not any(name.startswith("retrieval") for name in actual)


def test_the_baseline_comes_from_training_and_not_from_the_test(tmp_path, clip_corpus, reading):
    """Were it counted on the test split, it would be right for 3 of 4."""
    ramp = np.linspace(40, 220, 8)
    asked = {"rising": 3, "falling": 1}
    rows = [
        {
            "id": f"{answer}{n}",
            "split": "test",
            "captions": ["light"],
            "questions": [{"question": "how?", "answer": answer, "type": "how"}],
            "ramp": ramp,
        }
        for answer, count in asked.items()
        for n in range(count)
    ]
    rows.append(rows[-1] | {"id": "train", "split": "train"})  # "falling"
    reading("qa")
    corpus = statistics(clip_corpus(tmp_path / "corpus", rows), captions=(4, 4), questions=(4, 4))
    actual = evaluated(evaluate, corpus, tmp_path / "out", ("qa",), qa="clips")
    assert (actual["qa/acc"]["value"], actual["qa/acc"]["chance"]) == (75, 25)
    # Of 4 videos with 3 right ones, a sample has 0 right in 0.4 %, at most 1 in 5 %, and 4 in 32 %.
    assert (actual["qa/acc"]["low"], actual["qa/acc"]["high"]) == (25, 100)


@pytest.mark.parametrize(("module", "model"), [(evaluate, "retrieval"), (zero_shot, "pretrained")])
def test_frames_and_texts_have_the_length_that_is_asked_for(module, model, clips_of_brightness, reading, tmp_path):
    """By default those of the model; the paper's zero-shot scores are of 8 frames, its pre-training has 4."""
    reader = reading(frames=4, mean=0.25, std=0.5)
    before = reader.video_encoder.time_embed.detach().clone()
    evaluated(module, clips_of_brightness, tmp_path / "own", (model,), retrieval="clips")
    brightness = float(reader.seen[0][0, 0].mean())  # of "up0": 40 at the beginning, with the model's normalization
    assert brightness == pytest.approx((40 / 255 - 0.25) / 0.5, abs=0.05)
    assert {frames.shape[1] for frames in reader.seen} == {4}
    assert reader.lengths == {4}  # [CLS] light rising [SEP]
    reader = reading(frames=4)
    reader.video_encoder.time_embed.data.copy_(before)
    wanted = {"retrieval": "clips", "frames": 8, "max_text_tokens": 3}
    evaluated(module, clips_of_brightness, tmp_path / "wanted", (model,), **wanted)
    assert {frames.shape[1] for frames in reader.seen} == {8}
    assert reader.lengths == {3}
    # Nearest neighbour, as in fine-tuning: each embedding stands for two frames.
    assert torch.equal(reader.video_encoder.time_embed, before.repeat_interleave(2, dim=1))


def test_questions_have_the_frames_and_lengths_of_training(clips_of_brightness, reading, tmp_path):
    """A joined configuration sets those of retrieval, which would cut the questions' model."""
    reader = reading("qa", frames=4)
    wanted = {"qa": "clips", "frames": 2, "max_text_tokens": 3}
    evaluated(evaluate, clips_of_brightness, tmp_path / "own", ("qa",), **wanted)
    assert {frames.shape[1] for frames in reader.seen} == {4}
    length = max(reader.lengths)
    assert length > 4


@pytest.mark.parametrize(("module", "model"), [(evaluate, "retrieval"), (zero_shot, "pretrained")])
def test_items_that_training_has_too_are_left_out(clips_of_brightness, reading, tmp_path, module, model):
    """By default, and the note below every table of scores says how many. With `exclude_overlap = false` they are
    evaluated, and the note says so."""
    reading("qa")
    also_in_training(clips_of_brightness, down0="test", up0="validation")
    models = (model, "qa") if module is evaluate else (model,)
    wanted = {"retrieval": "clips"} | ({"qa": "clips"} if module is evaluate else {})
    left = evaluated(module, clips_of_brightness, tmp_path / "left", models, **wanted)
    whole = evaluated(module, clips_of_brightness, tmp_path / "whole", models, **wanted, exclude_overlap=False)
    name = "retrieval" if module is evaluate else "zero_shot"
    assert (whole[f"{name}/t2v/R1"]["items"], left[f"{name}/t2v/R1"]["items"]) == (4, 3)
    assert (left["left_out/clips"]["metric"], left["left_out/clips"]["value"]) == ("1 of 4", 25)
    assert (whole["also_in_training/clips"]["metric"], "left_out/clips" in whole) == ("1 of 4", False)
    ids = pq.read_table(tmp_path / "left" / f"{name}_t2v.parquet")["id"].to_pylist()
    assert sorted(ids) == ["down1", "up0", "up1"]
    if module is evaluate:
        assert (whole["qa/acc"]["items"], left["qa/acc"]["items"]) == (4, 3)
    for rows, note in ((left, "1 of 4 items of clips are left out, "), (whole, "1 of 4 items of clips have the capti")):
        shown = tables({"score": list(rows.values())})
        assert [table.title for table in shown] == ["Retrieval", "Question answering"][: len(models)]
        assert all(note in table.note for table in shown)


def test_nothing_that_is_left_is_a_mistake(clips_of_brightness, tmp_path):
    also_in_training(clips_of_brightness, up0="test", up1="test", down0="test", down1="test")
    config = EvaluationConfig(retrieval="clips")
    with pytest.raises(InputError, match=r"exclude_overlap = false to keep the 4"):
        check_items(config, "clips", clips_of_brightness)
    (clips_of_brightness / "overlap.parquet").unlink()
    with pytest.raises(InputError, match=r"overlap\.parquet is missing"):
        check_items(config, "clips", clips_of_brightness)


def test_zero_shot_is_by_matching_and_by_similarity(clips_of_brightness, reading, tmp_path):
    reading("pretrain")
    actual = evaluated(zero_shot, clips_of_brightness, tmp_path / "out", ("pretrained",), retrieval="clips")
    assert actual["zero_shot/t2v/R1"]["value"] == 50
    assert {name.split("/")[0] for name in actual} == {"zero_shot", "zero_shot_vtc"}
    assert (actual["zero_shot/t2v/R1"]["items"], actual["zero_shot/t2v/R1"]["chance"]) == (4, 25)


def test_entities_are_scored_with_the_prompter_alone(clips_of_brightness, tmp_path, monkeypatch):
    clips = [Named("a", "a ball", ["ball"], "ball"), Named("b", "a star", ["star"], "box")]
    monkeypatch.setattr(zero_shot, "load_prompter", lambda *_: SimpleNamespace(normalized=lambda device: None))
    monkeypatch.setattr(zero_shot, "read_prompts", lambda path: {"video": torch.zeros(0)})
    monkeypatch.setattr(zero_shot, "read_entities", lambda path: ["ball", "box", "star"])
    monkeypatch.setattr(zero_shot, "entities_of_clips", lambda *values: clips)
    actual = evaluated(
        zero_shot, clips_of_brightness, tmp_path / "out", ("prompter", "prompts", "vocabulary"), qa="clips"
    )
    row = actual["entities/acc"]
    assert (row["value"], row["low"], row["high"], row["chance"], row["items"]) == (50.0, 0.0, 100.0, 50.0, 2)
    assert set(actual) == {"entities/acc"}
    assert pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist() == [
        {"score": "entities/acc", "id": "a", "text": "a ball", "value": 100.0},
        {"score": "entities/acc", "id": "b", "text": "a star", "value": 0.0},
    ]
