"""Running a stage as a group of processes: what it receives, its result, and why it ended."""

import os
import shutil
import sys
from pathlib import Path
from threading import Event
from unittest.mock import Mock

import pytest

from alpro.errors import InputError
from alpro.files import DISK_FULL, read_json, write_json
from alpro.pipeline.execution import processes
from alpro.pipeline.execution import run_stage as program
from alpro.pipeline.execution.processes import Launch, get_command, run_stage
from alpro.pipeline.store.artifacts import Store
from alpro.stages import (
    EVALUATIONS,
    STAGES,
    TRAININGS,
    decode_videos,
    evaluate,
    pretrain,
    render_sample,
)
from alpro.stages.execution.devices import find_gpus
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    FINISHED_UNITS,
    Outcome,
    Resources,
    StageFailed,
)
from alpro.stages.execution.step import Step
from tests.conftest import one_line

EVALUATE = Step("evaluate", "evaluate", evaluate.Config(model_name="mine"))
DATA = Step("render_sample", "render_sample", render_sample.Config())
PRETRAIN = Step(
    "pretrain", "pretrain", pretrain.Config(phases=[{"corpora": ["clips"], "steps": 1}])
)

NODES = {"nodes": 2, "rendezvous": "host:29500"}
SINGLE = [stage for stage in STAGES if stage not in (*TRAININGS, *EVALUATIONS)]

# Starting a stage.


class Group:
    """Stands for `Processes`: leaves a result and a status, and records what it was given."""

    def __init__(self):
        self.result = {"counts": {"items": 3}, "metrics": {"score": 0.5}}
        self.status = 0
        self.work = lambda folder: None  # what it does in the stage's folder
        self.last_lines: list[str] = []

    def __call__(self, command, environment, grace, stop_file, descriptors, on_line):
        self.file = Path(command[-1])
        self.command = command
        self.environment = environment
        self.descriptors = descriptors
        return self

    def wait(self, stopping, killing):
        self.work(self.file.parent)
        if self.result is not None:
            write_json(self.file.with_name("result.json"), self.result)
        return self.status


@pytest.fixture
def group(monkeypatch):
    group = Group()
    monkeypatch.setattr(processes, "Processes", group)
    return group


@pytest.fixture
def run(tmp_path):
    """run(step, launch, **resources): runs its stage in the folder of the test."""

    def start(step, launch=None, **resources):
        store = Store(tmp_path)
        return run_stage(
            step, tmp_path, store, Resources(**resources), launch or Launch()
        )

    return start


def test_a_stage_inherits_the_lock_of_its_folder(group, run):
    run(PRETRAIN, Launch(descriptors=[5]))

    assert group.descriptors == [5]


