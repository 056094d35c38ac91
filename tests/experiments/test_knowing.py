"""The study of a teacher that knows more: its labels, boxes and rows, and a run at tiny sizes."""

import json
import math

import numpy as np
import pytest
import torch

from experiments.knowing import boxes, outcome, study
from experiments.knowing.schedule import DRAWS, Sizes, other_rows, primary_rows, schedule
from experiments.silent.labels import TrueLabels, arm_labels, kept_by_mixture

TRUE = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
NAMED = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3]])  # the second is wrong


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("prompter", NAMED),
        ("permuted", NAMED.flip(0)),
        ("true", TRUE),
        ("mixed", torch.stack([TRUE[0], TRUE[0]])),  # keeps the first alone
        ("errors", torch.stack([TRUE[0], NAMED[1]])),
    ],
)
def test_labels_of_an_arm(labels, expected):
    assert torch.equal(arm_labels(labels, TRUE, NAMED, torch.tensor([True, False])), expected)


def test_a_mixture_keeps_its_share_and_does_not_depend_on_the_batch():
    ids = [f"still-{number}" for number in range(1000)]
    crops = torch.tensor([[0, 0, 3, 3]] * 1000)
    kept = kept_by_mixture(ids, crops, 0.65)
    assert kept.float().mean() == pytest.approx(0.65, abs=0.05)
    assert torch.equal(kept_by_mixture(ids[10:20], crops[10:20], 0.65), kept[10:20])


def test_true_labels_are_shares_of_the_shown_area():
    """A crop of the left half: all of a, half of b, nothing of c."""
    square = {"y": 0.5, "radius": 0.125}
    things = [
        {"kind": "a", "x": 0.25} | square,
        {"kind": "b", "x": 0.5} | square,
        {"kind": "c", "x": 0.75} | square,
    ]
    truth = TrueLabels(["a", "b", "c"], {"still": things}, grid=4)
    assert truth.of(["still"], torch.tensor([[0, 0, 2, 4]])).tolist()[0] == pytest.approx(
        [2 / 3, 1 / 3, 0]
    )


def test_a_box_in_patches():
    """The square is rounded to patches, has at least one and stays in the frame."""
    assert boxes.box_of({"x": 0.5, "y": 0.25, "radius": 0.25}, grid=4) == (1, 0, 2, 2)
    assert boxes.box_of({"x": 0.98, "y": 0.5, "radius": 0.01}, grid=4) == (3, 2, 1, 1)


def test_the_probe_learns_what_is_linear():
    """Five kinds in five directions, with noise: right; the same features shuffled: chance."""
    rng = np.random.default_rng(0)
    kinds = np.arange(500) % 5
    features = torch.from_numpy(4 * np.eye(8)[kinds] + rng.normal(size=(500, 8))).float()
    learned = np.arange(500) < 100
    assert boxes.probe(features, kinds, learned, 50) > 0.9
    assert boxes.probe(features[rng.permutation(500)], kinds, learned, 50) < 0.35


def test_boxes_of_a_probe_have_kinds_as_equal_as_can_be():
    kinds = np.array([0] * 8 + [1] * 8 + [2] * 2)
    chosen = boxes.balanced(kinds, np.ones(18, bool), 9, np.random.default_rng(0))
    assert sorted(np.bincount(kinds[chosen])) == [2, 3, 4]


def test_rows():
    """Primary rows of all draws come first; each row has a file of its own; `none` needs no
    teacher."""
    sizes = Sizes()
    rows = list(schedule(list(DRAWS), ["primary", "other"], sizes))
    assert len({row.name for row in rows}) == len(rows)
    primary = len(list(primary_rows(6, sizes))) * len(DRAWS)
    assert {row.arm for row in rows[:primary]} == {"none", "permuted", "teacher", "true"}
    assert rows[0].name == "draw-6-none-0"
    early = [row for row in rows if row.start_steps != sizes.start_steps]
    assert {row.draw for row in early} == {6}
    assert len(list(other_rows(7, sizes))) == 14
    assert len(list(schedule([7], ["primary"], sizes, seeds=[0]))) == 4


@pytest.mark.long
def test_a_run_at_tiny_sizes(tmp_path):
    """Every arm has its row; rows that are there are not computed again."""
    sizes = Sizes(
        stills=48,
        test_stills=20,
        batch_size=8,
        teacher_steps=2,
        start_steps=3,
        early_start_steps=2,
        steps=3,
        other_steps=(2,),
    )
    results = tmp_path / "rows"
    all_rows = schedule([6], ["primary", "other"], sizes)
    files = study.run(all_rows, tmp_path / "out", results, sizes)
    rows = {file.stem: json.loads(file.read_text()) for file in files}
    assert rows["draw-6-none-0"]["scores"].keys() == {
        *("naming", "naming_vtc", "R1", "probe_50", "probe_200")
    }
    assert rows["draw-6-true-0"]["labels"]["right"] == 100
    assert rows["draw-6-teacher-0"]["scores"].keys() >= {"head", "teacher", "head_crops"}
    assert len({row["start"] for row in rows.values()}) == 2  # and the early one
    assert all(row["time"]["cpu_seconds"] > 0 for row in rows.values())

    before = {file: file.stat().st_mtime_ns for file in files}
    study.run(schedule([6], ["primary"], sizes), tmp_path / "elsewhere", results, sizes)
    assert {file: file.stat().st_mtime_ns for file in files} == before


