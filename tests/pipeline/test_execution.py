"""Running a stage as a group of processes: what it receives, its result, and why it ended."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution import processes
from alpro.pipeline.execution import run_stage as program
from alpro.pipeline.execution.processes import Launch, find_gpus, get_command, run_stage
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import DISK_FULL
from alpro.stages import STAGES, cache_prompts, decode_videos, evaluate, pretrain, render_sample
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    FINISHED_UNITS,
    Outcome,
    Resources,
    StageFailed,
    count_finished,
)
from tests.conftest import one_line

EVALUATE = Step("evaluate", "evaluate", evaluate.Config(model_name="mine"))
DATA = Step("render_sample", "render_sample", render_sample.Config())
CACHE = Step("cache_prompts", "cache_prompts", cache_prompts.Config())
PRETRAIN = Step(
    "pretrain", "pretrain", pretrain.Config(phases=[{"corpora": ["clips"], "steps": 1}])
)

# Starting a stage.


class Group:
    """Stands for `Processes`: leaves a result and a status, and records what it was given."""

    def __init__(self) -> None:
        self.result = {"counts": {"items": 3}, "metrics": {"score": 0.5}}
        self.status = 0
        self.work = lambda folder: None  # what it does in the stage's folder
        self.stopped = False
        self.last_lines: list[str] = []

    def __call__(self, command, environment, descriptors, on_line):
        self.file = Path(command[-1])
        self.described = read_json(self.file)
        self.command = command
        self.environment = environment
        self.descriptors = descriptors
        return self

    def wait(self) -> int:
        self.work(self.file.parent)
        if self.result is not None:
            write_json(self.file.with_name("result.json"), self.result)
        return self.status


@pytest.fixture
def group(monkeypatch) -> Group:
    group = Group()
    monkeypatch.setattr(processes, "Processes", group)
    monkeypatch.setattr(processes, "RESULT_SECONDS", 0)
    return group


@pytest.fixture
def run(tmp_path):
    """run(step, launch, **resources): runs its stage in the folder of the test."""

    def start(step: Step, launch: Launch | None = None, **resources: object) -> Outcome:
        store = Store(tmp_path)
        return run_stage(step, tmp_path, store, Resources(**resources), launch or Launch())

    return start


def test_a_stage_receives_its_configuration_and_resources(group, run, tmp_path):
    resources = {"workers": 3, "device": "cpu", "rank_timeout": 7.5, "processes": 2}

    run(PRETRAIN, Launch(descriptors=[5]), **resources)

    described = group.described
    assert described["stage"] == "pretrain"
    assert described["config"] == PRETRAIN.config.model_dump(mode="json")
    assert described["out"] == str(tmp_path)
    assert Resources.model_validate(described["resources"]) == Resources(**resources)
    assert group.descriptors == [5]


def test_an_outcome_is_read_and_no_file_of_its_processes_stays(group, run, tmp_path):
    write_json(tmp_path / "result.json", {"error": "of an earlier attempt"})
    group.work = lambda folder: (folder / "stop").touch()

    outcome = run(EVALUATE)

    assert (outcome.counts, outcome.metrics) == ({"items": 3}, {"score": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_what_a_stage_has_written_counts_however_its_processes_end(group, run):
    """A library may abort the process as it ends."""
    group.status = 134

    assert run(EVALUATE).counts == {"items": 3}


def test_only_a_training_has_time_to_end(group, run):
    for step, grace, stop_file in ((PRETRAIN, "45.0", "stop"), (DATA, "0.0", "")):
        run(step)
        _, _, _, _, _, seconds, file = group.command[:7]
        assert (seconds, Path(file).name if file else "") == (grace, stop_file)


def test_models_that_share_a_cpu_share_its_cores(group, run, monkeypatch):
    """torchrun would give each process one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(step: Step, processes: int, stages: int, gpus: tuple[str, ...] = ()) -> str | None:
        run(step, Launch(gpus, models=stages), processes=processes, max_stages=stages)
        return group.environment.get("OMP_NUM_THREADS")

    assert threads(PRETRAIN, 1, 1) is None  # PyTorch decides
    assert threads(PRETRAIN, 1, 2) == "3"
    assert threads(PRETRAIN, 2, 2) == "1"
    assert threads(CACHE, 2, 1) is None  # in one process
    assert threads(DATA, 1, 2) is None  # it has no model
    assert threads(PRETRAIN, 1, 2, ("0",)) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads(PRETRAIN, 1, 2) == "4"  # the user's


