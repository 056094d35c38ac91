"""What is evaluated, before fine-tuning and after it: galleries, and rows of the results of models
that are known."""

from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from alpro.errors import InputError
from alpro.pipeline.reports.results import tables
from alpro.stages import evaluate, zero_shot
from alpro.stages.evaluation import gallery
from alpro.stages.evaluation import results as evaluation_results
from alpro.stages.evaluation.entities import EntityPrediction
from alpro.stages.evaluation.gallery import Gallery, Labels, Questions
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.scores import add_answers, add_retrieval, unanswerable
from alpro.stages.evaluation.statistics import bootstrap_interval
from alpro.stages.finetune_qa import frequent_answers
from tests.stages.evaluation.conftest import also_in_training, evaluated, grey, statistics


def test_the_rows_say_what_was_asked_of_how_many(tmp_path):
    """A score that is not a number is the lowest, in the tables too: an argsort alone puts it
    first."""
    results = Results("test", tmp_path)
    scores = np.array([[0.5, np.nan, 0.1], [0.2, 0.9, np.nan], [0.1, 0.2, np.nan]])
    labels = Labels(["v0", "v1", "v2"], ["ball 0", "ball 1", "ball 2"], np.eye(3, dtype=bool))
    add_retrieval(results, "by hand", "hand", scores, labels)
    rows = [
        [row[key] for key in ("direction", "metric", "value", "chance", "items")]
        for row in results.rows
    ]
    expected = {
        "R@1": (pytest.approx(200 / 3), pytest.approx(100 / 3)),
        "R@5": (100, 100),
        "R@10": (100, 100),
    }
    expected["MdR"] = 1, 2
    assert rows == [
        [way, metric, *values, 3] for way in ("t2v", "v2t") for metric, values in expected.items()
    ]
    last = {"name": "hand/v2t/MdR", "table": "retrieval", "what": "by hand", "direction": "v2t"}
    last |= {
        "protocol": "all pairs",
        "metric": "MdR",
        "value": 1,
        "low": None,
        "high": None,
        "unit": "rank",
    }
    last |= {
        "higher_is_better": False,
        "statistic": "median",
        "items": 3,
        "videos": 3,
        "independent_videos": 3.0,
    }
    assert results.rows[-1] == last | {"chance": 2.0, "baseline": "chance"}
    assert results.metrics["test/hand/t2v/R1"] == pytest.approx(200 / 3)
    rows = pq.read_table(tmp_path / "hand_t2v.parquet").to_pylist()
    assert [(row["text"], row["id"], row["rank"], row["best"]) for row in rows] == [
        ("ball 0", "v0", 1.0, ["v0", "v2", "v1"]),
        ("ball 1", "v1", 1.0, ["v1", "v0", "v2"]),
        ("ball 2", "v2", 3.0, ["v1", "v0", "v2"]),
    ]
    assert rows[0]["best_scores"] == [0.5, 0.1, -np.inf]
    back = pq.read_table(tmp_path / "hand_v2t.parquet").to_pylist()
    assert [row["best"][0] for row in back[:2]] == ["ball 0", "ball 1"]


def test_contrasts_tell_two_answers_apart_among_the_questions_with_one_of_them(tmp_path):
    """Three of four questions are of one video, so that both videos count for less than two."""
    answers = ["left", "right", "up"]
    truth = ["left", "left", "right", "up"]
    asked = [{"question": "to?", "answer": answer, "type": "to"} for answer in truth]
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    pairs = (("left", "right"), ("up", "sideways"))
    results = Results("test", tmp_path)
    add_answers(results, "what", "qa", logits, answers, asked, ["v", "v", "w", "v"], asked, pairs)
    assert [(row["metric"], row["items"], row["chance"]) for row in results.rows] == [
        ("all questions", 4, 50),
        ("to", 4, 50),
        ("left against right", 3, 50),
    ]
    assert [row["videos"] for row in results.rows] == [2, 2, 2]
    assert results.rows[0]["independent_videos"] == 1.6
    assert results.metrics["test/qa/left_or_right"] == pytest.approx(200 / 3)


