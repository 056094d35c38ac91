"""The plan of a pipeline: its steps and inputs, digests of the user's files, and what is in the
fingerprints."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from PIL import Image

from alpro.artifact import Record, digest_of
from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan import digests as module
from alpro.pipeline.plan.checks import check_plan
from alpro.pipeline.plan.corpora import decode_step, index_step
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.plan import required
from alpro.pipeline.plan.steps import build_steps
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.reader import ShardReader
from alpro.stages import CORPUS_STAGES, EVALUATIONS, STAGES, cache_prompts
from tests.conftest import REVISION
from tests.pipeline.conftest import TINY, of_shards
from tests.plans import configure, plan_of
from tests.stages.conftest import write_manifest


@pytest.fixture
def digests(tmp_path) -> Digests:
    return Digests(tmp_path / "digests.sqlite")


@pytest.fixture
def steps_of(digests) -> Callable[..., dict[str, Step]]:
    """steps_of(*changes): the steps of the tiny pipeline by name."""

    def find(*changes: str) -> dict[str, Step]:
        return steps_by_name(TINY, *changes, digests=digests)

    return find


def steps_by_name(config: str, *changes: str, digests: Digests, data: str = "") -> dict[str, Step]:
    _, steps = build_steps(configure(config, *changes, data=data), digests)
    return {step.name: step for step in steps}


def changed(before: dict[str, Step], after: dict[str, Step]) -> set[str]:
    return {
        name
        for name in before
        if name not in after or before[name].fingerprint != after[name].fingerprint
    }


def test_the_steps_have_the_inputs_that_their_stages_declare(steps_of, digests, tmp_path):
    """Of the sample, and of existing shards and other data: together they have every input."""
    (tmp_path / "a.tar").write_bytes(b"shard")
    of_shards_alone = steps_by_name(of_shards(tmp_path, tmp_path), digests=digests).values()
    rows = [{"id": "wall", "captions": ["wall"], "split": "train"}]
    data = Corpus(data=str(write_manifest(tmp_path / "data", rows)))
    given: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for step in [*steps_of().values(), *of_shards_alone, decode_step("walls", data, digests)]:
        locations = {name: Path(other.name) for name, other in step.inputs.items()}
        inputs = step.module.Inputs.of(locations | dict(step.given))
        corpora = {name for name, other in step.inputs.items() if other.stage in CORPUS_STAGES}
        assert getattr(inputs, "corpora", {}).keys() == corpora
        given[step.stage] |= {name for name, value in inputs if value}
    declared = {
        stage: {*import_module(f"alpro.stages.{stage}").Inputs.model_fields} for stage in STAGES
    }
    assert given == declared


def test_an_input_that_is_missing_or_unknown_is_named():
    with pytest.raises(InputError, match="cache_prompts: input vocabulary"):
        cache_prompts.Inputs.of({})
    with pytest.raises(InputError, match="cache_prompts: input words"):
        cache_prompts.Inputs.of({"vocabulary": Path("a"), "words": Path("b")})


def test_an_input_is_built_only_for_a_step_that_runs():
    def step(name: str, *inputs: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(
            fingerprint=name, inputs={other.fingerprint: other for other in inputs}
        )

    a = step("a")
    b = step("b")
    c = step("c", a, b)
    # What a result that exists was computed from is not needed; an artifact that exists is listed
    # also where no step needs it; if b exists, c needs a.
    for exist, expected in {
        "": "abcd",
        "d": "d",
        "ad": "ad",
        "c": "cd",
        "ac": "acd",
        "b": "abcd",
    }.items():
        store = SimpleNamespace(find=lambda s, exist=exist: s.fingerprint in exist)
        assert "".join(s.fingerprint for s in required([a, b, c, step("d", c)], store)) == expected


def test_with_a_clip_no_prompter_is_trained_and_without_pem_none_is_needed(steps_of):
    before = steps_of("pretrain.start=scratch")
    after = steps_of(
        "pretrain.start=scratch", "cache_prompts.prompter=openai/clip-vit-base-patch32"
    )
    assert set(after["cache_prompts"].inputs) == {"vocabulary"}
    assert set(after["pretrain"].inputs) == {
        "tokenizer",
        "vocabulary",
        "prompts",
        "clips",
        "stills",
    }
    assert set(after["zero_shot"].inputs) == {"pretrained", "vocabulary", "prompts", "clips"}
    assert before.keys() - after.keys() == {"train_prompter"}
    assert changed(before, after) == {"train_prompter"} | AFTER_PROMPTER
    none = steps_of(
        "cache_prompts.prompter=a/b", "pretrain.start=scratch", "pretrain.weights.pem=0"
    )
    assert not {"train_prompter", "cache_prompts"} & none.keys()
    towers = steps_of("pretrain.start=scratch", "train_prompter.clip=a/b")["train_prompter"]
    assert set(towers.inputs) == {"clips", "stills"}  # a CLIP has its own tokenizer


# Fingerprints.

AFTER_PROMPTER = {
    "cache_prompts",
    "pretrain",
    "zero_shot",
    "finetune_retrieval",
    "finetune_qa",
    "evaluate",
}
AFTER_VOCABULARY = {"build_vocabulary"} | AFTER_PROMPTER
AFTER_TOKENIZER = {"train_tokenizer", "train_prompter"} | AFTER_PROMPTER


def test_what_no_clip_can_be_is_refused_before_the_videos_are_decoded(
    steps_of, clip_folders, hub, tmp_path
):
    """And texts that are too long for a CLIP whose configuration is here."""
    (tmp_path / "empty").mkdir()
    known = clip_folders["clip"]
    clip = "train_prompter.clip"
    long = "train_prompter.max_text_tokens"
    name = hub(known)  # with texts of at most 24 tokens
    for value, tokens, refused in [
        *(
            (name, tokens, tokens > 24)
            for name in (known, name, f"{name}@{REVISION}")
            for tokens in (24, 25)
        ),  # 24: its own
        *(
            (wrong, 24, True)
            for wrong in ("./clipp", "../clipp/x", "/none", "clipp", "a/b/c", tmp_path / "empty")
        ),
        ("a/b", 32, False),
    ]:
        missing = steps_of("pretrain.start=scratch", f"{clip}={value}", f"{long}={tokens}")[
            "train_prompter"
        ].unreadable
        assert bool(missing) == refused, (value, missing)
        assert not refused or (clip in missing and str(value) in missing)


AFTER_CLIPS = {"decode_videos clips"} | AFTER_VOCABULARY | AFTER_TOKENIZER
FINE_TUNED = {"finetune_retrieval", "finetune_qa", "evaluate"}


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ("render_sample.seed=1", {"render_sample", "decode_videos stills"} | AFTER_CLIPS),
        ("corpora.clips.timeout=80", AFTER_CLIPS),
        ("build_vocabulary.entities=7", AFTER_VOCABULARY),  # one prompter serves many vocabularies
        ("build_vocabulary.exclude=[]", AFTER_VOCABULARY),
        ("train_tokenizer.word_pieces=300", AFTER_TOKENIZER),
        # Its words are no entities, and they are learned.
        ('templates.video=["a movie of {}"]', AFTER_VOCABULARY | AFTER_TOKENIZER),
        ("train_prompter.lr=1e-4", {"train_prompter"} | AFTER_PROMPTER),
        ("pretrain.weights.pem=0.5", {"pretrain", "zero_shot"} | FINE_TUNED),
        ("finetune_qa.lr=3e-4", {"finetune_qa", "evaluate"}),
        ("evaluate.controls=[]", {"evaluate"}),
        ("evaluate.frames=8", set(EVALUATIONS)),
        # What is logged, drawn or accepted, and resources.
        *((f"{key}.log_every=3", set()) for key in ("pretrain", "finetune_qa")),
        ("corpora.clips.max_reject_share=0.9", set()),
        *(
            (f"resources.{change}", set())
            for change in ("workers=2", "processes=3", "device='cpu'")
        ),
        # Where validation selects the weights, in fine-tuning, its times count.
        *((f"{key}.validation.times=3", set()) for key in ("train_prompter", "pretrain")),
        ("finetune_qa.validation.times=3", {"finetune_qa", "evaluate"}),
    ],
)
def test_a_change_reaches_what_rests_on_it_and_nothing_else(change, reached, steps_of):
    assert changed(steps_of(), steps_of(change)) == reached


def test_of_a_clip_the_number_of_validations_counts(steps_of, clip_folders):
    """They select the weights."""
    clip = ("pretrain.start=scratch", f"train_prompter.clip={clip_folders['clip']}")
    again = changed(steps_of(*clip), steps_of(*clip, "train_prompter.validation.times=3"))
    assert "train_prompter" in again


def test_a_given_tokenizer_reads_no_captions_zero_shot_has_pems_threshold_and_a_package_its_version(
    steps_of, tmp_path, monkeypatch
):
    write(tmp_path / "tokenizer.json", "{}")
    given = f"train_tokenizer.tokenizer={tmp_path / 'tokenizer.json'}"
    for change in (
        'templates.video=["a movie of {}"]',
        "train_tokenizer.word_pieces=600",
        "corpora.clips.frames=3",
    ):
        again = changed(steps_of(given), steps_of(given, change))
        assert "train_tokenizer" not in again
        assert ("train_prompter" in again) == ("frames" in change)
    zero_shot = steps_of("pretrain.threshold=0.35", "evaluate.entity_crops=3")["zero_shot"].config
    assert (zero_shot.threshold, zero_shot.entity_crops) == (0.35, 3)  # the crops that PEM keeps
    versions = []
    for version in ("3.7.0", "3.8.0"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        versions.append(steps_of("build_vocabulary.tagger=en_core_web_sm"))
    assert changed(*versions) == AFTER_VOCABULARY


def test_the_fingerprint_follows_from_the_recorded_json_alone(steps_of):
    """So a record that lacks a key never stands for a step that has it, whatever the default of the
    key."""
    logged = {"log_every", "max_reject_share"}
    for step in steps_of().values():
        record = Record.of(json.loads(json.dumps(step.description.to_json())))
        assert digest_of(record) == step.fingerprint
        for key in record.config:
            others = {name: value for name, value in record.config.items() if name != key}
            older = replace(record, config=others)
            assert (digest_of(older) == step.fingerprint) == (key in logged), (step.name, key)


def write(file: Path, content: str) -> None:
    """Writes a file with a later modification time than before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    newer = file.stat().st_mtime_ns + 10**9 if file.exists() else 10**18
    file.write_text(content)
    os.utime(file, ns=(newer, newer))


