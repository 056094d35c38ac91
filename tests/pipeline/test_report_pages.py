"""The page of a run, and its summary for the pages of MLflow and Prefect."""

import json
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.artifact import Record
from alpro.files import read_json, write_json
from alpro.pipeline.reports.page import write_report
from alpro.pipeline.reports.summary import summary as markdown_summary
from alpro.stages.evaluation.controls import CONTROLS
from tests.pipeline.conftest import write_artifact
from tests.pipeline.test_reports import rows_of

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
    first_line = "**finished** · [report](file:///r.html) · [MLflow](http://127.0.0.1:5000/#/r)\n"
    assert text.startswith(first_line)  # the only one that MLflow shows at once
    assert "Prefect" not in text
    assert "Changed values: `pretrain.lr=5e-4`, " in text
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
