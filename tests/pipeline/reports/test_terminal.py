"""Results and comparisons as the command line prints them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from alpro.artifact import RECORD_VERSION
from alpro.files import write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.reports import terminal
from alpro.pipeline.reports.results import PRINTED, Table
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.results import Results


def cells(printed: str) -> list[list[str]]:
    """The lines of printed tables as their cells; columns are at least two spaces apart."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()]
    return [line for line in lines if line]


def artifact(root: Path, stage: str, mark: str, **more: Any) -> Path:
    folder = root / "artifacts" / stage / (mark * 16)
    folder.mkdir(parents=True)
    record: dict[str, Any] = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": mark * 64}
    record |= {key: {} for key in ("inputs", "files", "counts", "metrics", "config", "versions")}
    run = {"at": "2026-11-01T10:20:00+00:00", "seconds": 10.0, "commit": "abc"}
    write_json(folder / "artifact.json", record | {"stage_version": 1, "run": run} | more)
    return folder


@pytest.fixture
def evaluated(tmp_path) -> Path:
    """An evaluation with all scores that are printed and many others, and warnings."""
    score = {"value": 49.55, "low": 42.5, "high": 56.5, "unit": "%", "chance": 0.5, "items": 400, "baseline": "chance"}
    score |= {
        "videos": 200,
        "independent_videos": 200.0,
        "higher_is_better": True,
        "protocol": "",
        "table": "retrieval",
    }
    rows = [
        {"name": name, "what": f"best single frame {n}, 4 frames", "direction": "t2v", "metric": "R@1", **score}
        for n, name in enumerate([*PRINTED, *(f"control_{n}/t2v/R1" for n in range(70))])
    ]
    folder = artifact(
        tmp_path, "evaluate", "a", counts={"items": 40}, metrics={"a": 1.5}, warnings=[f"few {n}" for n in range(9)]
    )
    write_json(folder / "results.json", rows)
    return folder


