"""Validation while training: on every corpus, by the protocol of the test unless another one is
asked for."""

import shutil
from itertools import product

import numpy as np
import pytest
import torch

from alpro.errors import InputError
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelBundle
from alpro.shards.reader import Unreadable
from alpro.stages.evaluation.evaluate_model import Asked, evaluate_model
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.finetune_qa import Config as Qa
from alpro.stages.finetune_retrieval import Config as Retrieval
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training.objective import (
    MatchingObjective,
    PrompterObjective,
    QaObjective,
)
from alpro.stages.training.validation import (
    BY_SIMILARITY,
    average,
    build_validation,
)
from tests.stages.training.conftest import MEAN, STD


@pytest.fixture(scope="module")
def objective(tiny_model, tokenizer):
    torch.manual_seed(0)
    return MatchingObjective(
        Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD
    ).eval()


@pytest.fixture(scope="module")
def bundle(objective, tokenizer):
    return ModelBundle("retrieval", objective.model, tokenizer)


@pytest.fixture(scope="module")
def answering(objective, tokenizer):
    return ModelBundle("qa", objective.model, tokenizer, answers=["ball", "box"])


DEFAULT = Asked()


def config(kind, corpora=("clips",), **validation):
    phases = [{"corpora": [name], "steps": 1} for name in corpora]
    return kind.model_validate(
        {"phases": phases, "max_text_tokens": 24, "validation": validation}
    )


def score(objective, gallery, bundle, top_k=0):
    """The scores of an evaluation, under the names of validation."""
    loaded = LoadedModel("", bundle, objective, length=24)
    results = evaluate_model(loaded, gallery, Asked(top_k=top_k))
    values = {row["name"]: row["value"] for row, _ in results.scores}
    prefixes = {"matching": "validation/", "similarity": "validation/vtc/"}
    scores = {}
    for name, value in values.items():
        ranker, _, metric = name.partition("/")
        scores[prefixes[ranker] + metric] = value
    return scores


@pytest.fixture(scope="module")
def several(corpus_of, tmp_path_factory):
    """A corpus of 5 validation videos with 2 captions and 2 questions each, and one of 3 with a
    caption each."""

    def corpus(name, count, ways):
        rows = []
        for n in range(count):
            answer = {"answer": "ball" if n else "box", "type": "what"}
            texts = {"captions": [f"the red ball moves {way} {n}" for way in ways]}
            texts["questions"] = [{"question": f"what {c}?", **answer} for c in "ab"]
            rows.append({"id": f"{name}{n}", "split": "validation", **texts})
        return corpus_of(tmp_path_factory.mktemp(name), rows)

    return {
        "several": corpus("several", 5, ("left", "up")),
        "few": corpus("few", 3, ("left",)),
    }


@torch.no_grad()
def test_retrieval_is_validated_as_it_is_tested(objective, several, bundle):
    """By default: every video, every caption, every pair by the matching head."""
    asked = config(Retrieval, ("several",))
    validate = build_validation(objective, several, bundle, asked, DEFAULT)

    actual = validate()

    expected = score(objective, Gallery.read(several["several"], "validation"), bundle)
    names = product(("t2v", "v2t"), (1, 5, 10))
    recalls = [expected[f"validation/{way}/R{k}"] for way, k in names]
    assert actual["validation/mean_recall"] == pytest.approx(np.mean(recalls))
    assert {name: actual[name] for name in expected} == expected


@torch.no_grad()
def test_fewer_videos_captions_and_pairs_can_be_asked_for(objective, several, bundle):
    asked = config(Retrieval, ("several",), videos=4, captions=1)
    gallery = Gallery.read(several["several"], "validation", videos=4, texts=1)

    top_2 = Asked(top_k=2)
    actual = build_validation(objective, several, bundle, asked, top_2)()

    expected = score(objective, gallery, bundle, top_k=2)
    assert {name: actual[name] for name in expected} == expected


