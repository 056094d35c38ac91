"""What a run says that it changed: the values before and after, and the code."""

import pytest

from alpro.artifact import Record
from alpro.files import write_json
from alpro.pipeline.plan.changes import built_before, changed_code, changed_values
from alpro.pipeline.reports.document import describe_run
from alpro.pipeline.reports.summaries import latest_summary
from tests.pipeline.conftest import TINY
from tests.plans import configure


def changed(*changes: str, config: str = TINY) -> list[str]:
    arguments = {"config": config, "data": "", "changes": list(changes)}
    return changed_values(arguments, configure(config, *changes))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ([], []),
        (["finetune_retrieval.lr=1e-5"], ["finetune_retrieval.lr: 0.0001 -> 1e-05"]),
        # The last of two changes of a key counts.
        (["pretrain.lr=1", "pretrain.lr = 2e-3"], ["pretrain.lr: 0.001 -> 0.002"]),
        (["pretrain.lr=1e-3"], ["pretrain.lr: 0.001, as before"]),
        (
            ["finetune_qa=false", "evaluate.qa=''"],
            ["finetune_qa: true -> false", 'evaluate.qa: clips -> ""'],
        ),
        # Of a table, only the values that differ.
        (
            ["train_prompter.phases=[{corpora=['clips'], steps=6}]"],
            [
                'train_prompter.phases.0.corpora: ["clips", "stills"] -> ["clips"]',
                "train_prompter.phases.0.weights: [1.0, 1.0] -> []",
            ],
        ),
        (["model.video.depth=2"], ["model.video.depth: 1 -> 2"]),
        (["name=other"], ["name: tiny -> other"]),
    ],
)
def test_a_change_has_the_value_of_the_configuration_beside_the_new_one(changes, lines):
    assert changed(*changes) == lines


def test_a_configuration_that_only_its_changes_make_valid_has_no_values_before(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f"base = '{TINY}'\nfinetune_retrieval.lr = -1.0\n")
    assert changed("finetune_retrieval.lr=1e-5", config=str(file)) == ["finetune_retrieval.lr=1e-5"]


def test_a_run_says_that_its_code_differs_from_that_of_the_run_before(tmp_path):
    run = {
        "title": "tiny 3dd13e",
        "name": "tiny",
        "state": "finished",
        "reason": "",
        "seconds": 1.0,
        "started": "2026-11-21T10:20:30+00:00",
        "commit": "0123abc",
        "arguments": {"config": "tiny", "data": "", "changes": []},
        "steps": [],
    }
    assert changed_code("0123abc", None) == ""
    write_json(tmp_path / "tiny.json", run)
    later = "2026-11-22T10:20:30+00:00"
    assert latest_summary(tmp_path, "other", later) is None
    assert latest_summary(tmp_path, "tiny", run["started"]) is None
    earlier = latest_summary(tmp_path, "tiny", later)
    assert changed_code("0123abc", earlier) == ""

    line = changed_code("0123abc+", earlier)
    assert "commit 0123abc -> 0123abc, with uncommitted changes" in line
    assert "may differ" in changed_code("0123abc+", run | {"commit": "0123abc+"})
    run |= {"started": later, "commit": "0123abc+", "changed_code": line}
    assert line.replace(">", "&gt;") in describe_run(run, []).head


def test_stages_that_existed_before_have_their_own_commits():
    records = [Record(run={"commit": commit}) for commit in ("b", "a+", "b", "c")]
    others = built_before("c", [*records, Record()])
    assert others.endswith(": b and a, with uncommitted changes")
    assert built_before("b", [records[0], records[2]]) == ""
