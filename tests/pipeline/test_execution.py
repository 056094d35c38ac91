"""Running a stage as a group of processes on free GPUs: what it receives, its result, and why it
ended."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution import devices, launch
from alpro.pipeline.execution import run_stage as program
from alpro.pipeline.execution.devices import reserved, visible_devices
from alpro.pipeline.execution.launch import command, run_group, run_stage
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import DISK_FULL
from alpro.stages import STAGES, cache_prompts, decode_videos, evaluate, pretrain, render_sample
from alpro.stages.execution.interface import (
    EXIT_INPUT_ERROR,
    EXIT_INTERRUPTED,
    STOP,
    Interrupted,
    InterruptedExit,
    Outcome,
    Resources,
    StageFailed,
    Stop,
    Stopped,
)
from tests.conftest import ROOT, one_line

EVALUATE = Step("evaluate", "evaluate", evaluate.Config())
DATA = Step("render_sample", "render_sample", render_sample.Config())
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
CACHE = Step("cache_prompts", "cache_prompts", cache_prompts.Config())
PRETRAIN = Step(
    "pretrain", "pretrain", pretrain.Config(phases=[{"corpora": ["clips"], "steps": 1}])
)


@pytest.fixture
def stop():
    """A request to stop, of the pipeline in which the test runs."""
    token = STOP.set(stop := Stop())
    yield stop
    STOP.reset(token)


# Launching.


@pytest.fixture
def group(monkeypatch) -> dict[str, Any]:
    """Records commands instead of starting processes. "result" is what they write, "status" their
    exit status."""
    seen: dict[str, Any] = {
        "status": 0,
        "result": {"counts": {"items": 3}, "metrics": {"score": 0.5}},
    }

    def run_group(arguments, locks, say, settings):
        file = Path(arguments[-1])
        seen.update(arguments=arguments, locks=locks, settings=settings, work=read_json(file))
        if seen["result"] is not None:
            write_json(file.with_name("result.json"), seen["result"])
        return seen["status"]

    monkeypatch.setattr(launch, "run_group", run_group)
    return seen


def test_a_process_gets_the_resources_returns_its_outcome_and_the_command_for_other_nodes_is_printed(
    group, tmp_path
):
    resources = Resources(
        workers=3, device="cpu", compile=True, rank_timeout=7.5, processes=2, max_stages=2
    )
    write_json(tmp_path / "result.json", {"error": "of an earlier try"})
    outcome = run_stage(
        PRETRAIN, tmp_path, Store(tmp_path), resources, lock_file=5, say=pytest.fail
    )
    assert (outcome.counts, outcome.metrics) == ({"items": 3}, {"score": 0.5})
    assert not list(tmp_path.iterdir())  # it leaves no files of its own
    assert Resources.model_validate(group["work"]["resources"]) == resources
    assert (group["work"]["stage"], group["work"]["config"]) == (
        "pretrain",
        PRETRAIN.config.model_dump(mode="json"),
    )
    assert (group["work"]["out"], group["locks"]) == (str(tmp_path), (5,))
    assert group["settings"] == {"ALPRO_PLAIN_PROGRESS": "1"}
    printed: list[str] = []
    resources = Resources(nodes=2, rendezvous="host:29500")
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), resources, say=printed.append)
    (line,) = printed
    assert (
        "python -P -m alpro.pipeline.execution.torchrun --log-dir /dev/null --nproc-per-node=1 "
        in line
    )
    assert line.endswith(f"-m alpro.pipeline.execution.run_stage {tmp_path}/work.json")


def test_threads_of_a_stage_on_a_cpu(group, tmp_path, monkeypatch):
    """torchrun would set 1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))  # that this process may use

    def threads(step: Step, processes: int, beside: int) -> str | None:
        resources = Resources(device="cpu", processes=processes)
        run_stage(step, tmp_path, Store(tmp_path), resources, concurrent_stages=beside)
        return group["settings"].get("OMP_NUM_THREADS")

    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's
    assert threads(PRETRAIN, 1, 2) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads(PRETRAIN, 1, 1) is None  # PyTorch decides
    assert (threads(PRETRAIN, 1, 2), threads(PRETRAIN, 2, 2)) == ("3", "1")
    assert threads(CACHE, 2, 1) is None  # in one process
    assert threads(DATA, 1, 2) is None  # it has no model


