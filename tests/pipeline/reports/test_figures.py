"""Curves of metrics files: panels, chance levels, borders of phases."""

import re

import numpy as np
import pytest

from alpro.files import write_json
from alpro.pipeline.reports.curve_marks import borders, marks_of
from alpro.pipeline.reports.figures import Marks, metric_curves, panel_pictures

LINES = [
    {"step": 1, "time": 1.0, "train/loss": 2.0, "train/loss_vtc": 1.5, "train/lr": 1e-4},
    {"step": 2, "time": 2.0, "train/loss": 1.0, "train/loss_vtc": 0.5, "train/lr": 5e-5},
    {"step": 2, "time": 2.0, "validation/t2v/R1": 20.0, "validation/v2t/R1": 30.0, "validation/t2v/MdR": 4.0},
]


def test_curves_have_a_panel_for_each_kind_of_metric():
    figure = metric_curves(LINES, "pretrain")
    panels = {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes
    }
    assert panels == {
        "pretrain: losses": {"loss": [[1, 2.0], [2, 1.0]], "loss_vtc": [[1, 1.5], [2, 0.5]]},
        "pretrain: optimization": {"lr (of 0.0001)": [[1, 1.0], [2, 0.5]]},
        "pretrain: validation": {"t2v/R1": [[2, 20.0]]},
    }
    assert metric_curves([], "pretrain") is None
    assert metric_curves([{"step": 1, "time": 1.0}], "pretrain") is None


def test_pictures_of_panels_have_texts_and_their_marks():
    plain = panel_pictures(LINES, Marks())
    marked = panel_pictures(LINES, Marks({"validation/t2v/R1": 0.5}, [1]))
    assert list(plain) == list(marked) == ["losses", "optimization", "validation"]
    for picture in plain.values():
        assert "<text " in picture  # texts, not outlines

    def dashed(pictures: dict[str, str]) -> list[int]:
        return [len(re.findall("stroke-dasharray", picture)) for picture in pictures.values()]

    assert (np.array(dashed(marked)) - dashed(plain)).tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("steps", "total", "last"),
    [
        ([600, 250, 1500], 2350, [600, 850]),
        ([400], 400, []),
        ([0], 400, []),  # epochs
        ([0, 100], 400, [300]),  # the rest are the steps of the phase in epochs
        ([0, 100, 0], 400, []),  # not known
        ([600, 250], 0, []),  # all weights of the losses are 0: nothing was trained
    ],
)
def test_the_last_steps_of_phases(steps, total, last):
    assert borders([{"steps": count} for count in steps], total) == last


@pytest.fixture
def trained(corpus_of, tmp_path):
    """trained(**config): the artifact of a training stage on four validation videos with five captions, and on another
    corpus without validation."""
    rows = [
        {"id": f"v{n}", "split": "validation", "captions": ["a", "b"] if n == 0 else ["a"], "questions": []}
        for n in range(4)
    ]
    asked = [("yes", "train"), ("yes", "train"), ("no", "train"), ("yes", "validation"), ("no", "validation")]
    rows += [
        {"id": f"q{n}", "split": split, "questions": [{"question": "is it?", "answer": answer, "type": "is"}]}
        for n, (answer, split) in enumerate(asked)
    ]
    for mark, content in (("a", rows), ("b", [{"id": "x", "captions": ["c"]}])):
        write_json(corpus_of(tmp_path / "decode_videos" / (mark * 16), content) / "artifact.json", {})
    phases = [{"corpora": ["clips"], "steps": 3}, {"corpora": ["clips", "stills"], "steps": 2}]

    def artifact(**config):
        inputs = {
            name: {"stage": "decode_videos", "fingerprint": mark * 64}
            for name, mark in (("clips", "a"), ("stills", "b"))
        }
        values = {"phases": phases, "validation": {"videos": 0, "captions": 0}, **config}
        return tmp_path / "pretrain" / "x", {"config": values, "inputs": inputs, "counts": {"steps": 5}}

    return artifact


def test_chance_levels_of_retrieval_are_those_of_random_ranks(trained):
    """A right one among four: 1/4. The video with two captions has one of its two among the first k of five texts."""
    marks = marks_of(*trained())
    assert marks.borders == [3]
    assert marks.chance["validation/vtc/t2v/R1"] == marks.chance["validation/t2v/R1"] == pytest.approx(25)
    assert marks.chance["validation/v2t/R1"] == pytest.approx(100 * (2 / 5 + 3 * 1 / 5) / 4)
    assert marks.chance["validation/mean_recall"] == pytest.approx((25 + 25 + 4 * 100) / 6)


def test_fewer_validation_videos_have_another_chance(trained):
    marks = marks_of(*trained(validation={"videos": 2, "captions": 1}))
    assert marks.chance["validation/t2v/R1"] == pytest.approx(50)


def test_the_chance_level_of_answers_is_the_most_frequent_one_in_training(trained):
    marks = marks_of(*trained(answers=3))
    assert marks.chance == {"validation/qa/acc": 50.0, "validation/qa/acc_is": 50.0}


def test_without_the_corpora_there_are_no_chance_levels(trained, tmp_path):
    (tmp_path / "decode_videos" / ("b" * 16) / "artifact.json").unlink()
    assert marks_of(*trained()) == Marks({}, [3])
