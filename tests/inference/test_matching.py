"""Scores of pairs and of answers: each is that of the pair alone, whatever the batches; nothing is
computed twice."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpro.inference.clips import read_frames
from alpro.inference.matching import Videos, score
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelBundle, Texts
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation import loaded_model
from alpro.stages.evaluation.evaluate_model import Asked, evaluate_model, match_top_k
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.training.objective import QaObjective

LENGTHS = [4, 2, 6, 3, 6, 2, 5]
close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


@pytest.fixture(params=[1, 3])
def model(tiny_model, request):
    config = tiny_model(50)
    text = config.text.model_copy(
        update={"depth": config.text.fusion_layer + request.param}
    )
    torch.manual_seed(0)
    return Alpro(config.model_copy(update={"text": text}), answers=3).eval()


@pytest.fixture
def encoded(model):
    """Seven texts of five lengths and five videos of random tokens."""
    width = model.config.text.width
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    texts = Texts(
        torch.randn(len(LENGTHS), max(LENGTHS), width),
        mask,
        torch.randn(len(LENGTHS), 8),
    )
    return texts, Videos(torch.randn(5, 17, width), torch.randn(5, 8))


@torch.no_grad()
@pytest.mark.parametrize("head", ["vtm_head", "qa_head"])
@pytest.mark.parametrize("values", [1, 3 * 17 * 32, 2**19])
def test_a_score_is_that_of_the_padded_pair_alone(
    model, encoded, monkeypatch, head, values
):
    monkeypatch.setattr("alpro.inference.matching.VIDEOS", 3)
    monkeypatch.setattr("alpro.inference.matching.CPU_VALUES", values)
    texts, videos = encoded
    every_pair = np.argwhere(np.ones((7, 5), bool))
    pairs = np.random.default_rng(0).permutation(every_pair)[:30]

    actual = score(model, getattr(model, head), texts, videos, pairs)

    score_pair = model.match if head == "vtm_head" else model.answer
    for scored, (text, video) in zip(actual, pairs, strict=True):
        alone = score_pair(
            texts.tokens[[text]], texts.mask[[text]], videos.tokens[[video]]
        )
        close(scored, alone[0])


@torch.no_grad()
@pytest.mark.parametrize(("build", "tokens"), [(Alpro, 17), (Prompter, 1)])
def test_videos_and_images_are_encoded_together_as_each_alone(
    build, tokens, tiny_model, corpus_of, tmp_path, monkeypatch
):
    """Images are stored with their aspect ratio, videos at the size of decoding; in three batches.
    Of a prompter only [CLS] is kept, which it compares."""
    kinds = {"video": (6, 40, 40, 3), "image": (1, 24, 56, 3)}
    rng = np.random.default_rng(0)
    rows = []
    for number in range(3):
        for kind, shape in kinds.items():
            frames = rng.integers(0, 256, shape, dtype=np.uint8)
            rows.append({"id": f"{kind}{number}", "kind": kind, "frames": frames})
    reader = ShardReader(corpus_of(tmp_path / "both", rows))
    samples = [reader[number] for number in (4, 1, 0, 3, 5)]
    torch.manual_seed(0)
    model = build(tiny_model(50)).eval()
    encoder = NormalizedModel(model, [0.5] * 3, [0.25] * 3)
    loaded = LoadedModel("", ModelBundle("prompter", model, None), encoder)
    monkeypatch.setattr(loaded_model, "VIDEO_BATCH", 2)

    indices, together = loaded.encode_videos(Gallery(samples, [], []))

    assert indices == [0, 1, 2, 3, 4]
    for index, sample in enumerate(samples):
        frames = read_frames(sample, 4, 32)
        alone = model.encode_video(encoder.clip_pixels([frames]))
        close(together.tokens[index], alone[0, :tokens])
        close(together.features[[index]], model.project_video(alone))
    assert not len(loaded.encode_videos(Gallery([], [], []))[1].features)


def by_hand(margins, similarity):
    """A model whose matching head gives these margins of texts and videos, all negative: it takes
    no pair for a match, as an early model does."""
    scores = torch.from_numpy(margins)

    def fuse_pairs(text, text_indices, video, video_qkv, video_indices):
        return torch.stack(
            [text[text_indices, 0, 0], video[video_indices, 0, 0]], dim=1
        )

    def head(pairs):
        margin = scores[pairs.long().unbind(1)]
        return torch.stack([-margin, torch.zeros_like(margin)], dim=1)

    texts, videos = (
        torch.arange(count).view(-1, 1, 1).expand(-1, -1, 2).float()
        for count in margins.shape
    )
    model = SimpleNamespace(
        multimodal_encoder=SimpleNamespace(project=lambda t: t, fuse_pairs=fuse_pairs),
        vtm_head=head,
    )
    features = Texts(texts, torch.ones(len(texts), 1), torch.from_numpy(similarity))
    return model, features, Videos(videos, torch.eye(len(videos)))


scores_of = arrays(np.float32, (4, 3), elements=st.floats(-1, 1, width=32))


@settings(max_examples=60)
@given(scores_of, scores_of, st.integers(1, 4))
def test_top_k_ranks_the_pairs_of_a_query_above_its_others(margins, similarity, k):
    """In each direction those with the k highest similarities, by margin + similarity; the others,
    also those that the other direction has matched, by similarity below them."""
    margins *= 9

    scores = match_top_k(*by_hand(margins, similarity), k)

    by_text, by_video = scores
    rows = [*zip(by_text, margins, similarity, strict=True)]
    rows += zip(by_video.T, margins.T, similarity.T, strict=True)
    for ranked, margin, similar in rows:
        matched = np.isclose(ranked, margin + similar, atol=1e-5)
        others = ranked[~matched][similar[~matched].argsort()]
        assert matched.sum() == min(k, len(ranked))
        assert similar[matched].min() >= similar[~matched].max(initial=-1)
        assert ranked[matched].min() > others.max(initial=-np.inf)
        assert np.diff(others).min(initial=0) >= 0


@pytest.fixture(scope="module")
def loaded(tiny_model, tokenizer):
    torch.manual_seed(1)
    alpro = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=4)
    encoder = QaObjective(alpro, [0.5] * 3, [0.25] * 3).eval()
    bundle = ModelBundle("qa", alpro, tokenizer, answers=list("abcd"))
    return LoadedModel("", bundle, encoder, length=24)


@pytest.fixture(scope="module")
def gallery(clips):
    return Gallery.read(clips, "test")


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 2])
def test_scores_are_in_float32_under_autocast(loaded, gallery, top_k):
    """Evaluation and validation on a GPU are under bfloat16 autocast, a type that numpy does not
    have."""
    exact = evaluate_model(loaded, gallery, Asked(top_k=top_k)).tables

    with torch.autocast("cpu", torch.bfloat16):
        actual = evaluate_model(loaded, gallery, Asked(top_k=top_k)).tables

    for tables in (actual, exact):
        tables["best"] = tables["similarity_t2v"]["best_scores"].to_pylist()
    np.testing.assert_allclose(actual["best"], exact["best"], atol=0.1)


def test_a_question_is_answered_as_it_is_alone(loaded, clips, monkeypatch):
    monkeypatch.setattr(loaded_model, "QUESTION_BATCH", 4)
    questions = Gallery.read(clips, "test", column="questions")

    _, whole = loaded.answer(questions)
    _, reordered = loaded.answer(questions, reorder=lambda frames: frames[::-1])

    assert whole.shape == (len(questions.texts), 4)
    assert not torch.allclose(reordered, whole)
    for place in (0, 6):
        alone = questions.select([int(questions.video_of_text[place])])
        _, logits = loaded.answer(alone)
        close(logits[alone.texts.index(questions.texts[place])], whole[place])