# Each key that may name a file or a folder, and the stages that it changes.
KEYS = {
    "train_prompter.vit": {"train_prompter"} | AFTER_PROMPTER,
    "train_prompter.bert": {"train_prompter"} | AFTER_PROMPTER,
    "pretrain.vit": AFTER_PROMPTER - {"cache_prompts"},
    "pretrain.bert": AFTER_PROMPTER - {"cache_prompts"},
    "pretrain.start": AFTER_PROMPTER - {"cache_prompts"},
    "cache_prompts.prompter": AFTER_PROMPTER,
    "train_tokenizer.tokenizer": AFTER_TOKENIZER,
    "build_vocabulary.tagger": AFTER_VOCABULARY,
}


@pytest.mark.parametrize("key", KEYS)
def test_every_outside_file_changes_the_stages_that_read_it_and_those_after(
    key, steps_of, tmp_path
):
    file = tmp_path / "weights.bin"
    folder = tmp_path / "weights"

    def find(path: Path) -> dict[str, Step]:
        return steps_of(
            "pretrain.start=scratch", f"{key}={path}"
        )  # a CLIP has no weights to start from

    write(file, "one")
    if key == "cache_prompts.prompter":  # a folder of a CLIP
        write(folder / "config.json", '{"model_type": "clip"}')
    else:
        before = find(file)
        assert changed(before, find(file)) == set()
        write(file, "two")  # of the same length
        assert changed(before, after := find(file)) == KEYS[key]
        file.rename(moved := tmp_path / "renamed.bin")
        assert changed(after, find(moved)) == set()
    for name in ("weights.bin", "tagger/model"):
        write(folder / name, "one")
    before = find(folder)
    for name in ("weights.bin", "tagger/model", "another.json"):
        write(folder / name, "two")
        after = find(folder)
        assert changed(before, after) == KEYS[key], name
        before = after
    write(folder / ".git" / "index", "x")
    assert changed(before, find(folder)) == set()
    folder.rename(moved := tmp_path / "moved")
    assert changed(before, find(moved)) == set()


