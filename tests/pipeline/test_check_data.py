"""Checking data before it is decoded."""

import json

import pytest
from PIL import Image

from alpro.pipeline.plan.check_data import check_data
from alpro.pipeline.plan.checks import check_plan
from tests.conftest import one_line
from tests.plans import configure, plan_of
from tests.stages.conftest import write_manifest

SMALL = ("corpora.data.frames=4", "corpora.data.size=32")


def check(data, *changes):
    return check_data(configure("own_videos", *SMALL, *changes, data=data))


def rows(count, **more):
    return [
        {"id": f"item{n}x", "captions": [f"cat {n}", f"dog {n}"], **more}
        for n in range(count)
    ]


def test_a_manifest_is_described_with_what_is_missing(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(30))
    lines = [
        {"path": "gone.png", "caption": "x"},
        {"path": "item1x.png", "id": "silent", "start": 0, "end": 1},
        {"caption": "no path"},
        {"path": "https://host.example/a.mp4", "caption": "x"},
    ]
    with manifest.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)

    report = check(manifest)

    assert (report.form, report.items) == ("a table (items.jsonl)", 34)
    assert sum(split["items"] for split in report.splits.values()) == 31
    assert report.problems == []
    assert {
        "splits: generated",
        "1 rejected, bad row: line 33: no name of a file in a column of a usual name; the record "
        "has caption: set `file` in `columns`",
        "1 rejected, missing: gone",
        "1 items without a text",
        "decoded 5 items, 0 rejected",
    } <= {*report.findings}


@pytest.mark.parametrize(
    ("items", "changes", "why"),
    [
        (rows(3, split="train"), [], "train (3)"),
        (rows(2), ["corpora.data.seed=1"], "none of the 2 items"),
        (rows(30, group="one"), [], "none of the 30 items"),
        (rows(30), ["corpora.data.test=0.0"], "with test = 0, none of"),
    ],
)
def test_a_missing_test_split_is_a_problem_with_its_reason(
    items, changes, why, tmp_path
):
    report = check(write_manifest(tmp_path / "data", items), *changes)

    (problem,) = report.problems
    assert "no test item has captions" in problem
    assert why in problem


def test_no_validation_item_for_a_fine_tuning_is_a_problem(tmp_path):
    items = rows(9, split="train")
    items[0]["split"] = "test"
    manifest = write_manifest(tmp_path / "data", items)

    (problem,) = check(manifest).problems
    assert "no validation item has captions" in problem
    assert "finetune_retrieval needs some" in problem
    settings = ["finetune_retrieval=false", "finetune_qa=false"]
    assert check(manifest, *settings).problems == []
    with one_line("no validation item has captions"):
        check_plan(
            plan_of(
                "own_videos",
                f"corpora.data.data={manifest}",
                workspace=tmp_path / "workspace",
            )
        )


def test_files_that_cannot_be_decoded_are_a_problem(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(10, split="test"))
    for number in range(0, 10, 4):
        (manifest.parent / f"item{number}x.png").write_bytes(b"no picture")

    assert "3 of 5 items cannot be decoded" in check(manifest).problems


def test_many_items_without_a_file_or_a_text_are_a_problem_that_names_its_key(tmp_path):
    items = rows(10)
    items[0]["captions"] = []
    manifest = write_manifest(tmp_path / "data", items)
    for number in (1, 2):
        (manifest.parent / f"item{number}x.png").unlink()

    problem = check(manifest).problems[0]

    (key,) = [word for word in problem.split() if "reject" in word]
    assert problem not in check(manifest, key + "=0.3").problems


def test_a_folder_without_texts_is_a_problem(tmp_path):
    for number in range(5):
        Image.new("RGB", (20, 10)).save(tmp_path / f"video{number}.png")

    assert "no captions and no questions" in "".join(check(tmp_path).problems)
