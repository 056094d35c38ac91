"""Results as the command line prints them."""

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
from alpro.pipeline.reports import terminal as console
from alpro.pipeline.reports.results import PRINTED, ResultTable
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
            "videos": 40,
            "independent_videos": 40.0,
            "chance": next(values) + 0.5,
            "baseline": "chance",
        }
        for direction in ("t2v", "v2t")
        for metric in ("R@1", "R@5", "R@10", "MdR")
    ]
    folder = artifact(tmp_path / "artifacts", "evaluate", "evaluate", "a", 1, {})
    write_json(folder / "results.json", rows)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "new.html").touch()
    console.print_results({"evaluate": folder}, tmp_path, tmp_path / "reports" / "new.html")
    printed = [row for row in ([c.strip() for c in row if c.strip()] for row in cells(capsys.readouterr().out)) if row]
    assert printed[0] == ["Retrieval"]
    assert printed[1] == ["R@1", "R@5", "R@10", "MdR ↓", "items", "protocol"]
    assert printed[3:] == [
        ["fine-tuned retrieval", "t2v", "1.5 %", "3.5 %", "5.5 %", "7.5", "40", "all pairs, 4 frames"],
        ["v2t", "9.5 %", "11.5 %", "13.5 %", "15.5", "40", "all pairs, 4 frames"],
        ["chance", "t2v", "2.5 %", "4.5 %", "6.5 %", "8.5"],
        ["v2t", "10.5 %", "12.5 %", "14.5 %", "16.5"],
        ["Only 40 test videos: differences of less than 15 points are noise."],
        [f"all 8 scores (as JSON: --json): {tmp_path}/reports/new.html"],
        [f"curves, pictures and comparison: alpro ui --workspace {tmp_path}"],
    ]