def test_the_share_of_answers_that_the_model_cannot_give_is_said():
    asked = [{"question": "is it?", "answer": answer} for answer in ("yes", "Yes.", "blue", "no")]
    (line,) = unanswerable(asked, ["yes", "no"])
    assert "2 of 4 questions (50.0%)" in line
    assert "1 of which only by case" in line
    assert unanswerable(asked[:1], ["yes", "no"]) == []


def test_missing_items_are_counted_in_what_is_asked(corpus_of, tmp_path):
    """Captions for retrieval, questions for question answering: not videos, which may have many of
    either."""
    question = {"question": "what?", "answer": "ball", "type": "what"}
    row = {"id": "a", "split": "test", "captions": ["a ball"], "questions": [question]}
    folder = statistics(
        corpus_of(tmp_path, [row]), items=(1, 2), captions=(20, 40), questions=(90, 100)
    )
    both = EvaluationConfig(retrieval="a", qa="a", min_decoded_share=0.5)
    assert check_items(both, "a", folder) == [("captions", 20, 40), ("questions", 90, 100)]
    assert check_items(EvaluationConfig(qa="a", min_decoded_share=0.9), "a", folder) == [
        ("questions", 90, 100)
    ]
    with pytest.raises(InputError, match="90 of 100"):
        check_items(EvaluationConfig(qa="a"), "a", folder)
    with pytest.raises(InputError, match="20 of 40"):
        check_items(EvaluationConfig(retrieval="a"), "a", folder)
    rows = Results.of(both, {"a": folder}, tmp_path).rows
    assert [(row["what"], row["metric"], row["value"], row["items"]) for row in rows] == [
        ("captions of a", "20 of 40", 50, 40),
        ("questions of a", "90 of 100", 90, 100),
    ]
    also_in_training(folder, a="test")
    with pytest.raises(InputError, match=r"exclude_overlap = false to keep the 1"):
        check_items(both, "a", folder)
    (folder / "overlap.parquet").unlink()
    with pytest.raises(InputError, match=r"overlap\.parquet is missing"):
        check_items(both, "a", folder)


@pytest.mark.parametrize(
    ("module", "model", "top_k"), [(evaluate, "retrieval", 2), (zero_shot, "pretrained", 0)]
)
def test_evaluation_in_bfloat16(
    module, model, top_k, clips_of_brightness, reading, tmp_path, monkeypatch
):
    """The scores of the fake model are exact in bfloat16."""
    reading("retrieval" if module is evaluate else "pretrain")
    controls = {"controls": ("reversed", "single_frame")} if module is evaluate else {}
    values = []
    for kind in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(evaluation_results, "compute_dtype", lambda *_, kind=kind: kind)
        config = {"retrieval": "clips", "top_k": top_k, **controls}
        rows = evaluated(module, clips_of_brightness, tmp_path / str(kind), (model,), **config)
        values.append({name: row["value"] for name, row in rows.items()})
    assert values[0] == values[1]


def test_every_score_has_its_interval_protocol_and_queries(clips_of_brightness, reading, tmp_path):
    """The queries of each score in scores.parquet give its value."""
    reading("qa")
    wanted = {"retrieval": "clips", "qa": "clips", "controls": ("shuffled", "reversed"), "top_k": 3}
    wanted["contrasts"] = (("rising", "falling"),)
    rows = evaluated(
        evaluate, clips_of_brightness, out := tmp_path / "out", ("retrieval", "qa"), **wanted
    )
    table = pq.read_table(out / "scores.parquet")
    captions = {"light rising", "light falling"}
    texts = {"t2v": captions, "v2t": captions, "": {"how does it go?"}}
    assert set(table["score"].to_pylist()) == set(rows)
    for name, row in rows.items():
        part = table.filter(pc.equal(table["score"], name))
        values = part["value"].to_numpy()
        ids = part["id"].to_pylist()
        assert len(values) == row["items"]
        assert row["value"] == {"mean": np.mean, "median": np.median}[row["statistic"]](values), (
            name
        )
        assert sorted(ids) == ["down0", "down1", "up0", "up1"]
        interval = None
        if row["statistic"] == "mean":
            interval = bootstrap_interval(values, np.array(ids, object))
        assert (row["low"], row["high"]) == (interval or (None, None)), name
        assert set(part["text"].to_pylist()) == texts[row["direction"]]
    protocols = {
        name.split("/")[0]: row["protocol"]
        for name, row in rows.items()
        if row["table"] == "retrieval"
    }
    names = ("retrieval", "retrieval_shuffled", "retrieval_reversed")
    assert protocols == {"retrieval": "top 3, 4 frames"} | {
        f"{name}_vtc": "all pairs, 4 frames" for name in names
    }
    assert rows["retrieval_vtc/t2v/R1"]["what"] == "fine-tuned by similarity"


