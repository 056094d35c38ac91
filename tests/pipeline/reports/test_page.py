"""The page of a run: its state, results, pictures, corpora, stages; and its summary as JSON."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alpro.files import read_json, write_json
from alpro.pipeline.config.pipeline_config import load_config
from alpro.pipeline.plan.step import Step
from alpro.pipeline.reports.page import FAILED, summary, write_report
from alpro.stages import build_vocabulary, render_sample
from alpro.stages.evaluation.controls import CONTROLS
from tests.pipeline.conftest import TINY
from tests.pipeline.reports.conftest import rows_of

STAGES = ("render_sample", "build_vocabulary", "pretrain", "evaluate")


@pytest.fixture
def artifacts(tmp_path) -> list[tuple[Path, dict[str, Any]]]:
    """Artifacts of four stages; all numbers differ."""
    counts: list[dict[str, int]] = [{"samples": 190, "rejected": 10}, {}, {"steps": 600}, {"items_of_a_table": 77}]
    found = []
    for number, (stage, of_stage) in enumerate(zip(STAGES, counts, strict=True)):
        folder = tmp_path / stage
        folder.mkdir()
        record = {"stage": stage, "name": stage, "fingerprint": f"{stage}-0123456789", "counts": of_stage}
        found.append((folder, record | {"run": {"seconds": 20.25 + 100 * number}}))
    write_json(tmp_path / "render_sample" / "statistics.json", {"reasons": {"unreadable": 7, "no <text>": 3}})
    lines = [{"step": step, "time": 1.0, "train/loss": 1.0 / step} for step in (10, 20)]
    lines += [{"step": 20, "time": 1.0, "validation/t2v/R1": 2.0, "validation/v2t/R1": 3.0, "validation/t2v/MdR": 4.0}]
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "evaluate" / "pictures").mkdir()
    for name in ("retrieval", "pseudo_labels", "my_own-picture"):
        Image.new("RGB", (4, 4)).save(tmp_path / "evaluate" / "pictures" / f"{name}.png")
    (row,) = rows_of("qa", "question answering", "qa", ["<all> questions"], iter(range(1, 9)), 50)
    write_json(tmp_path / "evaluate" / "results.json", [row | {"name": "qa/acc", "low": 0.5, "high": 2.25}])
    return found


def about(states: dict[str, str], **values: Any) -> dict[str, Any]:
    """The summary of a run of four steps."""
    first = Step("render_sample", "render_sample", render_sample.Config())
    inputs = {"source": first}
    steps = [first, *(Step("build_vocabulary", name, build_vocabulary.Config(), inputs) for name in STAGES[1:])]
    return summary("mine · a<b · 123456", load_config(TINY), steps, states, **values)


STATES = dict(zip(STAGES, ("cached", "built", "cached", "built"), strict=True))


def cells(page: str, heading: str) -> list[list[str]]:
    """The table below a heading, as texts."""
    table = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    lines: list[Any] = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.split(r"<t[dh][^>]*>", line)[1:]] for line in lines]


@pytest.fixture
def page(artifacts, tmp_path) -> str:
    return write_report(tmp_path / "reports" / "mine.html", about(STATES), artifacts).read_text("utf-8")


def test_each_stage_has_its_time_and_its_counts(page):
    heads, *lines = cells(page, "Stages")
    assert heads == ["stage", "fingerprint", "time", "inputs", "counts"]
    assert [line[:1] + line[2:] for line in lines] == [
        ["render_sample", "cached", "", "samples 190, rejected 10"],
        ["build_vocabulary", "120.2 s".replace("120.2 s", "2 min 0 s"), "render_sample", ""],
        ["pretrain", "cached", "render_sample", "steps 600"],
        ["evaluate", "5 min 20 s", "render_sample", ""],
    ]


def test_the_headline_scores_are_first_then_tables_pictures_and_facts(page):
    assert cells(page, "Question answering") == [
        ["", "", "score", "most frequent answer", "items"],
        ["question answering", "&lt;all&gt; questions", "1.2 [0.5, 2.2]", "2.8 %", "50"],
    ]
    score = "<li>question answering, &lt;all&gt; questions<b>1.2 [0.5, 2.2]</b>chance 2.8 %</li>"
    assert re.findall("<li>.*<b>.*</li>", page) == [score]
    parts = (score, "Question answering</h2>", "pretrain</h2>", "Stages</h2>", "Run</h2>")
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_pictures_are_in_the_page_with_captions(page):
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/([\w+]+);base64,\w', page)
    assert [(caption.split(" (")[0].split(" with ")[0], kind) for caption, kind in pictures] == [
        ("pretrain: losses over steps.", "svg+xml"),
        ("pretrain: validation over steps.", "svg+xml"),
        ("My own picture.", "png"),
        ("The prompter&#39;s pseudo-labels on crops of training examples", "png"),
        ("Queries", "png"),
    ]
    assert re.findall(r"<figcaption>([^<]+)</figcaption>", page) == [caption for caption, _ in pictures]
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained


def test_curves_have_a_panel_for_each_kind_of_metric():
    from alpro.pipeline.reports.curves import panel_pictures

    lines = [
        {"step": 1, "time": 1.0, "train/loss": 2.0, "train/loss_vtc": 1.5, "train/lr": 1e-4},
        {"step": 2, "time": 2.0, "train/loss": 1.0, "train/loss_vtc": 0.5, "train/lr": 5e-5},
        {"step": 2, "time": 2.0, "validation/t2v/R1": 20.0, "validation/v2t/R1": 30.0, "validation/t2v/MdR": 4.0},
    ]
    texts = {name: re.findall(r"<text [^>]*>([^<]+)<", svg) for name, svg in panel_pictures(lines).items()}
    legends = {
        name: [text for text in of_panel if text[0].isalpha() and text != "step"] for name, of_panel in texts.items()
    }
    assert legends == {"losses": ["loss", "loss_vtc"], "optimization": ["lr (of 0.0001)"], "validation": ["t2v/R1"]}
    assert panel_pictures([{"step": 1, "time": 1.0}]) == {}


def test_the_reasons_of_rejects_are_with_their_corpus(page):
    corpus, others = page.partition("<h2>render_sample</h2>")[2].split("<h2>", 1)
    assert re.findall(r"<li>(.*?)</li>", corpus) == ["7 x unreadable", "3 x no &lt;text&gt;"]
    assert "Rejected" not in others


def test_controls_and_the_comparison_with_a_clip_are_explained(page, artifacts, tmp_path):
    results, command = tmp_path / "evaluate" / "results.json", "--baseline CLIP_FOLDER</code>"
    assert "What the controls show" not in page
    assert command not in page
    (row,) = read_json(results)
    control = row | {"name": "qa_text_only/acc", "what": "control: text only"}
    write_json(results, [control, row | {"name": "retrieval/t2v/R1", "table": "retrieval"}])
    page = write_report(tmp_path / "mine.html", about(STATES), artifacts).read_text("utf-8")
    assert command in page
    assert f"<b>text only</b>: {CONTROLS['text_only'].meaning}" in page


def test_warnings_are_counted_above_the_tables_and_listed_below_them(artifacts, tmp_path):
    artifacts[2][1]["warnings"] = ["loss <vtc> ended at chance", "3 captions are cut"]
    page = write_report(tmp_path / "mine.html", about(STATES), artifacts).read_text("utf-8")
    assert '<a href="#warnings">2 warnings</a>' in page
    listed = page.partition('<h2 id="warnings">')[2].partition("</ul>")[0]
    lines = ["pretrain: loss &lt;vtc&gt; ended at chance", "pretrain: 3 captions are cut"]
    assert re.findall("<li>(.*?)</li>", listed) == lines
    assert page.index("</table>") < page.index('<h2 id="warnings">')


def test_the_page_says_what_ran_where_and_with_which_values(artifacts, tmp_path):
    """Texts of the user's are escaped."""
    arguments = {"config": "my <own>.toml", "data": "/a&b", "changes": ["pretrain.lr=5e-4", "name='<b>'"]}
    run = about(STATES, started=datetime(2026, 11, 21, 10, 20, 30, tzinfo=UTC), commit="0123+", arguments=arguments)
    path = write_report(tmp_path / "mine.html", run | {"seconds": 125.0}, artifacts)
    page = path.read_text("utf-8")
    assert "<title>mine · a&lt;b · 123456</title>" in page
    assert '<p class="state finished"><b>Finished</b></p>' in page
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page, re.DOTALL)) == {
        "started": "2026-11-21 10:20:30 UTC",
        "took": "2 min 5 s",
        "commit": "0123+",
        "configuration": "my &lt;own&gt;.toml",
        "data": "/a&amp;b",
        "changed values": "pretrain.lr=5e-4\nname=&#39;&lt;b&gt;&#39;",
    }
    assert read_json(path.with_suffix(".json")) == run | {"seconds": 125.0}


def test_a_run_that_failed_says_why_and_shows_how_far_it_came(artifacts, tmp_path):
    states = {"render_sample": "built", "build_vocabulary": "failed"}
    run = about(states, state=FAILED, reason="build_vocabulary: no nouns in <clips>")
    page = write_report(tmp_path / "mine.html", run, artifacts[:1]).read_text("utf-8")
    assert '<p class="state failed"><b>Failed</b>: build_vocabulary: no nouns in &lt;clips&gt;</p>' in page
    assert [line[2] for line in cells(page, "Stages")[1:]] == ["20.2 s", "failed", "unfinished", "unfinished"]
    assert [step["state"] for step in about({"evaluate": "built"})["steps"]] == ["unused"] * 3 + ["built"]
