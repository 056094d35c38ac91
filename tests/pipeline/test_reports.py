"""Results as tables, on the terminal, as the page of a run, and side by side. Numbers of rows all
differ."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.artifact import Record
from alpro.files import read_json, write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.reports import results
from alpro.pipeline.reports.page import differences, write_report
from alpro.pipeline.reports.results import Table, data_table, main_table, tables
from alpro.pipeline.reports.summary import summary as markdown_summary
from alpro.pipeline.reports.terminal import print_results, print_rows, print_table
from alpro.stages.evaluation.comparison import Comparison
from alpro.stages.evaluation.controls import CONTROLS
from alpro.stages.evaluation.metrics import Metric, Queries, Score
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.score_names import PRINTED
from alpro.stages.evaluation.statistics import PairedDifference
from tests.pipeline.conftest import write_artifact

BASELINES = {
    "retrieval": "chance",
    "qa": "most frequent answer",
    "entities": "best constant",
    "decoded": "",
}
RANKS = ["R@1", "R@5", "MdR"]


def rows_of(
    table: str,
    what: str,
    key: str,
    metrics: list[str],
    numbers: Iterator[int],
    items: int,
    way: str = "",
):
    """Rows as an evaluation writes them; the numbers go on from row to row."""
    shared = {
        "table": table,
        "what": what,
        "direction": way,
        "low": None,
        "high": None,
        "baseline": BASELINES[table],
    }
    shared |= {"items": items, "videos": items, "independent_videos": float(items)}
    shared |= {"protocol": f"all pairs, {items} frames" if table == "retrieval" else ""}
    rows = []
    for metric in metrics:
        own = {
            "name": "/".join(filter(None, (key, way, metric))),
            "metric": metric,
            "value": next(numbers) + 0.25,
        }
        own |= {"unit": "rank" if metric == "MdR" else "%", "higher_is_better": metric != "MdR"}
        own |= {"chance": next(numbers) + 0.75 if BASELINES[table] else None}
        rows.append(shared | own)
    return rows


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    numbers = count(1)
    return [
        *rows_of("qa", "question answering", "qa", ["all questions", "what"], numbers, 300),
        *rows_of("qa", "control: text only", "qa_text_only", ["all questions"], numbers, 290),
        *rows_of("entities", "prompter", "entities", ["entity accuracy"], numbers, 150),
        *rows_of("decoded", "decoded of clips", "decoded", ["190 of 200"], numbers, 200),
        *rows_of("retrieval", "zero-shot by matching", "zero_shot", RANKS, numbers, 400, "t2v"),
        *rows_of("retrieval", "zero-shot by matching", "zero_shot", RANKS[:1], numbers, 200, "v2t"),
    ]


def test_every_number_is_in_its_column(rows):
    shown = tables({"score": rows})
    zero_shot = "pre-trained only, by matching"
    asked = "question answering"
    assert [table.title for table in shown] == [
        "Retrieval",
        "Question answering",
        "Entities",
        "Decoded items",
    ]
    baselines = ("chance", "most frequent answer", "best constant", "chance")
    assert [table.heads for table in shown] == [
        ["", "", "score", baseline, "items"] for baseline in baselines
    ]
    retrieval, answers, entities, decoded = (table.lines for table in shown)
    assert retrieval == [
        [zero_shot, "t2v R@1", "10.2 %", "11.8 %", "400"],
        [zero_shot, "t2v R@5", "12.2 %", "13.8 %", "400"],
        [zero_shot, "t2v MdR ↓", "14.2", "15.8", "400"],
        [zero_shot, "v2t R@1", "16.2 %", "17.8 %", "200"],
    ]
    assert answers == [
        [asked, "all questions", "1.2 %", "2.8 %", "300"],
        [asked, "what", "3.2 %", "4.8 %", "300"],
        ["control: text only", "all questions", "5.2 %", "6.8 %", "290"],
    ]
    assert entities == [["prompter", "entity accuracy", "7.2 %", "8.8 %", "150"]]
    assert decoded == [["decoded of clips", "190 of 200", "9.2 %", "-", "200"]]
    protocols = f"all pairs, 400 frames: {zero_shot}.\nall pairs, 200 frames: {zero_shot}."
    assert [table.note for table in shown] == [protocols, "", "", ""]
    assert tables({"score": []}) == []
    assert main_table(rows) is None  # it has none of those that a person looks at first
    # A table that an evaluation adds is after the others.
    other = rows[3] | {"table": "captions", "name": "captions/acc"}
    shown = tables({"score": [other, *rows]})
    assert (shown[-1].title, shown[-1].lines) == ("Captions", entities)


def test_runs_are_columns_with_the_difference_of_each_to_the_first(rows):
    """A score that one run lacks, or over other queries, has no difference; no change has the sign
    of no loss."""
    rows[0] |= {"low": 0.96, "high": 2.04}
    first = rows[:2]
    second = [rows[0] | {"value": 40.0, "low": None}, rows[3]]
    third = [rows[1] | {"value": 7.0, "low": 6.0, "high": 8.04}]
    compared = [
        Comparison([(rows[0], PairedDifference(41.0, 43.5, 2.5, -1.04, 6.0, 0.1344))], {}, 0),
        Comparison(
            [(rows[1], PairedDifference(9, 8, -0.04, None, None, 1 / 2001))],
            {"qa/all": (20, 18, 15)},
            0,
        ),
    ]
    answers, entities = tables({"a1": first, "b2": second, "c3": third}, compared)
    assert answers.heads == [
        "",
        "",
        "a1",
        "b2",
        "b2 - a1",
        "p",
        "c3",
        "c3 - a1",
        "p",
        "most frequent answer",
        "items",
    ]
    assert [line[2:-2] for line in answers.lines] == [
        ["1.2 [1.0, 2.0]", "40.0 %", "+2.5 [-1.0, +6.0]", "0.1344", "", "", ""],
        ["3.2 %", "", "", "", "7.0 [6.0, 8.0]", "+0.0", "0.0005"],
    ]
    assert entities.lines[0][2:-2] == ["", "7.2 %", "", "", "", "", ""]
    assert [table.note.startswith("In brackets") for table in (answers, entities)] == [True, False]
    assert (
        "c3 has other queries of qa/all: 20 and 18, 15 of them shared." in answers.note.splitlines()
    )
    (alone, _) = tables({"a1": first, "b2": second})
    assert alone.heads == ["", "", "a1", "b2", "most frequent answer", "items"]


def test_scores_of_few_videos_have_a_warning(rows):
    """1.96 sqrt(0.5 x 0.5 / n): 30.99, 33.6, 98, 9.85 and 49 points, of the direction with fewer
    videos. Ten captions each of twenty videos are twenty videos; a part of the queries does not
    warn."""
    for videos, independent, numbers in (
        (10, 10, ["10", "31"]),
        (10, 8.5, ["10", "34"]),
        (1, 1, ["1", "98"]),
        (99, 99, ["99", "10"]),
        (300, 4.0, ["300", "4", "49"]),
        (28, 54**2 / (27**2 + 27), ["28", "4", "50"]),  # 54 queries, of which 27 are of one video
        (100, 100, []),
    ):
        (table,) = tables(
            {"score": [rows[0] | {"videos": videos, "independent_videos": independent}]}
        )
        assert [word for word in table.note.split() if word.isdigit()] == numbers
    for row in rows:
        row |= {name: row[name] // 10 for name in ("items", "videos", "independent_videos")}
    rows[1] |= {"items": 2, "videos": 2, "independent_videos": 2.0}
    rows[-4] |= {
        "independent_videos": 5.0
    }  # v2t has fewer videos, of which none has most of the queries
    notes = [table.note.partition(" test videos")[0] for table in tables({"score": rows})]
    assert notes == ["Only 40", "Only 30", "Only 15", "Only 20"]


def test_rows_are_those_of_every_evaluation_each_once_and_corpora_have_a_line(rows, tmp_path):
    artifacts = []
    for stage, part in (("pretrain", rows), ("zero_shot", rows[:3]), ("evaluate", rows[2:])):
        (tmp_path / stage).mkdir()
        write_json(tmp_path / stage / "results.json", part)
        artifacts.append((tmp_path / stage, Record(stage=stage)))
    assert results.rows(artifacts) == rows
    assert results.rows(artifacts[:1]) == []
    corpus = Record(
        stage="decode_videos",
        name="decode_videos clips",
        fingerprint="a" * 64,
        counts={"samples": 2000, "captions": 3, "questions": 4, "rejected": 5},
    )
    table = data_table([(tmp_path, corpus), *artifacts])
    assert table.heads == ["", "fingerprint", "samples", "captions", "questions", "rejected"]
    assert table.lines == [["clips", "a" * 8, "2,000", "3", "4", "5"]]
    assert data_table(artifacts) is None


# The terminal.


def cells(printed: str) -> list[list[str]]:
    """The lines of printed tables as their cells; columns are at least two spaces apart."""
    lines = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()
    ]
    return [line for line in lines if line]


def artifact(root: Path, stage: str, mark: str, **more: Any) -> Path:
    return write_artifact(root, stage, fingerprint=mark * 64, **more)[0]


def test_tables_and_rows_are_aligned(capsys):
    lines = [["x", "R", "1 %", "20"], ["x", "MdR", "12 %", "4"]]
    print_table(Table("Retrieval", ["", "", "a", "items"], lines, "A note."))
    head = f"{'a':>12}  items"
    assert capsys.readouterr().out == (
        f"Retrieval\n{head}\n{'-' * len(head)}\nx  R     1 %     20\n   MdR  12 %      4\nA "
        f"note.\n\n"
    )
    print_rows(
        [
            {"name": "b", "n": 7, "s": 1.5, "why": ""},
            {"name": "long", "n": 10, "s": 20.5, "why": None},
        ]
    )
    print_rows([])
    assert capsys.readouterr().out == "name   n     s\nb      7   1.5\nlong  10  20.5\n"


def test_the_end_of_a_run_fits_on_a_screen(rows, tmp_path, monkeypatch, capsys):
    """All scores that are printed, many others, and warnings."""
    score = rows[5] | {"value": 49.55, "low": 42.5, "high": 56.5, "chance": 0.5}
    names = [*PRINTED, *(f"control_{n}/t2v/R1" for n in range(70))]
    found = [
        score | {"name": name, "what": f"control: best frame {n} by similarity"}
        for n, name in enumerate(names)
    ]
    found.reverse()
    more = {
        "counts": {"items": 40},
        "metrics": {"a": 1.5},
        "warnings": [f"few {n}" for n in range(9)],
    }
    evaluated = artifact(tmp_path, "evaluate", "a", **more)
    write_json(evaluated / "results.json", found)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.html").touch()
    print_results({"evaluate": evaluated}, tmp_path / "workspace", Path("run.html"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 16
    assert max(map(len, printed)) <= 80
    heads, *lines = printed[: 1 + len(PRINTED)]
    assert heads.split() == ["score", "[95", "%]", "chance"]
    first = [f"control: best frame {n} by similarity" for n in range(len(PRINTED))]
    metrics = ["t2v R@1"] * (len(PRINTED) - 2) + ["labels right", "ECE ↓"]  # of crops, as PEM's
    assert [cells(line)[0] for line in lines] == [
        [what, metric, "49.5 [42.5, 56.5]", "0.5 %"]
        for what, metric in zip(first, metrics, strict=True)
    ]
    warned, *last = printed[1 + len(PRINTED) :]
    assert "9" in warned
    scores = f"all {len(found)} scores (as JSON: --json): run.html"
    assert last == [scores, "curves, pictures and comparison: alpro ui"]
    print_results({"evaluate": evaluated}, tmp_path, tmp_path / "run.html", as_json=True)
    shown = {
        "folder": str(evaluated),
        "fingerprint": "a" * 64,
        "counts": {"items": 40},
        "metrics": {"a": 1.5},
    }
    expected = {
        "results": found,
        "artifacts": {"evaluate": shown},
        "report": str(tmp_path / "run.html"),
    }
    assert json.loads(capsys.readouterr().out) == expected


def test_without_results_the_last_stage_is_printed(tmp_path, capsys):
    first = artifact(tmp_path, "decode_videos", "a", counts={"samples": 9})
    more = {
        "counts": {"steps": 600},
        "metrics": {"loss": 0.12345678},
        "warnings": ["3 of [9]", "chance"],
    }
    last = artifact(tmp_path, "pretrain", "b", **more)
    print_results({"decode_videos": first, "pretrain": last}, tmp_path, tmp_path / "run.html")
    assert capsys.readouterr().out.splitlines() == [
        f"pretrain: {last}",
        "  steps: 600",
        "  loss: 0.123457",
        "warning: pretrain: 3 of [9]",
        "warning: pretrain: chance",
        f"curves, pictures and comparison: alpro ui --workspace {tmp_path}",
    ]


# Evaluations side by side.


def test_evaluations_are_compared_by_the_first_characters_of_their_fingerprints_on_a_page_too(
    tmp_path, capsys
):
    """Of 12 questions: a has 3 right answers, b all, c 6; c was built with another seed, whose
    value has HTML in it."""
    metric = Metric("acc", "all questions", "qa")
    asked = Queries.of([f"v{n}" for n in range(12)], ["what?"] * 12)
    for mark, right in (("a", 3), ("b", 12), ("c", 6)):
        folder = artifact(tmp_path, "evaluate", mark, config={"seed": "<1>" if mark == "c" else 0})
        evaluated = Results("test", folder)
        evaluated.add(
            Score(metric, (np.arange(12) < right) * 100.0, 50.0, asked), "question answering", "qa"
        )
        evaluated.outcome()

    def compare(*arguments: str) -> int:
        return cli.execute(["artifacts", "compare", *arguments, "--workspace", str(tmp_path)])

    assert compare("aa", "bbbbbb", "cc") == 0
    printed = capsys.readouterr()
    lines, (a, b, c) = cells(printed.out), ("a" * 8, "b" * 8, "c" * 8)
    assert lines[:2] == [["What differs"], [a, b, c]]
    assert ["configuration", "evaluate.seed", "0", "0", "<1>"] in lines
    assert [a, b, f"{b} - {a}", "p", c, f"{c} - {a}", "p", "chance", "items"] in lines
    ((what, metric, first, second, difference, p, *_, chance, items),) = (
        n for n in lines if n[0] == "question answering"
    )
    assert (what, metric, second, chance, items) == (
        "question answering",
        "all questions ←",
        "100.0 %",
        "50.0 %",
        "12",
    )
    assert re.fullmatch(r"25\.0 \[\d+\.\d, \d+\.\d\]", first)
    assert re.fullmatch(r"\+75\.0 \[\+50\.0, \+100\.0\]", difference)
    assert float(p) == pytest.approx(2 / 2**9, abs=0.004)  # nine videos differ
    page = tmp_path / "reports" / f"compare-{a}-{b}-{c}.html"
    assert str(page) in printed.err
    text = page.read_text()
    assert "<td>evaluate.seed</td><td>0</td><td>0</td><td>&lt;1&gt;</td>" in text
    assert first in text
    assert f"{b} is better than {a} on 12 test clips" in printed.out
    assert re.search(r'<div class="bar better">\s*<span class="label">question answering', text)
    assert compare() == 0  # the last two
    assert re.search(r"compare-\w{8}-\w{8}.html", capsys.readouterr().err)
    assert compare("aa", "cc", "--out", str(tmp_path / "new" / "page.html")) == 0
    assert (tmp_path / "new" / "page.html").is_file()
    capsys.readouterr()
    for wrong in (
        ["aa"],
        ["aa", "aaa"],
        ["aa", "ff"],
        ["aa", "bb", "--out", "/proc/none/page.html"],
    ):
        assert compare(*wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_what_differs_in_the_origins_of_runs_is_listed():
    shared = Record(stage_version=1, versions={"torch": "2.11"}, run={"commit": "abc"})
    clips = replace(shared, stage="decode_videos", name="decode_videos clips")
    model = replace(shared, stage="pretrain", name="pretrain", fingerprint="f" * 64)
    first = [
        replace(clips, fingerprint="1" * 64, counts={"samples": 9, "rejected": 0}),
        replace(model, config={"lr": 1, "weights": {"x": 2}}, precision="float32"),
    ]
    assert differences([first, first, first]) == []
    changed = {
        "config": {"lr": 1, "weights": {"x": 3}},
        "run": {"commit": "def"},
        "versions": {"torch": "2.12"},
    }
    changed |= {"files": {"model": "0123456789"}, "precision": "bfloat16", "stage_version": 2}
    second = [
        replace(clips, fingerprint="2" * 64, counts={"samples": 8, "rejected": 1}),
        replace(model, **changed),
    ]
    assert differences([first, first, second]) == [
        ["configuration", "pretrain.weights.x", "2", "2", "3"],
        ["data", "clips", *["11111111: 9 samples"] * 2, "22222222: 8 samples, 1 rejected"],
        ["data", "pretrain model", "-", "-", "01234567"],
        ["code", "commit", "abc", "abc", "abc, def"],
        ["code", "pretrain, version", "1", "1", "2"],
        ["code", "pretrain in", "float32", "float32", "bfloat16"],
        ["version", "torch", "2.11", "2.11", "2.11, 2.12"],
    ]


# The page of a run.

STAGES = ("render_sample", "build_vocabulary", "pretrain", "evaluate")


@pytest.fixture
def artifacts(tmp_path) -> list[tuple[Path, Record]]:
    """Artifacts of four stages."""
    counts: list[dict[str, int]] = [
        {"samples": 190, "rejected": 10},
        {},
        {"steps": 600},
        {"items_of_a_table": 77},
    ]
    found = []
    for number, (stage, of_stage) in enumerate(zip(STAGES, counts, strict=True)):
        run = {"seconds": 20.25 + 100 * number}
        found.append(
            write_artifact(
                tmp_path, stage, fingerprint=f"{stage}-0123456789", counts=of_stage, run=run
            )
        )
    corpus, *_, evaluated = [folder for folder, _ in found]
    write_json(corpus / "statistics.json", {"reasons": {"unreadable": 7, "no <text>": 3}})
    (evaluated / "pictures").mkdir()
    for name in ("retrieval", "pseudo_labels-step-000200", "my_own-picture"):
        Image.new("RGB", (4, 4)).save(evaluated / "pictures" / f"{name}.png")
    (row,) = rows_of("qa", "question answering", "qa", ["<all> questions"], iter(range(1, 9)), 50)
    write_json(evaluated / "results.json", [row | {"name": "qa/acc", "low": 0.5, "high": 2.25}])
    return found


STATES = dict(zip(STAGES, ("cached", "built", "cached", "built"), strict=True))


def summary(states: dict[str, str], **values: Any) -> dict[str, Any]:
    """That of a run of four steps; texts of the user's have HTML in them."""
    steps = []
    for name in STAGES:
        step = {
            "name": name,
            "stage": name,
            "fingerprint": name * 9,
            "state": states.get(name, "unfinished"),
        }
        steps.append(step | {"inputs": [STAGES[0]] * (name != STAGES[0])})
    arguments = {
        "config": "my <own>.toml",
        "data": "/a&b",
        "changes": ["pretrain.lr=5e-4", "name='<b>'"],
    }
    about = {
        "title": "mine · a<b · 123456",
        "state": "finished",
        "reason": "",
        "seconds": 125.0,
        "commit": "0123+",
    }
    return (
        about
        | {"started": "2026-11-21T10:20:30+00:00", "arguments": arguments, "steps": steps}
        | values
    )


