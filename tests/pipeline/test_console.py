"""Results as the command line prints them."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from alpro.files import write_json
from alpro.pipeline import cli, commands, console
from alpro.pipeline.artifacts.store import RECORD_VERSION
from alpro.pipeline.reporting.result_tables import Table as ResultTable
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.results import Results


def cells(printed: str) -> list[list[str]]:
    """The lines of printed tables as their cells; columns are at least two spaces apart."""
    return [[cell for cell in line.strip().split("  ") if cell] for line in printed.splitlines()]


def artifact(root: Path, stage: str, name: str, mark: str, day: int, inputs: dict[str, str], **more: Any) -> Path:
    folder = root / stage / (mark * 16)
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(day * 100_000))
    record = {
        "version": RECORD_VERSION,
        "stage": stage,
        "name": name,
        "fingerprint": mark * 64,
        "inputs": {key: {"stage": key, "fingerprint": other * 64} for key, other in inputs.items()},
        "run": {
            "at": f"2026-11-0{day}T10:2{day}:00+00:00",
            "seconds": 10.0 * day,
            "commit": "abc",
            "mlflow_run": "r1",
        },
        **{key: {} for key in ("files", "counts", "metrics", "config", "versions")},
        **more,
    }
    write_json(folder / "artifact.json", record)
    return folder


def test_results_are_printed_in_columns_with_the_report(tmp_path, capsys):
    """A name of several consecutive lines is printed in the first of them."""
    values = iter(range(1, 100))
    rows = [
        {
            "name": f"retrieval/{direction}/{metric}",
            "table": "retrieval",
            "what": "fine-tuned retrieval",
            "direction": direction,
            "metric": metric,
            "protocol": "all pairs, 4 frames",
            "value": next(values) + 0.5,
            "low": None,
            "high": None,
            "unit": "rank" if metric == "MdR" else "%",
            "higher_is_better": metric != "MdR",
            "items": 40,
            "chance": next(values) + 0.5,
            "baseline": "chance",
        }
        for direction in ("t2v", "v2t")
        for metric in ("R@1", "R@5", "R@10", "MdR")
    ]
    folder = artifact(tmp_path / "artifacts", "evaluate", "evaluate", "a", 1, {})
    write_json(folder / "results.json", rows)
    (tmp_path / "reports").mkdir()
    for name, time in (("old", 100), ("new", 200)):
        (tmp_path / "reports" / f"{name}.html").touch()
        os.utime(tmp_path / "reports" / f"{name}.html", (time, time))
    console.print_results({"evaluate": folder}, tmp_path)
    printed = [row for row in ([c.strip() for c in row if c.strip()] for row in cells(capsys.readouterr().out)) if row]
    assert printed[0] == ["Retrieval"]
    assert printed[1] == ["R@1", "R@5", "R@10", "MdR ↓", "items", "protocol"]
    assert printed[3:] == [
        ["fine-tuned retrieval", "t2v", "1.5 %", "3.5 %", "5.5 %", "7.5", "40", "all pairs, 4 frames"],
        ["v2t", "9.5 %", "11.5 %", "13.5 %", "15.5", "40", "all pairs, 4 frames"],
        ["chance", "t2v", "2.5 %", "4.5 %", "6.5 %", "8.5"],
        ["v2t", "10.5 %", "12.5 %", "14.5 %", "16.5"],
        ["Only 40 test items: differences of less than 15 points are noise."],
        [f"report: {tmp_path}/reports/new.html"],
        [f"curves, pictures and comparison: alpro ui --workspace {tmp_path}"],
        [f"artifacts: alpro artifacts ls --workspace {tmp_path}"],
    ]


def test_two_evaluations_are_compared_by_the_first_characters_or_the_name_of_a_run(tmp_path, capsys):
    metric = Metric("acc", "all questions", "qa")
    asked = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)
    for mark, right in (("a", 3), ("b", 12)):
        folder = artifact(tmp_path / "artifacts", "evaluate", "evaluate", mark, 1, {})
        results = Results("test", folder)
        results.add(Score(metric, (np.arange(12) < right) * 100.0, 50.0, asked), "question answering", "qa")
        results.outcome()
    command = ["compare", "aa", "sample · seed=1 · bbbbbb", "--workspace", str(tmp_path)]
    assert commands.execute(cli.parser().parse_args(command)) == 0
    printed = [row for row in ([c.strip() for c in row if c.strip()] for row in cells(capsys.readouterr().out)) if row]
    assert printed[:2] == [["Comparison"], ["a" * 8, "b" * 8, "difference", "p", "items"]]
    (*texts, a, b, difference, p, items) = printed[3]
    assert (texts, a, b, items) == (["question answering", "all questions"], "25.0 %", "100.0 %", "12")
    assert re.fullmatch(r"\+75\.0 \[\+50\.0, \+100\.0\]", difference)
    assert float(p) == pytest.approx(2 / 2**9, abs=0.004)  # nine videos differ


@pytest.mark.parametrize(("width", "tables"), [(140, 1), (80, 2), (60, 3)])
def test_a_table_wider_than_the_terminal_is_continued_below(width, tables, monkeypatch, capsys):
    """No score is cut or wrapped, whatever the number of metrics."""
    heads = ["", "", *(f"R@{k}" for k in range(10)), "items"]
    lines = [
        [what, "t2v", *(f"{first}{k}.{k} %" for k in range(10)), f"{first}000"]
        for what, first in (("zero-shot by similarity", 1), ("control: frames shuffled", 2))
    ]
    monkeypatch.setattr(console, "console", Console(width=width, soft_wrap=True))
    console.print_result_table(ResultTable("Retrieval", heads, lines))
    printed = capsys.readouterr().out
    assert all(len(line) <= width for line in printed.splitlines())
    assert printed.count("Retrieval") == tables
    for line in lines:
        first = line[-1][0]
        assert re.findall(rf"\b{first}\d\.\d %|\b{first}000\b", printed) == line[2:]
    assert re.findall(r"R@\d|items", printed) == heads[2:]


def test_without_results_the_last_stage_is_printed(tmp_path, capsys, monkeypatch):
    first = artifact(tmp_path / "artifacts", "decode_videos", "decode_videos clips", "a", 1, {}, counts={"samples": 9})
    last = artifact(
        tmp_path / "artifacts", "pretrain", "pretrain", "b", 2, {}, counts={"steps": 600}, metrics={"loss": 0.123456789}
    )
    console.print_results({"decode_videos clips": first, "pretrain": last}, tmp_path)
    assert capsys.readouterr().out.splitlines()[:3] == [f"pretrain: {last}", "  steps: 600", "  loss: 0.123457"]


def test_in_the_default_workspace_the_commands_are_short(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console.print_results({}, tmp_path / "workspace")
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == ["curves, pictures and comparison: alpro ui", "artifacts: alpro artifacts ls"]


def test_captions_are_not_parsed_as_markup(capsys):
    captions = {"all": 3, "different": 2, "different words": 4, "repeated": 1}
    captions |= {"most repeated": [["a [red] ball [/red]", 2]]}
    report = {"splits": [], "lengths": {}, "captions": captions, "unreadable": 0, "also in training": {}}
    console.print_inspection(report)
    assert "  2 times: a [red] ball [/red]" in capsys.readouterr().out.splitlines()