@torch.no_grad()
def test_every_corpus_of_the_phases_is_validated_on(
    objective, several, lessons, bundle
):
    """Metrics are the means over the corpora, beside those of each; a corpus without validation
    videos has none."""
    corpora = several | {"lessons": lessons}

    def validated(*names):
        asked = config(Retrieval, names)
        return build_validation(objective, corpora, bundle, asked, DEFAULT)()

    both = validated("several", "few", "lessons")

    one = validated("several")
    other = validated("few")
    for name in one:
        assert both[f"{name}/of/several"] == one[name]
        assert both[f"{name}/of/few"] == other[name]
        assert both[name] == pytest.approx((one[name] + other[name]) / 2)
    assert len(both) == 3 * len(one)


def test_nothing_to_validate_on_is_a_mistake_of_fine_tuning_alone(
    objective, lessons, bundle, answering
):
    inputs = {"lessons": lessons}
    for kind, model, column in (
        (Retrieval, bundle, "captions"),
        (Qa, answering, "questions"),
    ):
        asked = config(kind, ("lessons",))
        with pytest.raises(InputError, match=column):
            build_validation(objective, inputs, model, asked, DEFAULT)
    asked = config(TrainPrompter, ("lessons",))
    assert build_validation(objective, inputs, bundle, asked, BY_SIMILARITY) is None


@torch.no_grad()
def test_contrast_is_validated_by_similarity_on_one_caption_a_video(
    several, tokenizer, tiny_model, bundle
):
    prompter = Prompter(tiny_model(tokenizer.get_vocab_size()))
    objective = PrompterObjective(prompter, MEAN, STD).eval()
    asked = config(TrainPrompter, ("several",))

    validate = build_validation(objective, several, bundle, asked, BY_SIMILARITY)
    actual = validate()

    gallery = Gallery.read(several["several"], "validation", videos=500, texts=1)
    expected = score(objective, gallery, bundle)
    assert {name: actual[name] for name in expected} == expected
    assert actual.keys() - expected.keys() == {"validation/vtc/mean_recall"}


@pytest.fixture
def always(tiny_model, tokenizer):
    """always(place, answers): an objective whose head always gives one of so many answers."""

    def make(place, answers):
        model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=answers)
        with torch.no_grad():
            model.qa_head[-1].weight.zero_()
            model.qa_head[-1].bias.copy_(torch.eye(answers)[place])
        return QaObjective(model, MEAN, STD).eval()

    return make


def test_questions_of_every_corpus_are_validated_on(always, answering, several):
    """A head that always answers "box", which is right about the first video of each: 2 of 10 and 2
    of 6 questions."""
    objective = always(1, 2)
    asked = config(Qa, ("several", "few"))
    select = "validation/qa/acc"
    validate = build_validation(objective, several, answering, asked, DEFAULT)

    actual = validate()

    assert actual[f"{select}/of/several"] == pytest.approx(20)
    assert actual[f"{select}/of/few"] == pytest.approx(100 / 3)
    assert actual[select] == pytest.approx((20 + 100 / 3) / 2)

    fewer = config(Qa, ("several",), videos=1)
    validate = build_validation(objective, several, answering, fewer, DEFAULT)
    assert validate() == pytest.approx(
        {"validation/qa/acc": 100, "validation/qa/acc_what": 100}
    )


def test_a_metric_that_one_corpus_lacks_is_the_mean_of_the_others():
    metrics = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}
    actual = average(metrics)
    assert actual == {"x": 2.0, "y": 2.0, "x/of/a": 1.0, "y/of/a": 2.0, "x/of/b": 3.0}


def test_a_frame_that_cannot_be_read_is_found_before_training(
    objective, clips, bundle, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(clips, broken)
    for shard in broken.glob("validation-*.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(Unreadable):
        build_validation(
            objective, {"clips": broken}, bundle, config(Retrieval), DEFAULT
        )
