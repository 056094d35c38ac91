"""Scores of a model: of pairs and of answers, the same by whatever batches."""

from dataclasses import replace

import pytest
import torch

from alpro.models.alpro import Alpro
from alpro.stages.evaluation import scorer as scorer_module
from alpro.stages.evaluation.encoding import encode_texts, encode_videos, match_top_k, similarities
from alpro.stages.evaluation.gallery import Gallery, Questions
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.training.objective import QaObjective


@pytest.fixture(scope="module")
def scorer(tiny_model, tokenizer):
    torch.manual_seed(0)
    alpro = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=4)
    return Scorer(QaObjective(alpro, [0.5] * 3, [0.25] * 3).eval(), tokenizer, 24)


@pytest.fixture(scope="module")
def gallery(clips):
    return Gallery.of(clips, "test")


def close(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_gallery_is_scored_by_matching_and_by_similarity(scorer, gallery):
    texts, videos = scorer.encode(gallery)
    scores, similarity = scorer.score(gallery)
    close(similarity, texts.features @ videos.features.T)
    model = scorer.encoder.model
    for text, video in [(0, 0), (0, 7), (3, 5), (7, 1)]:
        one = slice(text, text + 1)
        logits = model.match(texts.tokens[one], texts.mask[one], videos.tokens[video : video + 1])[0]
        close(scores[text, video], logits[1] - logits[0])
    few = replace(scorer, top_k=2)
    close(few.score(gallery)[0], match_top_k(model, texts, videos, 2))
    assert scores.shape == (8, 8)
    assert (scorer.protocol(), few.protocol()) == ("all pairs, 4 frames", "top 2, 4 frames")
    assert few.protocol(by_similarity=True) == "all pairs, 4 frames"


def test_the_size_of_the_batches_does_not_matter(scorer, gallery):
    texts, videos = scorer.encode(gallery)
    few = encode_texts(scorer.encoder.model, scorer.tokenizer, gallery.texts, 24, batch=3)
    close(few.features, texts.features)
    few = encode_videos(scorer.encoder, gallery.reader, gallery.numbers, batch=3)
    close(few.features, videos.features)
    few = replace(scorer, length=5).encode(gallery)[0]
    assert few.mask.sum(1).max() == 5


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 2])
def test_pairs_are_chosen_and_scored_in_float32_under_autocast(scorer, gallery, top_k):
    """Evaluation and validation on a GPU are under bfloat16 autocast, a type that numpy does not have."""
    texts, videos = scorer.encode(gallery)
    similarity, some = texts.features @ videos.features.T, replace(scorer, top_k=top_k)
    expected, _ = some.score(gallery)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarities(texts.features, videos.features), similarity)
        for actual, exact in zip(some.score(gallery), (expected, similarity), strict=True):
            assert actual.dtype == "float32"
            torch.testing.assert_close(torch.from_numpy(actual), torch.as_tensor(exact), atol=0.1, rtol=0)


def test_a_question_is_answered_as_it_is_alone(scorer, clips):
    questions = Questions.of(clips, "test")
    whole = scorer.answer(questions)
    assert whole.shape == (len(questions.texts), 4)
    for place in (0, 6):
        video = questions.video_of_text[place]
        one = questions.between(video, video + 1)
        mine = next(n for n, text in enumerate(one.texts) if text == questions.texts[place])
        close(scorer.answer(one)[mine], whole[place])
    reordered = scorer.answer(questions, reorder=lambda frames: frames[::-1])
    assert not torch.allclose(reordered, whole)


def test_the_device_holds_the_tokens_of_few_questions_at_a_time(scorer, corpus_of, tmp_path, monkeypatch):
    """However many questions there are: what is encoded together is a batch of questions and the videos of some."""
    asked = [{"question": f"what is it {n}?", "answer": "a", "type": "what"} for n in range(3)]
    rows = [{"id": str(n), "split": "test", "questions": asked} for n in range(7)]
    questions, model = Questions.of(corpus_of(tmp_path, rows), "test"), scorer.encoder.model
    whole = scorer.answer(questions)
    sizes: dict[str, list[int]] = {"encode_text": [], "encode_video": []}
    for name, seen in sizes.items():
        call = getattr(model, name)
        monkeypatch.setattr(model, name, lambda first, *rest, c=call, s=seen: s.append(len(first)) or c(first, *rest))
    monkeypatch.setattr(scorer_module, "VIDEOS", 3)
    monkeypatch.setattr(scorer_module, "QUESTIONS", 4)
    close(scorer.answer(questions), whole)
    assert sizes == {"encode_text": [4, 4, 1, 4, 4, 1, 3], "encode_video": [3, 3, 1]}
