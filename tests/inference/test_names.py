"""Which artifact a name stands for: refs that runs write, fingerprints, folders."""

import shutil

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.files import write_json
from alpro.inference.names import find_artifact, write_refs
from tests.conftest import one_line


@pytest.fixture
def build(tmp_path):
    """build(stage, mark, name): the folder of a new artifact whose fingerprint is of this mark."""

    def artifact(stage, mark, name=""):
        folder = tmp_path / "artifacts" / stage / (mark * 8)
        record = {"version": RECORD_VERSION, "stage": stage, "name": name or stage}
        run = {
            "at": "2026-02-01T10:20:30",
            "arguments": {"config": "sample", "changes": ["a=5"]},
        }
        folder.mkdir(parents=True)
        write_json(
            folder / "artifact.json", record | {"fingerprint": mark * 32, "run": run}
        )
        return folder

    return artifact


@pytest.fixture
def run(tmp_path):
    """run(config, changes, STEP=mark): a run that built or found artifacts."""

    def record(config="sample", changes=(), **steps):
        marks = {name.replace("__", " "): mark * 32 for name, mark in steps.items()}
        write_refs(tmp_path, config, changes, marks)

    return record


def found(name, workspace):
    return find_artifact(str(name), workspace)[0]


def test_a_stage_stands_for_what_the_last_run_built_or_found(build, run, tmp_path):
    first = build("finetune_qa", "ab")
    build("finetune_qa", "cd")
    run(finetune_qa="ab")
    run(finetune_qa="cd")
    run(finetune_qa="ab")

    assert found("finetune_qa", tmp_path) == first


def test_a_configuration_keeps_its_artifact_whatever_runs_with_changes(
    build, run, tmp_path
):
    plain = build("finetune_qa", "ab")
    changed = build("finetune_qa", "cd")
    run("mine", finetune_qa="ab")
    run("mine", ("finetune_qa.steps=5",), finetune_qa="cd")
    run("sample", ("finetune_qa.steps=5",), finetune_qa="cd")

    assert found("finetune_qa", tmp_path) == changed
    assert found("mine/finetune_qa", tmp_path) == plain
    with one_line("sample/finetune_qa: no such folder, and no artifact of this name"):
        find_artifact("sample/finetune_qa", tmp_path)


def test_a_stage_with_several_corpora_stands_for_none_of_them(build, run, tmp_path):
    clips = build("decode_videos", "ab", "decode_videos clips")
    stills = build("decode_videos", "cd", "decode_videos stills")
    run(decode_videos__clips="ab", decode_videos__stills="cd")

    with one_line(
        "decode_videos clips (abababab) and decode_videos stills (cdcdcdcd) of this name",
    ):
        find_artifact("decode_videos", tmp_path)
    assert found("decode_videos stills", tmp_path) == stills
    assert found("sample/decode_videos clips", tmp_path) == clips


@pytest.mark.parametrize("name", ["ab", "ab" * 32])
def test_a_fingerprint_or_its_start_is_a_name(name, build, tmp_path):
    folder = build("finetune_qa", "ab")
    build("finetune_qa", "cd")

    assert found(name, tmp_path) == found(folder, tmp_path) == folder


@pytest.mark.parametrize(
    "name",
    ["c", "f", "pretrain@ab", "evaluate", "finetune_qa", "../x", "~nosuchuser", ""],
)
def test_a_name_of_none_or_of_several_is_refused_in_one_line(name, build, tmp_path):
    """Also that of a stage of which a person has copied an artifact: no run has named it."""
    build("finetune_qa", "cd")
    build("pretrain", "ce")

    with one_line(f"{name}: "):
        find_artifact(name, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 2}', None])
def test_an_artifact_that_was_removed_or_is_corrupt_is_none(
    content, build, run, tmp_path
):
    folder = build("finetune_qa", "ab")
    build("finetune_qa", "cd")
    run(finetune_qa="ab")
    if content is None:
        shutil.rmtree(folder)
    else:
        (folder / "artifact.json").write_text(content)

    with one_line("finetune_qa: no such folder"):
        find_artifact("finetune_qa", tmp_path)


@pytest.mark.parametrize("earlier", [{"pretrain": "ab"}, {"evaluate": "cd"}])
def test_a_configuration_may_have_the_name_of_a_stage(earlier, build, run, tmp_path):
    pretrained = build("pretrain", "ab")
    evaluated = build("evaluate", "cd")
    run("pretrain", **earlier)
    run("pretrain", pretrain="ab", evaluate="cd")

    assert found("pretrain", tmp_path) == pretrained
    assert found("pretrain/pretrain", tmp_path) == pretrained
    assert found("pretrain/evaluate", tmp_path) == evaluated
