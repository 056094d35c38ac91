"""The document of a run: what it says, as a page and on the pages of MLflow and Prefect."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.files import write_json
from alpro.pipeline.reports.document import describe_run
from alpro.pipeline.reports.figures import draw_scores
from alpro.pipeline.store.runs import RunEntry
from tests.pipeline.conftest import write_artifact
from tests.pipeline.score_rows import ANSWERS, score_row

STAGES = ("render_sample", "build_vocabulary", "pretrain", "evaluate")
STATES = dict(zip(STAGES, ("cached", "built", "cached", "built"), strict=True))
SCORE = score_row(**ANSWERS, low=45.0, high=75.0, chance=25.0)
SCORE |= {"metric": "<all> questions", "baseline": "constant"}
LINKS = {"Report": "#/runs/1", "Prefect": "", "MLflow": "http://127.0.0.1:5000/#/r"}


@pytest.fixture
def artifacts(tmp_path):
    """Artifacts of four stages; texts of the user's have HTML in them."""
    made = []
    counts = {"samples": 190, "rejected": 0}
    for number, stage in enumerate(STAGES):
        run = {"seconds": 20.25 + 100 * number}
        made.append(write_artifact(tmp_path, stage, counts=counts, run=run))

    corpus, *_, evaluated = [folder for folder, _ in made]
    reasons = ["no <text>", *["unreadable"] * 7]
    rejects = {"id": [*"abcdefgh"], "reason": reasons, "detail": [""] * 8}
    pq.write_table(pa.table(rejects), corpus / "rejects.parquet")
    (evaluated / "pictures").mkdir()
    for name in ("retrieval", "pseudo_labels-step-000200", "my_own"):
        Image.new("RGB", (4, 4)).save(evaluated / "pictures" / f"{name}.png")
    write_json(evaluated / "results.json", [SCORE])
    return made


def document_of(artifacts, **values):
    """Describe a run of four steps."""
    steps = [SimpleNamespace(name=name, fingerprint=name * 9) for name in STAGES]
    states = dict.fromkeys(STAGES, "unfinished") | values.pop("states", STATES)
    shared = {
        "at": "2026-11-21T10:20:30+00:00",
        "config": "my <own>.toml",
        "state": "finished",
    }
    run = RunEntry(
        title="mine · a<b · 123456",
        seconds=125.0,
        commit="0123+",
        states=states,
        **shared,
    )
    return describe_run(replace(run, **values), steps, artifacts, ())


def section(document, heading):
    """Return the text of a section; empty without one."""
    rest = document.markdown({}).partition(f"\n## {heading}\n\n")[2]
    return rest.partition("\n\n## ")[0]


def cells(document, heading):
    """Return the lines of a table in a section."""
    _, _, *lines = section(document, heading).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_first_line_has_the_link_the_state_and_the_score_on_its_clips_beside_chance(
    artifacts,
):
    """MLflow shows two lines of a description at once. An address that is not known is left out."""
    first_line = document_of(artifacts).markdown(LINKS).splitlines()[0]
    assert first_line == (
        "[Report](#/runs/1) · [MLflow](http://127.0.0.1:5000/#/r) · **Finished** · question "
        "answering, &lt;all&gt; questions 60.0 [45.0, 75.0] on 200 test clips, constant 25.0 %"
    )


def test_a_run_that_failed_says_why(artifacts):
    states = {"render_sample": "built", "build_vocabulary": "failed"}
    reason = "build_vocabulary: no nouns in <clips>"
    document = document_of(artifacts[:1], states=states, state="failed", reason=reason)

    assert document.markdown({}).startswith(
        "**Failed**: build_vocabulary: no nouns in &lt;clips&gt;\n"
    )
    times = [line[2] for line in cells(document, "Stages")]
    assert times == ["0:00:20", "failed", "unfinished", "unfinished"]


def test_stages_have_their_times_and_counts(artifacts):
    """The tables of results have what an evaluation counts."""
    lines = [
        [name, *more] for name, _, *more in cells(document_of(artifacts), "Stages")
    ]
    assert lines == [
        ["render_sample", "cached", "samples 190"],
        ["build_vocabulary", "0:02:00", "samples 190"],
        ["pretrain", "cached", "samples 190"],
        ["evaluate", "0:05:20", ""],
    ]


def test_scores_are_tables(artifacts):
    document = document_of(artifacts)
    row = ["question answering", "&lt;all&gt; questions", "60.0 [45.0, 75.0]", "25.0 %"]
    for title in ("Results", "Question answering"):
        assert cells(document, title)[0] == [*row, "500", ""]


def test_rejects_are_counted_by_reason_and_some_are_named(artifacts):
    assert section(document_of(artifacts), "Rejected").splitlines() == [
        "- render_sample: 7 rejected, unreadable: b, c, d",
        "- render_sample: 1 rejected, no &lt;text&gt;: a",
    ]


def test_warnings_and_what_controls_show_are_sections(artifacts):
    folder, record = artifacts[2]
    artifacts[2] = folder, replace(record, warnings=["loss <vtc> ended at chance"])
    control = SCORE | {"name": "qa_text_only/acc", "what": "control: text only"}
    write_json(artifacts[3][0] / "results.json", [control, SCORE])
    document = document_of(artifacts)

    assert (
        section(document, "Warnings") == "- pretrain: loss &lt;vtc&gt; ended at chance"
    )
    (line,) = section(document, "What the controls show").splitlines()
    assert line.startswith("- **text only**: The model answers from the question")


def test_a_description_has_no_pictures_and_as_many_sections_as_it_takes(artifacts):
    document = document_of(artifacts)
    whole = document.markdown(LINKS)
    assert "![" not in whole
    assert "## Stages" in whole

    short = document.markdown(LINKS, max_length=len(whole) - 1)

    assert whole.startswith(short)
    assert "## Run\n" in whole.removeprefix(short)


def test_a_page_needs_no_other_file(artifacts):
    page = document_of(artifacts).page({})
    links = re.findall(r'(?:src|href)="([^"]+)', page)
    assert {link[:5] for link in links} == {"data:"}
    # The scores, and the pictures of a stage.
    assert page.count("data:image/png;base64,") == 4


def test_texts_of_the_user_are_no_html(artifacts):
    page = document_of(artifacts, reason="no <b>").page({})
    assert "<title>mine · a&lt;b · 123456</title>" in page
    for text in ("no &lt;b&gt;", "my &lt;own&gt;.toml", "&lt;all&gt; questions"):
        assert text in page


def test_scores_are_drawn_with_intervals_and_chance():
    rank = SCORE | {"unit": "rank", "value": 3.0}
    exact = SCORE | {"value": 100.0, "low": None, "high": None, "chance": None}
    figure = draw_scores([SCORE, rank, exact])["scores.png"]

    dot, interval, chance, *_ = figure.axes[0].lines
    assert dot.get_xdata() == [60.0]
    assert list(interval.get_xdata()) == [45.0, 75.0]
    assert list(chance.get_xdata()) == [25.0]
    assert len(figure.axes[0].texts) == 2  # a rank has no place on the axis
    assert not draw_scores([rank])
