"""The plan of a pipeline: its steps, their inputs, and what is in their fingerprints."""

import json
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from alpro.artifact import digest_of
from alpro.errors import InputError
from alpro.pipeline.config.load import load_config
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan.dag import check_files, decoding, plan
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.step import Step, needed
from alpro.pipeline.store.artifacts import Store
from alpro.shards.reader import ShardReader
from alpro.stages import CORPUS_STAGES, EVALUATIONS, STAGES
from tests.pipeline.conftest import TINY, of_shards
from tests.stages.conftest import write_manifest


@pytest.fixture
def two_plans(tmp_path) -> list[list[Step]]:
    """The plans of the tiny pipeline, of its sample and of existing shards; together they have every arrow."""
    (tmp_path / "a.tar").write_bytes(b"shard")
    configs = [load_config(TINY), load_config(of_shards(tmp_path, tmp_path))]
    return [plan(config, Digests(tmp_path / "digests.sqlite")) for config in configs]


def test_the_steps_have_the_inputs_that_their_stages_declare(two_plans):
    for step in (step for steps in two_plans for step in steps):
        inputs = {name: other.stage for name, other in step.inputs.items()}
        corpora = {name for name, stage in inputs.items() if stage in CORPUS_STAGES}
        declared = STAGES[step.stage]
        assert declared.corpora == bool(corpora)
        assert {name: stage for name, stage in inputs.items() if name not in corpora} == {
            name: stage for name, stage in declared.inputs.items() if name != "sample" or inputs
        }


@pytest.mark.parametrize("before", [True, False], ids=["before it is decoded", "after"])
def test_files_that_change_while_a_stage_runs_make_no_artifact(before, tmp_path, resources, inline_pool, monkeypatch):
    """The fingerprint would be of other contents. What did not change is taken over by the next run."""
    rows = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]
    corpus = Corpus(data=str(write_manifest(tmp_path / "data", rows)), samples_per_shard=4, size=16)
    store, wall, aside = Store(tmp_path / "artifacts"), tmp_path / "data" / "wall 5.png", tmp_path / "wall 5.png"

    def make() -> tuple[Path, dict]:
        step = decoding("walls", corpus, None, Digests(tmp_path / "digests.sqlite"))
        made = store.make(step, lambda _, out: step.module.run(step.config, step.paths, out, resources), {})
        return store.folder(step), made["counts"]

    def change(*_: object) -> None:
        wall.rename(aside)
        Image.new("RGB", (20, 10), "white").save(wall)

    with monkeypatch.context() as patch:
        patch.setattr(f"alpro.stages.decode_videos.{'check_texts' if before else 'draw_samples'}", change)
        with pytest.raises(
            InputError, match=r"decode_videos walls: its input files changed during the run \(.*items.jsonl\)"
        ):
            make()
    assert store.all() == []
    aside.rename(wall)  # as it was: nothing of what was made meanwhile may stay
    folder, counts = make()
    assert (counts["linked"], counts["samples"]) == (0, 24)
    reader = ShardReader(folder)
    assert max(reader[number].frames().max() for number in range(24)) == 0
    change()
    assert make()[1]["linked"] == 20


def test_changed_shards_are_another_corpus(tmp_path, memory):
    def fingerprint(folder) -> str:
        config = load_config(of_shards(folder, tmp_path))
        steps = plan(config, Digests(tmp_path / "digests.sqlite"))
        return next(step.fingerprint for step in steps if step.stage == "index_shards")

    store = fsspec.filesystem("memory")
    (tmp_path / "a.tar").write_bytes(b"one")
    store.pipe_file("/bucket/corpus/a.tar", b"one")
    for folder in (tmp_path, memory):
        before = fingerprint(folder)
        assert fingerprint(folder) == before
        (tmp_path / "a.tar").write_bytes(b"two, and more" if folder == tmp_path else b"one")
        store.pipe_file("/bucket/corpus/a.tar", b"two")
        assert fingerprint(folder) != before
    steps = plan(load_config(of_shards("memory://bucket/none", tmp_path)), Digests(tmp_path / "digests.sqlite"))
    with pytest.raises(InputError, match="no such folder of shards"):
        check_files(steps, Store(tmp_path / "artifacts"))


