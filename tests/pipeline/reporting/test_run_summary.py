"""Summaries of runs: which one is the run before, and what differs from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alpro.artifact import RECORD_VERSION
from alpro.files import write_json
from alpro.pipeline.reporting.before import compared_with_before
from alpro.pipeline.reporting.result_tables import Listed
from alpro.pipeline.reporting.run_summary import RunSummary, StepSummary, first_line, load, run_before
from alpro.stages.evaluation.metrics import ACCURACY, Queries, Score, accuracy_of
from alpro.stages.evaluation.results import Results

ASKED = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)


def summary(day: int, **changes) -> RunSummary:
    return RunSummary(f"mine {day}", "mine", started=f"2026-11-{day:02d}T10:00:00+00:00", **changes)


def test_the_run_before_is_the_last_finished_one_of_the_same_configuration_and_stage(tmp_path):
    others = {
        "older": summary(1),
        "before": summary(2),
        "failed": summary(3, state="failed"),
        "other": replace(summary(3), name="other"),
        "stage": summary(3, stage="pretrain"),
        "later": summary(9),
    }
    for name, other in others.items():
        other.save(tmp_path / f"{name}.json")
    (tmp_path / "no_summary.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    assert run_before(tmp_path / "new.json", summary(4)) == summary(2)
    assert run_before(tmp_path / "before.json", summary(4)) == summary(1)  # the same result: its own summary
    assert run_before(tmp_path / "new.json", summary(4, stage="evaluate")) is None
    assert load(tmp_path / "broken.json") is None


def test_the_message_of_an_error_is_one_line():
    assert first_line(ValueError("pretrain broke\nat line 5")) == "pretrain broke"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.fixture
def evaluated(tmp_path):
    """evaluated(mark, right, **record): the artifact of an evaluation with this many right answers, and without any
    difference of the second score."""

    def artifact(mark: str, right: int, **record) -> Listed:
        folder = tmp_path / "artifacts" / "evaluate" / (mark * 16)
        folder.mkdir(parents=True)
        results = Results("test", folder)
        for metric, values in ((ACCURACY, np.arange(12) < right), (accuracy_of("what"), np.arange(12) < 6)):
            results.add(Score(metric, values * 100.0, 50.0, ASKED), "question answering", "qa")
        results.outcome()
        values = {"version": RECORD_VERSION, "stage": "evaluate", "name": "evaluate", "fingerprint": mark * 64}
        values |= {"run": {"at": "2026", "seconds": 1.0, "commit": "abc"}, "stage_version": 1}
        values |= {key: {} for key in ("config", "files", "inputs", "versions", "counts", "metrics")} | record
        write_json(folder / "artifact.json", values)
        return "evaluate", folder, values, False

    return artifact


def run_of(day: int, listed: Listed, **config) -> RunSummary:
    name, _, record, _ = listed
    steps = [StepSummary(name, record["stage"], record["fingerprint"], [], "built", 1.0)]
    return summary(day, steps=steps, config=config)


def test_a_run_is_compared_with_the_run_before(evaluated, tmp_path):
    old = evaluated("a", 1, versions={"torch": "2.11"})
    new = evaluated("b", 12, versions={"torch": "2.12"}, run={"at": "2026", "seconds": 1.0, "commit": "def"})
    path = tmp_path / "new.json"
    run_of(1, old, pretrain={"lr": 0.1, "seed": 0}).save(tmp_path / "old.json")
    before = compared_with_before(path, run_of(2, new, pretrain={"lr": 0.2, "seed": 0}), [new])
    assert before.run.title == "mine 1"
    assert before.differences.lines == [
        ["configuration", "pretrain.lr", "0.1", "0.2"],
        ["code", "commit", "abc", "def"],
        ["version", "torch", "2.11", "2.12"],
    ]
    ((line,),) = (table.lines for table in before.changed)
    assert line[:4] == ["question answering", "all questions", "8.3 %", "100.0 %"]
    assert line[4].startswith("+91.7 [+")
    assert [(table.title, len(table.lines)) for table in before.all] == [("evaluate", 2)]
    assert before.notes == []


def test_equal_scores_are_a_note_and_removed_artifacts_too(evaluated, tmp_path):
    old, new = evaluated("a", 5), evaluated("b", 5)
    run_of(1, old).save(tmp_path / "old.json")
    path = tmp_path / "new.json"
    before = compared_with_before(path, run_of(2, new), [new])
    assert (before.changed, before.notes) == ([], ["evaluate: no score differs with p < 0.05."])
    same = compared_with_before(path, run_of(2, old), [old])
    assert (same.all, same.notes) == ([], ["evaluate is the same artifact in both runs."])
    for file in Path(old[1]).iterdir():
        file.unlink()
    before = compared_with_before(path, run_of(2, new), [new])
    assert before.differences.lines == []
    assert before.notes[0].startswith("evaluate: ")
    assert "no scores.parquet" in before.notes[0]


def test_a_run_that_failed_before_the_evaluation_shows_what_was_changed(evaluated, tmp_path):
    run_of(1, evaluated("a", 5), pretrain={"lr": 0.1}).save(tmp_path / "old.json")
    failed = summary(2, state="failed", config={"pretrain": {"lr": 1000.0}})
    before = compared_with_before(tmp_path / "new.json", failed, [])
    assert before.differences.lines == [["configuration", "pretrain.lr", "0.1", "1000.0"]]
    assert (before.changed, before.notes) == ([], [])
    assert compared_with_before(tmp_path / "new.json", replace(failed, name="other"), []) is None