def test_a_resumed_stage_keeps_its_threads(group, tmp_path, monkeypatch):
    """With another number, the last bits of its weights would be others."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.delenv("OMP_NUM_THREADS")
    started = []
    for folder, beside in (("one", 2), ("one", 1), ("two", 1), ("two", 2)):
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        resources = Resources(device="cpu")
        run_stage(PRETRAIN, out, Store(tmp_path), resources, concurrent_stages=beside)
        started.append(group["settings"].get("OMP_NUM_THREADS"))
        # As if it had been killed: a stage that succeeds removes its work file.
        write_json(out / "work.json", group["work"])
    assert started == ["3", "3", None, None]


ALONE = [sys.executable, "-P", "-m", "alpro.pipeline.execution.run_stage", "work.json"]
TORCHRUN = [sys.executable, "-P", "-m", "alpro.pipeline.execution.torchrun"]
TORCHRUN += ["--log-dir", "/dev/null"]
TRAININGS = ("train_prompter", "pretrain", "finetune_retrieval", "finetune_qa")


def test_trainings_and_evaluations_start_under_torchrun_and_trainings_on_several_nodes():
    file = Path("pretrain/0123/work.json")
    nodes = {"nodes": 2, "rendezvous": "host:29500"}
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=host:29500", "--rdzv-id=0123"]
    module = [*ALONE[2:-1], str(file)]
    for stage in STAGES:
        several = stage in (*TRAININGS, "zero_shot", "evaluate")
        many = (
            [*TORCHRUN, "--nproc-per-node=4", "--standalone", *module]
            if several
            else [*ALONE[:2], *module]
        )
        assert command(stage, file, Resources()) == [*ALONE[:2], *module]
        assert command(stage, file, Resources(processes=4)) == many
        expected = (
            [*TORCHRUN, "--nproc-per-node=4", *meeting, *module] if stage in TRAININGS else many
        )
        assert command(stage, file, Resources(processes=4, **nodes)) == expected
        if stage in TRAININGS:
            assert command(stage, file, Resources(**nodes))[6] == "--nproc-per-node=1"


@pytest.mark.parametrize(
    ("status", "result", "error", "message"),
    [
        (2, {"error": "clips: no captions"}, InputError, "^clips: no captions$"),
        (
            1,
            {"error": "clips: no captions"},
            InputError,
            "^clips: no captions$",
        ),  # torchrun's own status
        (2, None, InputError, "evaluate"),  # a full disk has no room for a result
        (75, None, Interrupted, "evaluate"),
        (1, {"interrupted": "x"}, Interrupted, "evaluate"),
        (-15, None, Interrupted, "evaluate"),
        (-14, None, Interrupted, "evaluate"),
        (1, None, StageFailed, "status 1"),
        (-9, None, StageFailed, "memory"),
        (-11, None, StageFailed, "status -11"),
    ],
)
def test_the_status_of_the_process_is_the_status_of_the_stage(
    status, result, error, message, group, tmp_path, stop
):
    write_json(tmp_path / "result.json", {"error": "of an earlier try"})
    group |= {"status": status, "result": result}
    with pytest.raises(error, match=message) as raised:
        run_stage(EVALUATE, tmp_path, Store(tmp_path), Resources())
    assert type(raised.value) is error
    stop.request()  # a pipeline that stops is not a stage that failed
    with pytest.raises(InputError if result and "error" in result else Stopped):
        run_stage(EVALUATE, tmp_path, Store(tmp_path), Resources())


def python(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_the_output_of_a_process_is_read_to_its_end_whatever_the_log_raises():
    lines: list[str] = []
    both = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(3)"
    assert run_group(python(both), (), lines.append) == 3
    assert sorted(lines) == ["to stderr", "to stdout"]

    def raise_as_rich_does(line: str) -> None:
        raise SystemExit(1)

    long = "for _ in range(40_000): print('more than the pipe and its reader hold')"
    assert run_group(python(long), (), raise_as_rich_does) == 0


def test_a_stop_ends_the_group_and_none_starts_after_it(stop):
    lines: list[str] = []
    waits = "import signal; signal.signal(15, lambda *_: exit(75)); print('ready', flush=True); signal.pause()"
    assert run_group(python(waits), (), lambda line: (lines.append(line), stop.request())) == 75
    assert lines == ["ready"]
    with pytest.raises(Stopped):
        run_group(python("print('started')"), (), lines.append)
    with pytest.raises(Stopped):
        stop.wait(600)


def test_what_a_process_leaves_behind_ends_with_it():
    reading, writing = os.pipe()
    child = "import signal; print('ready', flush=True); signal.pause()"
    leaves = f"""
        import subprocess, sys
        command = [sys.executable, "-c", {child!r}]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[{writing}])
        child.stdout.readline()"""
    assert run_group(python(leaves), (writing,), lambda line: None) == 0
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody has it open any more
    os.close(reading)


def test_the_resource_tracker_of_a_killed_process_has_time_to_clean_up(tmp_path):
    """As Python's, it acts when the pipe from the process closes."""
    tracker = f"""
        import os, sys
        print(flush=True)
        sys.stdin.read()
        open({str(tmp_path / "cleaned up")!r}, "w").close()"""
    killed = f"""
        import os, subprocess, sys
        command = [sys.executable, "-c", {textwrap.dedent(tracker)!r}]
        tracker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        tracker.stdout.readline()  # so that its start does not count
        os.kill(os.getpid(), 9)"""
    assert run_group(python(killed), (), lambda line: None) == -signal.SIGKILL
    assert (tmp_path / "cleaned up").exists()


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
def run(work, monkeypatch):
    """run(result, rank): the status and result.json of a stage that returns or raises `result`, and
    its arguments."""
    monkeypatch.setattr(program, "end_with_parent", lambda *_: None)

    def start(result, rank: str = "") -> tuple[int, dict, list]:
        received: list = []

        def stage(*arguments) -> Outcome:
            received.extend(arguments)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(decode_videos, "run", stage)
        for name, value in (("RANK", rank), ("WORLD_SIZE", "3")):
            monkeypatch.setenv(name, value) if rank else monkeypatch.delenv(name, raising=False)
        status = program.main(work)
        file = work.with_name("result.json")
        return status, read_json(file) if file.exists() else {}, received

    return start