def test_every_file_of_a_given_model_changes_what_is_made_of_it(digests, tmp_path):
    folder = tmp_path / "model"
    names = ("config.json", "tokenizer.json", "answers.json", "entities.json")
    files = [*(folder / name for name in names), folder / "model.safetensors"]
    for file in files:
        write(file, json.dumps({"task": "pretrain", "a": 1}))
    (tmp_path / "data").mkdir()
    data = write_manifest(tmp_path / "data", [{"id": "a", "captions": ["x"]}])

    def find() -> dict[str, Step]:
        changes = f"corpora.msrvtt.data={data}", f"pretrained={folder}"
        return steps_by_name("msrvtt_retrieval", *changes, digests=digests)

    for file in files:
        before = find()
        write(file, json.dumps({"task": "pretrain", "a": 2}))
        assert changed(before, find()) == {"zero_shot", "finetune_retrieval", "evaluate"}, file


def test_a_word_is_no_path_where_a_folder_has_its_name(steps_of, tmp_path, monkeypatch):
    before = steps_of(), steps_of("pretrain.start=prompter")
    monkeypatch.chdir(tmp_path)
    for word in ("train", "embedded", "scratch", "prompter"):
        write(tmp_path / word / "config.json", "{}")
    assert (
        changed(before[0], steps_of()),
        changed(before[1], steps_of("pretrain.start=prompter")),
    ) == (set(), set())


