"""What a plan refuses before anything runs."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from alpro.pipeline.plan.checks import check_plan, fetch_models
from alpro.pipeline.store.artifacts import Store
from alpro.stages import TRAININGS
from alpro.stages.execution.interface import Outcome
from tests.conftest import one_line, write_lines
from tests.pipeline.conftest import TINY
from tests.plans import plan_of


def check(folder, *changes, stage="", elsewhere=()):
    check_plan(plan_of(TINY, *changes, workspace=folder, stage=stage), elsewhere)


def test_models_of_the_hub_are_fetched_before_anything_runs(
    tmp_path, hub, clip_folders
):
    here = f"evaluate.baseline={hub(clip_folders['clip'])}"
    fetch_models(plan_of(TINY, here, workspace=tmp_path))

    nowhere = plan_of(TINY, "evaluate.baseline=nobody/clip", workspace=tmp_path)
    with one_line("nobody/clip", "cannot be downloaded"):
        fetch_models(nowhere)
    # Another machine fetches its own.
    fetch_models(nowhere, elsewhere=["evaluate"])


DIVIDED = [f"{stage}.batch_size=48" for stage in TRAININGS]


@pytest.mark.parametrize("stage", TRAININGS)
def test_a_batch_that_the_processes_of_any_stage_do_not_divide_is_refused(
    stage, tmp_path
):
    with one_line(f"{stage}: batch_size 8", "3 processes"):
        check(tmp_path, *DIVIDED, f"{stage}.batch_size=8", "resources.processes=3")


@pytest.mark.parametrize(
    "changes",
    [
        [
            "resources.nodes=2",
            "resources.processes=8",
            "resources.rendezvous=host:1",
            "pretrain.batch_size=64",
            "pretrain.accumulation_steps=8",
        ],
        ["pretrain.batch_size=8", "pretrain.accumulation_steps=3"],
        ["pretrain.negative_pool_size=4", "resources.processes=8"],
    ],
)
def test_nodes_micro_batches_and_pools_divide_a_batch_too(changes, tmp_path):
    with one_line("pretrain: "):
        check(tmp_path, *DIVIDED, *changes)


def test_a_stage_that_exists_or_is_not_planned_divides_nothing(tmp_path):
    changes = ["train_prompter.batch_size=6", "resources.processes=3"]
    check(tmp_path, *changes, stage="train_prompter")

    plan = plan_of(TINY, *changes, workspace=tmp_path, stage="pretrain")
    store = Store(tmp_path / "artifacts")
    store.make(plan.steps[-1], lambda step, out: Outcome(), {})
    check_plan(plan)


@pytest.mark.parametrize(
    ("count", "changes", "part"),
    [
        (0, ["resources.device=cuda"], "resources.device = cuda"),
        (
            2,
            ["resources.processes=3"],
            "resources.processes = 3, but this machine has 2",
        ),
        (0, ["resources.processes=3"], ""),  # on a CPU
        (4, ["resources.processes=3", "resources.device=cuda"], ""),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    count, changes, part, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    with one_line(part) if part else nullcontext():
        check(tmp_path, *DIVIDED, *changes)


def test_a_gpu_that_cuda_cannot_use_is_refused_unless_the_cpu_is_named(
    tmp_path, monkeypatch
):
    def init():
        raise RuntimeError("The NVIDIA driver is too old (found version 12040).")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with one_line("found version 12040"):
        check(tmp_path)
    check(tmp_path, "resources.device=cpu")


def test_stages_without_a_model_or_on_another_machine_need_no_device_here(tmp_path):
    check(tmp_path, "resources.device=cuda", stage="build_vocabulary")
    check(
        tmp_path,
        "resources.device=cuda",
        stage="pretrain",
        elsewhere=("train_prompter", "cache_prompts", "pretrain"),
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["pretrain.max_text_tokens=33"], "pretrain.max_text_tokens = 33"),
        (["evaluate.max_text_tokens=33"], "evaluate.max_text_tokens = 33"),
        (
            ["train_prompter.model.text.max_length=8", "pretrain.start=scratch"],
            "the text encoder takes 8",
        ),
    ],
)
def test_texts_that_are_longer_than_the_text_encoder_takes_are_refused(
    changes, part, tmp_path
):
    with one_line(part):
        check(tmp_path, *changes)


def test_texts_that_are_longer_than_a_given_model_takes_are_refused(tmp_path):
    data = manifest(tmp_path, {"caption": "a dog"})
    model = model_folder(tmp_path / "model", {"model": {"text": {"max_length": 36}}})

    plan = plan_of(
        "from_weights", f"pretrained={model}", workspace=tmp_path / "w", data=data
    )

    with one_line("finetune_retrieval.max_text_tokens", "the text encoder takes 36"):
        check_plan(plan)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("clip", "model.video.width is 32; set it to 16"), ("siglip", "not a clip")],
)
def test_an_encoder_in_a_folder_is_checked_before_anything_runs(
    kind, message, clip_folders, tmp_path
):
    with one_line(f"vit = '{clip_folders[kind]}'", message):
        check(tmp_path, f"train_prompter.vit={clip_folders[kind]}")


# What the data tells.


def manifest(folder, *rows):
    (folder / "a.mp4").touch()
    return write_lines(folder / "m.jsonl", [{"path": "a.mp4"} | row for row in rows])


def model_folder(folder, config):
    """The files of a pre-trained model, without weights."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"task": "pretrain"} | config))
    return folder


def test_question_answering_is_left_out_where_the_data_has_no_questions(
    tmp_path, capsys
):
    silent = manifest(tmp_path, {"caption": "a dog"})
    for _ in range(2):
        plan = plan_of("own_videos", workspace=tmp_path, data=silent)

    assert plan.settings.finetune_qa is None
    assert (plan.settings.evaluate.retrieval, plan.settings.evaluate.qa) == ("data", "")
    assert "finetune_qa" not in [step.stage for step in plan.steps]
    assert capsys.readouterr().err.count("question answering is skipped") == 1


def test_a_configuration_that_only_answers_questions_refuses_data_without_them(
    tmp_path,
):
    data = f"corpora.msrvtt.data={manifest(tmp_path, {'caption': 'a dog', 'split': 'test'})}"
    model = model_folder(tmp_path / "model", {})

    plan = plan_of("msrvtt_qa", data, f"pretrained={model}", workspace=tmp_path)
    corpus, *_, evaluation = plan.steps
    # A corpus may be made of another, such as by a stage that leaves items out.
    filtered = replace(corpus, given={}, inputs={"msrvtt": corpus})
    evaluation = replace(evaluation, inputs={"msrvtt": filtered})

    for one in (plan, replace(plan, steps=[evaluation])):
        with one_line("msrvtt: no test item has questions"):
            check_plan(one)