def test_the_stage_receives_the_work_file_and_its_outcome_is_the_result(run, tmp_path):
    outcome = Outcome(
        {"items": 2, "left": 1}, {"loss": 0.5}, ["a", "b"], "float32", {"x.tar": "ab"}
    )
    status, result, (config, inputs, out, resources) = run(outcome)
    assert (status, Outcome(**result)) == (0, outcome)
    assert (config.size, config.frames) == (64, 8)
    assert (inputs, out) == (decode_videos.Inputs(manifest=tmp_path), tmp_path / "out")
    assert (resources.workers, resources.device) == (3, "cpu")


ERRORS = {
    EXIT_INPUT_ERROR: [
        InputError("no captions"),
        *(OSError(number, "No space", "clips.tar") for number in DISK_FULL),
    ],
    EXIT_INTERRUPTED: [
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError(),
        InterruptedExit("it received SIGTERM"),
    ],
    "raised": [FileNotFoundError("x"), PermissionError("x"), ValueError("a bug"), SystemExit(3)],
}
# Of a signal: torchrun also sends it to the ranks that are left when one has failed.
ERRORS["raised"] += [SystemExit(EXIT_INTERRUPTED)]
ERRORS[EXIT_INTERRUPTED] += [ConnectionResetError("https://host/a.mp4: reset")]


@pytest.mark.parametrize("status", ERRORS)
def test_an_error_is_the_persons_or_passes_or_is_a_bug(status, run, work, capsys):
    for error in ERRORS[status]:
        if status == "raised":
            with pytest.raises(type(error)):
                run(error)
            continue
        work.with_name("result.json").unlink(missing_ok=True)
        found, result, _ = run(error)
        assert (found, list(result)) == (
            status,
            ["error" if status == EXIT_INPUT_ERROR else "interrupted"],
        )
        said = status == EXIT_INTERRUPTED and not isinstance(
            error, SystemExit
        )  # what ends the run, the launcher says
        assert len(capsys.readouterr().err.splitlines()) == said


def test_the_first_rank_that_fails_says_why_and_the_first_rank_writes_the_outcome(
    run, work, capsys, monkeypatch
):
    monkeypatch.setenv("GROUP_RANK", "1")  # of another node, which has a terminal of its own
    assert run(InputError("clips: no captions"), "1")[:2] == (
        EXIT_INPUT_ERROR,
        {"error": "clips: no captions"},
    )
    assert capsys.readouterr().err == "error: clips: no captions\n"
    assert run(InputError("other"), "2")[1] == {"error": "clips: no captions"}
    work.with_name("result.json").unlink()
    assert run(Outcome({"items": 2}), "1")[1] == {}
    assert run(Outcome({"items": 2}), "0")[1]["counts"] == {"items": 2}