def test_changed_shards_are_another_corpus(digests, tmp_path, memory):
    def fingerprint(folder) -> str:
        steps = steps_by_name(of_shards(folder, tmp_path), digests=digests)
        return steps["index_shards clips"].fingerprint

    store = fsspec.filesystem("memory")
    (tmp_path / "a.tar").write_bytes(b"one")
    store.pipe_file("/bucket/corpus/a.tar", b"one")
    for folder in (tmp_path, memory):
        before = fingerprint(folder)
        assert fingerprint(folder) == before
        (tmp_path / "a.tar").write_bytes(b"two, and more" if folder == tmp_path else b"one")
        store.pipe_file("/bucket/corpus/a.tar", b"two")
        assert fingerprint(folder) != before
    corpus = Corpus(shards=str(tmp_path), kinds="image", max_reject_share=0.25)
    step = index_step("films", corpus, digests)
    assert (step.config.kinds, step.config.max_reject_share) == ("image", 0.25)
    plan = plan_of(of_shards("memory://bucket/none", tmp_path), workspace=tmp_path)
    with pytest.raises(InputError, match="no such folder of shards"):
        check_plan(plan)


def test_annotations_and_the_files_that_they_name_below_their_root_decide_a_corpus(
    digests, tmp_path, memory
):
    video = tmp_path / "data" / "sub" / "a.mp4"
    texts = tmp_path / "train.jsonl"
    write(video, "one")
    write(texts, '{"video": "/old/sub/a.mp4", "caption": "x"}')  # a path of another machine
    corpus = Corpus(data=str(tmp_path / "data"), annotations={"train": str(texts)}, root="/old")
    for file, content in ((video, "two"), (texts, '{"video": "/old/sub/a.mp4", "caption": "y"}')):
        before = decode_step("films", corpus, digests)
        assert (before.unreadable, before.recheck()) == ("", True)
        write(file, content)
        assert not before.recheck()
        assert decode_step("films", corpus, digests).fingerprint != before.fingerprint
    store = fsspec.filesystem("memory")
    found = []
    store.pipe_file("/bucket/corpus/m.jsonl", b'{"path": "a.mp4", "caption": "x"}')
    for content in (b"one", b"two"):  # of the same manifest
        store.pipe_file("/bucket/corpus/a.mp4", content)
        found.append(decode_step("films", Corpus(data=f"{memory}/m.jsonl"), digests))
    assert found[0].fingerprint != found[1].fingerprint


