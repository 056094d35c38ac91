"""`alpro artifacts compare`: evaluations side by side."""

import re

import numpy as np
import pytest

from alpro.artifact import digest_record
from alpro.files import read_json, write_json
from alpro.pipeline.cli import main as cli
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.results import Results
from tests.pipeline.conftest import write_artifact

METRIC = Metric("acc", "all questions", "qa")
ASKED = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)


@pytest.fixture
def workspace(tmp_path):
    """Write evaluations of 12 questions: b has 12 right answers, a 3 and c 6, from old to new, and
    e, on another split, 6."""
    evaluations = [("b", 12, "test"), ("a", 3, "test"), ("e", 6, ""), ("c", 6, "test")]
    for day, (mark, right, split) in enumerate(evaluations, 1):
        run = {"at": f"2026-01-0{day}T00:00:00", "commit": "abc"}
        more = {"run": run, "config": {"split": split}}
        folder, _ = write_artifact(tmp_path, "evaluate", fingerprint=mark * 64, **more)

        results = Results("mine")
        scores = (np.arange(12) < right) * 100.0
        results.add(Score(METRIC, scores, 50.0, ASKED), "qa", "question answering")
        results.write(folder, "test")
    return tmp_path


def compare(workspace, *artifacts):
    return cli.execute(
        ["artifacts", "compare", *artifacts, "--workspace", str(workspace)]
    )


def cells(text):
    """Return the cells of printed tables, line by line."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_the_second_evaluation_is_compared_with_the_first(workspace, capsys):
    """Nine of twelve videos differ."""
    assert compare(workspace, "aa", "bbbbbb") == 0
    out = capsys.readouterr().out

    (line,) = (line for line in cells(out) if line[0] == "question answering")
    assert re.fullmatch(r"\+75\.0 \[\+50\.0, \+100\.0\]", line[4])
    assert float(line[5]) == pytest.approx(2 / 2**9, abs=1e-4)
    assert f"{'b' * 8} is better than {'a' * 8} on 12 test clips" in out


def test_of_a_stage_that_only_one_run_has_only_the_version_is_listed(workspace, capsys):
    write_artifact(workspace, "pretrain", fingerprint="9" * 64, config={"lr": 1.0})
    file = workspace / "artifacts" / "evaluate" / ("b" * 16) / "artifact.json"
    record = read_json(file)
    record["inputs"]["model"] = {"stage": "pretrain", "fingerprint": "9" * 64}
    record["config"]["controls"] = ["shuffled"]
    record["sum"] = digest_record(record)
    write_json(file, record)

    compare(workspace, "aa", "bb")

    out = capsys.readouterr().out
    assert cells(out)[:2] == [["What differs"], ["a" * 8, "b" * 8]]
    assert ["code", "pretrain version", "-", "1"] in cells(out)
    assert "pretrain.lr" not in out
    assert ["configuration", "evaluate.controls", "-", '["shuffled"]'] in cells(out)


def test_the_last_two_evaluations_on_a_split_are_compared_by_default(workspace, capsys):
    assert compare(workspace) == 0
    _, heads, *_ = cells(capsys.readouterr().out)
    assert heads[:2] == ["a" * 8, "c" * 8]


@pytest.mark.parametrize("names", [["aa"], ["aa", "aaa"], ["aa", "ff"]])
def test_a_comparison_needs_different_evaluations(names, workspace, capsys):
    assert compare(workspace, *names) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