def test_it_runs_as_a_module(work, tmp_path):
    write_json(work, read_json(work) | {"inputs": {"sample": str(tmp_path / "nowhere")}})
    done = subprocess.run([*ALONE[:-1], str(work)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (EXIT_INPUT_ERROR, "")
    assert "nowhere" in read_json(work.with_name("result.json"))["error"]


# GPUs, of which this machine needs none.

# names, and what identifies each
ONE = {"0": "a"}
TWO = {"0": "a", "1": "b"}


def test_runs_take_different_devices_and_then_wait(tmp_path, monkeypatch):
    lines: list[str] = []
    with ExitStack() as other:
        assert other.enter_context(reserved(TWO, 1, pytest.fail, tmp_path))[0] == ["0"]
        with reserved(TWO, 1, pytest.fail, tmp_path) as (names, locks):
            assert (names, len(locks)) == (["1"], 1)
        # A device is locked whatever a job calls it: "0" may be another one in another job.
        with reserved({"GPU-a": "a", "GPU-b": "b"}, 1, pytest.fail, tmp_path) as (names, _):
            assert names == ["GPU-b"]
            with reserved({"0": "c"}, 1, pytest.fail, tmp_path) as (others, _):
                assert others == ["0"]

        waits = [other.close, lambda: None]  # the other run ends in the meantime

        def wait(self: Stop, seconds: float) -> None:
            with reserved(TWO, 1, pytest.fail, tmp_path) as (free, _):
                assert free == ["1"]  # a run that waits for two holds none
            waits.pop()()

        monkeypatch.setattr(Stop, "wait", wait)
        with reserved(TWO, 2, lines.append, tmp_path) as (names, _):
            assert names == ["0", "1"]
    assert lines == ["waits for 2 free GPUs of 2; others are in use"]


def test_a_stopped_run_does_not_wait(tmp_path, stop):
    with reserved(ONE, 1, pytest.fail, tmp_path), pytest.raises(Stopped):
        reserved(ONE, 1, lambda line: stop.request(), tmp_path).__enter__()
    with reserved(ONE, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["0"]


def test_a_process_that_inherits_the_locks_keeps_the_devices(tmp_path):
    """A training process whose pipeline is killed."""
    pipeline = f"""
        import os, subprocess
        from pathlib import Path
        from alpro.pipeline.execution.devices import reserved
        with reserved({ONE}, 1, print, Path({str(tmp_path)!r})) as (_, locks):
            subprocess.Popen(["cat"], pass_fds=locks)
            os._exit(9)"""
    killed = subprocess.Popen(python(pipeline), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.wait() == 9
    with reserved(TWO, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["1"]
    killed.stdin.close()  # cat ends
    assert killed.stdout.read() == b""
    with reserved(ONE, 1, print, tmp_path) as (
        names,
        _,
    ):  # it may close its output first, and then the lock
        assert names == ["0"]


def test_without_devices_nothing_is_reserved_and_too_few_or_no_folder_are_errors(tmp_path):
    with reserved({}, 4, pytest.fail, tmp_path / "locks") as taken:
        assert taken == ([], ())
    assert not (tmp_path / "locks").exists()
    assert visible_devices(Resources(device="cpu")) == {}
    (tmp_path / "file").write_text("")
    for count, folder, named in (
        (2, tmp_path, "visible GPUs is 1"),
        (1, tmp_path / "file" / "x", "locks of the GPUs"),
    ):
        with pytest.raises(InputError, match=named), reserved(ONE, count, print, folder):
            pass


def test_devices_have_the_names_of_cuda_and_an_identity(monkeypatch):
    """The identities are asked of CUDA in a process of its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(devices, "UUIDS", "print('a', 'b')")
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    devices.device_uuids.cache_clear()
    assert visible_devices(Resources()) == TWO
    for visible, found in (
        ("", TWO),
        ("3, GPU-b", {"3": "a", "GPU-b": "b"}),
        ("MIG-1,MIG-2", {"MIG-1": "MIG-1", "MIG-2": "MIG-2"}),  # two parts of one GPU
    ):
        monkeypatch.setenv(devices.VISIBLE, visible)
        devices.device_uuids.cache_clear()
        assert visible_devices(Resources()) == found
    devices.device_uuids.cache_clear()


def test_a_driver_that_is_too_old_is_one_line_with_its_version(monkeypatch, tmp_path):
    """NVML counts the GPU, but CUDA cannot use it."""
    reason = "The NVIDIA driver on your system is too old (found version 12040)."
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5 2024\n")
    monkeypatch.setattr(devices, "DRIVER", driver)
    monkeypatch.setattr(devices, "UUIDS", f"raise RuntimeError({reason!r})")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    devices.device_uuids.cache_clear()
    with one_line("too old", "550.54.15", "resources.device=cpu"):
        visible_devices(Resources())


def test_a_stage_gets_free_devices_and_their_locks(group, tmp_path, monkeypatch):
    monkeypatch.setattr(
        launch, "visible_devices", lambda resources: {"0": "a", "GPU-1": "b", "2": "c"}
    )
    monkeypatch.setattr(launch, "reserved", partial(reserved, folder=tmp_path / "locks"))
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), Resources(processes=2), lock_file=5)
    assert group["settings"] == {"CUDA_VISIBLE_DEVICES": "0,GPU-1", **ALLOCATOR}
    assert len(group["locks"]) == 3
    several = Resources(nodes=2, rendezvous="host:29500")
    printed: list[str] = []
    run_stage(PRETRAIN, tmp_path, Store(tmp_path), several, say=printed.append)
    # GPUs have other names on another node.
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True python" in printed[0]
    run_stage(
        CACHE, tmp_path, Store(tmp_path), Resources(processes=2)
    )  # it is neither training nor evaluation
    assert group["settings"] == {"CUDA_VISIBLE_DEVICES": "0", **ALLOCATOR}
