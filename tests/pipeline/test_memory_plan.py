"""The plan of the memory of training stages, which `--dry-run` prints."""

import json
import subprocess
import sys

import pytest

from alpro.pipeline import memory_plan
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.config import load_config
from alpro.pipeline.memory_plan import GIB, Plan, case_of, memory_plans, plan_lines, ram_bytes
from alpro.pipeline.planning import plan
from alpro.stages import TRAININGS
from alpro.stages.execution.interface import Resources
from alpro.stages.training.memory import StepMemory

CPU = Resources(device="cpu")
SMALL = StepMemory(weights=5 * GIB, gradients=2 * GIB, optimizer=4 * GIB, curve=((0, 8 * GIB), (2 * GIB, GIB)))


@pytest.fixture
def steps_of(tmp_path):
    """steps_of(name, *changes): the steps of a shipped configuration, whose data do not exist."""

    def make(name: str, *changes: str):
        config = load_config(name, "", list(changes))
        return plan(config, Digests(tmp_path / "digests.sqlite"))

    return make


def test_every_training_stage_of_the_sample_is_planned(steps_of, tmp_path):
    plans = memory_plans(steps_of("sample"), CPU, tmp_path / "memory.json")
    assert [each.stage for each in plans] == ["train_prompter", "pretrain", "finetune_retrieval", "finetune_qa"]
    assert {each.batch for each in plans} == {32}
    for each in plans:
        plain, less = each.memory
        assert less.activations < plain.activations < ram_bytes()
        assert 32 < each.largest[0] < each.largest[1]
    lines = plan_lines(plans, "cpu", ram_bytes(), CPU)
    assert max(map(len, lines)) <= 80
    assert not any("fit" in line for line in lines)


def test_a_plan_is_remembered_until_a_size_changes(steps_of, tmp_path, monkeypatch):
    calls = []

    def counted(case):
        calls.append(case.config["batch_size"])
        return [SMALL, SMALL]

    monkeypatch.setattr(memory_plan, "step_memories", counted)
    for changes in ([], [], ["finetune_qa.batch_size=16"], ["finetune_qa.answers=30"]):
        memory_plans(steps_of("sample", *changes)[-2:], CPU, tmp_path / "memory.json")
    assert calls == [32, 16, 32]
    (tmp_path / "memory.json").write_text("no JSON")
    memory_plans(steps_of("sample")[-2:], CPU, tmp_path / "memory.json")
    assert calls == [32, 16, 32, 32]


def test_the_sizes_are_those_of_the_configuration(steps_of):
    cases = {step.stage: case_of(step, CPU) for step in steps_of("sample") if step.stage in TRAININGS}
    assert cases["pretrain"].labels == {"entities": 12, "verbs": 0}
    assert cases["pretrain"].shape == cases["pretrain"].teacher
    assert cases["finetune_qa"].labels == {"answers": 40}
    assert cases["finetune_retrieval"].labels == {"entities": 12}
    assert {case.shape["text"]["vocab_size"] for case in cases.values()} == {400}
    assert {case.shape["video"]["frames"] for case in cases.values()} == {4}
    divided = Resources(device="cpu", processes=2, nodes=2, rendezvous="host:1")
    steps = {step.stage: step for step in steps_of("sample", "pretrain.accumulation_steps=2")}
    assert case_of(steps["pretrain"], divided).batch == 4


def test_a_pretraining_without_losses_is_not_planned(steps_of):
    off = [f"pretrain.weights.{name}=0" for name in ("vtc", "vtm", "mlm", "pem")]
    (pretrain,) = (step for step in steps_of("sample", *off) if step.stage == "pretrain")
    assert case_of(pretrain, CPU) is None


def test_a_clip_as_the_prompter_counts_with_its_weights(steps_of, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"0" * 1000)
    changes = [f"cache_prompts.prompter={tmp_path / 'clip'}", "pretrain.start=scratch"]
    (pretrain,) = (step for step in steps_of("sample", *changes) if step.stage == "pretrain")
    case = case_of(pretrain, CPU)
    assert (case.teacher, case.teacher_bytes) == (None, 1000)
    assert memory_plan.step_memories(case)[0].peak > 1000


def test_fine_tuning_of_a_model_folder_is_planned_with_its_sizes(steps_of, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"")
    model = {"video": {"width": 96, "heads": 2}, "text": {"width": 96, "heads": 2}}
    (folder / "config.json").write_text(json.dumps({"task": "pretrain", "model": model}))
    (folder / "entities.json").write_text(json.dumps(["a", "b", "c"]))
    changes = [f"corpora.data.data={tmp_path}/none.jsonl", f"pretrained={folder}", "finetune_retrieval.frames=3"]
    cases = {s.stage: case_of(s, CPU) for s in steps_of("from_weights", *changes) if s.stage in TRAININGS}
    assert cases["finetune_retrieval"].labels == {"entities": 3}
    assert cases["finetune_retrieval"].shape["video"] == {"width": 96, "heads": 2, "frames": 3}
    (folder / "config.json").write_text(json.dumps({"task": "pretrain"}))
    (step,) = (s for s in steps_of("from_weights", *changes) if s.stage == "finetune_qa")
    assert case_of(step, CPU) is None


def test_what_does_not_fit_is_reported_with_what_to_change():
    fits, less, much = (Plan("pretrain", 8, (SMALL, SMALL), largest) for largest in ((8, 9), (7, 9), (3, 4)))
    none = Plan("pretrain", 8, (SMALL, SMALL), (0, 0))
    lines = [plan_lines([each], "cuda", 139 * GIB, CPU)[-1] for each in (fits, less, much, none)]
    assert lines[0].startswith("Vocabulary")
    assert lines[1:] == [
        "pretrain: a batch of 8 does not fit; set resources.checkpoint_activations = true",
        "pretrain: a batch of 8 does not fit; raise pretrain.accumulation_steps",
        "pretrain: a batch of 8 does not fit; the model needs a device with more memory",
    ]


def test_the_table_by_hand():
    lines = plan_lines([Plan("pretrain", 1024, (SMALL, SMALL), (2048, 4096))], "cpu", 24 * GIB, CPU)
    assert lines[2] == "largest: the largest batch in 90% of 24.0 GiB (RAM)."
    assert lines[5].split() == ["pretrain", "1,024", "5.00", "2.00", "4.00", "8.00", "17.00", "2,048"]
    assert lines[6].split() == ["with", "checkpointing", "8.00", "17.00", "4,096"]


def test_other_stages_have_no_plan(steps_of, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_plan, "step_memories", lambda case: [SMALL, SMALL])
    steps = steps_of("sample")
    others = [step for step in steps if step.stage not in TRAININGS]
    assert memory_plans(others, CPU, tmp_path / "memory.json") == []
    plans = memory_plans(steps, CPU, tmp_path / "memory.json")
    memory_plan.print_memory(plans, CPU)
    assert "finetune_qa" in capsys.readouterr().out
    values = plans[-1].values()
    assert values["plain"]["peak"] == SMALL.peak
    assert values["checkpointed"]["largest_batch"] == plans[-1].largest[1]


def test_importing_the_plan_does_not_import_torch():
    program = "import sys, alpro.pipeline.memory_plan; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