def steps_of(tmp_path, *changes: str) -> dict[str, Step]:
    config = load_config(TINY, changes=list(changes))
    return {step.name: step for step in plan(config, Digests(tmp_path / "digests.sqlite"))}


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ("render_sample.seed=1", "render_sample"),
        ("corpora.clips.timeout=80", "decode_videos clips"),
        ("build_vocabulary.entities=7", "build_vocabulary"),
        ("train_tokenizer.word_pieces=300", "train_tokenizer"),
        ("train_prompter.lr=1e-4", "train_prompter"),
        ("pretrain.weights.pem=0.5", "pretrain"),
        ("finetune_qa.lr=3e-4", "finetune_qa"),
        ("evaluate.controls=[]", "evaluate"),
    ],
)
def test_a_change_reaches_what_rests_on_it_and_nothing_else(change, first_changed, tmp_path):
    before, after = steps_of(tmp_path), steps_of(tmp_path, change)
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    resting = {name for name in before if before[first_changed] in needed(list(before.values()), before[name].stage)}
    if first_changed == "decode_videos clips":  # both corpora have one stage name; stills do not rest on clips
        resting -= {"decode_videos stills"}
    assert changed == resting


def test_zero_shot_is_a_step_of_its_own_that_waits_for_no_fine_tuning(tmp_path):
    """It comes before fine-tuning, needs none of it, and what both evaluations read changes both."""
    before, after = steps_of(tmp_path), steps_of(tmp_path, "evaluate.frames=8")
    assert list(before).index("zero_shot") < list(before).index("finetune_retrieval")
    alone = {step.name for step in needed(list(before.values()), "zero_shot")}
    assert not any(name.startswith("finetune") for name in alone)
    assert {name for name in before if before[name].fingerprint != after[name].fingerprint} == set(EVALUATIONS)
    assert set(before["zero_shot"].inputs) == {"pretrained", "vocabulary", "prompter", "prompts", "clips"}
    assert set(before["evaluate"].inputs) == {"retrieval", "qa", "clips"}


def test_zero_shot_keeps_the_crops_that_pem_keeps(tmp_path):
    changes = ("pretrain.threshold=0.35", "evaluate.entity_crops=3")
    config = steps_of(tmp_path, *changes)["zero_shot"].config
    assert (config.threshold, config.entity_crops) == (0.35, 3)


def test_with_a_clip_no_prompter_is_trained(tmp_path):
    before = steps_of(tmp_path, "pretrain.start=scratch")
    after = steps_of(tmp_path, "pretrain.start=scratch", "cache_prompts.prompter=openai/clip-vit-base-patch32")
    assert before.keys() - after.keys() == {"train_prompter"}
    assert set(after["cache_prompts"].inputs) == {"vocabulary"}
    assert set(after["pretrain"].inputs) == {"tokenizer", "vocabulary", "prompts", "clips", "stills"}
    assert set(after["zero_shot"].inputs) == {"pretrained", "vocabulary", "prompts", "clips"}
    changed = {name for name in after if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"cache_prompts", "pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
    none = steps_of(tmp_path, "cache_prompts.prompter=a/b", "pretrain.start=scratch", "pretrain.weights.pem=0")
    assert not {"train_prompter", "cache_prompts"} & none.keys()


def test_the_fingerprint_follows_from_the_recorded_json_alone(tmp_path):
    """So a record that lacks a key never stands for a step that has it, whatever the default of the key."""
    logged = {"log_every", "pictures_every", "max_reject_share"}
    for step in steps_of(tmp_path).values():
        record = json.loads(json.dumps(step.description))
        assert digest_of(record) == step.fingerprint
        for key in record["config"]:
            older = record | {"config": {name: value for name, value in record["config"].items() if name != key}}
            assert (digest_of(older) == step.fingerprint) == (key in logged), (step.name, key)


@pytest.mark.parametrize("change", ["resources.workers=2", "resources.processes=3", "resources.device='cpu'"])
def test_resources_change_no_fingerprint(change, tmp_path):
    before, after = steps_of(tmp_path), steps_of(tmp_path, change)
    assert [s.fingerprint for s in before.values()] == [s.fingerprint for s in after.values()]


def test_files_are_in_the_fingerprint_by_their_contents(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"one")
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({"path": "a.mp4", "caption": "x"}) + "\n")

    def fingerprint() -> str:
        steps = plan(load_config("own_videos", str(path)), Digests(tmp_path / "digests.sqlite"))
        return steps[0].fingerprint

    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "a.mp4").write_bytes(b"two")
    assert fingerprint() != before
    (tmp_path / "a.mp4").write_bytes(b"one")
    assert fingerprint() == before
