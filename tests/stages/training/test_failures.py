"""Failures during training: a killed loading process, a full disk."""

import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from alpro.stages.training import dataset
from alpro.stages.training.loop import EXIT_INTERRUPTED
from tests.stages.training.test_resume import OFTEN, assert_same


def test_a_run_with_a_killed_loading_process_can_be_resumed(new_run, capfd):
    whole, broken = (new_run(name, run=OFTEN, steps=40) for name in ("whole", "broken"))
    whole.start()
    loader = dataset.DataLoader
    one = {"num_workers": 1, "prefetch_factor": 1}

    def lose_a_loading_process() -> None:
        dataset.DataLoader = lambda *args, **kwargs: loader(*args, **kwargs | one)
        broken.start(before=3, stop=lambda: [child.kill() for child in multiprocessing.active_children()])

    # A separate process: torch remembers loading processes, and reports a death at any later time.
    process = multiprocessing.get_context("fork").Process(target=lose_a_loading_process)
    process.start()
    process.join(120)
    assert process.exitcode == EXIT_INTERRUPTED
    assert "Continue from the last checkpoint" in capfd.readouterr().err
    broken.start()
    assert_same(whole, broken)


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file can grow beyond `most` bytes: the kernel refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
