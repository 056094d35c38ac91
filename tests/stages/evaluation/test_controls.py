"""Controls: frames in another order, and single frames."""

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from alpro.stages.evaluation.controls import (
    answer_under,
    compute_similarity_under,
    list_orders,
    shuffle,
)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 5))
def test_frames_in_a_different_order(frames, seed):
    shuffled = shuffle(seed)(frames)

    assert sorted(shuffled) == sorted(frames)
    assert (shuffled == frames) == (len(set(frames)) == 1)
    assert shuffled == shuffle(seed)(frames)
    (backwards,) = list_orders("reversed", 0, len(frames))
    assert backwards(frames) == frames[::-1]
    stills = [order(frames) for order in list_orders("single_frame", 0, len(frames))]
    assert stills == [[frame] * len(frames) for frame in frames]


def test_shuffling_differs_between_clips_and_reaches_every_other_order():
    reorder = shuffle(0)

    orders = {tuple(reorder([1, 2, 3])) for _ in range(200)}

    assert orders == {(1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)}
    frames = list(range(10))
    assert shuffle(1)(frames) != shuffle(2)(frames)


class TwoFrames:
    """A model of clips of two frames; each frame is the best of another pair."""

    frames = 2

    def encode_videos(self, gallery, reorder):
        features = [[-1.0], [4.0]] if reorder([10, 20]) == [10, 10] else [[2.0], [3.0]]
        return [0, 1], SimpleNamespace(features=torch.tensor(features))

    def answer(self, gallery, reorder, blank):
        """The first frame has the largest logits and hardly prefers one; the second is confident of
        the other answer."""
        logits = [[9.0, 8.5]] if reorder([10, 20]) == [10, 10] else [[0.0, 4.0]]
        return gallery, torch.tensor(logits)


def test_each_pair_has_the_similarity_of_its_best_frame():
    texts = SimpleNamespace(features=torch.ones(1, 1))

    best = compute_similarity_under("single_frame", 0, TwoFrames(), None, texts)

    assert best.tolist() == [[2.0, 4.0]]


def test_the_answer_is_that_of_the_most_confident_frame():
    _, best = answer_under("single_frame", 0, TwoFrames(), None)

    assert best.argmax(1).tolist() == [1]
