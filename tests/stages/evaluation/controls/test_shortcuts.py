"""Shortcut tests: what a model that reads off how the brightness of a clip goes makes of one frame, of a reversed clip,
of no clip, and of swapped words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from alpro.errors import InputError
from alpro.stages import evaluate
from alpro.stages.evaluation.controls import shortcuts
from alpro.stages.evaluation.controls.shortcuts import rows_of, two_way
from alpro.stages.vocabulary import nouns
from tests.stages.evaluation.conftest import RESOURCES, evaluated


def scores(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float, int]]:
    return {name: (row["value"], row["chance"], row["items"]) for name, row in rows.items()}


@pytest.fixture
def projected(reading, monkeypatch):
    """projected(task): the fake model, whose similarity is that of what it reads off as well."""

    def make(task: str = "retrieval"):
        model = reading(task)
        monkeypatch.setattr(model, "project_video", lambda tokens: tokens[:, 0])
        monkeypatch.setattr(model, "project_text", lambda tokens: tokens[:, 0])
        return model

    return make


def test_a_tie_of_two_is_half():
    nan = float("nan")
    right, wrong = np.array([2.0, 1.0, 1.0, nan, nan, 1.0]), np.array([1.0, 2.0, 1.0, 0.0, nan, nan])
    assert two_way(right, wrong).tolist() == [1, 0, 0.5, 0, 0.5, 1]


def test_rows_of_columns():
    assert rows_of({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert rows_of({"a": []}) == []


def test_a_caption_fits_its_clip_and_not_the_reversed_clip(clips_of_brightness, projected, tmp_path):
    projected()
    wanted = {"retrieval": "clips", "controls": ("clip_or_reversed",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    assert scores(rows)["clip_or_reversed/vtm"] == scores(rows)["clip_or_reversed/vtc"] == (100, 50, 4)
    assert rows["clip_or_reversed/vtm"]["what"] == "control: clip or reversed clip"
    assert rows["clip_or_reversed/vtm"]["metric"] == "by matching"
    table = pq.read_table(tmp_path / "out" / "clip_or_reversed.parquet").to_pylist()
    assert table[0] == {
        "id": "up0",
        "caption": "light rising",
        "matching": -2,  # the margins of the fake model
        "matching_reversed": -6,
        "similarity": 1,
        "similarity_reversed": 0,
    }
    assert [row["id"] for row in table] == ["up0", "down0", "up1", "down1"]


def test_a_model_that_does_not_see_the_order_ties(clips_of_brightness, projected, tmp_path, monkeypatch):
    """Half is what it gets, in each direction of each clip."""
    model = projected()
    monkeypatch.setattr(model, "encode_video", lambda frames: torch.ones(len(frames), 17, model.config.video.width))
    wanted = {"retrieval": "clips", "controls": ("clip_or_reversed",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    assert scores(rows)["clip_or_reversed/vtm"] == scores(rows)["clip_or_reversed/vtc"] == (50, 50, 4)


FRAMES = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(video=SimpleNamespace(frames=2))))


def test_each_pair_has_the_score_and_the_similarity_of_its_best_frame(monkeypatch):
    """Two frames, a text, two videos: each frame is the best of another pair, for either score."""
    seen: list[list[int]] = []

    def score_pairs(folder, gallery, config, device, reorder):
        seen.append(reorder([10, 20]))
        first = seen[-1] == [10, 10]
        scores = np.array([[5.0, -9.0]] if first else [[1.0, -2.0]])
        features = torch.tensor([[-1.0], [4.0]] if first else [[2.0], [3.0]])
        return scores, SimpleNamespace(features=torch.ones(1, 1)), SimpleNamespace(features=features)

    monkeypatch.setattr(shortcuts, "score_pairs", score_pairs)
    scores, similarity = shortcuts.best_single_frame(FRAMES, None, None, None)
    assert seen == [[10, 10], [20, 20]]
    assert scores.tolist() == [[5.0, -2.0]]
    assert similarity.tolist() == [[2.0, 4.0]]


def test_the_answer_is_that_of_the_most_certain_frame(monkeypatch):
    """The first frame has the largest logits and hardly prefers one; the second is certain of the other answer."""
    logits = {10: torch.tensor([[9.0, 8.5]]), 20: torch.tensor([[0.0, 4.0]])}
    monkeypatch.setattr(shortcuts, "answer_logits", lambda *_, reorder: logits[reorder([10, 20])[0]])
    best = shortcuts.answer_from_best_frame(FRAMES, None, None, 8, None)
    assert best.argmax(1).tolist() == [1]
    assert best.exp().tolist() == [[pytest.approx(0.6225, abs=1e-4), pytest.approx(0.9820, abs=1e-4)]]


def brightest(model, above: float):
    """An encoder that sees "rising" where a still clip is brighter than a value, and "falling" elsewhere."""

    def encode(frames: Tensor) -> Tensor:
        assert (frames == frames[:, :1]).all()
        place = (frames.mean(dim=(1, 2, 3, 4)) < above).long()
        size = (1 + model.config.video.grid**2, model.config.video.width)
        return nn.functional.one_hot(place, size[1]).float()[:, None].expand(-1, *size)

    return encode


def test_a_pair_has_the_score_of_its_best_frame(clips_of_brightness, projected, tmp_path, monkeypatch):
    """Every clip has bright and dark frames, so each frame alone tells two texts apart, and the best ones do not: by
    the maximum over frames all pairs tie, and the own video of a text is between the first and the last of four."""
    model = projected()
    encode = model.encode_video
    still = brightest(model, 0.0)
    monkeypatch.setattr(model, "encode_video", lambda f: still(f) if (f == f[:, :1]).all() else encode(f))
    wanted = {"retrieval": "clips", "controls": ("single_frame",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    assert rows["retrieval_single_frame/t2v/MdR"]["value"] == 2.5
    assert rows["retrieval_single_frame_vtc/t2v/MdR"]["value"] == 2.5
    assert rows["retrieval_single_frame/t2v/MdR"]["chance"] == 2.5
    labels = {row["what"] for row in rows.values()}
    assert {"control: best single frame", "control: best single frame, by similarity"} < labels
    assert {"retrieval_single_frame/t2v/R1", "retrieval_single_frame_vtc/t2v/R1"} < rows.keys()
    assert "retrieval_single_frame/v2t/R1" not in rows


def test_a_frame_that_only_one_kind_of_clip_has_is_found(clips_of_brightness, projected, tmp_path, monkeypatch):
    """Of a rising clip, frames of brightness 40, 91, 143 and 194 are seen, of a falling one 220, 169, 117 and 66: one
    brighter than 207 is of a falling clip."""
    model = projected()
    encode = model.encode_video
    threshold = (207 / 255 - 0.5) / 0.25

    def still(frames: Tensor) -> Tensor:
        tokens = brightest(model, threshold)(frames)
        return tokens[..., [1, 0, *range(2, tokens.shape[-1])]]  # brighter than all of a rising clip: "falling"

    monkeypatch.setattr(model, "encode_video", lambda f: still(f) if (f == f[:, :1]).all() else encode(f))
    wanted = {"retrieval": "clips", "controls": ("single_frame",)}
    evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    table = pq.read_table(tmp_path / "out" / "retrieval_single_frame_t2v.parquet").to_pylist()
    # "falling" fits the two clips with a bright frame; "rising" fits a frame of every clip.
    assert {row["id"]: row["rank"] for row in table} == {"up0": 2.5, "down0": 1.5, "up1": 2.5, "down1": 1.5}


def test_the_answer_of_the_frame_that_is_most_certain(clips_of_brightness, projected, tmp_path, monkeypatch):
    """Dark frames say "falling" with more certainty than bright frames say "rising"."""
    model = projected("qa")
    encode = model.encode_video
    still = brightest(model, 0.0)
    certainty = torch.ones(model.config.video.width)
    certainty[1] = 2
    monkeypatch.setattr(model, "encode_video", lambda f: still(f) * certainty if (f == f[:, :1]).all() else encode(f))
    wanted = {"qa": "clips", "controls": ("single_frame",), "contrasts": (("rising", "falling"),)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("qa",), **wanted)
    assert scores(rows)["qa_single_frame/acc"] == scores(rows)["qa_single_frame/acc_how"] == (50, 50, 4)
    assert scores(rows)["qa_single_frame/rising_or_falling"] == (50, 50, 4)
    assert rows["qa_single_frame/acc"]["what"] == "control: best single frame"
    assert scores(rows)["qa/acc"] == (100, 50, 4)


def test_questions_without_the_video_have_the_answer_of_a_clip_of_the_mean_colour(
    clips_of_brightness, projected, tmp_path, monkeypatch
):
    model = projected("qa")
    seen, encode = [], model.encode_video

    def see(frames: Tensor) -> Tensor:
        seen.append(frames)
        return brightest(model, 0.0)(frames) if len(seen) > 1 else encode(frames)

    monkeypatch.setattr(model, "encode_video", see)
    wanted = {"qa": "clips", "controls": ("text_only",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("qa",), **wanted)
    assert [tuple(frames.shape) for frames in seen] == [(4, 4, 3, 32, 32), (1, 4, 3, 32, 32)]
    assert not seen[1].any()  # after normalization
    assert scores(rows)["qa_text_only/acc"] == (50, 50, 4)  # "rising" to all
    assert rows["qa_text_only/acc"]["what"] == "control: text only"


def test_counterfactual_captions_are_listed_and_lose(clips_of_brightness, projected, tmp_path, monkeypatch):
    """The tagger is told to see verbs; the embedded one is tested in test_counterfactual."""
    projected()
    monkeypatch.setattr(
        "alpro.stages.evaluation.controls.shortcuts.tag_texts",
        lambda texts: [[nouns.Word(6, text.split()[1], "VERB", text.split()[1])] for text in texts],
    )
    wanted = {"retrieval": "clips", "controls": ("counterfactual",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    assert scores(rows)["counterfactual/verb_vtm"] == scores(rows)["counterfactual/verb_vtc"] == (100, 50, 4)
    assert {name for name in rows if name.startswith("counterfactual")} == {
        "counterfactual/verb_vtm",
        "counterfactual/verb_vtc",
    }
    assert (rows["counterfactual/verb_vtc"]["metric"], rows["counterfactual/verb_vtc"]["table"]) == (
        "verb, similarity",
        "controls",
    )
    table = pq.read_table(tmp_path / "out" / "counterfactual.parquet").to_pylist()
    assert len(table) == 4
    assert table[1] == {
        "id": "down0",
        "part": "verb",
        "caption": "light falling",
        "counterfactual": "light rising",
        "word": "falling",
        "replacement": "rising",
        "matching": -2,
        "matching_counterfactual": -6,
        "similarity": 1,
        "similarity_counterfactual": 0,
    }


def test_captions_without_a_counterfactual_have_no_row(clips_of_brightness, projected, tmp_path, monkeypatch):
    projected()
    monkeypatch.setattr("alpro.stages.evaluation.controls.shortcuts.tag_texts", lambda texts: [[] for _ in texts])
    wanted = {"retrieval": "clips", "controls": ("counterfactual",)}
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    assert not any(name.startswith("counterfactual") for name in rows)
    assert not (tmp_path / "out" / "counterfactual.parquet").exists()


def test_without_spacy_only_counterfactual_captions_are_a_mistake(
    clips_of_brightness, projected, tmp_path, monkeypatch
):
    """Said before anything is evaluated."""
    projected()
    nouns.load_tagger.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), retrieval="clips")
    assert "retrieval/t2v/R1" in rows
    config = evaluate.Config(retrieval="clips", controls=("counterfactual",))
    inputs = {"clips": clips_of_brightness, "retrieval": Path("x")}
    with pytest.raises(InputError, match=r"evaluate with the control counterfactual, need spaCy: pip install"):
        evaluate.run(config, inputs, tmp_path, RESOURCES)
    assert not (tmp_path / "results.json").exists()


def test_controls_are_checked_by_name():
    with pytest.raises(ValueError, match="single_frame"):
        evaluate.Config(controls=("one_frame",))
