"""Runs at the same time use different GPUs; this machine needs none."""

import subprocess
import sys
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.execution import devices
from alpro.pipeline.execution.devices import reserved, visible_devices
from alpro.stages.execution.interface import Resources, Stopped
from alpro.stages.execution.stop import STOP, Stop

ONE, TWO = {"0": "a"}, {"0": "a", "1": "b"}  # names, and what identifies each

# Another process of this machine: it reserves a device of two, prints it, and keeps it until its input ends.
OTHER = """import sys
from pathlib import Path
from alpro.pipeline.execution.devices import reserved
with reserved({"0": "a", "1": "b"}, 1, print, Path(sys.argv[1])) as (names, _):
    print(*names, flush=True)
    sys.stdin.read()
"""


def other(folder: Path) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_runs_take_different_devices_and_then_wait(tmp_path, monkeypatch):
    first, name = other(tmp_path)
    assert name == "0"
    lines: list[str] = []
    with reserved(TWO, 1, lines.append, tmp_path) as (names, locks):
        assert (names, len(locks), lines) == (["1"], 1, [])

    def wait(self: Stop, seconds: float) -> None:  # the other run ends in the meantime
        first.communicate()

    monkeypatch.setattr(Stop, "wait", wait)
    with reserved(TWO, 2, lines.append, tmp_path) as (names, _):
        assert names == ["0", "1"]
    assert lines == ["waits for 2 free GPUs of 2; others are in use"]


def test_a_stopped_run_does_not_wait(tmp_path):
    first, _ = other(tmp_path)
    stop = Stop()
    token = STOP.set(stop)
    try:
        with pytest.raises(Stopped), reserved(ONE, 1, lambda line: stop.request(), tmp_path):
            pass
    finally:
        STOP.reset(token)
        first.communicate()
    with reserved(ONE, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["0"]


def test_a_process_that_inherits_the_locks_keeps_the_devices(tmp_path):
    """A training process whose pipeline is killed."""
    program = OTHER.replace("sys.stdin.read()", "subprocess.Popen(['cat'], pass_fds=_); os._exit(9)")
    command = [sys.executable, "-c", "import os, subprocess\n" + program, str(tmp_path)]
    killed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline() == "0\n"
    assert killed.wait() == 9
    with reserved(TWO, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["1"]
    killed.stdin.close()  # cat ends
    assert killed.stdout.read() == ""
    with reserved(ONE, 1, print, tmp_path) as (names, _):  # it may close its output first, and then the lock
        assert names == ["0"]


def test_stages_of_one_process_take_different_devices_too(tmp_path):
    def take():
        return reserved(TWO, 1, pytest.fail, tmp_path)

    with take() as (first, _):
        with take() as (second, _):
            assert (first, second) == (["0"], ["1"])
        process, name = other(tmp_path)
        assert name == "1"  # "0" is still in use here
        process.communicate()


def test_without_devices_nothing_is_reserved(tmp_path):
    with reserved({}, 4, pytest.fail, tmp_path / "locks") as taken:
        assert taken == ([], ())
    assert not (tmp_path / "locks").exists()
    assert visible_devices(Resources(device="cpu")) == {}


def test_too_few_devices_and_an_unusable_folder(tmp_path):
    with (
        pytest.raises(InputError, match="the number of visible GPUs is 1"),
        reserved(ONE, 2, print, tmp_path),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the locks of the GPUs"), reserved(ONE, 1, print, tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, {"0": "a", "1": "b"}),
        ("", {"0": "a", "1": "b"}),
        ("3, GPU-b", {"3": "a", "GPU-b": "b"}),
        ("MIG-1,MIG-2", {"MIG-1": "MIG-1", "MIG-2": "MIG-2"}),  # two parts of one GPU
    ],
)
def test_devices_have_the_names_of_cuda_and_an_identity(visible, found, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(devices, "device_uuids", lambda visible: ["a", "b"])
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    assert visible_devices(Resources()) == found


def test_a_device_is_locked_whatever_a_job_calls_it(tmp_path):
    """By its index here and by its UUID there: one device. "0" in two jobs of a cluster: two."""
    first, _ = other(tmp_path)  # has "0", which is a
    with reserved({"GPU-a": "a", "GPU-b": "b"}, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["GPU-b"]
    with reserved({"0": "c"}, 1, pytest.fail, tmp_path) as (names, _):
        assert names == ["0"]
    first.communicate()


def test_uuids_are_asked_of_cuda_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(devices, "UUIDS", "print('a', 'b')")
    devices.device_uuids.cache_clear()
    assert devices.device_uuids("0,1") == ["a", "b"]
    devices.device_uuids.cache_clear()


def test_the_folder_of_the_locks_is_the_same_in_each_job(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert not devices.FOLDER.is_relative_to("/tmp")
    assert devices.FOLDER.is_absolute()