def table_below(page: str, heading: str) -> list[list[str]]:
    """The table below a heading, as texts."""
    table = page.partition(f"<summary><h2>{heading}</h2>")[2].partition("</table>")[0]
    lines: list[Any] = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.split(r"<t[dh][^>]*>", line)[1:]]
        for line in lines
    ]


def test_the_page_has_headlines_tables_pictures_stages_and_facts(artifacts, tmp_path):
    path = write_report(tmp_path / "reports" / "mine.html", summary(STATES), artifacts)
    page = path.read_text("utf-8")
    assert read_json(path.with_suffix(".json")) == summary(STATES)
    assert "<title>mine · a&lt;b · 123456</title>" in page
    assert '<p class="state finished"><b>Finished</b></p>' in page
    assert table_below(page, "Question answering") == [
        ["", "", "score", "most frequent answer", "items"],
        ["question answering", "&lt;all&gt; questions", "1.2 [0.5, 2.2]", "2.8 %", "50"],
    ]
    assert table_below(page, "Results")[1][2:] == ["1.2 [0.5, 2.2]", "2.8 %"]
    heads, *lines = table_below(page, "Stages")
    assert heads == ["stage", "fingerprint", "time", "inputs", "counts"]
    assert [line[:1] + line[2:] for line in lines] == [
        ["render_sample", "cached", "", "samples 190, rejected 10"],
        ["build_vocabulary", "0:02:00", "render_sample", ""],
        ["pretrain", "cached", "render_sample", "steps 600"],
        ["evaluate", "0:05:20", "render_sample", ""],
    ]
    assert dict(table_below(page, "Run")[1:]) == {
        "started": "2026-11-21 10:20:30 UTC",
        "took": "0:02:05",
        "commit": "0123+",
        "configuration": "my &lt;own&gt;.toml",
        "data": "/a&amp;b",
        "changed values": "pretrain.lr=5e-4\nname=&#39;&lt;b&gt;&#39;",
    }
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/([\w+]+);base64,\w', page)
    assert [(caption.split(" (")[0].split(" with ")[0], kind) for caption, kind in pictures] == [
        ("My own picture.", "png"),
        ("Step 200: The prompter&#39;s pseudo-labels on crops of training examples", "png"),
        ("Queries", "png"),
    ]
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained
    assert table_below(page, "Rejected")[1:] == [
        ["render_sample", "unreadable", "7"],
        ["", "no &lt;text&gt;", "3"],
    ]