def test_the_end_of_a_run_fits_on_a_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "console", Console(width=80, soft_wrap=True))
    monkeypatch.chdir(tmp_path)
    score = {"value": 49.55, "low": 42.5, "high": 56.5, "unit": "%", "chance": 0.5, "items": 400}
    score |= {"videos": 200, "independent_videos": 200.0}
    names = [*PRINTED, *(f"control_{n}/t2v/R1" for n in range(70))]
    rows = [
        {"name": name, "what": f"best single frame {n}, 4 frames", "direction": "t2v", "metric": "R@1", **score}
        for n, name in enumerate(names)
    ]
    folder = artifact(
        tmp_path / "artifacts", "evaluate", "evaluate", "a", 1, {}, warnings=[f"few items {n}" for n in range(9)]
    )
    write_json(folder / "results.json", rows)
    (tmp_path / "run.html").touch()
    console.print_results({"evaluate": folder}, tmp_path / "workspace", Path("run.html"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 14
    assert max(map(len, printed)) <= 80
    assert printed[0].split() == ["score", "[95", "%]", "chance"]
    assert [line.strip() for line in printed[1:11]] == [
        f"best single frame {n}  t2v R@1  49.5 [42.5, 56.5]   0.5 %" for n in range(len(PRINTED))
    ]
    assert printed[11:] == [
        "warnings: 9 (evaluate 9), below the tables of the report",
        "all 80 scores (as JSON: --json): run.html",
        "curves, pictures and comparison: alpro ui",
    ]


def test_results_as_json(tmp_path, capsys):
    more = {"counts": {"items": 40}, "metrics": {"test/t2v/R1": 1.5}}
    folder = artifact(tmp_path / "artifacts", "evaluate", "evaluate", "a", 1, {}, **more)
    rows = [{"name": "retrieval/t2v/R@1", "value": 1.5, "items": 40}]
    write_json(folder / "results.json", rows)
    (tmp_path / "new.html").touch()
    console.print_results({"evaluate": folder}, tmp_path, tmp_path / "new.html", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    shown = {"folder": str(folder), "fingerprint": "a" * 64, **more}
    assert printed == {"results": rows, "artifacts": {"evaluate": shown}, "report": str(tmp_path / "new.html")}


@pytest.fixture
def evaluations(tmp_path) -> Path:
    """A workspace with evaluations of 12 questions: a has 3 right answers, b all, c 6; c was built with another seed,
    whose value has HTML in it."""
    metric = Metric("acc", "all questions", "qa")
    asked = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)
    for mark, right in (("a", 3), ("b", 12), ("c", 6)):
        more = {"stage_version": 1, "config": {"seed": "<1>" if mark == "c" else 0}}
        folder = artifact(tmp_path / "artifacts", "evaluate", "evaluate", mark, 1, {}, **more)
        results = Results("test", folder)
        results.add(Score(metric, (np.arange(12) < right) * 100.0, 50.0, asked), "question answering", "qa")
        results.outcome()
    return tmp_path


def compare(workspace: Path, *arguments: str) -> int:
    return cli.execute(cli.parser().parse_args(["compare", *arguments, "--workspace", str(workspace)]))


def test_two_evaluations_are_compared_by_the_first_characters_or_the_name_of_a_run(evaluations, capsys):
    assert compare(evaluations, "aa", "sample · seed=1 · bbbbbb") == 0
    printed = [row for row in ([c.strip() for c in row if c.strip()] for row in cells(capsys.readouterr().out)) if row]
    assert printed[:2] == [["Comparison"], ["a" * 8, "b" * 8, "difference", "p", "items"]]
    (*texts, a, b, difference, p, items) = printed[3]
    assert (texts, a, b, items) == (["question answering", "all questions"], "25.0 %", "100.0 %", "12")
    assert re.fullmatch(r"\+75\.0 \[\+50\.0, \+100\.0\]", difference)
    assert float(p) == pytest.approx(2 / 2**9, abs=0.004)  # nine videos differ


def test_several_evaluations_are_compared_with_what_differs_and_intervals(evaluations, capsys):
    assert compare(evaluations, "aa", "bb", "cc") == 0
    printed = capsys.readouterr()
    rows = [row for row in ([c.strip() for c in row if c.strip()] for row in cells(printed.out)) if row]
    a, b, c = ("a" * 8, "b" * 8, "c" * 8)
    assert rows[0] == ["What differs"]
    assert ["configuration", "evaluate.seed", "0", "0", "<1>"] in rows
    assert [a, b, f"{b} - {a}", "p", c, f"{c} - {a}"] in rows
    assert ["p", "items"] in rows  # continued below
    line, rest = (row for row in rows if row[0] == "question answering")
    assert re.fullmatch(r"25\.0 \[\d+\.\d, \d+\.\d\]", line[2])
    assert (line[3], rest[-1]) == ("100.0 %", "12")
    page = evaluations / "reports" / f"compare-{a}-{b}-{c}.html"
    assert printed.err == f"page: {page}\n"
    text = page.read_text()
    assert "<td>evaluate.seed</td><td>0</td><td>0</td><td>&lt;1&gt;</td>" in text
    assert line[2] in text


def test_a_comparison_as_json_and_a_page_elsewhere(evaluations, tmp_path, capsys):
    assert compare(evaluations, "aa", "cc", "--json", "--out", str(tmp_path / "new" / "page.html")) == 0
    values = json.loads(capsys.readouterr().out)
    assert [run["fingerprint"] for run in values["runs"]] == ["a" * 64, "c" * 64]
    assert values["differences"] == [{"kind": "configuration", "name": "evaluate.seed", "values": ["0", "<1>"]}]
    (((score),),) = values["scores"]
    assert (score["name"], score["a"], score["b"], score["items"]) == ("qa/acc", 25, 50, 12)
    assert (tmp_path / "new" / "page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aa"], "compare needs two evaluations or more"),
        (["aa", "ff"], "ff: no such folder, and no artifact starts with it"),
        (["aa", "bb", "--out", "/proc/none/page.html"], "/proc/none/page.html: No such file or directory"),
    ],
)
def test_what_cannot_be_compared_or_written_is_an_error_on_a_line(arguments, message, evaluations, capsys):
    assert compare(evaluations, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


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
        tmp_path / "artifacts", "pretrain", "pretrain", "b", 2, {}, counts={"steps": 600}, metrics={"loss": 0.12345678},
        warnings=["3 of 9 captions are cut", "loss_vtc ended at chance"],
    )  # fmt: skip
    console.print_results({"decode_videos clips": first, "pretrain": last}, tmp_path, tmp_path / "reports" / "run.html")
    assert capsys.readouterr().out.splitlines()[:5] == [
        f"pretrain: {last}",
        "  steps: 600",
        "  loss: 0.123457",
        "warning: pretrain: 3 of 9 captions are cut",
        "warning: pretrain: loss_vtc ended at chance",
    ]


def test_in_the_default_workspace_the_commands_are_short(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console.print_results({}, tmp_path / "workspace", tmp_path / "run.html")
    assert capsys.readouterr().out == "curves, pictures and comparison: alpro ui\n"


def test_captions_are_not_parsed_as_markup(capsys):
    captions = {"all": 3, "different": 2, "different words": 4, "repeated": 1}
    captions |= {"most repeated": [["a [red] ball [/red]", 2]]}
    report = {"splits": [], "lengths": {}, "captions": captions, "unreadable": 0, "also in training": {}}
    console.print_inspection(report)
    assert "  2 times: a [red] ball [/red]" in capsys.readouterr().out.splitlines()