def test_answers_with_the_most_frequent_answer_of_training_beside_them(
    tmp_path, corpus_of, reading
):
    """Were it counted on the test split, it would be right for 3 of 4; the model sees clips that
    rise, with the frames and lengths of its training: a joined configuration sets those of
    retrieval."""
    rows = []
    answers = {f"rising{n}": "rising" for n in range(3)} | {"falling0": "falling"}
    for name, answer in answers.items():
        asked = [{"question": "how does it go?", "answer": answer, "type": "how"}]
        rows.append({"id": name, "split": "test", "questions": asked, "frames": grey(40, 220)})
    rows.append(rows[-1] | {"id": "train", "split": "train"})  # "falling"
    reader = reading("qa")
    corpus = statistics(corpus_of(tmp_path / "corpus", rows), captions=(4, 4), questions=(4, 4))
    actual = evaluated(
        evaluate, corpus, tmp_path / "out", ("qa",), qa="clips", frames=2, max_text_tokens=3
    )
    assert ({frames.shape[1] for frames in reader.seen}, max(reader.lengths) > 4) == ({4}, True)
    assert set(actual) == {"qa/acc", "qa/acc_how"}
    assert (actual["qa/acc"]["value"], actual["qa/acc"]["chance"]) == (75, 25)
    # Of 4 videos with 3 right ones, a sample has 0 right in 0.4 %, at most 1 in 5 %, and 4 in 32 %.
    assert (actual["qa/acc"]["low"], actual["qa/acc"]["high"]) == (25, 100)
    table = pq.read_table(tmp_path / "out" / "qa.parquet").to_pylist()
    assert [(row["id"], row["answer"], row["predicted"], row["right"]) for row in table[2:]] == [
        ("rising2", "rising", "rising", True),
        ("falling0", "falling", "rising", False),
    ]
    certain = float(torch.tensor([3.0, 0.0, 0.0]).softmax(0)[0])
    assert [row["probability"] for row in table] == pytest.approx([certain] * 4)


@pytest.mark.parametrize(("module", "model"), [(evaluate, "retrieval"), (zero_shot, "pretrained")])
def test_frames_and_texts_have_the_length_that_is_asked_for(
    module, model, clips_of_brightness, reading, tmp_path
):
    """By default those of the model; the paper's zero-shot scores are of 8 frames, its pre-training
    has 4."""
    reader = reading(mean=0.25, std=0.5)
    before = reader.video_encoder.time_embed.detach().clone()
    evaluated(module, clips_of_brightness, tmp_path / "own", (model,), retrieval="clips")
    brightness = float(
        reader.seen[0][0, 0].mean()
    )  # of "up0": 40 at the beginning, with the model's normalization
    assert brightness == pytest.approx((40 / 255 - 0.25) / 0.5, abs=0.05)
    assert {frames.shape[1] for frames in reader.seen} == {4}
    assert reader.lengths == {4}  # [CLS] light rising [SEP]
    reader = reading()
    reader.video_encoder.time_embed.data.copy_(before)
    wanted = {"retrieval": "clips", "frames": 8, "max_text_tokens": 3}
    evaluated(module, clips_of_brightness, tmp_path / "wanted", (model,), **wanted)
    assert {frames.shape[1] for frames in reader.seen} == {8}
    assert reader.lengths == {3}
    # Nearest neighbour, as in fine-tuning: each embedding stands for two frames.
    assert torch.equal(reader.video_encoder.time_embed, before.repeat_interleave(2, dim=1))


