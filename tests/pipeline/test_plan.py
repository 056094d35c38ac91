"""The plan of a pipeline: its steps and inputs, and what is in their fingerprints."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from pydantic import ValidationError

from alpro.artifact import Record, compute_fingerprint
from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan.checks import check_plan
from alpro.pipeline.plan.difference import without_effect
from alpro.pipeline.plan.digests import Digests, digest_model
from alpro.pipeline.plan.plan import make_corpus_step, with_files
from alpro.stages import cache_prompts
from alpro.stages.execution.step import Step
from tests.pipeline.conftest import TINY
from tests.plans import plan_of

Plan = Callable[..., dict[str, Step]]
SCRATCH = "pretrain.start=scratch"


@pytest.fixture
def steps_of(tmp_path):
    """steps_of(*changes): the steps of the tiny pipeline by name."""

    def find(*changes):
        plan = plan_of(TINY, *changes, workspace=tmp_path / "workspace")
        return {step.name: step for step in plan.steps}

    return find


@pytest.fixture
def digests(tmp_path):
    return Digests(tmp_path / "digests.sqlite")


def changed(before, after):
    """The steps that are gone or have another fingerprint."""
    names = {name: step.fingerprint for name, step in after.items()}
    return {
        name for name, step in before.items() if names.get(name) != step.fingerprint
    }


def write(file, content):
    """Writes a file with a later modification time than before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    newer = file.stat().st_mtime_ns + 10**9 if file.exists() else 10**18
    file.write_text(content)
    os.utime(file, ns=(newer, newer))


# Steps and their inputs.


@pytest.mark.parametrize(
    ("inputs", "name"),
    [({}, "vocabulary"), ({"vocabulary": Path("a"), "words": Path("b")}, "words")],
)
def test_an_input_that_is_missing_or_unknown_is_named(inputs, name):
    with pytest.raises(ValidationError, match=name):
        cache_prompts.Inputs.of(inputs)


def test_with_a_clip_as_it_is_no_prompter_is_trained(steps_of):
    before = steps_of(SCRATCH)
    after = steps_of(SCRATCH, "cache_prompts.prompter=openai/clip-vit-base-patch32")

    assert before.keys() - after.keys() == {"train_prompter"}
    assert changed(before, after) == {"train_prompter"} | AFTER_PROMPTER
    corpora = {"clips", "stills"}
    assert {*after["cache_prompts"].inputs} == {"vocabulary"}
    assert {*after["pretrain"].inputs} == {
        "tokenizer",
        "vocabulary",
        "prompts",
    } | corpora
    assert {*after["evaluate prompter"].inputs} == {"prompts", "clips"}


def test_without_pem_no_prompter_is_needed(steps_of):
    steps = steps_of("cache_prompts.prompter=a/b", SCRATCH, "pretrain.weights.pem=0")
    assert not {"train_prompter", "cache_prompts"} & steps.keys()


@pytest.mark.parametrize("value", ["./clipp", "a/b/c", "{tmp}"])
def test_what_no_clip_can_be_is_refused_before_the_videos_are_decoded(
    value, steps_of, tmp_path
):
    named = value.format(tmp=tmp_path)
    step = steps_of(
        SCRATCH, f"train_prompter.clip={named}", "train_prompter.max_text_tokens=24"
    )
    reason = step["train_prompter"].unreadable
    assert "train_prompter.clip" in reason
    assert named in reason


# Fingerprints.

