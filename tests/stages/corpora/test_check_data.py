"""Checking data before it is decoded."""

import json

import pytest
from PIL import Image

from alpro.pipeline.cli.data import print_check
from alpro.stages.build_vocabulary import Config as BuildVocabulary
from alpro.stages.corpora.check_data import check_data, items_of_split
from alpro.stages.decode_videos import Config
from tests.stages.conftest import write_manifest

CONFIG = Config(frames=4, size=32)


def rows(count: int, **more) -> list[dict]:
    return [{"id": f"item{n}x", "captions": ["a cat", "a dog"], **more} for n in range(count)]


def test_a_manifest_is_described_with_what_is_missing(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(30))
    lines = [{"path": "gone.png", "caption": "x"}, {"path": "item1x.png", "id": "silent"}, {"caption": "no path"}]
    with manifest.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    report = check_data(manifest, CONFIG, workers=2)
    assert (report["form"], report["items"], report["kinds"]) == ("a manifest, items.jsonl", 33, {"image": 32})
    assert (report["missing"], report["without_text"], report["bad_rows"]["count"]) == (1, 1, 1)
    assert report["missing_examples"] == [str(manifest.parent / "gone.png")]
    assert sum(split["items"] for split in report["splits"].values()) == 31
    assert report["split_source"] == "generated"
    assert all(split["items"] for split in report["splits"].values())
    assert report["decoded"]["items"] == 20
    assert report["estimate"]["bytes"] > 0
    assert report["estimate"]["seconds"] > 0
    assert report["problems"] == []
    assert json.loads(json.dumps(report)) == report


def test_the_estimate_is_that_of_all_items(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(40))
    half = check_data(manifest, CONFIG, samples=20, workers=4)
    assert half["estimate"]["bytes"] == 2 * half["decoded"]["bytes"]
    assert half["estimate"]["seconds"] == pytest.approx(half["decoded"]["seconds"] * 2 / 4)


@pytest.mark.parametrize(
    ("items", "config", "why"),
    [
        (rows(3, split="train"), CONFIG, "the rows name the splits train (3)"),
        (
            rows(2),
            CONFIG.model_copy(update={"seed": 1}),
            "none of 2 items with a text is drawn with a chance of test = 0.1; name the splits",
        ),
        (rows(30, group="one"), CONFIG, "by its own hash none of 30 items"),
        (rows(30), CONFIG.model_copy(update={"test": 0.0}), "its share `test` is 0"),
    ],
)
def test_a_missing_test_split_is_a_problem_with_its_reason(items, config, why, tmp_path):
    manifest = write_manifest(tmp_path / "data", [dict(item) for item in items])
    (problem,) = [p for p in check_data(manifest, config, samples=1)["problems"] if "test split" in p]
    assert why in problem
    counts, reason = items_of_split(manifest, config, "test")
    assert counts == {"items": 0, "captions": 0, "questions": 0}
    assert why in reason


def test_broken_files_are_a_problem(tmp_path):
    manifest = write_manifest(tmp_path / "data", rows(10))
    for number in range(5):
        (manifest.parent / f"item{number}x.png").write_bytes(b"no picture")
    report = check_data(manifest, CONFIG)
    assert report["decoded"]["rejected"] == {"unreadable": 5}
    assert report["problems"] == ["5 of 10 items cannot be decoded"]
    for number in range(5):
        (manifest.parent / f"item{number}x.png").unlink()
    (problem,) = check_data(manifest, CONFIG)["problems"]
    assert problem.startswith("5 of 10 items have no file, no text or an invalid row")


def test_items_without_a_text_are_a_problem(tmp_path):
    items = rows(4) + [{"id": f"silent{n}", "captions": []} for n in range(6)]
    report = check_data(write_manifest(tmp_path / "data", items), CONFIG, samples=1)
    assert report["problems"][0].startswith("6 of 10 items have no file, no text or an invalid row")


def test_a_folder_and_a_file_of_a_data_set_are_named(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10)).save(folder / f"video{number}.png")
        (folder / f"video{number}.txt").write_text("a cat\n")
    assert check_data(folder, CONFIG, samples=2)["form"] == "a folder of videos with texts"
    table = "video_id,sentence\n" + "".join(f"video{n}.png,a dog\n" for n in range(5))
    (folder / "table.csv").write_text(table)
    assert check_data(folder / "table.csv", CONFIG, samples=2)["form"] == "table.csv: captions"


