"""Launching a stage as a group of processes: resources, results and exit statuses."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution import launch
from alpro.pipeline.execution.devices import reserved
from alpro.pipeline.execution.launch import command, run_stage
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store.artifacts import Store
from alpro.stages import STAGES, cache_prompts, evaluate, pretrain, render_sample
from alpro.stages.execution.interface import Interrupted, Resources, StageFailed, Stopped
from alpro.stages.execution.stop import STOP, Stop

EVALUATE = Step("evaluate", "evaluate", evaluate.Config())
DATA = Step("render_sample", "render_sample", render_sample.Config())
CACHE = Step("cache_prompts", "cache_prompts", cache_prompts.Config())


def step_of(**config) -> Step:
    return Step("pretrain", "pretrain", pretrain.Config(phases=[{"corpora": ["clips"], "steps": 1}], **config))


PRETRAIN = step_of(batch_size=12)


@pytest.fixture
def group(monkeypatch) -> dict[str, Any]:
    """Records commands instead of starting processes. "result" is what they write, "status" their exit status."""
    seen: dict[str, Any] = {"status": 0, "result": {"counts": {"items": 3}, "metrics": {"score": 0.5}}}

    def run_group(arguments, locks, say, settings):
        file = Path(arguments[-1])
        seen.update(arguments=arguments, locks=locks, settings=settings, work=read_json(file))
        if seen["result"] is not None:
            write_json(file.with_name("result.json"), seen["result"])
        return seen["status"]

    monkeypatch.setattr(launch, "run_group", run_group)
    return seen


def test_resources_reach_the_process_of_a_stage(group, tmp_path):
    resources = Resources(workers=3, device="cpu", compile=True, rank_timeout=7.5, processes=2)
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), resources, lock_file=5)
    assert Resources.model_validate(group["work"]["resources"]) == resources
    assert group["work"]["config"] == PRETRAIN.config.model_dump(mode="json")
    assert (group["work"]["out"], group["locks"], group["settings"]) == (str(tmp_path), (5,), {})


@pytest.mark.parametrize(("processes", "own", "expected"), [(1, None, "3"), (1, "4", None), (2, None, "1")])
def test_threads_are_limited_unless_the_user_or_torchrun_does(processes, own, expected, group, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), Resources(device="cpu", processes=processes), threads=3)
    assert group["settings"].get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(
    ("step", "threads", "own", "expected"),
    [
        (PRETRAIN, 0, None, 3),
        (PRETRAIN, 2, None, 2),  # beside another stage
        (PRETRAIN, 0, "1", 1),
        (step_of(batch_size=8), 0, None, 2),  # 3 does not divide the batch
        (EVALUATE, 0, None, 3),
        (CACHE, 0, None, 1),
    ],
)
def test_a_stage_on_a_cpu_has_one_process_per_core(step, threads, own, expected, group, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))  # that this process may use
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    run_stage(step, tmp_path, Store(tmp_path), Resources(device="cpu", cpu_processes=3), threads=threads)
    assert (f"--nproc-per-node={expected}" in group["arguments"]) == (expected > 1)
    assert group["settings"] == (
        {"OMP_NUM_THREADS": str((threads or 4) // expected)} if expected > 1 or threads else {}
    )


ALONE = [sys.executable, "-m", "alpro.pipeline.execution.run_stage", "work.json"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("stage", STAGES)
def test_trainings_and_evaluations_start_under_torchrun(stage):
    trainings = ("train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")
    several = (*trainings, "zero_shot", "evaluate")
    file = Path("work.json")
    assert command(stage, file, Resources()) == ALONE
    many = command(stage, file, Resources(processes=4))
    assert many == ([*TORCHRUN, "--nproc-per-node=4", "--standalone", *ALONE[1:]] if stage in several else ALONE)


def test_several_nodes_meet_at_the_rendezvous():
    resources = Resources(processes=4, nodes=2, rendezvous="host:29500")
    meeting = ["--nproc-per-node=4", "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=host:29500"]
    file = Path("pretrain/0123/work.json")
    expected = [*TORCHRUN, *meeting, "--rdzv-id=0123", "-m", "alpro.pipeline.execution.run_stage", str(file)]
    assert command("pretrain", file, resources) == expected
    assert command("pretrain", file, Resources(nodes=2, rendezvous="host:29500"))[3] == "--nproc-per-node=1"


def test_an_evaluation_stays_on_one_machine():
    resources = Resources(processes=2, nodes=2, rendezvous="host:29500")
    assert "--standalone" in command("evaluate", Path("work.json"), resources)
    assert command("evaluate", Path("work.json"), Resources(nodes=2, rendezvous="host:29500")) == ALONE


def test_the_command_for_the_other_nodes_is_printed(group, tmp_path):
    printed: list[str] = []
    resources = Resources(nodes=2, rendezvous="host:29500")
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), resources, say=printed.append)
    (line,) = printed
    assert line.startswith("pretrain: start on each other node: python -m torch.distributed.run --nproc-per-node=1 ")
    assert line.endswith(f"-m alpro.pipeline.execution.run_stage {tmp_path}/work.json")


@pytest.mark.parametrize(
    ("status", "result", "error", "message"),
    [
        (2, {"error": "clips: no captions"}, InputError, "^clips: no captions$"),
        (1, {"error": "clips: no captions"}, InputError, "^clips: no captions$"),  # torchrun's own status
        (75, None, Interrupted, "evaluate"),
        (1, {"interrupted": "x"}, Interrupted, "evaluate"),
        (-15, None, Interrupted, "evaluate"),
        (1, None, StageFailed, "status 1"),
        (-9, None, StageFailed, "memory"),
        (-11, None, StageFailed, "status -11"),
    ],
)
def test_the_status_of_the_process_is_the_status_of_the_stage(status, result, error, message, group, tmp_path):
    write_json(tmp_path / "result.json", {"error": "of an earlier try"})
    group |= {"status": status, "result": result}
    with pytest.raises(error, match=message) as raised:
        run_stage(EVALUATE, tmp_path, Store(tmp_path), Resources())
    assert type(raised.value) is error
    stop = Stop()
    stop.request()
    token = STOP.set(stop)
    try:  # a pipeline that stops is not a stage that failed
        with pytest.raises(InputError if result and "error" in result else Stopped):
            run_stage(EVALUATE, tmp_path, Store(tmp_path), Resources())
    finally:
        STOP.reset(token)


def test_a_successful_process_returns_its_outcome_and_leaves_no_files_of_its_own(group, tmp_path):
    write_json(tmp_path / "result.json", {"error": "of an earlier try"})
    for step in (EVALUATE, DATA):
        outcome = run_stage(step, tmp_path, Store(tmp_path), Resources())
        assert (outcome.counts, outcome.metrics) == ({"items": 3}, {"score": 0.5})
        assert group["work"]["stage"] == step.stage
        assert not list(tmp_path.iterdir())


def test_the_output_of_a_process_is_read():
    lines: list[str] = []
    program = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(3)"
    assert launch.run_group([sys.executable, "-c", program], (), lines.append) == 3
    assert sorted(lines) == ["to stderr", "to stdout"]


def test_a_stop_ends_the_group_and_none_starts_after_it():
    stop, lines = Stop(), []
    token = STOP.set(stop)
    try:
        program = "import signal; signal.signal(15, lambda *_: exit(75)); print('ready', flush=True); signal.pause()"
        status = launch.run_group(
            [sys.executable, "-c", program], (), lambda line: (lines.append(line), stop.request())
        )
        assert (status, lines) == (75, ["ready"])
        with pytest.raises(Stopped):
            launch.run_group([sys.executable, "-c", "print('started')"], (), lines.append)
        with pytest.raises(Stopped):
            stop.wait(600)
    finally:
        STOP.reset(token)


def test_what_a_process_leaves_behind_ends_with_it():
    reading, writing = os.pipe()
    child = "import signal; print('ready', flush=True); signal.pause()"
    program = f"""if True:
        import subprocess, sys
        command = [sys.executable, "-c", {child!r}]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[{writing}])
        child.stdout.readline()"""
    assert launch.run_group([sys.executable, "-c", program], (writing,), lambda line: None) == 0
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody has it open any more
    os.close(reading)


def test_output_is_read_to_its_end_whatever_the_log_raises():
    def raise_as_rich_does(line: str) -> None:
        raise SystemExit(1)

    program = "for _ in range(40_000): print('more than the pipe and its reader hold')"
    assert launch.run_group([sys.executable, "-c", program], (), raise_as_rich_does) == 0


def test_a_stage_gets_free_devices_and_their_locks(group, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "visible_devices", lambda resources: {"0": "a", "GPU-1": "b", "2": "c"})
    monkeypatch.setattr(launch, "reserved", partial(reserved, folder=tmp_path / "locks"))
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), Resources(processes=2), lock_file=5)
    assert group["settings"] == {"CUDA_VISIBLE_DEVICES": "0,GPU-1"}
    assert len(group["locks"]) == 3
    run_stage(CACHE, tmp_path, Store(tmp_path), Resources(processes=2))  # it is neither training nor evaluation
    assert group["settings"] == {"CUDA_VISIBLE_DEVICES": "0"}
