"""Artifacts as the command line prints them."""

import json
import os
from typing import Any

import pytest
from rich.console import Console

from alpro.pipeline.cli import main as cli
from alpro.pipeline.reports import terminal as console
from alpro.pipeline.store.artifacts import Store
from tests.pipeline.test_console import artifact


def alpro(store: Store, *words: str) -> int:
    """Calls `alpro artifacts ...`; returns its exit status."""
    arguments = ["artifacts", *words, "--workspace", str(store.root.parent)]
    return cli.execute(cli.parser().parse_args(arguments))


def as_json(capsys, store, *words: str) -> Any:
    """The exit status, and what `alpro artifacts ... --json` prints."""
    status = alpro(store, *words, "--json")
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def store(tmp_path) -> Store:
    """A decoded corpus that two stages read, one of which a third stage reads."""
    root = tmp_path / "artifacts"
    artifact(root, "decode_videos", "decode_videos clips", "a", 1, {})
    artifact(root, "build_vocabulary", "build_vocabulary", "b", 2, {"clips": "a"})
    artifact(root, "train_prompter", "train_prompter", "c", 3, {"vocabulary": "b", "clips": "a", "stills": "a"})
    return Store(root)


def test_artifacts_are_listed_with_their_inputs_and_their_users(store, capsys):
    alpro(store, "ls")
    a, b, c = ("a" * 16, "b" * 16, "c" * 16)
    assert capsys.readouterr().out.splitlines() == [
        "fingerprint       artifact             created (UTC)     took    size",
        f"{a}  decode_videos clips  2026-11-01 10:21  10 s  0.1 MB",
        "    used by build_vocabulary, train_prompter",
        f"{b}  build_vocabulary     2026-11-02 10:22  20 s  0.2 MB",
        "    from decode_videos clips",
        "    used by train_prompter",
        f"{c}  train_prompter       2026-11-03 10:23  30 s  0.3 MB",
        "    from build_vocabulary, decode_videos clips",
        "3 artifacts, 0.6 MB",
    ]


def test_names_that_several_artifacts_have_are_printed_with_their_fingerprints(store, capsys):
    artifact(store.root, "train_prompter", "train_prompter", "d", 4, {"clips": "a", "gone": "e"})
    alpro(store, "ls")
    printed = capsys.readouterr().out
    assert f"used by build_vocabulary, train_prompter {'c' * 8} {'d' * 8}\n" in printed
    assert f"from decode_videos clips, gone {'e' * 8} (not here)\n" in printed


def test_artifacts_fit_into_80_columns(store, capsys, monkeypatch):
    monkeypatch.setattr(console, "console", Console(width=80, soft_wrap=True))
    inputs = {f"{number}": mark for number, mark in enumerate("abc")}
    for mark in "012345":
        artifact(store.root, "finetune_retrieval", "finetune_retrieval", mark, 4, inputs)
    alpro(store, "ls")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert max(map(len, lines)) <= 80


def test_a_file_with_several_links_is_counted_for_its_oldest_artifact(store, capsys):
    a, b, _ = (folder for folder, _ in store.all())
    os.link(a / "data", b / "shard.tar")
    os.link(a / "data", a / "twice")
    alpro(store, "ls")
    out = capsys.readouterr().out
    assert [line.split()[-2] for line in out.splitlines() if line[0] in "abc"] == ["0.1", "0.2", "0.3"]
    assert out.endswith("3 artifacts, 0.6 MB\n")


def test_an_artifact_is_shown_with_its_record_and_its_users(tmp_path, capsys):
    root = tmp_path / "artifacts"
    folder = artifact(
        root,
        "pretrain",
        "pretrain",
        "a",
        1,
        {"clips": "b"},
        counts={"steps": 600},
        metrics={"validation/vtc/t2v/R1": 12.3456789},
        config={"lr": 0.0015, "phases": [{"corpora": ["clips"]}]},
    )
    artifact(root, "evaluate", "evaluate", "c", 2, {"model": "a"})
    alpro(Store(root), "show", "aa")
    assert capsys.readouterr().out.splitlines() == [
        f"pretrain  {folder}",
        f"fingerprint {'a' * 64}",
        "built 2026-11-01T10:21:00+00:00 in 10 s, commit abc, MLflow run r1",
        "",
        "inputs",
        f"  clips: clips {'b' * 16}",
        "",
        "counts",
        "  steps: 600",
        "",
        "metrics",
        "  validation/vtc/t2v/R1: 12.3457",
        "",
        "config",
        "  lr: 0.0015",
        "  phases: [{'corpora': ['clips']}]",
        "",
        "used by",
        f"  evaluate {'c' * 16}",
    ]


def test_an_unused_artifact_is_used_by_nothing(store, capsys):
    alpro(store, "show", "cc")
    assert capsys.readouterr().out.splitlines()[-2:] == ["used by", "  nothing"]


def test_artifacts_as_json(store, capsys):
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    _, rows = as_json(capsys, store, "ls")
    assert [(row["fingerprint"], row["used_by"]) for row in rows] == [(a, [b, c]), (b, [c]), (c, [])]
    assert {key: rows[1][key] for key in ("name", "stage", "created", "seconds", "inputs")} == {
        "name": "build_vocabulary",
        "stage": "build_vocabulary",
        "created": "2026-11-02T10:22:00+00:00",
        "seconds": 20,
        "inputs": {"clips": a},
    }
    folder = store.root / "build_vocabulary" / b[:16]
    assert (rows[1]["folder"], rows[1]["bytes"] // 1000) == (str(folder), 200)
    _, shown = as_json(capsys, store, "show", "bb")
    assert (shown["folder"], shown["used_by"], shown["run"]["commit"]) == (str(folder), [c], "abc")


def test_lineage_as_json(store, capsys):
    run = {"at": "2026-11-05T10:00:00+00:00", "seconds": 1, "commit": "abc"}
    run["arguments"] = {"config": "my own.toml", "data": "", "changes": ["pretrain.lr=1"]}
    artifact(store.root, "pretrain", "pretrain", "d", 4, {"clips": "a"}, run=run)
    _, lineage = as_json(capsys, store, "lineage", "dd")
    assert [record["name"] for record in lineage["artifacts"]] == ["decode_videos clips", "pretrain"]
    assert lineage["command"] == "alpro run pretrain --config 'my own.toml' --set pretrain.lr=1"
    assert as_json(capsys, store, "lineage", "aa")[1]["command"] is None


def test_problems_as_json(store, capsys):
    folder = artifact(store.root, "pretrain", "pretrain", "d", 4, {}, stage_version=1)
    status, problems = as_json(capsys, store, "verify", "dd")
    assert status == 1
    assert [(one["kind"], one["name"], one["folder"]) for one in problems] == [
        ("damaged", "pretrain", str(folder)),
    ]


def test_problems_are_one_line_each(store, capsys):
    first = artifact(store.root, "pretrain", "pretrain", "d", 1, {}, contents={"model": {"size": 2_000_000}})
    (first / "data").rename(first / "note.txt")
    assert alpro(store, "verify", "dd", "aa") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"damaged  pretrain {'d' * 16}  artifact.json: has no checksums: of an earlier version, or changed",
        f"missing  pretrain {'d' * 16}  model",
        f"extra    pretrain {'d' * 16}  note.txt",
        f"damaged  decode_videos clips {'a' * 16}  artifact.json: has no checksums: of an earlier version, or changed",
        "1 artifacts, 1 files, 2.0 MB: 2 damaged, 1 missing, 1 extra",
        "delete the folder of an artifact, and the next run that needs it builds it again",
    ]