def test_tables_beside_videos_without_texts_are_named(tmp_path):
    """A single one is the manifest."""
    for number in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / f"video{number}.png")
    assert "no captions and no questions" in check_data(tmp_path, CONFIG, samples=2)["problems"]
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"path": "video0.png", "caption": "a cat"}\n')
    expected = "no captions and no questions; the texts may be in a.jsonl, b.jsonl: pass that file"
    assert expected in check_data(tmp_path, CONFIG, samples=2)["problems"]


def test_texts_of_training_and_long_texts_are_counted(tmp_path):
    """Captions of the test split that training has too, and texts that training cuts: with [CLS] and [SEP]."""
    splits = {"train": ["a cat", "a dog"], "validation": ["a bird"], "test": ["a dog", "an owl, which hoots at night"]}
    items = [{"id": name, "captions": texts, "split": name} for name, texts in splits.items()]
    items.append({"id": "silent", "split": "test", "questions": [{"question": "which one is it?", "answer": "x"}]})
    manifest = write_manifest(tmp_path / "data", items)
    lengths = {"pretrain": 8, "finetune_retrieval": 9, "finetune_qa": 6}
    report = check_data(manifest, CONFIG, samples=1, max_text_tokens=lengths)
    none, one = {"items": 1, "captions": 0}, {"items": 1, "captions": 1}
    assert report["also_in_training"] == {"validation": none, "test": one}
    cut = {stage: (values["of"], values["texts"], values["cut"]) for stage, values in report["long_texts"].items()}
    assert cut == {
        "pretrain": ("captions", 5, 1),
        "finetune_retrieval": ("captions", 5, 0),
        "finetune_qa": ("questions", 1, 1),
    }
    assert report["group_hint"] == ""


def test_clips_of_the_same_videos_are_hinted_at_unless_they_have_a_group(tmp_path):
    names = [f"star_{video}_{n}" for video in ("AB", "CD", "EF") for n in (1, 2)]
    manifest = write_manifest(tmp_path / "data", [{"id": name, "captions": ["x"]} for name in names])
    hint = check_data(manifest, CONFIG, samples=1)["group_hint"]
    assert hint.startswith("the names of 6 files differ only in a number, such as star_AB_1.png and star_AB_2.png; if")
    grouped = CONFIG.model_copy(update={"group_pattern": r"(star_\w+)_\d"})
    assert check_data(manifest, grouped, samples=1)["group_hint"] == ""


def test_items_without_a_text_count_as_lost(tmp_path):
    items = [dict(row) for row in rows(10)]
    for item in items[:3]:
        item["captions"] = []
    (problem,) = (p for p in check_data(write_manifest(tmp_path / "data", items), CONFIG)["problems"] if "no text" in p)
    assert problem.startswith("3 of 10 items have no file, no text or an invalid row, more than max_reject_share = 0.2")


def test_too_few_nouns_and_no_test_captions_are_problems(tmp_path):
    question = [{"question": "what is it?", "answer": "x"}]
    items = [{"id": f"item{n}", "captions": ["a dog and a cat"], "split": "train"} for n in range(4)]
    items.append({"id": "asked", "questions": question, "split": "test"})
    manifest, lengths = write_manifest(tmp_path / "data", items), {"pretrain": 40}
    few, enough = BuildVocabulary(entities=3), BuildVocabulary(entities=2)
    captions, nouns = check_data(manifest, CONFIG, samples=1, max_text_tokens=lengths, vocabulary=few)["problems"]
    assert captions.startswith("no test captions: retrieval has nothing to score")
    assert nouns.startswith("build_vocabulary.entities = 3, but the captions have 2 nouns that qualify")
    assert (
        check_data(manifest, CONFIG, samples=1, max_text_tokens={"finetune_qa": 9}, vocabulary=enough)["problems"] == []
    )


def test_copies_and_other_languages_are_counted(tmp_path, capsys):
    """A test file that is a training file under another name, by its bytes; "a dog" alone is no language."""
    texts = ["a dog runs", "der Hund ist im Garten", "\u72d7\u5728\u8dd1", "dog"]
    items = [{"id": f"item{n}", "captions": [text], "split": "train"} for n, text in enumerate(texts)]
    items += [{"id": name, "captions": ["x"], "split": "test", "colour": name} for name in ("black", "white")]
    report = check_data(write_manifest(tmp_path / "data", items), CONFIG, samples=1)
    assert report["copies_of_training"] == {"validation": [], "test": [str(tmp_path / "data" / "black.png")]}
    assert report["foreign"] == {"captions": 6, "other": 2}
    print_check(report)
    out = capsys.readouterr().out
    assert "1 test files are copies of training files" in out
    assert "2 of 6 captions (33%) look like other languages than English" in out
