"""Every pair matched, or the best k: the same scores by whatever batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpro.models.alpro import Alpro
from alpro.stages.encoding.encode import Texts, Videos, encode_texts, encode_videos, similarities
from alpro.stages.evaluation.metrics import retrieval_ranks
from alpro.stages.evaluation.retrieval import (
    Gallery,
    dual_softmax,
    encode_gallery,
    match,
    match_all,
    match_pairs,
    match_top_k,
)
from alpro.stages.training.objective import MatchingObjective

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def objective(tiny_model, tokenizer):
    torch.manual_seed(0)
    return MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), [0.5] * 3, [0.25] * 3).eval()


@pytest.fixture(scope="module")
def gallery(clips):
    return Gallery.of(clips, "test")


@pytest.fixture(scope="module")
def encoded(objective, gallery, tokenizer):
    return encode_gallery(objective, gallery, tokenizer, 24, CPU)


def margin(objective, texts, videos, text: int, video: int) -> float:
    """The margin of one pair, alone in its batch."""
    one = slice(text, text + 1)
    logits = objective.model.match(texts.tokens[one], texts.mask[one], videos.tokens[video : video + 1])[0]
    return float(logits[1] - logits[0])


@torch.no_grad()
def test_all_pairs_are_matched_as_each_pair_is(objective, encoded):
    texts, videos = encoded
    whole = match_all(objective.model, texts, videos, batch=10)
    assert whole.shape == (8, 8)
    for text, video in [(0, 0), (0, 7), (3, 5), (7, 1)]:
        assert whole[text, video] == pytest.approx(margin(objective, texts, videos, text, video), abs=1e-5)
        assert float(match(objective.model, texts, videos, np.array([[text, video]]))) == pytest.approx(
            whole[text, video], abs=1e-5
        )


def test_the_size_of_the_batches_does_not_matter(objective, encoded, gallery, tokenizer):
    texts, videos = encoded
    for size in (6, 7):  # of 64 pairs the last batch has 4, and 1
        np.testing.assert_allclose(
            match_all(objective.model, texts, videos, batch=size), match_all(objective.model, texts, videos), atol=1e-5
        )
    few = encode_texts(objective.model, tokenizer, gallery.texts, 24, CPU, batch=3)
    torch.testing.assert_close(few.features, texts.features, atol=1e-5, rtol=0)
    few = encode_videos(objective, gallery.reader, gallery.numbers, CPU, batch=3)
    torch.testing.assert_close(few.features, videos.features, atol=1e-5, rtol=0)


def test_the_gallery_is_the_split_with_every_caption_once(gallery, corpus_of, tmp_path):
    assert len(gallery.ids) == len(gallery.texts) == 8
    rows = [
        {"id": "a", "split": "test", "captions": ["one", "two"]},
        {"id": "silent", "split": "test", "questions": [{"question": "q?", "answer": "a", "type": "q"}]},
        {"id": "b", "split": "test", "captions": ["three"]},
        {"id": "c", "split": "train", "captions": ["four"]},
    ]
    small = Gallery.of(corpus_of(tmp_path, rows), "test")
    assert (small.ids, small.texts) == (["a", "b"], ["one", "two", "three"])
    assert small.video_of_text.tolist() == [0, 0, 1]
    assert small.numbers == [0, 2]


def test_the_first_videos_and_captions_of_a_gallery(corpus_of, tmp_path):
    rows = [{"id": str(n), "captions": [f"{n} {c}" for c in range(1 + n % 2)]} for n in range(4)]
    gallery = Gallery.of(corpus_of(tmp_path, rows), "train")
    small = gallery.first(3, 1)
    assert (small.ids, small.texts, small.video_of_text.tolist()) == (["0", "1", "2"], ["0 0", "1 0", "2 0"], [0, 1, 2])
    assert small.numbers == [0, 1, 2]
    small = gallery.first(2, 0)
    assert (small.ids, small.texts, small.video_of_text.tolist()) == (["0", "1"], ["0 0", "1 0", "1 1"], [0, 1, 1])
    assert gallery.first(0, 0).texts == gallery.texts
    assert gallery.first(0, 1).ids == gallery.ids


def test_frames_in_another_order_are_another_video(objective, gallery):
    same = encode_videos(objective, gallery.reader, gallery.numbers, CPU, reorder=lambda frames: frames)
    turned = encode_videos(objective, gallery.reader, gallery.numbers, CPU, reorder=lambda frames: frames[::-1])
    plain = encode_videos(objective, gallery.reader, gallery.numbers, CPU)
    assert torch.equal(same.features, plain.features)
    assert not torch.allclose(turned.features, plain.features)


@pytest.fixture
def by_hand(monkeypatch):
    """by_hand(margins, similarity): texts, videos and a model whose matching head gives these margins, all of them
    negative: it takes no pair for a match, as an early model does."""

    def make(margins: list[list[float]], similarity: list[list[float]]) -> tuple[SimpleNamespace, Texts, Videos]:
        texts, videos = np.array(margins).shape
        scores = torch.tensor(margins)

        def pairs(text, of_text, video, qkv, of_video):
            return torch.stack([text[of_text, 0, 0], video[of_video, 0, 0]], dim=1)

        def head(pairs):
            margin = scores[pairs.long().unbind(1)]
            return torch.stack([-margin, torch.zeros_like(margin)], dim=1)

        numbered = [torch.arange(count).view(-1, 1, 1).float() for count in (texts, videos)]
        features = torch.tensor(similarity)
        return (
            SimpleNamespace(
                multimodal_encoder=SimpleNamespace(project=lambda tokens: tokens, pairs=pairs), vtm_head=head
            ),
            Texts(numbered[0], torch.ones(texts, 1), features),
            Videos(numbered[1], torch.eye(videos)),
        )

    return make


# Text 0 is most similar to video 1, and video 0 to text 1: t2v and v2t choose different pairs for k = 1.
SIMILARITY = [[0.1, 0.9, 0.2], [0.8, 0.3, 0.1], [0.0, 0.1, 0.7]]
MARGINS = [[-1.0, -2.0, -3.0], [-9.0, -0.5, -4.0], [-5.0, -6.0, -7.0]]


scores_of = arrays(np.float32, (4, 3), elements=st.floats(-1, 1, width=32))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores_of, scores_of, st.integers(1, 4))
def test_top_k_ranks_the_pairs_of_a_query_above_its_others(by_hand, margins, similarity, k):
    """In each direction those with the k highest similarities, by margin + similarity; the others, also those that the
    other direction has matched, by similarity below them."""
    margins *= 9
    scores = match_pairs(*by_hand(margins.tolist(), similarity.tolist()), k)
    (alone,) = match_top_k(*by_hand(margins.tolist(), similarity.tolist()), k, directions=("t2v",))
    assert np.array_equal(alone.argsort(1, kind="stable"), scores[0].argsort(1, kind="stable"))
    for ranked, margin, similar in ((scores[0], margins, similarity), (scores[1].T, margins.T, similarity.T)):
        for row, of_row, like in zip(ranked, margin, similar, strict=True):
            matched = np.isclose(row, of_row + like, atol=1e-5)
            assert matched.sum() == min(k, len(row))
            assert (not matched.all() and like[matched].min() >= like[~matched].max()) or matched.all()
            assert row[matched].min() > row[~matched].max(initial=-np.inf)
            assert np.diff(row[~matched][like[~matched].argsort()]).min(initial=0) >= 0


def test_a_dual_softmax_is_the_product_of_both_softmaxes():
    """By hand with temperature 1: the softmax of (0, ln 3) is (1/4, 3/4), that of (ln 2, ln 3) is (2/5, 3/5)."""
    similarity = np.log(np.array([[1.0, 3.0], [2.0, 3.0]]))
    over_videos, over_texts = np.array([[1 / 4, 3 / 4], [2 / 5, 3 / 5]]), np.array([[1 / 3, 1 / 2], [2 / 3, 1 / 2]])
    assert np.exp(dual_softmax(similarity, 1.0)) == pytest.approx(over_videos * over_texts)
    assert dual_softmax(similarity * 0.1, 0.1) == pytest.approx(dual_softmax(similarity, 1.0))


def test_a_dual_softmax_finds_what_a_hub_hides():
    """Video 0 is the most similar one to both texts, but more to its own; also if all similarities are negative."""
    for shift in (0.0, -2.0):
        similarity = np.array([[0.9, 0.1], [0.6, 0.5]]) + shift
        assert retrieval_ranks(similarity, np.arange(2))["t2v"].expected.tolist() == [1, 2]
        assert retrieval_ranks(dual_softmax(similarity, 0.07), np.arange(2))["t2v"].expected.tolist() == [1, 1]


@torch.no_grad()
def test_the_most_similar_pairs_are_chosen_and_scored_in_float32_under_autocast(objective, encoded):
    """Evaluation and validation on a GPU are under bfloat16 autocast."""
    texts, videos = encoded
    expected = match_top_k(objective.model, texts, videos, 2)
    similarity = texts.features @ videos.features.T
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarities(texts.features, videos.features), similarity)
        actual = match_top_k(objective.model, texts, videos, 2)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.05)