RANKING = {"evaluate prompter", "evaluate pretrained", "evaluate retrieval"}
FINE_TUNED = {"finetune_retrieval", "finetune_qa", "evaluate retrieval", "evaluate qa"}
AFTER_PRETRAIN = {"pretrain", "evaluate pretrained"} | FINE_TUNED
AFTER_PROMPTER = {"cache_prompts", "evaluate prompter"} | AFTER_PRETRAIN
AFTER_VOCABULARY = {"build_vocabulary"} | AFTER_PROMPTER
AFTER_TOKENIZER = {"train_tokenizer", "train_prompter"} | AFTER_PROMPTER
AFTER_CLIPS = {"decode_videos clips"} | AFTER_VOCABULARY | AFTER_TOKENIZER


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        (
            "render_sample.seed=1",
            {"render_sample", "decode_videos stills"} | AFTER_CLIPS,
        ),
        ("corpora.clips.timeout=80", AFTER_CLIPS),
        # One prompter serves many vocabularies.
        ("build_vocabulary.entities=7", AFTER_VOCABULARY),
        ("train_tokenizer.word_pieces=300", AFTER_TOKENIZER),
        # Its words are no entities, and they are learned.
        ('templates.video=["a movie of {}"]', AFTER_VOCABULARY | AFTER_TOKENIZER),
        ("train_prompter.lr=1e-4", {"train_prompter"} | AFTER_PROMPTER),
        ("pretrain.weights.pem=0.5", AFTER_PRETRAIN),
        ("finetune_qa.lr=3e-4", {"finetune_qa", "evaluate qa"}),
        ("evaluate.controls=[]", {"evaluate retrieval", "evaluate qa"}),
        ("evaluate.frames=8", RANKING),
        # What is logged, drawn or accepted, and resources.
        ("pretrain.log_every=3", set()),
        ("corpora.clips.max_reject_share=0.9", set()),
        ("resources.processes=3", set()),
        # Where validation selects the weights, in fine-tuning, its times count.
        ("pretrain.validation.times=3", set()),
        ("finetune_qa.validation.times=3", {"finetune_qa", "evaluate qa"}),
    ],
)
def test_a_change_reaches_what_rests_on_it_and_nothing_else(change, reached, steps_of):
    assert changed(steps_of(), steps_of(change)) == reached


def test_of_a_clip_the_number_of_validations_counts(steps_of, clip_folders):
    """They select the weights."""
    clip = (SCRATCH, f"train_prompter.clip={clip_folders['clip']}")
    again = changed(
        steps_of(*clip), steps_of(*clip, "train_prompter.validation.times=3")
    )
    assert "train_prompter" in again


@pytest.mark.parametrize(
    "change",
    [
        'templates.video=["a movie of {}"]',
        "train_tokenizer.word_pieces=600",
        "model.video.depth=2",
    ],
)
def test_a_given_tokenizer_reads_no_captions(change, steps_of, tmp_path):
    write(tmp_path / "tokenizer.json", "{}")
    given = f"train_tokenizer.tokenizer={tmp_path / 'tokenizer.json'}"
    assert "train_tokenizer" not in changed(steps_of(given), steps_of(given, change))


def test_the_prompter_is_evaluated_with_the_threshold_of_pem(steps_of):
    """It scores the crops that PEM keeps."""
    config = steps_of("pretrain.threshold=0.35")["evaluate prompter"].config
    assert config.threshold == 0.35


def test_runs_of_different_steps_have_different_reports(tmp_path):
    """Their last step may be the same."""
    one = plan_of(TINY, workspace=tmp_path)
    other = plan_of(TINY, "finetune_retrieval.lr=1e-9", workspace=tmp_path)

    assert one.steps[-1].fingerprint == other.steps[-1].fingerprint
    assert one.report != other.report


def test_a_package_that_is_named_counts_by_its_version(steps_of, monkeypatch):
    versions = []
    for version in ("3.7.0", "3.8.0"):
        monkeypatch.setattr(
            "importlib.metadata.version", lambda name, version=version: version
        )
        versions.append(steps_of("build_vocabulary.tagger=en_core_web_sm"))
    assert changed(*versions) == AFTER_VOCABULARY


def test_the_fingerprint_follows_from_the_recorded_json_alone(steps_of):
    """So a record that lacks a key never stands for a step that has it, whatever the default of the
    key."""
    logged = {"log_every", "max_reject_share"}
    for step in steps_of().values():
        record = Record.from_json(json.loads(json.dumps(step.description.to_json())))
        assert compute_fingerprint(record, without_effect(record)) == step.fingerprint
        for key in record.config:
            others = {
                name: value for name, value in record.config.items() if name != key
            }
            older = replace(record, config=others)
            fingerprint = compute_fingerprint(older, without_effect(older))
            assert (fingerprint == step.fingerprint) == (key in logged), (
                step.name,
                key,
            )


CLIP = "cache_prompts.prompter"  # the key of a folder
# Each key that may name a file or a folder, and the stages that it changes.
KEYS = {
    "train_prompter.vit": {"train_prompter"} | AFTER_PROMPTER,
    "train_prompter.bert": {"train_prompter"} | AFTER_PROMPTER,
    "pretrain.vit": AFTER_PRETRAIN,
    "pretrain.bert": AFTER_PRETRAIN,
    "pretrain.start": AFTER_PRETRAIN,
    CLIP: AFTER_PROMPTER,
    "train_tokenizer.tokenizer": AFTER_TOKENIZER,
    "build_vocabulary.tagger": AFTER_VOCABULARY,
}