def test_the_summary_for_other_pages_has_results_changes_and_links(artifacts):
    """An address that is not known, as without Prefect's pages, is left out."""
    links = {"report": "file:///r.html", "Prefect": "", "MLflow": "http://127.0.0.1:5000/#/r"}
    text = markdown_summary(summary(STATES), artifacts, links)
    assert text.startswith("**finished**\n")
    assert "[report](file:///r.html) · [MLflow](http://127.0.0.1:5000/#/r)\n" in text
    assert "Prefect" not in text
    assert "- `pretrain.lr=5e-4`\n" in text
    assert "| question answering |" in text


def test_controls_warnings_and_failures_are_shown_where_there_are_any(artifacts, tmp_path):
    results_file = artifacts[3][0] / "results.json"
    plain = write_report(tmp_path / "mine.html", summary(STATES), artifacts).read_text("utf-8")
    assert [text for text in ("What the controls show", "Warnings") if text in plain] == []
    (row,) = read_json(results_file)
    control = row | {"name": "qa_text_only/acc", "what": "control: text only"}
    write_json(results_file, [control, row])
    folder, record = artifacts[2]
    warnings = ["loss <vtc> ended at chance", "3 captions are cut"]
    artifacts[2] = folder, replace(record, warnings=warnings)
    page = write_report(tmp_path / "mine.html", summary(STATES), artifacts).read_text("utf-8")
    assert table_below(page, "What the controls show")[1:] == [
        ["text only", CONTROLS["text_only"].meaning]
    ]
    lines = [["pretrain", "loss &lt;vtc&gt; ended at chance"], ["", "3 captions are cut"]]
    assert table_below(page, "Warnings")[1:] == lines
    states = {"render_sample": "built", "build_vocabulary": "failed"}
    run = summary(states, state="failed", reason="build_vocabulary: no nouns in <clips>")
    page = write_report(tmp_path / "mine.html", run, artifacts[:1]).read_text("utf-8")
    assert (
        '<p class="state failed"><b>Failed</b>: build_vocabulary: no nouns in &lt;clips&gt;</p>'
        in page
    )
    assert [line[2] for line in table_below(page, "Stages")[1:]] == [
        "0:00:20",
        "failed",
        "unfinished",
        "unfinished",
    ]