def test_the_end_of_a_run_fits_on_a_screen(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", Console(width=80, soft_wrap=True))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.html").touch()
    terminal.print_results({"evaluate": evaluated}, tmp_path / "workspace", Path("run.html"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 14
    assert max(map(len, printed)) <= 80
    assert printed[0].split() == ["score", "[95", "%]", "chance"]
    assert [cells(line)[0] for line in printed[1 : 1 + len(PRINTED)]] == [
        [f"best single frame {n}", "t2v R@1", "49.5 [42.5, 56.5]", "0.5 %"] for n in range(len(PRINTED))
    ]
    assert "9" in printed[1 + len(PRINTED)]
    assert printed[2 + len(PRINTED) :] == [
        f"all {70 + len(PRINTED)} scores (as JSON: --json): run.html",
        "curves, pictures and comparison: alpro ui",
    ]


def test_results_as_json(evaluated, tmp_path, capsys):
    (tmp_path / "new.html").touch()
    terminal.print_results({"evaluate": evaluated}, tmp_path, tmp_path / "new.html", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    shown = {"folder": str(evaluated), "fingerprint": "a" * 64, "counts": {"items": 40}, "metrics": {"a": 1.5}}
    assert printed.pop("results") == json.loads((evaluated / "results.json").read_text())
    assert printed == {"artifacts": {"evaluate": shown}, "report": str(tmp_path / "new.html")}


def test_without_results_the_last_stage_is_printed(tmp_path, capsys):
    first = artifact(tmp_path, "decode_videos", "a", counts={"samples": 9})
    last = artifact(
        tmp_path, "pretrain", "b", counts={"steps": 600}, metrics={"loss": 0.12345678}, warnings=["3 of [9]", "chance"]
    )
    terminal.print_results({"decode_videos": first, "pretrain": last}, tmp_path, tmp_path / "run.html")
    assert capsys.readouterr().out.splitlines() == [
        f"pretrain: {last}",
        "  steps: 600",
        "  loss: 0.123457",
        "warning: pretrain: 3 of [9]",
        "warning: pretrain: chance",
        f"curves, pictures and comparison: alpro ui --workspace {tmp_path}",
    ]


@pytest.fixture
def evaluations(tmp_path) -> Path:
    """A workspace with evaluations of 12 questions: a has 3 right answers, b all, c 6; c was built with another seed,
    whose value has HTML in it."""
    metric = Metric("acc", "all questions", "qa")
    asked = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)
    for mark, right in (("a", 3), ("b", 12), ("c", 6)):
        folder = artifact(tmp_path, "evaluate", mark, config={"seed": "<1>" if mark == "c" else 0})
        results = Results("test", folder)
        results.add(Score(metric, (np.arange(12) < right) * 100.0, 50.0, asked), "question answering", "qa")
        results.outcome()
    return tmp_path


def compare(workspace: Path, *arguments: str) -> int:
    return cli.execute(["artifacts", "compare", *arguments, "--workspace", str(workspace)])


def test_two_evaluations_are_compared_by_the_first_characters_or_the_name_of_a_run(evaluations, capsys):
    assert compare(evaluations, "aa", "sample bbbbbb · evaluate · seed=1") == 0
    printed = cells(capsys.readouterr().out)
    assert printed[:2] == [
        ["Question answering"],
        ["a" * 8, "b" * 8, "difference", "p", "chance", "items"],
    ]
    (what, metric, a, b, difference, p, chance, items) = printed[3]
    assert (what, metric, b, chance, items) == ("question answering", "all questions", "100.0 %", "50.0 %", "12")
    assert re.fullmatch(r"25\.0 \[\d+\.\d, \d+\.\d\]", a)
    assert re.fullmatch(r"\+75\.0 \[\+50\.0, \+100\.0\]", difference)
    assert float(p) == pytest.approx(2 / 2**9, abs=0.004)  # nine videos differ


def test_several_evaluations_are_compared_with_what_differs_on_a_page_too(evaluations, capsys):
    assert compare(evaluations, "aa", "bb", "cc") == 0
    printed = capsys.readouterr()
    rows, (a, b, c) = cells(printed.out), ("a" * 8, "b" * 8, "c" * 8)
    assert rows[:2] == [["What differs"], [a, b, c]]
    assert ["configuration", "evaluate.seed", "0", "0", "<1>"] in rows
    assert [a, b, f"{b} - {a}", "p", c, f"{c} - {a}"] in [row[:6] for row in rows]
    page = evaluations / "reports" / f"compare-{a}-{b}-{c}.html"
    assert str(page) in printed.err
    text = page.read_text()
    assert "<td>evaluate.seed</td><td>0</td><td>0</td><td>&lt;1&gt;</td>" in text
    assert next(row for row in rows if row[0] == "question answering")[2] in text


def test_a_comparison_as_json_and_a_page_elsewhere(evaluations, tmp_path, capsys):
    assert compare(evaluations, "aa", "cc", "--json", "--out", str(tmp_path / "new" / "page.html")) == 0
    values = json.loads(capsys.readouterr().out)
    assert [run["fingerprint"] for run in values["runs"]] == ["a" * 64, "c" * 64]
    assert values["differences"] == [{"kind": "configuration", "name": "evaluate.seed", "values": ["0", "<1>"]}]
    (((score),),) = values["scores"]
    assert (score["name"], score["a"], score["b"], score["items"]) == ("qa/acc", 25, 50, 12)
    assert (tmp_path / "new" / "page.html").is_file()


@pytest.mark.parametrize("arguments", [["aa"], ["aa", "ff"], ["aa", "bb", "--out", "/proc/none/page.html"]])
def test_what_cannot_be_compared_or_written_is_an_error_on_a_line(arguments, evaluations, capsys):
    assert compare(evaluations, *arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_what_differs_in_the_origins_of_runs_is_listed():
    from alpro.pipeline.reports.comparison import differences

    def record(name: str, fingerprint: str, **more: Any) -> dict[str, Any]:
        values = {"stage": name.split()[0], "name": name, "fingerprint": fingerprint * 64, "stage_version": 1}
        values |= {"config": {}, "counts": {}, "files": {}, "versions": {"torch": "2.11"}, "run": {"commit": "abc"}}
        return values | more

    first = [
        record("decode_videos clips", "1", counts={"samples": 9, "rejected": 0}),
        record("pretrain", "f", config={"lr": 1, "weights": {"x": 2}}, precision="float32"),
    ]
    assert differences([first, first, first]) == []
    second = [
        record("decode_videos clips", "2", counts={"samples": 8, "rejected": 1}),
        record(
            "pretrain",
            "f",
            config={"lr": 1, "weights": {"x": 3}},
            run={"commit": "def"},
            stage_version=2,
            versions={"torch": "2.12"},
            files={"model": "0123456789"},
            precision="bfloat16",
        ),
    ]
    assert differences([first, first, second]) == [
        ("configuration", "pretrain.weights.x", ["2", "2", "3"]),
        ("data", "clips", ["11111111: 9 samples"] * 2 + ["22222222: 8 samples, 1 rejected"]),
        ("data", "pretrain model", ["-", "-", "01234567"]),
        ("code", "commit", ["abc", "abc", "abc, def"]),
        ("code", "pretrain, version", ["1", "1", "2"]),
        ("code", "pretrain in", ["float32", "float32", "bfloat16"]),
        ("version", "torch", ["2.11", "2.11", "2.11, 2.12"]),
    ]


@pytest.mark.parametrize(("width", "tables"), [(140, 1), (80, 2), (60, 3)])
def test_a_table_wider_than_the_terminal_is_continued_below(width, tables, monkeypatch, capsys):
    """No score is cut or wrapped, whatever the number of runs. A name of several lines is printed in the first."""
    heads = ["", "", *(f"run{k}" for k in range(10)), "items"]
    lines = [
        ["zero-shot by similarity", way, *(f"{first}{k}.{k} %" for k in range(10)), f"{first}000"]
        for way, first in (("t2v R@1", 1), ("v2t R@1", 2))
    ]
    monkeypatch.setattr(terminal, "console", Console(width=width, soft_wrap=True))
    terminal.print_table(Table("Retrieval", heads, lines))
    printed = capsys.readouterr().out
    assert all(len(line) <= width for line in printed.splitlines())
    assert printed.count("Retrieval") == printed.count("zero-shot") == tables
    for line in lines:
        first = line[-1][0]
        assert re.findall(rf"\b{first}\d\.\d %|\b{first}000\b", printed) == line[2:]
    assert re.findall(r"run\d|items", printed) == heads[2:]
