"""Parts of pages: data cards, what differs between runs."""

from pathlib import Path
from typing import Any

import pytest

from alpro.files import write_json
from alpro.pipeline.reports.data_card import data_tables
from alpro.pipeline.reports.differences import differences
from alpro.pipeline.reports.results import Listed


@pytest.fixture
def corpora(corpus_of, tmp_path) -> list[Listed]:
    rows = [
        {"id": "a", "captions": ["a dog runs", "dog"]},
        {"id": "b", "split": "test", "captions": ["a cat"], "questions": [{"question": "what?", "answer": "a cat"}]},
    ]
    folder = corpus_of(tmp_path / "clips", rows)
    splits = {"train": {"items": [1, 2], "captions": [2, 2], "questions": [0, 0]}, "validation": {"items": [0, 0]}}
    splits |= {"test": {"items": [1, 1], "captions": [1, 1], "questions": [1, 1]}}
    write_json(folder / "statistics.json", {"splits": splits, "reasons": {"missing": 1}})
    counts = {"samples": 2, "captions": 3, "questions": 1, "rejected": 1}
    return [("decode_videos clips", folder, {"stage": "decode_videos", "counts": counts}, False)]


def test_the_data_card_has_the_counts_of_each_split(corpora):
    (data,) = data_tables(corpora)
    assert data.heads == ["", "", "samples", "captions", "questions", "rejected"]
    assert data.lines == [
        ["clips", "train", "1", "2", "0", ""],
        ["clips", "test", "1", "1", "1", ""],
        ["clips", "all", "2", "3", "1", "1"],
    ]
    assert data_tables([("pretrain", Path(), {"stage": "pretrain"}, False)]) == []


def record(name: str, fingerprint: str = "f" * 64, **more: Any) -> dict[str, Any]:
    run = {"commit": "abc"}
    values = {"stage": name.split()[0], "name": name, "fingerprint": fingerprint, "stage_version": 1, "run": run}
    return values | {"config": {}, "counts": {}, "files": {}, "versions": {"torch": "2.11"}} | more


def test_only_what_differs_is_listed():
    clips = {"stage": "decode_videos", "counts": {"samples": 9, "rejected": 0}}
    first = [
        record("decode_videos clips", "1" * 64, **clips),
        record("pretrain", config={"lr": 1, "weights": {"x": 2}}),
    ]
    assert differences([first, first, first]) == []
    second = [
        record("decode_videos clips", "2" * 64, stage="decode_videos", counts={"samples": 8, "rejected": 1}),
        record(
            "pretrain",
            config={"lr": 1, "weights": {"x": 3}},
            run={"commit": "def"},
            precision="bfloat16",
            stage_version=2,
            versions={"torch": "2.12"},
            files={"model": "0123456789"},
        ),
    ]
    assert differences([first, first, second]) == [
        ("configuration", "pretrain.weights.x", ["2", "2", "3"]),
        ("data", "clips", ["11111111: 9 samples"] * 2 + ["22222222: 8 samples, 1 rejected"]),
        ("data", "pretrain model", ["-", "-", "01234567"]),
        ("code", "commit", ["abc", "abc", "abc, def"]),
        ("code", "pretrain, version", ["1", "1", "2"]),
        ("version", "torch", ["2.11", "2.11", "2.11, 2.12"]),
        ("precision", "pretrain", ["-", "-", "bfloat16"]),
    ]
