"""report.html: what identifies the run, results, stages with time and counts, pictures, why items were rejected."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alpro.files import read_json, write_json
from alpro.pipeline.reports.report import write_report
from alpro.pipeline.reports.results import Listed
from alpro.pipeline.reports.summary import RunSummary, StepSummary, load
from alpro.stages.evaluation.controls import CONTROLS

MINE = RunSummary("mine · a<b · 123456", "mine")


@pytest.fixture
def artifacts_of_a_run(tmp_path) -> list[Listed]:
    """Artifacts of four stages, two of which were cached; all numbers differ."""

    def artifact(stage: str, seconds: float, cached: bool, **counts: int) -> Listed:
        folder = tmp_path / stage
        folder.mkdir()
        manifest = {"stage": stage, "fingerprint": f"{stage}-0123456789", "counts": counts}
        manifest |= {"inputs": {"clips": {}}} if stage == "pretrain" else {}
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
    write_json(tmp_path / "evaluate" / "results.json", [row | {"items": 50, "videos": 50, "independent_videos": 50.0}])
    return artifacts


@pytest.fixture
def page(artifacts_of_a_run, tmp_path) -> str:
    return write_report(tmp_path / "reports" / "mine.html", MINE, artifacts_of_a_run).read_text("utf-8")


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
        ["stage", "fingerprint", "time", "inputs", "counts"],
        ["decode_videos", "decode_v", "cached", "", "samples 190, rejected 10"],
        ["pretrain", "pretrain", "20.2 s", "clips", "steps 600"],
        ["finetune_qa", "finetune", "cached", "", "steps 480"],
        ["evaluate", "evaluate", "4.5 s", "", ""],
    ]


def test_the_results_are_a_table_with_a_warning_about_few_items(page):
    assert cells(page, "Question answering") == [
        ["", "", "question answering", "most frequent answer", "items"],
        ["&lt;all&gt; questions", "", "41.0 [28.0, 54.5]", "23.0 %", "50"],
    ]
    assert page.count("videos. Only 50 test videos: differences of less than 14 points are noise.</p>") == 1


def test_the_headline_scores_are_first(page):
    """Before the tables, with interval and chance level; facts of the run come last."""
    score = "<li>question answering, &lt;all&gt; questions<b>41.0 [28.0, 54.5]</b>most frequent answer 23.0 %</li>"
    assert re.findall("<li>.*<b>.*</li>", page) == [score]
    places = [
        page.index(part) for part in (score, "Question answering</h2>", "pretrain</h2>", "Stages</h2>", "Run</h2>")
    ]
    assert places == sorted(places)


def test_a_report_of_retrieval_says_how_to_compare_with_a_clip(page, artifacts_of_a_run, tmp_path):
    command = "<code>alpro eval MODEL DATA --baseline CLIP_FOLDER</code>"
    assert command not in page
    (row, *_) = read_json(tmp_path / "evaluate" / "results.json")
    row |= {"name": "retrieval/t2v/R1", "table": "retrieval", "direction": "t2v", "protocol": "all pairs"}
    write_json(tmp_path / "evaluate" / "results.json", [row])
    assert command in write_report(tmp_path / "reports" / "mine.html", MINE, artifacts_of_a_run).read_text("utf-8")


def test_the_controls_are_explained(page, artifacts_of_a_run, tmp_path):
    assert "What the controls show" not in page
    rows = read_json(tmp_path / "evaluate" / "results.json")
    control = {"name": "qa_text_only/acc", "what": "control: text only", "value": 30.0}
    write_json(tmp_path / "evaluate" / "results.json", [*rows, rows[0] | control])
    page = write_report(tmp_path / "reports" / "mine.html", MINE, artifacts_of_a_run).read_text("utf-8")
    notes = page.partition("<h2>What the controls show</h2>")[2].partition("</ul>")[0]
    assert re.findall(r"<li><b>(.*?)</b>: (.*)</li>", notes) == [("text only", CONTROLS["text_only"].meaning)]


def test_warnings_are_counted_above_the_tables_and_listed_below_them(page, artifacts_of_a_run, tmp_path):
    assert "Warnings</h2>" not in page
    artifacts_of_a_run[3][2]["warnings"] = ["a <control> is above chance", "few items"]
    page = write_report(tmp_path / "reports" / "mine.html", MINE, artifacts_of_a_run).read_text("utf-8")
    above, _, below = page.partition("Question answering</h2>")
    assert '<a href="#warnings">2 warnings</a> below the tables' in above
    listed = below.partition('<h2 id="warnings">Warnings</h2>')[2].partition("</ul>")[0]
    assert re.findall("<li>(.*?)</li>", listed) == [
        "evaluate: a &lt;control&gt; is above chance",
        "evaluate: few items",
    ]


def test_rejects_have_their_reasons_below_their_stage(page):
    decoding, others = page.partition("<h2>decode_videos</h2>")[2].split("<h2>", 1)
    assert re.findall(r"<li>(.*?)</li>", decoding) == ["7 x unreadable", "3 x no text"]
    assert "Rejected" not in others


def test_pictures_are_in_the_page_with_captions(page):
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/([\w+]+);base64,\w', page)
    assert [(caption.split(".")[0], kind) for caption, kind in pictures] == [
        ("pretrain: losses over steps", "svg+xml"),
        ("Queries with the best and with the worst ranks, and the videos that are first; the right one has a green "
         "border", "png"),
    ]  # fmt: skip
    assert re.findall(r"<figcaption>([^<]+)</figcaption>", page) == [caption for caption, _ in pictures]
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained


def test_a_picture_of_a_step_and_one_without_a_caption_of_its_own(artifacts_of_a_run, tmp_path):
    for name in ("pseudo_labels-step-000200", "my_own-picture"):
        Image.new("RGB", (4, 4)).save(tmp_path / "evaluate" / "pictures" / f"{name}.png")
    page = write_report(tmp_path / "reports" / "mine.html", MINE, artifacts_of_a_run).read_text("utf-8")
    own, pseudo_labels, _ = re.findall(r"<figcaption>([^<]+)</figcaption>", page)[1:]
    assert own == "My own picture."
    assert pseudo_labels.startswith("Step 200: The prompter&#39;s pseudo-labels")


def described(page: str) -> dict[str, str]:
    """What identifies the run, by label."""
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page, re.DOTALL))


def test_the_page_says_what_ran_where_and_with_which_values(artifacts_of_a_run, tmp_path):
    """Texts of the user's are escaped."""
    changes = ["pretrain.lr=5e-4", "name='<b>mine</b>'"]
    about = {"config": "my <own>.toml", "data": "/data/a&b", "changes": changes}
    run = RunSummary(
        "mine · a<b · 123456",
        "mine",
        started="2026-11-21T10:20:30+00:00",
        seconds=125.0,
        commit="0123456789ab+",
        arguments=about,
    )
    page = write_report(tmp_path / "reports" / "mine.html", run, artifacts_of_a_run).read_text("utf-8")
    assert "<title>mine · a&lt;b · 123456</title>" in page
    assert "<h1>mine · a&lt;b · 123456</h1>" in page
    assert '<p class="state finished"><b>Finished</b></p>' in page
    assert described(page) == {
        "started": "2026-11-21 10:20:30 UTC",
        "took": "2 min 5 s",
        "commit": "0123456789ab+",
        "configuration": "my &lt;own&gt;.toml",
        "data": "/data/a&amp;b",
        "changed values": "pretrain.lr=5e-4\nname=&#39;&lt;b&gt;mine&lt;/b&gt;&#39;",
    }


