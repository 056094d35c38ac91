"""Failures during training: samples that cannot be read, a killed loading process or rank, a full
disk."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.execution import run_stage
from alpro.shards.reader import read_index
from alpro.stages.execution.interface import EXIT_INPUT_ERROR, Resources
from tests.conftest import ROOT, one_line
from tests.stages.training.conftest import full_disk, loading_processes
from tests.stages.training.test_resume import OFTEN, assert_same


def status_of_a_stage(stage, folder):
    """The exit status of the program of a stage that calls `stage`. The test fails if it does not
    end."""

    def program():
        os.setsid()
        run_stage.run = lambda work: stage()
        run_stage.start(folder / "work.json")

    write_json(folder / "work.json", {"out": str(folder), "stage": "pretrain"})
    process = multiprocessing.get_context("fork").Process(target=program)
    process.start()
    process.join(60)
    ended = process.exitcode
    if ended is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert ended is not None
    return ended


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("CUDA error: unspecified launch failure"), 1, "Traceback"),
        (SystemExit(0), 1, "SystemExit"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            EXIT_INPUT_ERROR,
            "checkpoint_activations",
        ),
        (InputError("clips.tar: cut short"), EXIT_INPUT_ERROR, "clips.tar: cut short"),
    ],
)
def test_any_error_ends_a_stage_with_loading_processes(
    error, status, message, new_run, tmp_path, capfd
):
    def fail():
        raise error

    def stage():
        with loading_processes(2):
            new_run("run").start(before=3, stop=fail)

    assert status_of_a_stage(stage, tmp_path) == status
    result = tmp_path / "result.json"
    assert message in (
        result.read_text() if result.exists() else capfd.readouterr().err
    )


@pytest.fixture
def loading(clips, steps_of, resources):
    """The batches of 20 steps, and the process that loads them."""
    others = set(multiprocessing.active_children())
    with loading_processes(1):
        batches = steps_of({"clips": clips}, 20).loader(
            0, resources, torch.device("cpu")
        )
    (process,) = set(multiprocessing.active_children()) - others
    return batches, process


def test_a_dead_dataloader_worker_is_an_error_of_the_next_batch(loading):
    """And of nothing that the training process does meanwhile."""
    batches, process = loading
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        process.kill()
        process.join()
        # torch's handler of SIGCHLD would raise here.
        assert sum(range(1000)) == 499500
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_a_full_disk_keeps_the_earlier_checkpoints_and_the_run_continues(new_run):
    whole, broken = (new_run(name, run=OFTEN) for name in ("whole", "broken"))
    whole.start()
    broken.kill(before=3)
    assert broken.checkpoints == ["step-00000002", "step-00000003"]
    with full_disk(40_000):
        broken.kill(before=6)
    assert broken.checkpoints == ["step-00000002", "step-00000003"]

    broken.start()

    assert_same(whole, broken)


@pytest.mark.parametrize("is_ended", [True, False])
def test_best_weights_that_a_full_disk_refuses_are_the_result(new_run, is_ended):
    def validate(objective, disk=None):
        scores.append(len(scores))
        if disk and len(scores) == 2:
            disk.enter_context(full_disk(40_000))
        if disk and len(scores) == 3 and is_ended:
            disk.close()
        return {"validation/score": [1.0, 3.0, 2.0, 0.0][len(scores) - 1]}

    def start(name, disk=None):
        scores.clear()
        chosen = {
            "validate": partial(validate, disk=disk),
            "select": "validation/score",
        }
        run = new_run(name, run=OFTEN | chosen, validation={"times": 4})
        return run, run.start()

    scores = []
    whole, expected = start("whole")
    with ExitStack() as disk:
        broken, final = start("broken", disk)

    assert final == expected
    assert_same(whole, broken)


def test_a_full_disk_is_one_line_whatever_library_writes(
    tokenizer, tmp_path, monkeypatch
):
    def write(work):
        with full_disk(1_000):
            tokenizer.save(str(tmp_path / "tokenizer.json"))

    monkeypatch.setattr(run_stage, "run", write)
    write_json(tmp_path / "work.json", {"out": str(tmp_path)})

    assert run_stage.main(tmp_path / "work.json") == EXIT_INPUT_ERROR

    assert "\n" not in read_json(tmp_path / "result.json")["error"]


@pytest.mark.parametrize("unit", ["sample", "caption"])
def test_a_corrupt_sample_is_logged_and_replaced_by_the_next_readable_one(
    unit, clips, steps_of, tmp_path
):
    """The official code puts another one there without a word (departure 7). It is no caption of
    the same sample."""
    folder = tmp_path / "broken"
    shutil.copytree(clips, folder)
    rows = [row for row in read_index(clips).to_pylist() if row["split"] == "train"]
    for row in rows[:2]:
        content = bytearray((folder / row["shard"]).read_bytes())
        for offset in row["frame_offsets"]:
            content[offset : offset + 64] = bytes(64)
        (folder / row["shard"]).write_bytes(content)
    lost = [row["id"] for row in rows[:2]]

    whole = steps_of({"clips": clips}, 30, unit=unit)
    mended = steps_of({"clips": folder}, 30, unit=unit)

    replaced = 0
    for step in range(30):
        batch = mended[step]
        ids = whole[step].ids
        gone = [name for name in ids if name in lost]
        assert batch.ids == [rows[2]["id"] if name in lost else name for name in ids]
        assert len(batch.unreadable) == len(gone)
        for name, line in zip(gone, batch.unreadable, strict=True):
            assert f": {name}: " in line
        replaced += len(gone)
    assert replaced > (2 if unit == "sample" else 0)


def test_a_corpus_without_a_readable_sample_is_an_error_of_one_line(
    clips, steps_of, tmp_path, resources
):
    shutil.copytree(clips, tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.tar"):
        shard.write_bytes(b"")
    data = steps_of({"clips": tmp_path / "broken"})
    with loading_processes(1), one_line("20 consecutive samples", "truncated"):
        next(data.loader(0, resources, torch.device("cpu")))


def test_loading_processes_ignore_the_signals_of_their_group(loading):
    batches, process = loading
    next(batches)

    os.kill(process.pid, signal.SIGTERM)

    assert [batch.step for batch in batches] == list(range(1, 20))


@pytest.mark.parametrize(
    ("how", "output"),
    [
        ("input-error", "clips/shard-000001.tar: cut short"),
        pytest.param("silent", "imed out", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_its_own_error_first(
    how, output, tmp_path, free_port
):
    """At once, without waiting for the limit; a silent one at the limit."""
    resources = Resources(
        device="cpu", rank_timeout=3 if how == "silent" else 600
    ).model_dump()
    work = tmp_path / "work.json"
    result = tmp_path / "result.json"
    write_json(
        work, {"out": str(tmp_path / "out"), "inputs": {}, "resources": resources}
    )
    meeting = [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=test",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        *meeting,
    ]
    command += [Path(__file__).with_name("part_of_a_failure.py"), work, how]
    ended = subprocess.run(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=600
    )
    message = ended.stderr
    assert ended.returncode != 0
    if how == "input-error":  # the launcher prints it
        assert result.exists(), message
        assert read_json(result) == {"error": output}
        return
    assert output in message
    assert not result.exists()
