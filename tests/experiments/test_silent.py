"""The silent study: its stills, the labels of its arms, its scores, and a run at tiny sizes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from alpro.stages.training.batch import Batch
from alpro.stages.training.pretrain_objective import PretrainObjective
from experiments.silent import arms, study
from experiments.silent.arms import SilentObjective, true_labels
from experiments.silent.render import ABSENT, NOUNS, items


@pytest.mark.parametrize("named", [1, 2, 4])
def test_all_captions_of_a_still_name_the_same_things_and_those_of_the_start_all(named):
    rendered = list(items(40, 3, 2, named))
    assert [corpus for corpus, *_ in rendered] == ["second", "first"] * 20 + ["test"] * 5
    for corpus, row, still in rendered:
        shown, names = {thing.kind for thing in still.things}, row.meta["named"]
        assert len(names) == (named if corpus == "first" else 4)
        assert set(names) <= shown == {thing["kind"] for thing in row.meta["things"]}
        for caption in row.captions:
            assert sorted(word for word in caption.split() if word in NOUNS) == sorted(names)
    assert any(word in ABSENT for _, row, _ in rendered for caption in row.captions for word in caption.split())
    of_test, other = ([row for name, row, _ in all if name == "test"] for all in (rendered, items(40, 3, 2, 3)))
    assert of_test == other


A, B = ({"kind": kind, "x": x, "y": 0.25, "radius": 0.15} for kind, x in (("a", 0.25), ("b", 0.75)))


def test_true_labels_are_shares_of_the_area_that_the_crop_shows():
    for box, expected in (  # on a grid of 6 x 6
        ((0, 0, 6, 3), (0.5, 0.5, 0)),  # the upper half
        ((0, 0, 3, 6), (1, 0, 0)),  # the left half
        ((0, 3, 6, 3), (0, 0, 0)),  # the lower half
        ((0, 0, 4, 3), (0.3, 1 / 15, 0)),  # of b a strip of 1/15
    ):
        labels = true_labels([A, B, A | {"kind": "unknown"}], box, 6, {"a": 0, "b": 1, "c": 2})
        assert labels == pytest.approx(np.array(expected) / (sum(expected) or 1))


@pytest.fixture
def batch() -> Batch:
    stills = {"kind": "image", "ids": ["left", "right", "none"], "frames": torch.zeros(3, 1, 3, 32, 32).byte()}
    texts = {"text": torch.zeros(3, 4).long(), "mask": torch.ones(3, 4).long(), "video": torch.arange(3)}
    return Batch(step=0, boxes=torch.tensor([[0, 0, 2, 4]] * 3), **stills, **texts)


@pytest.fixture
def objective(tiny_model, monkeypatch):
    """objective(labels): two kinds of things; the prompter's label of sample n is 0.1 n for the first of them."""
    from alpro.models.alpro import Alpro
    from alpro.stages.training.pretrain_objective import LossWeights

    prompted = torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
    monkeypatch.setattr(PretrainObjective, "pseudo_labels", lambda self, frames, boxes, kind: prompted)

    def make(labels: arms.Labels, **changes) -> SilentObjective:
        model = Alpro(tiny_model(50), entities=2)
        made = SilentObjective(model, [0.5] * 3, [0.25] * 3, None, {}, LossWeights(), 0.2)
        return made.use(arms.Arm(labels, **changes), ["a", "b"], {"left": [A, B], "right": [B], "none": []})

    return make


def test_pem_has_the_labels_of_the_arm(objective, batch, monkeypatch):
    seen: list[Batch] = []
    monkeypatch.setattr(PretrainObjective, "entities", lambda self, given, *_: seen.append(given) or (None, {}))
    for labels, power, expected in (
        ("prompter", 1.0, [[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]]),
        ("prompter", 2.0, [[0.0, 1.0], [0.012, 0.988], [0.059, 0.941]]),  # normalized
        ("permuted", 1.0, [[0.2, 0.8], [0.0, 1.0], [0.1, 0.9]]),
        ("true", 1.0, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),  # the left half of the still
    ):
        made = objective(labels, power=power)
        made.entities(made.labeled(batch), None, None)
        assert [[round(p, 3) for p in row] for row in seen[-1].pseudo_labels.tolist()] == expected


@pytest.mark.long
def test_a_run_at_tiny_sizes(tmp_path, monkeypatch, capsys):
    """Every arm finishes; a study with more seeds continues; one of other sizes is refused."""
    trained: list[Path] = []
    monkeypatch.setattr(study, "pretrain_arm", lambda *a: trained.append(a[3]) or arms.pretrain_arm(*a))
    sizes = "--stills 24 --test 5 --steps 2 2 2 --batch-size 8"
    tiny = ["--out", str(tmp_path / "work"), "--results", str(tmp_path / "rows"), *sizes.split()]
    assert study.main([*tiny, "--seeds", "0", "--arms", "none", "permuted", "true"]) == 0
    assert study.main([*tiny, "--seeds", "0", "1", "--arms", "none", "head on none"]) == 0
    names = "none-0 permuted-0 true-0 head-on-none-0 none-1 head-on-none-1"
    assert [out.name for out in trained] == names.split()
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "rows").iterdir()}
    assert len(rows) == 6
    one, head = (rows[f"draw-0-named-1-{arm}-0"] for arm in ("none", "head-on-none"))
    assert head["scores"].keys() - one["scores"].keys() == {"pointing"}  # a head that was not trained is not kept
    assert one["scores"].keys() == {"naming", "naming_vtc", "R1"}
    assert one["teacher"].keys() == {"right", "ece", "kept", "right_kept", "sure", "right_sure"}
    assert {name: value for name, value in head["scores"].items() if name != "pointing"} == one["scores"]
    shutil.rmtree(tmp_path / "work")  # another session, which has the rows only
    assert study.main([*tiny, "--seeds", "0", "1", "--arms", "none", "head on none"]) == 0
    assert len(trained) == 6
    assert study.main([*tiny, "--stills", "26"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