def test_the_page_shows_scores_curves_calibration_contents_and_links(artifacts, tmp_path):
    """By hand: places are percent of an axis, from the left or the top."""
    _, _, (trained, _), (evaluated, _) = artifacts
    (row,) = read_json(evaluated / "results.json")
    score = row | {"value": 60.0, "low": 45.0, "high": 75.0, "chance": 25.0}
    control = score | {"name": "qa_text_only/acc", "what": "control: text only", "value": 30.0}
    rank = rows_of("retrieval", "zero-shot", "zero_shot", ["MdR"], count(1), 50, "t2v")
    write_json(evaluated / "results.json", [control, score, *rank])
    metrics = [{"step": step, "train/loss": 8.0 - step} for step in (0, 2, 4)]
    metrics.append({"step": 4, "validation/t2v/R1": 5.0})  # a single point is no curve
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    (trained / "metrics.jsonl").write_text(lines)
    # Four predictions of 75 %, of which two are right; one of 5 %, which is wrong.
    probabilities = pa.table({"probability": [0.75] * 4 + [0.05], "right": [1, 0, 1, 0, 0]})
    pq.write_table(probabilities, evaluated / "qa.parquet")

    folder = tmp_path / "reports"
    folder.mkdir()
    times = {"a": "19", "b": "20", "other": "18", "later": "22"}
    for name, day in times.items():
        about = {"name": "other" if name == "other" else "mine", "title": f"run {name}"}
        earlier = summary(STATES, started=f"2026-11-{day}T10:20:30+00:00", **about)
        write_json(folder / f"{name}.json", earlier)
        (folder / f"{name}.html").touch()
    links = [("MLflow", "http://127.0.0.1:5000/#/runs/1"), ("Prefect", "http://127.0.0.1:4200/r")]
    run = summary(STATES, name="mine")
    page = write_report(folder / "mine.html", run, artifacts, links).read_text("utf-8")

    (bars,) = re.findall(r'<figure class="bars">(.*?)</figure>', page, re.DOTALL)
    shown = re.findall(r'<div class="bar (score|control)">(.*?)</div>', bars, re.DOTALL)
    assert [kind for kind, _ in shown] == ["score", "control"]  # a rank has no place on the axis
    styles = [re.findall(r'class="(\w+)" style="([^"]+)"', inner) for _, inner in shown]
    assert styles[0] == [
        ("reference", "left:25.00%"),
        ("interval", "left:45.00%;width:30.00%"),
        ("dot", "left:60.00%"),
    ]
    assert styles[1][-1] == ("dot", "left:30.00%")
    assert "control: text only" in shown[1][1]

    assert re.findall(r'<polyline points="([^"]+)"', page) == ["0.0,0.0 50.0,50.0 100.0,100.0 "]
    assert "pretrain, step 0 to 4" in page
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>(\d+)', page)
    assert circles == [("5.00", "100.00", "1"), ("75.00", "50.00", "4")]
    assert "expected calibration error 21.0%" in page  # 4/5 of 25 points, and 1/5 of 5

    contents = re.findall(r'<li><a href="#([^"]+)">', page)
    assert contents[-5:] == ["evaluate", "rejected", "stages", "run", "links"]
    assert {"results", "retrieval", "learning-curves", "calibration"} < set(contents)
    assert all(f'id="{place}"' in page for place in contents)
    linked = re.findall(r'<li><a href="([^#"][^"]*)">', page)
    assert linked == [address for _, address in links] + ["b.html", "a.html"]  # the newest first
