"""Controls: what a model that reads off how the brightness of a clip goes makes of frames in a
different order, of one frame, and of no clip."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alpro.stages import evaluate
from alpro.stages.evaluation import controls
from alpro.stages.evaluation.controls import (
    Shuffle,
    answer_under,
    best_single_frame,
    order_of,
    still,
)
from tests.stages.evaluation.conftest import evaluated


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 5))
def test_frames_in_a_different_order(frames, seed):
    shuffled = Shuffle(seed)(frames)
    assert sorted(shuffled) == sorted(frames)
    assert (shuffled == frames) == (len(set(frames)) == 1)
    assert shuffled == Shuffle(seed)(frames)
    assert order_of("reversed", 0)(frames) == frames[::-1]
    assert still(len(frames) - 1)(frames) == [frames[-1]] * len(frames)


def test_shuffling_differs_between_clips_and_seeds_and_reaches_every_other_order():
    shuffle = Shuffle(0)
    assert {tuple(shuffle([1, 2, 3])) for _ in range(200)} == {
        (1, 3, 2),
        (2, 1, 3),
        (2, 3, 1),
        (3, 1, 2),
        (3, 2, 1),
    }
    assert Shuffle(1)(list(range(10))) != Shuffle(2)(list(range(10)))


class TwoFrames:
    """A model of clips of two frames; each frame is the best of another pair."""

    frames = 2

    def similarity(self, gallery, reorder):
        return np.array([[-1.0, 4.0]] if reorder([10, 20]) == [10, 10] else [[2.0, 3.0]])

    def answer(self, questions, reorder):
        """The first frame has the largest logits and hardly prefers one; the second is certain of
        the other answer."""
        return torch.tensor([[9.0, 8.5]] if reorder([10, 20]) == [10, 10] else [[0.0, 4.0]])


def test_each_pair_has_the_similarity_of_its_best_frame():
    assert best_single_frame(TwoFrames(), None).tolist() == [[2.0, 4.0]]


def test_the_answer_is_that_of_the_most_certain_frame():
    best = answer_under("single_frame", 0, TwoFrames(), None)
    assert best.argmax(1).tolist() == [1]
    assert best.exp().tolist() == [
        [pytest.approx(0.6225, abs=1e-4), pytest.approx(0.9820, abs=1e-4)]
    ]


@pytest.fixture
def seeds(monkeypatch) -> list[int]:
    """The seeds of the shuffles so far."""
    seen: list[int] = []
    monkeypatch.setattr(controls, "Shuffle", lambda seed: seen.append(seed) or Shuffle(seed))
    return seen


def test_retrieval_under_every_control(clips_of_brightness, reading, seeds, tmp_path):
    """Each text has two clips that match it equally. Backwards it matches the others; shuffled
    clips neither rise nor fall; of single frames every clip has bright and dark ones, so that all
    pairs tie."""
    reading()
    wanted = {
        "retrieval": "clips",
        "controls": ("shuffled", "reversed", "single_frame", "text_only"),
        "seed": 5,
    }
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("retrieval",), **wanted)
    ranks = {name: row["value"] for name, row in rows.items() if name.endswith("MdR")}
    assert ranks == {
        **{
            f"{name}/{way}/MdR": 1.5
            for name in ("retrieval", "retrieval_vtc")
            for way in ("t2v", "v2t")
        },
        "retrieval_shuffled_vtc/t2v/MdR": 2.5,
        "retrieval_reversed_vtc/t2v/MdR": 3.5,
        "retrieval_single_frame_vtc/t2v/MdR": 2.5,
    }
    assert seeds == [5]
    labels = {f"frames {order}" for order in ("shuffled", "reversed")} | {"best frame"}
    assert {row["what"] for row in rows.values()} > {
        f"control: {label} by similarity" for label in labels
    }


def test_answers_under_every_control(clips_of_brightness, reading, seeds, tmp_path):
    """Bright frames say "rising", dark frames "falling" with more certainty. The clip of text_only
    is the mean color, zero after normalization: it is not darker than grey."""
    model = reading("qa", certainty=2.0)
    wanted = {"qa": "clips", "contrasts": (("rising", "falling"),), "seed": 7}
    wanted["controls"] = "shuffled", "reversed", "single_frame", "text_only"
    rows = evaluated(evaluate, clips_of_brightness, tmp_path / "out", ("qa",), **wanted)
    assert seeds == [7]
    scores = {name: (row["value"], row["chance"], row["items"]) for name, row in rows.items()}
    expected = {
        "qa": 100,
        "qa_shuffled": 0,
        "qa_reversed": 0,
        "qa_single_frame": 50,
        "qa_text_only": 50,
    }
    for name, value in expected.items():
        assert scores[f"{name}/acc"] == scores[f"{name}/acc_how"] == (value, 50, 4), name
    assert scores["qa_reversed/rising_or_falling"] == (0, 50, 4)
    assert scores["qa_single_frame/rising_or_falling"] == (50, 50, 4)
    assert rows["qa_text_only/acc"]["what"] == "control: text only"
    last = model.seen[-1]
    assert (tuple(last.shape), bool(last.any())) == ((1, 4, 3, 32, 32), False)