def write_rows(folder, draws, rows_of=primary_rows):
    """Rows of some draws: `teacher` names 6 and 7 points more than `none`, by turns; each name a point
    more after twice the steps, which take twice the time."""
    naming = {"none": 16.0, "permuted": 14.0, "teacher": 22.0, "true": 24.0}
    folder.mkdir()
    for draw in draws:
        for row in rows_of(draw, Sizes()):
            of_row = naming.get(row.arm, 20.0) + row.seed + (draw % 2) * (row.arm == "teacher")
            of_row += math.log2(row.steps / 800)
            scores = {name: [of_row, 4.0] for name in ("naming", "naming_vtc", "probe_200")}
            content = {
                "draw": draw,
                "arm": row.arm,
                "seed": row.seed,
                "steps": row.steps,
                "start_steps": row.start_steps,
                "scores": scores,
                "labels": {} if row.arm == "none" else {"right": 64.0},
                "time": {"seconds": 9.0, "cpu_seconds": row.steps / 160, "whole": row.seed != 1},
                "start": str(draw),
            }
            (folder / f"{row.name}.json").write_text(json.dumps(content))


def test_the_outcome_pairs_draws_and_averages_seeds(tmp_path, capsys):
    write_rows(tmp_path / "rows", [6, 7])
    (tmp_path / "rows" / "draw-7-none-2.json").unlink()  # so draw 7 has no mean of `none`
    rows = outcome.Rows.read(tmp_path / "rows")
    assert rows.of_draws("none", "naming") == {6: 17.0}
    assert rows.difference("teacher", "permuted", "naming").values == (8.0, 9.0)
    assert rows.difference("teacher", "none", "naming") is None
    assert rows.cpu_seconds(6, "teacher", 800) == 5.0

    picture = tmp_path / "figure.png"
    arguments = ["--results", str(tmp_path / "rows"), "--figure", str(picture)]
    assert outcome.main(arguments) == 0
    assert picture.stat().st_size > 0
    printed = capsys.readouterr().out
    assert "content  naming of teacher - permuted: +8.0 +9.0 = +8.5" in printed
    assert "fewer than 2 draws" in printed


def test_scores_at_equal_time(tmp_path, capsys):
    write_rows(tmp_path / "rows", [6], lambda *of: [*primary_rows(*of), *other_rows(*of)])
    rows = outcome.Rows.read(tmp_path / "rows")
    seconds = {2.5: 15.0, math.sqrt(2.5 * 5): 15.5, 5.0: 16.0, 2.0: None, 11.0: None}
    for time, expected in seconds.items():
        found = rows.at_seconds(6, "none", "naming", time)
        assert found == (expected and pytest.approx(expected))

    assert outcome.main(["--results", str(tmp_path / "rows")]) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if "of 800 steps - none" in line
    ]
    assert line.split()[-1] == "+6.0"


def test_rows_of_a_draw_that_was_begun_again_are_described_and_not_tested(tmp_path, capsys):
    folder = tmp_path / "rows"
    write_rows(folder, [6, 7])
    write_rows(folder / "again", [6], lambda *of: [*primary_rows(*of), *other_rows(*of)])
    for file in (folder / "again").iterdir():
        file.write_text(file.read_text().replace('"start": "6"', '"start": "again"'))

    assert outcome.main(["--results", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "content  naming of teacher - permuted: +8.0 +9.0 = +8.5" in printed
    assert "gain over none of draws [6], seed 0" in printed
    assert "  1000 teacher    naming  22.0" in printed


def test_a_figure_needs_rows_of_none(tmp_path, capsys):
    write_rows(tmp_path / "rows", [6])
    for file in (tmp_path / "rows").glob("draw-6-none-*"):
        file.unlink()
    arguments = ["--results", str(tmp_path / "rows"), "--figure", str(tmp_path / "figure.png")]
    assert outcome.main(arguments) == 2
    assert "no draw has rows of `none`" in capsys.readouterr().err


def test_rows_of_another_start_are_refused(tmp_path, capsys):
    write_rows(tmp_path / "rows", [6])
    row = tmp_path / "rows" / "draw-6-true-0.json"
    row.write_text(row.read_text().replace('"start": "6"', '"start": "other"'))
    assert outcome.main(["--results", str(tmp_path / "rows")]) == 2
    assert "other weights" in capsys.readouterr().err
