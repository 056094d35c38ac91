"""Every pair matched, or the best k: the same scores by whatever batches."""

import numpy as np
import pytest
import torch

from models.alpro import Alpro
from shards.schema import InputError
from stages.evaluation.encode import encode_texts, encode_videos
from stages.evaluation.retrieval import (
    Gallery,
    encode_gallery,
    first_of,
    match,
    match_all,
    match_top_k,
    validate_retrieval,
    validation_gallery,
)
from stages.training.objective import MatchingObjective

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
        assert float(match(objective.model, texts, videos, torch.tensor([[text, video]]))) == pytest.approx(
            whole[text, video], abs=1e-5
        )


def test_the_size_of_the_batches_does_not_matter(objective, encoded, gallery, tokenizer):
    texts, videos = encoded
    np.testing.assert_allclose(
        match_all(objective.model, texts, videos, batch=6), match_all(objective.model, texts, videos), atol=1e-5
    )
    few = encode_texts(objective.model, tokenizer, gallery.texts, 24, CPU, batch=3)
    torch.testing.assert_close(few.features, texts.features, atol=1e-5, rtol=0)
    few = encode_videos(objective, gallery.reader, gallery.numbers, CPU, batch=3)
    torch.testing.assert_close(few.features, videos.features, atol=1e-5, rtol=0)


def test_each_text_and_each_video_is_encoded_once(objective, gallery, tokenizer, monkeypatch):
    """The official code encodes every text again for every video."""
    model, encoded = objective.model, {"text": 0, "video": 0}

    def counting(what, encode):
        def call(first, *rest):
            encoded[what] += len(first)
            return encode(first, *rest)

        return call

    for what in encoded:
        monkeypatch.setattr(model, f"encode_{what}", counting(what, getattr(model, f"encode_{what}")))
    texts, videos = encode_gallery(objective, gallery, tokenizer, 24, CPU)
    match_all(model, texts, videos)
    match_top_k(model, texts, videos, 3)
    assert encoded == {"text": len(gallery.texts), "video": len(gallery.numbers)}


def test_a_last_batch_of_one_pair_is_a_batch(objective, encoded):
    """64 pairs in batches of 7 leave one; so does any gallery of 512 n + 1 pairs by itself."""
    texts, videos = encoded
    np.testing.assert_allclose(
        match_all(objective.model, texts, videos, batch=7), match_all(objective.model, texts, videos), atol=1e-5
    )


def test_top_k_of_all_is_margin_and_similarity(objective, encoded):
    texts, videos = encoded
    similarity = (texts.features @ videos.features.T).numpy()
    expected = match_all(objective.model, texts, videos) + similarity
    np.testing.assert_allclose(match_top_k(objective.model, texts, videos, 1000, batch=5), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_scores_the_chosen_pairs_and_keeps_the_others_below_in_order(objective, encoded, k):
    texts, videos = encoded
    similarity = (texts.features @ videos.features.T).numpy()
    scores = match_top_k(objective.model, texts, videos, k)
    chosen = np.zeros_like(scores, dtype=bool)
    for text in range(8):
        chosen[text, similarity[text].argsort()[-k:]] = True
    for video in range(8):
        chosen[similarity[:, video].argsort()[-k:], video] = True
    expected = match_all(objective.model, texts, videos) + similarity
    np.testing.assert_allclose(scores[chosen], expected[chosen], atol=1e-5)
    assert scores[~chosen].max() < scores[chosen].min()
    assert (np.argsort(scores[~chosen]) == np.argsort(similarity[~chosen])).mean() > 0.9


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


def test_the_first_of_a_gallery_are_videos_with_one_caption_each(corpus_of, tmp_path):
    rows = [{"id": str(n), "captions": [f"{n} {c}" for c in range(1 + n % 2)]} for n in range(4)]
    small = first_of(Gallery.of(corpus_of(tmp_path, rows), "train"), 3)
    assert (small.ids, small.texts, small.video_of_text.tolist()) == (["0", "1", "2"], ["0 0", "1 0", "2 0"], [0, 1, 2])


def test_validation_takes_the_first_corpus_that_has_some(clips, lessons, vocabulary):
    found = validation_gallery({"vocabulary": vocabulary, "lessons": lessons, "clips": clips}, 500)
    assert all(name.startswith("validation") for name in found.ids)
    with pytest.raises(InputError, match="no corpus has validation videos with captions"):
        validation_gallery({"lessons": lessons}, 500)


def test_validation_gives_the_metrics_and_what_is_selected_by(objective, clips, tokenizer):
    validate, select = validate_retrieval(objective, {"clips": clips}, tokenizer, 24)
    found = validate()
    assert select in found
    recalls = [found[f"validation/{way}/R{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)]
    assert found[select] == pytest.approx(np.mean(recalls))


def test_frames_in_another_order_are_another_video(objective, gallery):
    same = encode_videos(objective, gallery.reader, gallery.numbers, CPU, reorder=lambda frames: frames)
    turned = encode_videos(objective, gallery.reader, gallery.numbers, CPU, reorder=lambda frames: frames[::-1])
    plain = encode_videos(objective, gallery.reader, gallery.numbers, CPU)
    assert torch.equal(same.features, plain.features)
    assert not torch.allclose(turned.features, plain.features)