def test_a_run_that_failed_says_why_and_shows_how_far_it_came(artifacts_of_a_run, tmp_path):
    steps = [
        StepSummary("decode_videos", "decode_videos", "d", [], "cached", 1000.0),
        StepSummary("pretrain", "pretrain", "p", ["decode_videos clips"], "built", 20.25),
        StepSummary("finetune_qa", "finetune_qa", "q", ["pretrain", "decode_videos clips"], "failed", None),
        StepSummary("evaluate", "evaluate", "e", ["finetune_qa"], "unfinished", None),
    ]
    run = RunSummary("mine", "mine", state="failed", reason="finetune_qa: no questions in <clips>", steps=steps)
    page = write_report(tmp_path / "mine.html", run, artifacts_of_a_run[:2]).read_text("utf-8")
    assert '<p class="state failed"><b>Failed</b>: finetune_qa: no questions in &lt;clips&gt;</p>' in page
    assert [row[:4] for row in cells(page, "Stages")[1:]] == [
        ["decode_videos", "decode_v", "cached", ""],
        ["pretrain", "pretrain", "20.2 s", "clips"],
        ["finetune_qa", "q", "failed", "pretrain, decode_videos clips"],
        ["evaluate", "e", "unfinished", "finetune_qa"],
    ]
    assert load(tmp_path / "mine.json") == run


def test_a_page_without_results_or_rejects(tmp_path):
    manifest = {"stage": "pretrain", "fingerprint": "0" * 16, "counts": {}, "run": {"seconds": 1.0}}
    page = write_report(tmp_path / "a.html", MINE, [("pretrain", Path(tmp_path), manifest, False)]).read_text()
    assert "<p>1 stages, 0 of them cached; 1 s of work in the others.</p>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Stages", "Run"]