@pytest.mark.parametrize(("module", "model"), [(evaluate, "retrieval"), (zero_shot, "pretrained")])
def test_items_that_training_has_too_are_left_out(
    clips_of_brightness, reading, tmp_path, module, model
):
    """By default, and the note below every table of scores says how many. With `exclude_overlap =
    false` they are evaluated, and the note says so."""
    reading("qa")
    also_in_training(clips_of_brightness, down0="test", up0="validation")
    models = (model, "qa") if module is evaluate else (model,)
    wanted = {"retrieval": "clips"} | ({"qa": "clips"} if module is evaluate else {})
    left = evaluated(module, clips_of_brightness, tmp_path / "left", models, **wanted)
    whole = evaluated(
        module, clips_of_brightness, tmp_path / "whole", models, **wanted, exclude_overlap=False
    )
    name = "retrieval" if module is evaluate else "zero_shot"
    assert (whole[f"{name}/t2v/R1"]["items"], left[f"{name}/t2v/R1"]["items"]) == (4, 3)
    assert (left["left_out/clips"]["metric"], left["left_out/clips"]["value"]) == ("1 of 4", 25)
    assert (whole["also_in_training/clips"]["metric"], "left_out/clips" in whole) == (
        "1 of 4",
        False,
    )
    ids = pq.read_table(tmp_path / "left" / f"{name}_t2v.parquet")["id"].to_pylist()
    assert sorted(ids) == ["down1", "up0", "up1"]
    if module is evaluate:
        assert (whole["qa/acc"]["items"], left["qa/acc"]["items"]) == (4, 3)
    for rows, title in (
        (left, "Overlap with training: left out"),
        (whole, "Overlap with training"),
    ):
        *scores, overlap = tables({"score": list(rows.values())})
        assert [table.title for table in scores] == ["Retrieval", "Question answering"][
            : len(models)
        ]
        assert (overlap.title == title, "1 of 4" in str(overlap.lines)) == (True, True)


@pytest.mark.parametrize("prompter", ["prompter", "prompts"])
def test_entities_are_scored_with_the_prompter_alone(
    clips_of_brightness, tmp_path, monkeypatch, prompter
):
    """That in the prompts, if there is no other. Clips that training has, too, are left out."""
    also_in_training(clips_of_brightness, down0="test")
    clips = [
        EntityPrediction("a", "a ball", ["ball"], "ball"),
        EntityPrediction("b", "a star", ["star"], "box"),
    ]
    seen = []
    loaded = SimpleNamespace(normalized=lambda device: None)
    monkeypatch.setattr(
        zero_shot, "load_prompter", lambda path, device: seen.append(path) or loaded
    )
    monkeypatch.setattr(zero_shot, "read_prompts", lambda path: {"video": torch.zeros(0)})
    monkeypatch.setattr(zero_shot, "read_entities", lambda path: ["ball", "box", "star"])
    monkeypatch.setattr(
        zero_shot, "entities_of_clips", lambda e, p, n, reader: seen.append(reader) or clips
    )
    models = tuple({prompter: 1, "prompts": 1, "vocabulary": 1})
    actual = evaluated(zero_shot, clips_of_brightness, tmp_path / "out", models, qa="clips")
    assert str(seen[0]) == prompter
    assert seen[1].column("id").to_pylist() == ["up0", "up1", "down1"]
    row = actual["entities/acc"]
    assert (row["value"], row["low"], row["high"], row["chance"], row["items"]) == (
        50.0,
        0.0,
        100.0,
        50.0,
        2,
    )
    assert set(actual) == {"left_out/clips", "entities/acc"}
    assert pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist() == [
        {"score": "entities/acc", "id": "a", "text": "a ball", "value": 100.0},
        {"score": "entities/acc", "id": "b", "text": "a star", "value": 0.0},
    ]


def test_the_picture_has_the_queries_with_the_best_and_the_worst_ranks(
    corpus_of, tmp_path, monkeypatch
):
    """Of each text n of six, n others rank above its own video."""
    rows = [{"id": f"v{n}", "split": "test", "captions": [f"ball {n}"]} for n in range(6)]
    scores = np.tril(np.ones((6, 6)), -1) + np.eye(6) / 2
    drawn = []
    picture = lambda queries: drawn.extend(queries) or Image.new("RGB", (1, 1))  # noqa: E731
    monkeypatch.setattr(gallery, "retrieval_picture", picture)
    items = Gallery.of(corpus_of(tmp_path, rows), "test")
    gallery.draw_searches(
        items, scores, gallery.extremes(items, scores, each=2), tmp_path / "picture.png"
    )
    assert [text for text, _, _ in drawn] == ["ball 0", "ball 1", "ball 4", "ball 5"]
    assert [note.split()[-3:] for _, note, _ in drawn] == [
        [str(n), "of", "6"] for n in (1, 2, 5, 6)
    ]
    assert "v4" in drawn[2][1]
    assert [right for _, _, right in drawn[2][2]] == [False] * 4
    assert ("v1", True) in [result[1:] for result in drawn[1][2]]


