"""What a shell, a proxy, a job of a cluster, a container or a disk sets or lacks."""

import errno
import os
import signal
import stat
import subprocess

import pytest

from alpro.environment import exempt_local_hosts, prepare, unset_ranks
from alpro.errors import InputError
from alpro.files import read_json, use_default_mode, write_json
from alpro.interpreter import interpreter
from alpro.locks import acquire, file_lock
from alpro.pipeline.execution.processes import Launch, get_environment
from alpro.stages import render_sample
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.step import Step


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "s3.corp.example"}, "s3.corp.example,127.0.0.1,localhost"),
        ({"NO_PROXY": "a,localhost", "no_proxy": "b"}, "b,127.0.0.1,localhost"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_this_machine_is_reached_past_proxies_and_the_users_hosts_stay(given, hosts):
    environment = {"HTTP_PROXY": "http://proxy:3128", **given}
    for _ in range(2):  # a program of this project starts another
        exempt_local_hosts(environment)
        assert environment == {
            "HTTP_PROXY": "http://proxy:3128",
            "NO_PROXY": hosts,
            "no_proxy": hosts,
        }


def test_a_stage_on_a_cpu_is_alone_whatever_the_ranks_and_gpus_of_its_pod(monkeypatch):
    ranks = {
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "PET_NNODES",
        "TORCHELASTIC_RUN_ID",
        "ROLE_NAME",
    }
    for name in ranks:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")

    step = Step("render_sample", "render_sample", render_sample.Config())
    environment = get_environment(step, Resources(device="cpu"), Launch())
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert ranks.isdisjoint(environment)
    # The user's own, instead of this project's.
    assert environment["GOMP_SPINCOUNT"] == "7"

    unset_ranks(os.environ)
    assert ranks.isdisjoint(os.environ)


def test_a_user_without_a_name_has_a_home(monkeypatch):
    def getpwuid(user):
        raise KeyError(user)

    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("pwd.getpwuid", getpwuid)

    prepare()

    assert os.environ["HOME"] == "/"


def test_what_a_launcher_closes_ignores_or_sets_hides_no_status_and_no_text(tmp_path):
    code = """if True:
        import subprocess, alpro.environment
        alpro.environment.prepare()
        print("no output", flush=True)
        open("text", "w").write(f"\\xe9 {subprocess.call('false')}")
    """

    def start():
        os.close(1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        interpreter("-c", code),
        env=os.environ | locale,
        cwd=tmp_path,
        preexec_fn=start,
    )

    assert (tmp_path / "text").read_text("utf-8") == "é 1"


def test_a_torchvision_that_loads_declares_its_operators_itself(tmp_path):
    """Declared by two, they abort the process."""
    code = """if True:
        import pathlib, shutil, sys, torch
        pathlib.Path("__init__.py").touch()
        shutil.copy(torch._C.__file__, "_C.so")  # any library that loads
        sys.path.insert(0, "..")
        import alpro.models
        assert not hasattr(torch.ops.torchvision, "nms")
    """
    folder = tmp_path / "torchvision"
    folder.mkdir()
    subprocess.run(interpreter("-c", code), cwd=folder, check=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_one_line_with_what_to_do(
    number, tmp_path, monkeypatch
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for blocking in (True, False):
        with pytest.raises(InputError, match=r"no file locks.*local disk") as raised:
            acquire(file_lock(tmp_path / "a.lock"), blocking)
        assert str(tmp_path) in str(raised.value)


def test_a_disk_without_modes_does_not_lose_a_model(tmp_path, monkeypatch):
    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (file := tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(os, "chmod", chmod)
    use_default_mode(file)
    assert file.read_bytes() == b"weights"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_a_disk_that_syncs_no_folders_is_written_to(number, tmp_path, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "b.json", 1)
    assert read_json(tmp_path / "b.json") == 1
