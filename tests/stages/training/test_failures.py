"""Failures during training: samples that cannot be read, a killed loading process, a full disk."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch

from alpro.pipeline.execution import run_stage
from alpro.shards.reader import read_index
from alpro.stages.execution.interface import EXIT_INPUT_ERROR
from alpro.stages.training import dataset, loop
from alpro.stages.training.loop import EXIT_INTERRUPTED
from tests.conftest import one_line
from tests.stages.training.conftest import full_disk, loading_processes
from tests.stages.training.test_resume import OFTEN, assert_same


def test_a_run_with_a_killed_loading_process_can_be_resumed(new_run, capfd):
    whole, broken = (new_run(name, run=OFTEN, steps=12) for name in ("whole", "broken"))
    whole.start()

    def lose_a_loading_process() -> None:
        with loading_processes(1):
            broken.start(before=3, stop=lambda: [child.kill() for child in multiprocessing.active_children()])

    # A separate process: torch remembers loading processes, and reports a death at any later time.
    process = multiprocessing.get_context("fork").Process(target=lose_a_loading_process)
    process.start()
    process.join()
    assert process.exitcode == EXIT_INTERRUPTED
    assert "continue from the last checkpoint" in capfd.readouterr().err
    broken.start()
    assert_same(whole, broken)


# What torch and the code below it raise when a loading process dies, depending on the moment.
DEATHS = (
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ConnectionResetError(104, "Connection reset by peer"),
    EOFError(),
    AttributeError("The underlying op of 'prim.layout' has no overload name 'default'"),
)


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("dies", "step"), [(True, 0), (True, 3), (False, 3)])
def test_an_error_means_a_lost_loading_process_only_if_one_has_died(new_run, error, dies, step, monkeypatch):
    monkeypatch.setattr(loop, "LOST_SECONDS", 60.0 if dies else 0.0)
    run, ends = new_run("run"), multiprocessing.Event()
    build, child = run.data, multiprocessing.get_context("fork").Process(target=ends.wait)

    def data() -> dataset.TrainingDataset:
        made = build()
        load = made.loader

        def batches(loaded):
            for batch in loaded:
                if batch.step == step:
                    if dies:
                        child.kill()
                    raise error
                yield batch

        def loader(*arguments):
            child.start()
            return batches(load(*arguments))

        made.loader = loader
        return made

    run.data = data
    try:
        with pytest.raises(SystemExit if dies else type(error)) as ended:
            run.start()
    finally:
        child.kill()
        child.join()
    assert not dies or ended.value.code == EXIT_INTERRUPTED


def test_a_full_disk_keeps_the_earlier_checkpoints_and_the_run_continues(new_run, capfd):
    whole, broken = (new_run(name, run=OFTEN) for name in ("whole", "broken"))
    whole.start()
    broken.kill(before=3)
    assert broken.checkpoints == ["step-00000002", "step-00000003"]
    with full_disk(40_000):
        broken.kill(before=6)
    output = capfd.readouterr().err
    assert "no checkpoint written after step 4: File too large; a restart resumes from step 3" in output
    assert broken.checkpoints == ["step-00000002", "step-00000003"]
    broken.start()
    assert "continuing from step 3 of 8" in capfd.readouterr().err
    assert_same(whole, broken)


def test_a_full_disk_is_one_line_whatever_library_writes(tokenizer, tmp_path, monkeypatch):
    def write(work: dict) -> None:
        with full_disk(1_000):
            tokenizer.save(str(tmp_path / "tokenizer.json"))

    monkeypatch.setattr(run_stage, "run", write)
    (tmp_path / "work.json").write_text(json.dumps({"out": str(tmp_path)}))
    assert run_stage.main(tmp_path / "work.json") == EXIT_INPUT_ERROR
    assert len(json.loads((tmp_path / "result.json").read_text())["error"].splitlines()) == 1


@pytest.mark.parametrize("unit", ["sample", "caption"])
def test_a_corrupt_sample_is_logged_and_replaced_by_the_next_one(unit, clips, steps_of, tmp_path):
    """The official code puts another one there without a word (departure 7). It is not the next caption of the same
    sample."""
    shutil.copytree(clips, tmp_path / "broken")
    first, second = [row for row in read_index(clips).to_pylist() if row["split"] == "train"][:2]
    shard, (lost, following) = tmp_path / "broken" / first["shard"], (first["id"], second["id"])
    content = bytearray(shard.read_bytes())
    for offset, size in zip(first["frame_offsets"], first["frame_sizes"], strict=True):
        content[offset : offset + min(size, 64)] = bytes(min(size, 64))
    shard.write_bytes(content)
    whole, mended = (steps_of({"clips": folder}, 30, unit=unit) for folder in (clips, tmp_path / "broken"))
    replaced = 0
    for one, other in zip(map(whole.__getitem__, range(30)), map(mended.__getitem__, range(30)), strict=True):
        gone = [place for place, name in enumerate(one.ids) if name == lost]
        assert len(other.unreadable) == len(gone)
        assert all(f": {lost}, frame " in line for line in other.unreadable)
        assert other.ids == [following if name == lost else name for name in one.ids]
        replaced += len(gone)
    assert replaced > (2 if unit == "sample" else 0)


def test_a_corpus_without_a_readable_sample_is_an_error_of_one_line(clips, steps_of, tmp_path, resources):
    shutil.copytree(clips, tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.tar"):
        shard.write_bytes(b"")
    data = steps_of({"clips": tmp_path / "broken"})
    with loading_processes(1), one_line("20 consecutive samples", "truncated"):
        next(data.loader(0, resources, torch.device("cpu")))


def test_loading_processes_ignore_the_signals_of_their_group(clips, steps_of, resources):
    others = set(multiprocessing.active_children())
    with loading_processes(1):
        batches = steps_of({"clips": clips}, 20).loader(0, resources, torch.device("cpu"))
        next(batches)
    (loading,) = set(multiprocessing.active_children()) - others
    os.kill(loading.pid, signal.SIGTERM)
    assert [batch.step for batch in batches] == list(range(1, 20))
