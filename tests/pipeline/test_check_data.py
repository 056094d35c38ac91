"""Checking data before it is decoded."""

import json

import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.pipeline.cli.inputs import print_check
from alpro.pipeline.plan.check_data import check_answers, check_data
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.stages.decode_videos import Config, make_plan
from tests.conftest import one_line
from tests.stages.conftest import write_manifest

CONFIG = Config(frames=4, size=32)


def rows(count: int, **more) -> list[dict]:
    return [{"id": f"item{n}x", "captions": [f"cat {n}", f"dog {n}"], **more} for n in range(count)]


def test_a_manifest_is_described_with_what_is_missing(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "data", rows(30))
    lines = [
        {"path": "gone.png", "caption": "x"},
        {"path": "item1x.png", "id": "silent", "start": 0, "end": 1},
        {"caption": "no path"},
    ]
    lines.append({"path": "https://host.example/a.mp4", "caption": "x"})
    with manifest.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    report = check_data(manifest, CONFIG)
    assert (report["form"], report["items"]) == ("a table (items.jsonl)", 34)
    assert report["kinds"] == {"video": 1, "image": 31}
    assert (report["missing"], report["without_text"]) == (1, 1)
    assert report["bad_rows"] == {"count": 1, "examples": ["line 33: no name of a file"]}
    assert report["missing_examples"] == ["gone"]
    assert sum(split["items"] for split in report["splits"].values()) == 31
    assert report["split_source"] == "generated"
    assert all(split["items"] for split in report["splits"].values())
    assert report["decoded"]["items"] == 5
    assert report["problems"] == []
    assert json.loads(json.dumps(report)) == report
    assert check_data(manifest, CONFIG.model_copy(update={"kinds": "image"}))["kinds"] == {
        "image": 31
    }
    print_check(report)
    assert "1 missing files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("items", "changes", "why"),
    [
        (rows(3, split="train"), {}, "train (3)"),
        (rows(2), {"seed": 1}, "none of the 2 items"),
        (rows(30, group="one"), {}, "none of the 30 items"),
        (rows(30), {"test": 0.0}, "its share `test` is 0"),
    ],
)
def test_a_missing_test_split_is_a_problem_with_its_reason(items, changes, why, tmp_path):
    manifest = write_manifest(tmp_path / "data", [dict(item) for item in items])
    config = CONFIG.model_copy(update=changes)
    (problem,) = [
        p for p in check_data(manifest, config, samples=1)["problems"] if "test split" in p
    ]
    assert why in problem
    imported = import_source(manifest, tmp_path / "cache")
    splits = make_plan(config, imported).splits()
    counts, reason = splits["test"], splits["test"]["why_empty"]
    assert not any(counts[name] for name in ("items", "captions", "questions", "answers"))
    assert why in reason
    assert splits["train"]["items"] > 0
    assert splits["train"]["why_empty"] == ""


def test_broken_missing_and_silent_items_are_a_problem(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(10))
    for number in range(5):
        (manifest.parent / f"item{number}x.png").write_bytes(b"no picture")
    report = check_data(manifest, CONFIG, samples=10)
    assert report["decoded"]["rejected"] == {"unreadable": 5}
    assert report["problems"] == ["5 of 10 items cannot be decoded"]
    for number in range(5):
        (manifest.parent / f"item{number}x.png").unlink()
    assert check_data(manifest, CONFIG)["problems"][0].startswith("5 of 10")
    same = write_manifest(tmp_path / "same", [row | {"captions": ["x"]} for row in rows(30)])
    assert [problem[:15] for problem in check_data(same, CONFIG)["problems"]] == ["every test item"]
    silent = [dict(row, captions=[] if n < 3 else ["x"]) for n, row in enumerate(rows(10))]
    report = check_data(write_manifest(tmp_path / "silent", silent), CONFIG)
    assert report["problems"][0].startswith("3 of 10 items have no file, no text")


def test_a_folder_without_texts_and_its_tables_are_named(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10)).save(folder / f"video{number}.png")
    problems = check_data(folder, CONFIG, samples=2)["problems"]
    assert any("no captions and no questions" in problem for problem in problems)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"path": "video0.png", "caption": "a cat"}\n')
    with one_line("a.jsonl, b.jsonl"):
        check_data(folder, CONFIG, samples=2)


def test_long_and_shared_texts_are_counted(tmp_path, capsys):
    """Texts that training cuts, with [CLS] and [SEP], and captions that it has too."""
    splits = {
        "train": ["a cat", "a dog"],
        "validation": ["a bird"],
        "test": ["a dog", "an owl, which hoots at night"],
    }
    items = [{"id": name, "captions": texts, "split": name} for name, texts in splits.items()]
    items.append(
        {
            "id": "silent",
            "split": "test",
            "questions": [{"question": "which one is it?", "answer": "x"}],
        }
    )
    manifest = write_manifest(tmp_path / "data", items)
    lengths = {"pretrain": 8, "finetune_retrieval": 9, "finetune_qa": 6}
    report = check_data(manifest, CONFIG, samples=1, max_text_tokens=lengths)
    cut = {
        stage: (values["of"], values["texts"], values["cut"])
        for stage, values in report["long_texts"].items()
    }
    assert cut == {
        "pretrain": ("captions", 5, 1),
        "finetune_retrieval": ("captions", 5, 0),
        "finetune_qa": ("questions", 1, 1),
    }
    assert report["split_source"] == "named"
    assert report["also_in_training"] == {"validation": 0, "test": 1}
    print_check(report)
    out = capsys.readouterr().out
    assert "pretrain.max_text_tokens = 8 cuts at least 1 of 5 captions (20.0%)" in out
    assert "1 of 2 test items have a caption" in out
    items[2]["captions"] = []
    asked = check_data(
        write_manifest(tmp_path / "data", items), CONFIG, samples=1, max_text_tokens=lengths
    )
    assert any(problem.startswith("no test captions") for problem in asked["problems"])


def test_answers_are_counted_and_a_single_one_is_a_problem(tmp_path, capsys):
    def checked(**answers: list[str]) -> tuple[dict, Manifest]:
        items = []
        for split, given in answers.items():
            for number, answer in enumerate(given):
                question = {"question": "what is it?", "answer": answer}
                items.append({"id": f"{split}{number}", "split": split, "questions": [question]})
        manifest = write_manifest(tmp_path / "data", items)
        report = check_data(manifest, CONFIG, samples=1, max_text_tokens={"finetune_qa": 25})
        return report, import_source(manifest, tmp_path / "cache")

    report, manifest = checked(
        train=["Cat", "cat.", "dog", "dog"], validation=["bird"], test=["dog", "cow", "owl"]
    )
    assert report["answers"] == {
        "training": 3,
        "spellings": 1,
        "validation": {"answers": 1, "not_in_training": 1},
        "test": {"answers": 3, "not_in_training": 2},
    }
    assert report["problems"] == []
    check_answers(manifest, CONFIG, "data")

    print_check(report)
    out = capsys.readouterr().out
    assert "2 of 3 test answers" in out
    assert "1 of 1 validation answers" in out
    assert "1 training answers differ" in out

    report, manifest = checked(train=["yes"] * 3, test=["yes", "no"])
    assert [problem[:42] for problem in report["problems"]] == [
        "all training questions have one answer, an"
    ]
    with pytest.raises(InputError, match="'yes'"):
        check_answers(manifest, CONFIG, "data")
