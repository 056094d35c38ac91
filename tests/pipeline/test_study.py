"""Studies: their files, precedence of changes, the table against values worked out by hand,
failures, reruns."""

from typing import Any

import pytest

from alpro.artifact import Record
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.config.command import STUDIES, shipped
from alpro.pipeline.flows.study import (
    Study,
    load_study,
    plan_members,
    run_study,
    summarize,
)
from alpro.pipeline.tracking.tracker import Tracker
from alpro.stages.execution.interface import StageFailed
from tests.conftest import one_line
from tests.pipeline.conftest import TINY

VARIANTS = {"fast": [], "slow": ["pretrain.lr=1e-5"]}
# R@1 by learning rate and seed: differences of -10 and -20.
VALUES = {(1e-3, 5): 50.0, (1e-3, 6): 70.0, (1e-5, 5): 40.0, (1e-5, 6): 50.0}
# Few stages: without prompter and images.
SMALL = ["pretrain.weights.pem=0", "pretrain.start=scratch", "evaluate.qa=''"]
SMALL += ["pretrain.phases=[{corpora=['clips'], steps=6}]"]


def row(name, value, chance=10.0, **more):
    """A score of a variant with a seed."""
    run = {"variant": "base", "seed": 0, "items": 20}
    shown = {"what": "retrieval", "direction": "t2v", "metric": "R@1", "unit": "%"}
    shown["higher_is_better"] = True
    return {"name": name, "value": value, "chance": chance, **run, **shown, **more}


def study_of(variants=VARIANTS, **values):
    values = {
        "seeds": [5, 6],
        "until": "evaluate pretrained",
        **values,
    }
    return Study.model_validate({"name": "rates", "variants": variants, **values})


@pytest.fixture
def summaries():
    """Seed 2 of the other variant failed, and only the first variant has the score b."""
    scores = [
        row("a", 10.0, chance=5.0),
        row("b", 1.0, None),
        row("a", 14.0, variant="other"),
        row("a", 20.0, chance=7.0, seed=1),
        row("b", None, seed=1),
        row("a", 22.0, variant="other", seed=1),
        row("a", 60.0, chance=9.0, items=30, seed=2),
        row("b", 3.0, None, seed=2),
    ]
    return summarize(scores, ["base", "other", "failed"])


def test_scores_are_summarized_over_the_seeds_that_have_them(summaries):
    expected = [
        ("a", "base", [0, 1, 2], [10, 20, 60], [20, 20, 30], 30, 7),
        ("a", "other", [0, 1], [14, 22], [20, 20], 18, 10),
        ("b", "base", [0, 2], [1, 3], [20, 20], 2, None),
    ]
    keys = ("score", "variant", "seeds", "values", "items", "mean", "chance")
    assert [tuple(row[key] for key in keys) for row in summaries] == expected