@pytest.mark.parametrize("before", [True, False], ids=["before it is decoded", "after"])
def test_files_that_change_while_a_stage_runs_make_no_artifact(
    before, tmp_path, resources, inline_pool, monkeypatch
):
    """The fingerprint would be of other contents. What did not change is taken over by the next
    run."""
    rows = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]
    corpus = Corpus(data=str(write_manifest(tmp_path / "data", rows)), samples_per_shard=4, size=16)
    store = Store(tmp_path / "artifacts")
    wall = tmp_path / "data" / "wall 5.png"
    aside = tmp_path / "wall 5.png"

    def make() -> tuple[Path, dict]:
        step = decode_step("walls", corpus, Digests(tmp_path / "digests.sqlite"))
        made = store.make(
            step,
            lambda _, out: step.module.run(
                step.config, step.module.Inputs.of(step.given), out, resources
            ),
            {},
        )
        return store.folder(step), made.counts

    def change(*_: object) -> None:
        wall.rename(aside)
        Image.new("RGB", (20, 10), "white").save(wall)

    with monkeypatch.context() as patch:
        patch.setattr(
            f"alpro.stages.decode_videos.{'check_texts' if before else 'complete'}", change
        )
        with pytest.raises(InputError, match=r"decode_videos walls: .*items.jsonl\)"):
            make()
    assert store.all() == []
    aside.rename(wall)  # as it was
    folder, counts = make()
    # Units of files that did not change are right, whenever they were made.
    assert (counts["linked"], counts["samples"]) == (20 if before else 24, 24)
    reader = ShardReader(folder)
    assert max(reader[number].frames().max() for number in range(24)) == 0
    change()
    assert make()[1]["linked"] == 20


# Digests of the user's data.


def test_an_unchanged_file_is_read_once_and_a_changed_one_again_after_an_interruption(
    tmp_path, digests, monkeypatch
):
    """Each batch is kept; another pipeline can write while files are read."""
    read = []
    checksum = module.checksum
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())

    def interrupted(path):
        read.append(Path(path).name)
        if read == ["a", "b"]:
            raise KeyboardInterrupt
        with sqlite3.connect(digests.path, timeout=5) as other:  # a commit is short
            other.execute(
                "insert or replace into digests values (?, 1, 1, 'x')", (f"other {path}",)
            )
        other.close()
        return checksum(path)

    monkeypatch.setattr(module, "checksum", interrupted)
    monkeypatch.setattr(module, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        digests.of(files)
    expected = [hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c")]
    assert digests.of([*files, tmp_path / "none"]) == [*expected, "missing"]
    assert (digests.of(files), read) == (expected, ["a", "b", "b", "c"])
    files[0].write_bytes(b"d")  # as long as before
    os.utime(files[0], ns=(1, 1))
    assert digests.of(files) == [hashlib.sha256(b"d").hexdigest(), *expected[1:]]
    assert read == ["a", "b", "b", "c", "a"]