def test_an_outcome_is_read_and_no_file_of_its_processes_stays(group, run, tmp_path):
    group.work = lambda folder: (folder / "stop").touch()

    outcome = run(EVALUATE)

    assert (outcome.counts, outcome.metrics) == ({"items": 3}, {"score": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_what_a_stage_has_written_counts_however_its_processes_end(group, run):
    """A library may abort the process as it ends."""
    group.status = 134

    assert run(EVALUATE).counts == {"items": 3}


@pytest.mark.parametrize(
    ("step", "processes", "stages", "gpus", "threads"),
    [
        (PRETRAIN, 1, 1, [], None),  # PyTorch decides
        (PRETRAIN, 1, 2, [], "3"),
        (PRETRAIN, 2, 2, [], "1"),
        (DATA, 1, 2, [], None),  # it has no model
        (PRETRAIN, 1, 2, ["2", "GPU-b"], None),
    ],
)
def test_models_that_share_a_cpu_share_its_cores(
    step, processes, stages, gpus, threads, group, run, monkeypatch
):
    """torchrun would give each process one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(os, "environ", {})

    run(step, Launch(gpus, models=stages), processes=processes, max_stages=stages)

    assert group.environment.get("OMP_NUM_THREADS") == threads
    assert group.environment.get("CUDA_VISIBLE_DEVICES", "") == ",".join(gpus)
    # Progress bars of several stages would overwrite each other.
    assert ("ALPRO_PLAIN_PROGRESS" in group.environment) is (stages > 1)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", ["0", "1"]),
        ("3, GPU-b", ["3", "GPU-b"]),
        # CUDA stops at the first unknown name.
        ("MIG-1,MIG-2,unknown", ["MIG-1", "MIG-2"]),
    ],
)
def test_gpus_have_the_names_of_cuda(visible, names, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert find_gpus(Resources()) == names
    assert find_gpus(Resources(device="cpu")) == []


ALONE = ["--standalone"]
SECOND = ["--nnodes=2", "--node-rank=1", "--rdzv-endpoint=host:29500", "--rdzv-id=0123"]
SECOND += ["--rdzv-conf=timeout=120"]


@pytest.mark.parametrize(
    ("stages", "resources", "group"),
    [
        (STAGES, {}, []),
        (SINGLE, {"processes": 4, **NODES}, []),
        (EVALUATIONS, {"processes": 4, **NODES}, ALONE),
        (TRAININGS, {"processes": 4}, ALONE),
        (TRAININGS, {"processes": 4, **NODES}, SECOND),
    ],
)
def test_several_processes_start_under_torchrun(stages, resources, group):
    start = [sys.executable, "-P", "-m"]
    if group:
        start += ["torch.distributed.run", "--nproc-per-node=4", *group]
        start += ["--log-dir=/dev/null", "-m"]

    for stage in stages:
        command = get_command(
            stage, Path("pretrain/0123/work.json"), Resources(**resources), node=1
        )
        program = ["alpro.pipeline.execution.run_stage", "pretrain/0123/work.json"]
        assert command == [*start, *program]


def test_the_command_for_another_node_is_printed(group, run, caplog):
    with caplog.at_level("INFO"):
        run(PRETRAIN, processes=4, **NODES)

    there = [each.replace("--node-rank=0", "--node-rank=1") for each in group.command]
    assert set(there) < set(caplog.text.split())


# How a stage ends.


def test_a_users_mistake_has_the_name_of_the_stage(group, run):
    """Whatever the status, which is torchrun's with several ranks."""
    group.result = {"error": "clips: no captions"}
    group.status = 137

    with one_line("evaluate: clips: no captions"):
        run(EVALUATE)


def test_a_stage_that_the_pipeline_stopped_is_cancelled(group, run):
    group.result = None
    group.status = 75
    (stopping := Event()).set()

    with one_line("evaluate was stopped", of=processes.CancelledError):
        run(EVALUATE, Launch(stopping=stopping))


@pytest.mark.parametrize(
    ("status", "lines", "message"),
    [
        (
            1,
            ["File x", "ValueError: y"],
            "evaluate ended with status 1: File x | ValueError: y",
        ),
        (139, [], "evaluate ended with status 139"),
        (137, [], "evaluate was killed, probably for memory"),
        # Others sent a signal.
        (75, [], "evaluate was stopped with a checkpoint"),
        (0, [], "evaluate ended with status 0"),
    ],
)
def test_a_stage_without_a_result_has_failed_with_its_last_lines(
    status, lines, message, group, run, tmp_path
):
    write_json(tmp_path / "result.json", {"error": "of an earlier attempt"})
    group.result = None
    group.status = status
    group.last_lines = lines

    with one_line(message, f"unfinished results are in {tmp_path}", of=StageFailed):
        run(EVALUATE)


def test_a_full_disk_has_no_room_for_a_result(group, run):
    group.result = None
    group.status = EXIT_INPUT_ERROR

    with one_line("evaluate: stopped by the error above"):
        run(EVALUATE)


def write_progress(folder, step, units):
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "parts").mkdir(exist_ok=True)
    # A unit that was found again has a second line.
    lines = [f"key-{unit}\n" for unit in [*range(units), 0]]
    (folder / FINISHED_UNITS).write_text("".join(lines))


@pytest.mark.parametrize(
    ("step", "units", "progressed"),
    [(3, 2, False), (4, 2, True), (3, 3, True), (2, 2, False)],
)
def test_only_more_finished_work_is_progress(
    step, units, progressed, group, run, tmp_path
):
    write_progress(tmp_path, 3, 2)
    group.work = lambda folder: write_progress(folder, step, units)
    group.result = None
    group.status = 1

    with pytest.raises(StageFailed) as raised:
        run(PRETRAIN)

    assert raised.value.progressed is progressed


# The program of a stage.


@pytest.fixture
def work(tmp_path):
    """The work file of a decoding with values that are not the defaults."""
    (out := tmp_path / "out").mkdir()
    described = {
        "stage": "decode_videos",
        "config": {"size": 64, "frames": 8},
        "inputs": {"manifest": str(tmp_path)},
        "out": str(out),
        "resources": {"workers": 3, "device": "cpu"},
    }
    write_json(out / "work.json", described)
    return out / "work.json"


@pytest.fixture
def main(work, monkeypatch):
    """main(outcome, rank): the status and result.json of a stage that returns or raises it."""

    def start(outcome, rank="0"):
        monkeypatch.setattr(decode_videos, "run", Mock(side_effect=[outcome]))
        monkeypatch.setenv("RANK", rank)
        status = program.main(work)
        file = work.with_name("result.json")
        return status, read_json(file) if file.exists() else {}

    return start


def test_the_stage_receives_the_work_file_and_its_outcome_is_the_result(main, tmp_path):
    outcome = Outcome(
        {"items": 2, "left": 1}, {"loss": 0.5}, ["a", "b"], "float32", {"x.tar": "ab"}
    )

    status, result = main(outcome)

    assert (status, Outcome(**result)) == (0, outcome)
    decode_videos.run.assert_called_once_with(
        decode_videos.Config(size=64, frames=8),
        decode_videos.Inputs(manifest=tmp_path),
        tmp_path / "out",
        Resources(workers=3, device="cpu"),
    )


MISTAKES = [InputError("no captions"), MemoryError()]
MISTAKES += [OSError(number, "No space", "clips.tar") for number in DISK_FULL]
FAULTS = [ValueError("a bug"), PermissionError("x"), SystemExit(75)]


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_an_error_that_the_user_can_fix_is_one_line(error, main):
    status, result = main(error)

    assert status == EXIT_INPUT_ERROR
    assert len(result["error"].splitlines()) == 1


@pytest.mark.parametrize(("free", "is_named"), [(10, True), (50, False)])
def test_a_gpu_that_other_processes_fill_is_named(free, is_named, main, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 30)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, 100))

    _, result = main(RuntimeError("CUDA out of memory. Tried"))

    assert ("CUDA_VISIBLE_DEVICES" in result["error"]) is is_named


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_any_other_error_is_raised(error, main, work):
    with pytest.raises(type(error)):
        main(error)
    assert not work.with_name("result.json").exists()