def asked(*answers: str) -> list[dict]:
    return [
        {"question": f"what is it {n}?", "answer": answer, "type": "what"}
        for n, answer in enumerate(answers)
    ]


@pytest.fixture
def corpus(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["one"], "questions": asked("box", "ball")},
        {"id": "captioned", "captions": ["two", "three"]},
        {"id": "b", "questions": asked("box", "arrow", "ball")},
        {"id": "c", "captions": ["four"]},
        {"id": "d", "captions": ["five", "six"]},
        {
            "id": "test",
            "split": "test",
            "captions": ["seven"],
            "questions": asked("moon", "moon", "moon"),
        },
    ]
    return corpus_of(tmp_path, rows)


def test_captions_and_questions_know_their_videos(corpus):
    captions = Gallery.of(corpus, "train")
    questions = Questions.of(corpus, "train", exclude={"d"})
    assert (captions.ids, captions.sample_indices) == (["a", "captioned", "c", "d"], [0, 1, 3, 4])
    assert captions.texts == ["one", "two", "three", "four", "five", "six"]
    assert captions.video_of_text.tolist() == [0, 1, 1, 2, 3, 3]
    assert captions.labels.relevant.argmax(1).tolist() == captions.video_of_text.tolist()
    assert captions.labels.relevant.sum() == 6
    assert (questions.ids, questions.sample_indices, questions.video_ids) == (
        ["a", "b"],
        [0, 2],
        ["a", "a", "b", "b", "b"],
    )
    assert [question["answer"] for question in questions.items] == [
        "box",
        "ball",
        "box",
        "arrow",
        "ball",
    ]
    assert questions.texts[1:3] == ["what is it 1?", "what is it 0?"]
    assert Gallery.of(corpus, "train", exclude={"a", "c"}).ids == ["captioned", "d"]
    assert Questions.of(corpus, "validation").texts == []


@pytest.mark.parametrize(
    ("videos", "captions", "ids", "texts", "of"),
    [
        (3, 1, ["a", "captioned", "c"], ["one", "two", "four"], [0, 1, 2]),
        (2, 0, ["a", "captioned"], ["one", "two", "three"], [0, 1, 1]),
        (0, 1, ["a", "captioned", "c", "d"], ["one", "two", "four", "five"], [0, 1, 2, 3]),
        (
            0,
            0,
            ["a", "captioned", "c", "d"],
            ["one", "two", "three", "four", "five", "six"],
            [0, 1, 1, 2, 3, 3],
        ),
    ],
)
def test_the_first_videos_and_captions(corpus, videos, captions, ids, texts, of):
    actual = Gallery.of(corpus, "train").first(videos, captions)
    assert (actual.ids, actual.texts, actual.video_of_text.tolist()) == (ids, texts, of)
    assert actual.sample_indices == [0, 1, 3, 4][: len(ids)]


def test_the_queries_of_each_direction():
    """A text is a query about its first video; a video with all its texts; one without any is
    none."""
    relevant = np.array([[0, 1, 1], [0, 1, 0]], bool)
    labels = Labels(["a", "b", "c"], ["x", "y"], relevant)
    for direction, ids, texts in (
        ("t2v", ["b", "b"], ["x", "y"]),
        ("v2t", ["b", "c"], ["x | y", "x"]),
    ):
        queries = labels.queries(direction)
        assert (queries.ids.tolist(), queries.texts.tolist()) == (ids, texts)


def test_answers_are_the_most_frequent_of_training_alone_with_ties_in_alphabetical_order(
    corpus, corpus_of, tmp_path
):
    assert frequent_answers([corpus], 10) == ["ball", "box", "arrow"]
    assert frequent_answers([corpus, corpus], 2) == ["ball", "box"]
    folder = corpus_of(tmp_path / "one", [{"id": "a", "questions": asked("ball", "ball")}])
    with pytest.raises(InputError, match="1 different"):
        frequent_answers([folder], 10)
