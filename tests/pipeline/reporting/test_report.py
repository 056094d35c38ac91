"""report.html: results, stages with their time and counts, pictures, and why items were rejected."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alpro.files import read_json, write_json
from alpro.pipeline.reporting.report import metric_curves, write_report
from alpro.pipeline.reporting.result_tables import Listed
from alpro.stages.evaluation.controls import CONTROLS


@pytest.fixture
def artifacts_of_a_run(tmp_path) -> list[Listed]:
    """Artifacts of four stages, two of which were cached; all numbers differ."""

    def artifact(stage: str, seconds: float, cached: bool, **counts: int) -> Listed:
        folder = tmp_path / stage
        folder.mkdir()
        manifest = {"stage": stage, "fingerprint": f"{stage}-0123456789", "counts": counts}
        return stage, folder, manifest | {"run": {"seconds": seconds}}, cached

    artifacts = [
        artifact("decode_videos", 1000.0, True, samples=190, rejected=10),
        artifact("pretrain", 20.25, False, steps=600),
        artifact("finetune_qa", 3000.0, True, steps=480),
        artifact("evaluate", 4.5, False, items_of_a_table=77),
    ]
    statistics = {"reasons": {"unreadable": 7, "no text": 3}}
    write_json(tmp_path / "decode_videos" / "statistics.json", statistics)
    lines = [{"step": step, "time": 1.0, "train/loss": 1.0 / step} for step in (10, 20)]
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "evaluate" / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "evaluate" / "pictures" / "retrieval.png")
    row = {"name": "qa/acc", "what": "question answering", "metric": "<all> questions", "value": 41.0, "chance": 23.0}
    row |= {"table": "qa", "direction": "", "unit": "%", "higher_is_better": True, "baseline": "most frequent answer"}
    row |= {"low": 28.0, "high": 54.5, "protocol": ""}
    write_json(tmp_path / "evaluate" / "results.json", [row | {"items": 50}])
    return artifacts


@pytest.fixture
def page(artifacts_of_a_run, tmp_path) -> str:
    return write_report(tmp_path / "reports" / "mine.html", "mine", artifacts_of_a_run).read_text("utf-8")


def cells(page: str, heading: str) -> list[list[str]]:
    """The table below a heading, as texts."""
    table = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    rows: list[Any] = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.split(r"<t[dh][^>]*>", row)[1:]] for row in rows]


def test_work_and_cached_stages_are_counted(page):
    """Of the stages that ran, 20.25 and 4.5 seconds."""
    assert "<p>4 stages, 2 of them cached; 25 s of work in the others.</p>" in page


def test_each_stage_has_its_time_and_its_counts(page):
    assert cells(page, "Stages") == [
        ["stage", "fingerprint", "time", "counts"],
        ["decode_videos", "decode_v", "cached", "samples 190, rejected 10"],
        ["pretrain", "pretrain", "20.2 s", "steps 600"],
        ["finetune_qa", "finetune", "cached", "steps 480"],
        ["evaluate", "evaluate", "4.5 s", ""],
    ]


def test_the_results_are_a_table_with_a_warning_about_few_items(page):
    assert cells(page, "Question answering") == [
        ["", "", "question answering", "most frequent answer", "items"],
        ["&lt;all&gt; questions", "", "41.0 [28.0, 54.5]", "23.0 %", "50"],
    ]
    assert page.count("videos. Only 50 test items: differences of less than 14 points are noise.</p>") == 1


def test_the_controls_are_explained(page, artifacts_of_a_run, tmp_path):
    assert "What the controls show" not in page
    rows = read_json(tmp_path / "evaluate" / "results.json")
    control = {"name": "qa_text_only/acc", "what": "control: text only", "value": 30.0}
    write_json(tmp_path / "evaluate" / "results.json", [*rows, rows[0] | control])
    page = write_report(tmp_path / "reports" / "mine.html", "mine", artifacts_of_a_run).read_text("utf-8")
    notes = page.partition("<h2>What the controls show</h2>")[2].partition("</ul>")[0]
    assert re.findall(r"<li><b>(.*?)</b>: (.*)</li>", notes) == [
        ("text only", f"{CONTROLS['text_only'].meaning} Here: &lt;all&gt; questions 30.0 % instead of 41.0 %.")
    ]


def test_rejects_have_their_reasons_below_their_stage(page):
    decoding, others = page.partition("<h2>decode_videos</h2>")[2].split("<h2>", 1)
    assert re.findall(r"<li>(.*?)</li>", decoding) == ["7 x unreadable", "3 x no text"]
    assert "Rejected" not in others


def test_pictures_are_in_the_page(page):
    assert re.findall(r'<img alt="(\w+)" src="data:image/png;base64,\w', page) == ["pretrain", "evaluate"]
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained


def test_curves_have_a_panel_for_each_kind_of_metric():
    lines = [
        {"step": 1, "time": 1.0, "train/loss": 2.0, "train/loss_vtc": 1.5, "train/lr": 1e-4},
        {"step": 2, "time": 2.0, "train/loss": 1.0, "train/loss_vtc": 0.5, "train/lr": 5e-5},
        {"step": 2, "time": 2.0, "validation/t2v/R1": 20.0, "validation/v2t/R1": 30.0, "validation/t2v/MdR": 4.0},
    ]
    figure = metric_curves(lines, "pretrain")
    panels = {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes
    }
    assert panels == {
        "pretrain: losses": {"loss": [[1, 2.0], [2, 1.0]], "loss_vtc": [[1, 1.5], [2, 0.5]]},
        "pretrain: optimisation": {"lr (of 0.0001)": [[1, 1.0], [2, 0.5]]},
        "pretrain: validation": {"t2v/R1": [[2, 20.0]]},
    }
    assert metric_curves([], "pretrain") is None
    assert metric_curves([{"step": 1, "time": 1.0}], "pretrain") is None


def test_a_page_without_results_or_rejects(tmp_path):
    manifest = {"stage": "pretrain", "fingerprint": "0" * 16, "counts": {}, "run": {"seconds": 1.0}}
    page = write_report(tmp_path / "a.html", "mine", [("pretrain", Path(tmp_path), manifest, False)]).read_text()
    assert "<p>1 stages, 0 of them cached; 1 s of work in the others.</p>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Stages"]