def test_the_output_of_stages_side_by_side_is_plain(group, run):
    run(DATA, max_stages=2)
    assert group.environment["ALPRO_PLAIN_PROGRESS"] == "1"


def test_a_stage_uses_the_gpus_that_it_is_given(group, run, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)

    run(PRETRAIN, Launch(gpus=["2", "GPU-b"]), processes=2)

    assert group.environment["CUDA_VISIBLE_DEVICES"] == "2,GPU-b"
    assert group.environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_gpus_have_the_names_of_cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for visible, names in (
        ("", ["0", "1"]),
        ("3, GPU-b", ["3", "GPU-b"]),
        ("MIG-1,MIG-2,unknown", ["MIG-1", "MIG-2"]),  # CUDA stops at the first unknown name
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert find_gpus(Resources()) == names
    assert find_gpus(Resources(device="cpu")) == []


def test_the_command_for_other_nodes_is_printed(group, run, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    printed: list[str] = []

    run(PRETRAIN, Launch(["0"], on_line=printed.append), nodes=2, rendezvous="host:29500")

    (line,) = printed
    # GPUs have other names there.
    start = "pretrain: start on each other node: PYTORCH_ALLOC_CONF=expandable_segments:True python"
    assert line.startswith(f"{start} -P -m torch.distributed.run --log-dir /dev/null ")
    assert line.endswith(f"-m alpro.pipeline.execution.run_stage {tmp_path}/work.json")


ALONE = [sys.executable, "-P", "-m", "alpro.pipeline.execution.run_stage"]
TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run", "--log-dir", "/dev/null"]
NODES = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=host:29500", "--rdzv-id=0123"]
TRAININGS = ("train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")


@pytest.mark.parametrize("stage", STAGES)
def test_trainings_and_evaluations_start_under_torchrun_and_trainings_on_several_nodes(stage):
    file = Path("pretrain/0123/work.json")
    module = [*ALONE[2:], str(file)]
    one = [*ALONE, str(file)]
    four = [*TORCHRUN, "--nproc-per-node=4", "--standalone", *module]
    nodes = {"nodes": 2, "rendezvous": "host:29500"}
    trains = stage in TRAININGS
    several = four if trains or stage == "evaluate" else one

    assert get_command(stage, file, Resources()) == one
    assert get_command(stage, file, Resources(processes=4)) == several
    on_nodes = [*TORCHRUN, "--nproc-per-node=4", *NODES, *module]
    assert get_command(stage, file, Resources(processes=4, **nodes)) == (
        on_nodes if trains else several
    )
    if trains:
        assert "--nproc-per-node=1" in get_command(stage, file, Resources(**nodes))


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
    group.stopped = True

    with one_line("evaluate was stopped", of=processes.CancelledError):
        run(EVALUATE)


@pytest.mark.parametrize(
    ("status", "lines", "message"),
    [
        (1, [], "evaluate ended with status 1; its output is above"),
        (1, ["File x", "ValueError: y"], "evaluate ended with status 1: File x | ValueError: y"),
        (139, [], "evaluate was ended by SIGSEGV"),
        (-11, [], "evaluate was ended by SIGSEGV"),
        (137, [], "evaluate was killed, probably for memory"),
        (75, [], "evaluate ended with status 75"),  # of a signal that others sent
        (0, [], "all nodes must share its folder"),
    ],
)
def test_a_stage_without_a_result_has_failed_with_its_last_lines(
    status, lines, message, group, run, tmp_path
):
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


def write_progress(folder: Path, step: int, units: int) -> None:
    (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "parts").mkdir(exist_ok=True)
    # A unit that was found again has a second line.
    lines = [f"key-{unit}\n" for unit in [*range(units), 0]]
    (folder / FINISHED_UNITS).write_text("".join(lines))


@pytest.mark.parametrize(
    ("step", "units", "progressed"), [(3, 2, False), (4, 2, True), (3, 3, True), (2, 2, False)]
)
def test_only_more_finished_work_is_progress(step, units, progressed, group, run, tmp_path):
    assert count_finished(tmp_path) == 0
    write_progress(tmp_path, 3, 2)
    assert count_finished(tmp_path) == 5

    def work(folder: Path) -> None:
        for old in folder.glob("checkpoints/*"):
            old.rmdir()
        write_progress(folder, step, units)

    group.result = None
    group.work = work
    group.status = 1
    with pytest.raises(StageFailed) as raised:
        run(PRETRAIN)
    assert raised.value.progressed is progressed


# The program of a stage.


@pytest.fixture
def work(tmp_path) -> Path:
    """The work file of a decoding with values that are not the defaults."""
    (out := tmp_path / "out").mkdir()
    resources = Resources(workers=3, device="cpu").model_dump(mode="json")
    described = {
        "stage": "decode_videos",
        "config": {"size": 64, "frames": 8},
        "inputs": {"manifest": str(tmp_path)},
    }
    write_json(out / "work.json", described | {"out": str(out), "resources": resources})
    return out / "work.json"


@pytest.fixture
def main(work, monkeypatch):
    """main(result, rank): the status and result.json of a stage that returns or raises `result`, and
    its arguments."""

    def start(result, rank: str = "0") -> tuple[int, dict, list]:
        received: list = []

        def stage(*arguments) -> Outcome:
            received.extend(arguments)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(decode_videos, "run", stage)
        monkeypatch.setenv("RANK", rank)
        status = program.main(work)
        file = work.with_name("result.json")
        return status, read_json(file) if file.exists() else {}, received

    return start


def test_the_stage_receives_the_work_file_and_its_outcome_is_the_result(main, tmp_path):
    outcome = Outcome(
        {"items": 2, "left": 1}, {"loss": 0.5}, ["a", "b"], "float32", {"x.tar": "ab"}
    )

    status, result, (config, inputs, out, resources) = main(outcome)

    assert (status, Outcome(**result)) == (0, outcome)
    assert (config.size, config.frames) == (64, 8)
    assert (inputs, out) == (decode_videos.Inputs(manifest=tmp_path), tmp_path / "out")
    assert (resources.workers, resources.device) == (3, "cpu")


MISTAKES = [InputError("no captions"), MemoryError()]
MISTAKES += [OSError(number, "No space", "clips.tar") for number in DISK_FULL]
FAULTS = [
    ValueError("a bug"),
    PermissionError("x"),
    OSError(errno.ESTALE, "Stale file handle"),
    SystemExit(75),  # stopped
]


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_an_error_that_the_user_can_fix_is_one_line(error, main):
    status, result, _ = main(error)

    assert status == EXIT_INPUT_ERROR
    assert len(result["error"].splitlines()) == 1


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_any_other_error_is_raised(error, main, work):
    with pytest.raises(type(error)):
        main(error)
    assert not work.with_name("result.json").exists()


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


def test_memory_that_other_processes_hold_is_named(main, monkeypatch):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        mem_get_info=lambda: (2**30, 80 * 2**30),
        memory_reserved=lambda: 9 * 2**30,
    )
    monkeypatch.setattr("torch.cuda", cuda)

    _, result, _ = main(MemoryError())

    assert "other processes hold 70 of the 80 GiB of its GPU" in result["error"]
    assert "CUDA_VISIBLE_DEVICES" in result["error"]
