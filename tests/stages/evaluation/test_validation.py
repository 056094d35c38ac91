"""Validation while training: on every corpus, by the protocol of the test unless another one is
asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from alpro.errors import InputError
from alpro.inference.encoding import match_all, match_top_k
from alpro.models.alpro import Alpro, Prompter
from alpro.shards.reader import Unreadable
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.evaluation.validation import (
    averaged,
    validate_contrast,
    validate_qa,
    validate_retrieval,
)
from alpro.stages.finetune_qa import Config as Qa
from alpro.stages.finetune_retrieval import Config as Retrieval
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training.objective import MatchingObjective, PrompterObjective, QaObjective

MEAN = [0.5] * 3
STD = [0.25] * 3


@pytest.fixture(scope="module")
def objective(tiny_model, tokenizer):
    torch.manual_seed(0)
    return MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD).eval()


def config(kind: type, corpora: tuple[str, ...] = ("clips",), **validation: object):
    phases = [{"corpora": [name], "steps": 1} for name in corpora]
    return kind.model_validate({"phases": phases, "max_text_tokens": 24, "validation": validation})


def scores(objective, gallery: Gallery, tokenizer, match) -> dict[str, float]:
    texts, videos = Scorer(objective, tokenizer, 24).encode(gallery)
    return retrieval_metrics(match(objective.model, texts, videos), gallery.labels.relevant)


def by_similarity(_, texts, videos) -> np.ndarray:
    return (texts.features @ videos.features.T).numpy()


@pytest.fixture(scope="module")
def several(corpus_of, tmp_path_factory):
    """A corpus of 5 validation videos with 2 captions and 2 questions each, and one of 3 with a
    caption each."""

    def corpus(name: str, count: int, ways: tuple[str, ...]) -> Path:
        rows = []
        for n in range(count):
            answer = {"answer": "ball" if n else "box", "type": "what"}
            texts = {"captions": [f"the red ball moves {way} {n}" for way in ways]}
            texts["questions"] = [{"question": f"what {c}?", **answer} for c in "ab"]
            rows.append({"id": f"{name}{n}", "split": "validation", **texts})
        return corpus_of(tmp_path_factory.mktemp(name), rows)

    return {"several": corpus("several", 5, ("left", "up")), "few": corpus("few", 3, ("left",))}


@torch.no_grad()
def test_retrieval_is_validated_as_it_is_tested(objective, several, tokenizer):
    """By default: every video, every caption, every pair by the matching head."""
    validate, select = validate_retrieval(
        objective, several, tokenizer, config(Retrieval, ("several",))
    )
    actual = validate()
    gallery = Gallery.of(several["several"], "validation")
    for prefix, match in (("validation", match_all), ("validation/vtc", by_similarity)):
        expected = scores(objective, gallery, tokenizer, match)
        recalls = [expected[f"{way}/R{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)]
        expected["mean_recall"] = np.mean(recalls)
        assert {name: actual[f"{prefix}/{name}"] for name in expected} == pytest.approx(expected)
    assert select == "validation/mean_recall"


@torch.no_grad()
def test_fewer_videos_captions_and_pairs_can_be_asked_for(
    objective, several, tokenizer, monkeypatch
):
    seen = []
    encode = Scorer.encode
    monkeypatch.setattr(
        Scorer,
        "encode",
        lambda s, gallery, *rest: seen.append(gallery) or encode(s, gallery, *rest),
    )
    asked = config(Retrieval, ("several",), videos=4, captions=1, top_k=2)
    actual = validate_retrieval(objective, several, tokenizer, asked)[0]()
    gallery = Gallery.of(several["several"], "validation").first(4, 1)
    assert (seen[0].ids, seen[0].texts) == (gallery.ids, gallery.texts)
    expected = scores(objective, gallery, tokenizer, lambda *args: match_top_k(*args, 2))
    assert {name: actual[f"validation/{name}"] for name in expected} == pytest.approx(expected)


@torch.no_grad()
def test_every_corpus_of_the_phases_is_validated_on(objective, several, lessons, tokenizer):
    """Metrics are the means over the corpora, beside those of each; a corpus without validation
    videos has none."""
    corpora = several | {"lessons": lessons}
    both = validate_retrieval(
        objective, corpora, tokenizer, config(Retrieval, ("several", "few", "lessons"))
    )[0]()
    alone = [
        validate_retrieval(objective, corpora, tokenizer, config(Retrieval, (name,)))[0]()
        for name in several
    ]
    for name in alone[0]:
        assert both[f"{name}/of/several"] == alone[0][name]
        assert both[f"{name}/of/few"] == alone[1][name]
        assert both[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2)
    assert len(both) == 3 * len(alone[0])


def test_nothing_to_validate_on_is_a_mistake_of_fine_tuning_alone(
    objective, lessons, tokenizer, tiny_model, tmp_path
):
    inputs = {"lessons": lessons}
    with pytest.raises(InputError, match="captions"):
        validate_retrieval(objective, inputs, tokenizer, config(Retrieval, ("lessons",)))
    with pytest.raises(InputError, match="questions"):
        validate_qa(objective, inputs, tokenizer, [], config(Qa, ("lessons",)))
    prompter = PrompterObjective(Prompter(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    assert (
        validate_contrast(
            prompter, inputs, tokenizer, config(TrainPrompter, ("lessons",)), tmp_path
        )
        is None
    )


@torch.no_grad()
def test_contrast_is_validated_by_similarity_on_one_caption_a_video(
    several, tokenizer, tiny_model, capsys, tmp_path
):
    objective = PrompterObjective(
        Prompter(tiny_model(tokenizer.get_vocab_size())).eval(), MEAN, STD
    ).eval()
    actual = validate_contrast(
        objective, several, tokenizer, config(TrainPrompter, ("several",)), tmp_path
    )()
    gallery = Gallery.of(several["several"], "validation").first(500, 1)
    texts, videos = Scorer(objective, tokenizer, 24).encode(gallery)
    expected = retrieval_metrics(
        (texts.features @ videos.features.T).numpy(), gallery.labels.relevant
    )
    assert actual == pytest.approx(
        {f"validation/vtc/{name}": value for name, value in expected.items()}
    )
    best = (texts.features @ videos.features.T).argmax(1).tolist()
    lines = [line for line in capsys.readouterr().err.splitlines() if "search " in line]
    assert len(lines) == 3
    assert (tmp_path / "pictures" / "search.png").is_file()
    for line, text, found in zip(lines, gallery.texts, best, strict=False):
        assert f'"{text}"' in line
        assert gallery.ids[found] in line
        assert f'"{gallery.texts[found]}"' in line


@pytest.fixture
def always(tiny_model, tokenizer):
    """always(place, answers): an objective whose head always gives one of so many answers."""

    def make(place: int, answers: int) -> QaObjective:
        model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=answers)
        with torch.no_grad():
            model.qa_head[-1].weight.zero_()
            model.qa_head[-1].bias.copy_(torch.eye(answers)[place])
        return QaObjective(model, MEAN, STD).eval()

    return make


def test_questions_of_every_corpus_are_validated_on(always, tokenizer, several):
    """A head that always answers "box", which is right about the first video of each: 2 of 10 and 2
    of 6 questions."""
    answers = ["ball", "box"]
    objective = always(1, 2)
    validate, select = validate_qa(
        objective, several, tokenizer, answers, config(Qa, ("several", "few"))
    )
    actual = validate()
    assert actual[f"{select}/of/several"] == pytest.approx(20)
    assert actual[f"{select}/of/few"] == pytest.approx(100 / 3)
    assert actual[select] == pytest.approx((20 + 100 / 3) / 2)
    one = validate_qa(objective, several, tokenizer, answers, config(Qa, ("several",), videos=1))[
        0
    ]()
    assert one == pytest.approx({"validation/qa/acc": 100.0, "validation/qa/acc_what": 100.0})


def test_a_metric_that_one_corpus_lacks_is_the_mean_of_the_others():
    metrics = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}
    actual = averaged({name: name for name in metrics}, metrics.get)
    assert actual == {"x": 2.0, "y": 2.0, "x/of/a": 1.0, "y/of/a": 2.0, "x/of/b": 3.0}


def test_a_frame_that_cannot_be_read_is_found_before_training(
    objective, clips, tokenizer, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(clips, broken)
    for shard in broken.glob("validation-*.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(Unreadable):
        validate_retrieval(objective, {"clips": broken}, tokenizer, config(Retrieval))
