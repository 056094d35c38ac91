"""What is outside of a pipeline and decides its results changes the fingerprints of the stages that read it, and of
those after them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alpro.artifact import read_record
from alpro.pipeline.config.load import load_config
from alpro.pipeline.plan.dag import plan
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store import artifacts as artifacts
from alpro.pipeline.store.artifacts import Store
from alpro.stages import decode_videos
from tests.stages.conftest import write_manifest

TINY = str(Path(__file__).parents[1] / "tiny.toml")
AFTER_PROMPTER = {"cache_prompts", "pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
# Each key that may name a file or a folder, and the first stages that it changes.
KEYS = {
    "train_prompter.vit": {"train_prompter"} | AFTER_PROMPTER,
    "train_prompter.bert": {"train_prompter"} | AFTER_PROMPTER,
    "pretrain.vit": AFTER_PROMPTER - {"cache_prompts"},
    "pretrain.bert": AFTER_PROMPTER - {"cache_prompts"},
    "pretrain.start": AFTER_PROMPTER - {"cache_prompts"},
    "cache_prompts.prompter": AFTER_PROMPTER,
    "train_tokenizer.tokenizer": {"train_tokenizer", "train_prompter"} | AFTER_PROMPTER,
    "build_vocabulary.tagger": {"build_vocabulary"} | AFTER_PROMPTER,
}


@pytest.fixture
def fingerprints(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """fingerprints(*changes): the fingerprint of each stage of the tiny pipeline."""

    def find(*changes: str) -> dict[str, str]:
        steps = plan(load_config(TINY, changes=list(changes)), Digests(tmp_path / "digests.sqlite"))
        return {step.name: step.fingerprint for step in steps}

    return find


def write(file: Path, content: str) -> None:
    """Writes a file with a later modification time than before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    newer = file.stat().st_mtime_ns + 10**9 if file.exists() else 10**18
    file.write_text(content)
    os.utime(file, ns=(newer, newer))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("key", KEYS)
def test_every_outside_file_changes_the_stages_that_read_it_and_those_after(key, fingerprints, tmp_path):
    file, folder = tmp_path / "weights.bin", tmp_path / "weights"

    def find(path: Path) -> dict[str, str]:
        return fingerprints("pretrain.start=scratch", f"{key}={path}")  # a CLIP has no weights to start from

    write(file, "one")
    before = find(file)
    assert find(file) == before
    write(file, "two")  # of the same length
    assert changed(before, after := find(file)) == KEYS[key]
    file.rename(moved := tmp_path / "renamed.bin")
    assert find(moved) == after
    for name in ("weights.bin", "tagger/model"):
        write(folder / name, "one")
    before = find(folder)
    for name in ("weights.bin", "tagger/model", "another.json"):
        write(folder / name, "two")
        after = find(folder)
        assert changed(before, after) == KEYS[key], name
        before = after
    write(folder / ".git" / "index", "x")
    assert find(folder) == before
    folder.rename(moved := tmp_path / "moved")
    assert find(moved) == before


def test_every_file_of_a_given_model_changes_what_is_made_of_it(tmp_path):
    folder, digests = tmp_path / "model", Digests(tmp_path / "digests.sqlite")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "answers.json", "entities.json"):
        write(folder / name, json.dumps({"task": "pretrain", "a": 1}))
    (tmp_path / "data").mkdir()
    data = write_manifest(tmp_path / "data", [{"id": "a", "captions": ["x"]}])

    def find() -> dict[str, str]:
        config = load_config("msrvtt_retrieval", str(data), [f"pretrained={folder}"])
        return {step.name: step.fingerprint for step in plan(config, digests)}

    before = find()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "answers.json", "entities.json"):
        write(folder / name, json.dumps({"task": "pretrain", "a": 2}))
        after = find()
        assert changed(before, after) == {"zero_shot", "finetune_retrieval", "evaluate"}, name
        before = after


def test_the_record_of_an_artifact_has_the_versions_of_both_decoders(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ffmpeg_version", lambda: "9.0.2-x")
    step = Step("decode_videos", "decode_videos a", decode_videos.Config())
    store = Store(tmp_path)
    store.make(step, lambda *_: artifacts.Outcome(), {})
    versions = read_record(store.folder(step))["versions"]
    assert versions["ffmpeg"] == "9.0.2-x"
    assert versions["av"]


def test_a_word_is_no_path_where_a_folder_has_its_name(fingerprints, tmp_path, monkeypatch):
    words = ["train", "embedded", "scratch", "prompter"]
    changes = ["pretrain.start=prompter"]
    before = fingerprints(), fingerprints(*changes)
    monkeypatch.chdir(tmp_path)
    for word in words:
        (tmp_path / word).mkdir()
        (tmp_path / word / "config.json").write_text("{}")
    assert (fingerprints(), fingerprints(*changes)) == before


def test_what_is_logged_drawn_or_accepted_changes_no_fingerprint(fingerprints):
    """`validation.times` does where it selects the weights: in fine-tuning."""
    before = fingerprints()
    changes = ["pretrain.log_every=3", "finetune_qa.log_every=3", "pretrain.pictures_every=7"]
    changes += [
        "corpora.clips.max_reject_share=0.9",
        "train_prompter.validation.times=3",
        "pretrain.validation.times=3",
    ]
    assert fingerprints(*changes) == before
    after = fingerprints("finetune_qa.validation.times=3")
    assert {stage for stage in before if after[stage] != before[stage]} == {"finetune_qa", "evaluate"}


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ("build_vocabulary.entities=6", {"build_vocabulary"}),
        ("build_vocabulary.exclude=[]", {"build_vocabulary"}),
        ("train_tokenizer.word_pieces=600", {"train_tokenizer", "train_prompter"}),
        # Its words are no entities, and they are learned.
        ('templates.video=["a movie of {}"]', {"build_vocabulary", "train_tokenizer", "train_prompter"}),
    ],
)
def test_one_prompter_serves_many_vocabularies(change, first_changed, fingerprints):
    assert changed(fingerprints(), fingerprints(change)) == first_changed | AFTER_PROMPTER


def test_a_given_tokenizer_depends_on_no_captions_and_no_templates(fingerprints, tmp_path):
    write(tmp_path / "tokenizer.json", "{}")
    given = f"train_tokenizer.tokenizer={tmp_path / 'tokenizer.json'}"
    for change in ('templates.video=["a movie of {}"]', "train_tokenizer.word_pieces=600", "corpora.clips.frames=3"):
        again = changed(fingerprints(given), fingerprints(given, change))
        assert "train_tokenizer" not in again
        assert ("train_prompter" in again) == ("frames" in change)


def test_the_version_of_a_tagger_in_a_package_counts(fingerprints, monkeypatch):
    versions = []
    for version in ("3.7.0", "3.8.0"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        versions.append(fingerprints("build_vocabulary.tagger=en_core_web_sm"))
    assert changed(*versions) == {"build_vocabulary"} | AFTER_PROMPTER