@pytest.mark.parametrize(("code", "status"), [(75, 75), (3, 1), ("no reason", 1)])
def test_a_stage_that_exits_by_itself_is_not_taken_for_a_stopped_one(
    code, status, monkeypatch, capsys
):
    monkeypatch.setattr(program, "main", Mock(side_effect=SystemExit(code)))
    monkeypatch.setattr(os, "_exit", ended := Mock())

    program.start(Path("work.json"))

    ended.assert_called_once_with(status)
    assert (f"SystemExit: {code}" in capsys.readouterr().err) == (status == 1)


def test_the_first_rank_that_fails_says_why(main, capsys, monkeypatch):
    monkeypatch.setenv("ALPRO_PARENT", "1")  # its pipeline prints it
    main(InputError("clips: no captions"), "1")

    assert main(InputError("other"), "2")[1] == {"error": "clips: no captions"}
    assert capsys.readouterr().err == ""


def test_on_another_node_the_program_says_why(main, capsys, monkeypatch):
    monkeypatch.delenv("ALPRO_PARENT", raising=False)
    main(InputError("clips: no captions"), "1")
    assert capsys.readouterr().err == "error: clips: no captions\n"


def test_the_first_rank_writes_the_outcome(main):
    assert main(Outcome({"items": 2}), "1")[1] == {}
    assert main(Outcome({"items": 2}), "0")[1]["counts"] == {"items": 2}