@pytest.mark.parametrize(
    ("key", "kind"),
    [*((key, "folder") for key in KEYS), ("pretrain.vit", "file")],
)
def test_the_contents_of_outside_files_count_and_their_name_does_not(
    key, kind, steps_of, tmp_path
):
    place = tmp_path / "weights"
    file = place / "weights.bin" if kind == "folder" else place
    write(file, "one")
    if key == CLIP:
        write(place / "config.json", '{"model_type": "clip"}')

    before = steps_of(SCRATCH, f"{key}={place}")
    write(file, "two")  # the length is the same
    after = steps_of(SCRATCH, f"{key}={place}")
    if kind == "folder":
        write(place / ".git" / "index", "x")
    place.rename(moved := tmp_path / "moved")

    assert changed(before, after) == KEYS[key]
    assert changed(after, steps_of(SCRATCH, f"{key}={moved}")) == set()


MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "answers.json",
    "entities.json",
    "model.safetensors",
)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_every_file_of_a_given_model_counts(name, digests, tmp_path):
    for file in MODEL_FILES:
        write(tmp_path / file, "one")
    before = digest_model(tmp_path, digests)

    write(tmp_path / name, "two")

    assert digest_model(tmp_path, digests) != before


@pytest.mark.parametrize("changes", [[], ["pretrain.start=prompter"]])
def test_a_word_is_no_path_where_a_folder_has_its_name(
    changes, steps_of, tmp_path, monkeypatch
):
    before = steps_of(*changes)
    monkeypatch.chdir(tmp_path)
    for word in ("train", "embedded", "scratch", "prompter"):
        write(tmp_path / word / "config.json", "{}")
    assert changed(before, steps_of(*changes)) == set()


# Corpora.


def step_of(corpus, digests):
    return with_files(make_corpus_step("films", corpus), corpus, digests)


@pytest.mark.parametrize("place", ["folder", "url"])
def test_changed_shards_are_another_corpus(place, digests, tmp_path, memory):
    corpus = Corpus(shards=str(tmp_path if place == "folder" else memory))
    fingerprints = []
    for content in (b"one", b"two, and more"):
        (tmp_path / "a.tar").write_bytes(content)
        fsspec.filesystem("memory").pipe_file("/bucket/corpus/a.tar", content)
        fingerprints += [step_of(corpus, digests).fingerprint for _ in range(2)]

    first, again, other, _ = fingerprints
    assert first == again != other


def test_shards_are_indexed_as_their_corpus_says(digests, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"one")
    corpus = Corpus(shards=str(tmp_path), kinds="image", max_reject_share=0.25)
    config = step_of(corpus, digests).config
    assert (config.kinds, config.max_reject_share) == ("image", 0.25)


def test_shards_that_are_not_there_are_an_input_error(tmp_path):
    change = "corpora.clips={shards='memory://bucket/none'}"
    plan = plan_of(TINY, change, workspace=tmp_path)
    with pytest.raises(InputError, match="memory://bucket/none: "):
        check_plan(plan)


def test_a_corpus_has_no_name_of_an_input(tmp_path):
    changes = [
        "corpora.model.shards='memory://bucket/none'",
        "finetune_retrieval.phases.0.corpora=['model']",
    ]
    with pytest.raises(InputError, match=r"corpora\.model: "):
        plan_of(TINY, *changes, workspace=tmp_path)


def test_annotations_and_the_files_that_they_name_below_their_root_decide_a_corpus(
    digests, tmp_path
):
    video = tmp_path / "data" / "sub" / "a.mp4"
    texts = tmp_path / "train.jsonl"
    write(video, "one")
    # A path of another machine.
    write(texts, '{"video": "/old/sub/a.mp4", "caption": "x"}')
    corpus = Corpus(
        data=str(tmp_path / "data"), annotations={"train": str(texts)}, root="/old"
    )

    for file, content in (
        (video, "two"),
        (texts, '{"video": "/old/sub/a.mp4", "caption": "y"}'),
    ):
        before = step_of(corpus, digests)
        assert (before.unreadable, before.recheck()) == ("", True)
        write(file, content)
        assert not before.recheck()
        assert step_of(corpus, digests).fingerprint != before.fingerprint


def test_a_file_at_a_url_decides_a_corpus(digests, memory):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/corpus/m.jsonl", b'{"path": "a.mp4", "caption": "x"}')
    fingerprints = set()
    for content in (b"one", b"two"):  # the manifest stays the same
        files.pipe_file("/bucket/corpus/a.mp4", content)
        step = step_of(Corpus(data=f"{memory}/m.jsonl"), digests)
        fingerprints.add(step.fingerprint)
    assert len(fingerprints) == 2
