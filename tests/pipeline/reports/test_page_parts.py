"""Parts of pages: data cards, what differs between runs, the machine."""

from pathlib import Path
from typing import Any

import pytest

from alpro.files import write_json
from alpro.pipeline.reports.data_card import data_tables
from alpro.pipeline.reports.differences import differences
from alpro.pipeline.reports.results import Listed
from alpro.pipeline.store import hardware


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
    run = {"commit": "abc", "hardware": MACHINE}
    values = {"stage": name.split()[0], "name": name, "fingerprint": fingerprint, "stage_version": 1, "run": run}
    return values | {"config": {}, "counts": {}, "files": {}, "versions": {"torch": "2.11"}} | more


MACHINE = {"host": "a", "cpu": "EPYC", "cores": 2, "memory": 24.0, "gpus": []}


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
            run={"commit": "def", "hardware": MACHINE | {"gpus": ["A100"]}},
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
        (
            "machine",
            "built on",
            ["a: EPYC, 2 cores, 24 GiB, no GPU"] * 2
            + ["a: EPYC, 2 cores, 24 GiB, no GPU; a: EPYC, 2 cores, 24 GiB, 1 x A100"],
        ),
    ]


def test_the_machine_has_cores_memory_and_the_gpus_that_its_driver_lists(tmp_path, monkeypatch):
    machine = hardware.hardware()
    assert machine.keys() == {"host", "cpu", "cores", "memory", "gpus"}
    assert machine["cores"] >= 1
    assert machine["memory"] > 0.1
    program = tmp_path / "nvidia-smi"
    for script, names in (("echo NVIDIA H200; echo NVIDIA H200", ["NVIDIA H200"] * 2), ("exit 9", [])):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert hardware.gpus() == names
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert hardware.gpus() == []
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : A CPU @ 2 GHz\nmodel name : other\n")
    assert hardware.cpu(tmp_path / "cpuinfo") == "A CPU @ 2 GHz"
    assert hardware.cpu(tmp_path / "missing")