def test_the_smallest_study_is_the_sample_with_three_seeds(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("")

    assert load_study(str(file)) == Study(name="mine", config="sample", seeds=(0, 1, 2))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seeds = [-1]", "seeds"),
        ("variants = {a = 3}", "variants.a"),
        ("= 3", "not readable"),
    ],
)
def test_an_invalid_study_is_a_one_line_error(text, key, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with one_line(f"{tmp_path}/mine.toml: {key}"):
        load_study(str(tmp_path / "mine.toml"))


def test_a_secret_of_an_invalid_study_is_not_displayed(tmp_path):
    file = tmp_path / "mine.toml"
    # A text in place of a list: an error would repeat it.
    file.write_text('variants.a = "corpora.data.data=https://me:hidden@host/a"')
    with pytest.raises(InputError, match="a password") as error:
        load_study(str(file))
    assert "hidden" not in str(error.value)


def test_a_seed_sets_the_seeds_of_all_stages(tmp_path):
    (member,) = plan_members(Study(name="s", seeds=(3,)), TINY, (), tmp_path)

    config = member.plan.settings
    stages = (
        config.render_sample,
        config.train_prompter,
        config.pretrain,
        config.finetune_qa,
    )
    assert [stage.seed for stage in stages] == [3, 3, 3, 3]


def test_changes_of_a_variant_come_after_those_of_the_command_line_and_these_after_the_studys(
    tmp_path,
):
    variants = {"a": ["pretrain.lr=1e-3"], "b": []}
    own = ["pretrain.lr=3", "pretrain.weight_decay=3", "pretrain.batch_size=6"]
    study = study_of(variants, seeds=[0], set=own)
    changes = ["pretrain.lr=2", "pretrain.weight_decay=2", "name='other'"]

    first, second = plan_members(study, TINY, changes, tmp_path)

    stage = first.plan.settings.pretrain
    assert (stage.lr, stage.weight_decay, stage.batch_size) == (1e-3, 2, 6)
    assert second.plan.settings.pretrain.lr == 2
    assert second.plan.settings.name == "rates"  # the experiment of the study


def test_what_is_wrong_is_reported_before_the_first_run(tmp_path):
    wrong = {"a": [], "b": ["pretrain.lrr=1"]}
    with pytest.raises(InputError, match=r"'b'.*pretrain\.lrr"):
        plan_members(study_of(wrong), TINY, SMALL, tmp_path)
    moved = study_of(VARIANTS | {"moved": ["corpora.clips={data='/none', size=36}"]})
    members = plan_members(moved, TINY, SMALL, tmp_path)
    with pytest.raises(InputError, match="/none"):
        run_study(moved, members, tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs leave the scores of VALUES; the errors of the list are raised by the runs that come
    first."""
    errors: list[Any] = []

    def run(plan, tracker, title, tags):
        if errors and (error := errors.pop(0)):
            raise error
        config = plan.settings.pretrain
        assert tags == {
            "study": "rates",
            "variant": title.split(" ")[0],
            "seed": str(config.seed),
        }
        value = VALUES[config.lr, config.seed]
        folder = tmp_path / f"{config.lr}-{config.seed}"
        folder.mkdir(exist_ok=True)
        last = plan.steps[-1]
        record = Record(stage=last.stage, name=last.name)
        rows = [row("mine/matching/t2v/R1", value), row("mine/matching/t2v/R5", 90.0)]
        write_json(folder / "results.json", rows)
        return [(folder, record)]

    monkeypatch.setattr("alpro.pipeline.flows.flow.start", run)
    monkeypatch.setattr(Tracker, "open", lambda *arguments: arguments)
    return errors


RATES = """
until = "evaluate pretrained"
seeds = [5, 6]
scores = ["mine/matching/t2v/R1"]
[variants]
fast = []
broken = ["pretrain.batch_size=7"]
slow = ["pretrain.lr=1e-5"]
"""


@pytest.fixture
def study(tmp_path, call):
    """study(*options): the status and the output of `alpro study` with RATES."""
    file = tmp_path / "rates.toml"
    file.write_text(RATES)
    words = ["study", file, "--config", TINY, "--workspace", tmp_path]
    for change in SMALL:
        words += ["--set", change]
    return lambda *options: call(*words, *options)


def test_a_run_that_fails_stops_no_other(start, study, tmp_path):
    start += [None, ValueError("it broke"), None, None, StageFailed("again")]

    status, out, err = study()

    assert status == 1
    assert "broken · seed 5, broken · seed 6" in err.splitlines()[-1]
    shown = [
        line.partition("R@1")[2].split() or line.split() for line in out.splitlines()
    ]
    assert [line for line in shown if line[:1] in (["fast"], ["slow"])] == [
        ["fast", "60.0", "%", "±", "127.1", "50.0", "70.0", "10.0", "%"],
        [
            "slow",
            "45.0",
            "%",
            "±",
            "63.5",
            "-15.0",
            "±",
            "63.5",
            "40.0",
            "50.0",
            "10.0",
            "%",
        ],
    ]
    (report,) = (tmp_path / "reports").glob("*/study.json")
    written = read_json(report)
    assert {score["score"] for score in written["scores"]} == {
        "mine/matching/t2v/R1",
        "mine/matching/t2v/R5",
    }
    assert written["failed"]["broken · seed 5"] == "it broke"


def test_a_study_that_is_stopped_starts_no_other_run(start, study):
    start += [None, KeyboardInterrupt(), ValueError("not reached")]

    assert study()[0] == 130
    assert len(start) == 1


@pytest.mark.parametrize("name", shipped(STUDIES))
def test_every_variant_of_every_shipped_study_is_a_valid_plan_of_its_own(
    name, tmp_path
):
    study = load_study(name)
    data = []
    if "msrvtt" in study.config:
        data = [
            f"corpora.{corpus}.data=/{corpus}"
            for corpus in ("webvid", "cc3m", "msrvtt")
        ]

    members = plan_members(study, study.config, data, tmp_path)

    assert study.name == name
    ends = {member.plan.steps[-1].fingerprint for member in members}
    assert len(ends) == len(study.variants) * len(study.seeds)
