"""Where the run of a deployment reads and writes: the environment of its worker says it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import load_config
from alpro.pipeline.flows import flow


@pytest.fixture
def worker(tmp_path, monkeypatch) -> Path:
    """This process runs a deployment, in a temporary folder of Prefect's; returns the workspace of its worker."""
    root = tmp_path / "w"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "mine.toml").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    monkeypatch.setattr(flow, "deployment", SimpleNamespace(id="blue-fox"))
    monkeypatch.setenv("ALPRO_WORKSPACE", str(root))
    monkeypatch.setenv("ALPRO_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.delenv("ALPRO_CONFIGS", raising=False)
    return root


def test_a_run_of_a_deployment_is_in_the_workspace_of_its_worker(worker, tmp_path, monkeypatch):
    request = flow.request_of("pretrain", "sample + mine.toml", "videos", [], "", "", True)
    assert (request.workspace, request.tracking_uri) == (worker, "http://127.0.0.1:5000")
    assert request.config == f"sample+{worker}/configs/mine.toml"
    assert request.passed == {"workspace": "", "tracking_uri": ""}  # each step's worker has its own
    assert Path.cwd() == worker  # relative paths are in it, and the records name it
    other = flow.request_of("", f"{tmp_path}/a.toml", "", [], str(tmp_path / "own"), "http://mlflow:5000", True)
    assert (other.workspace, other.tracking_uri) == (tmp_path / "own", "http://mlflow:5000")
    assert other.config == f"{tmp_path}/a.toml"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "far.toml").touch()
    monkeypatch.setenv("ALPRO_CONFIGS", f"{worker}/configs,{tmp_path}/more")
    assert flow.request_of("", "far.toml+mine.toml", "", [], "", "", True).config == (
        f"{tmp_path}/more/far.toml+{worker}/configs/mine.toml"
    )


@pytest.mark.parametrize("workspace", ["", "workspace", "{{ $ALPRO_WORKSPACE }}"])
def test_a_worker_needs_a_workspace(workspace, worker, monkeypatch):
    """A relative one would be in a folder of the worker's, and each run would begin with an empty one."""
    monkeypatch.setenv("ALPRO_WORKSPACE", workspace)
    with pytest.raises(InputError, match=r"ALPRO_WORKSPACE = .* is not an absolute path"):
        flow.request_of("", "sample", "", [], "", "", True)


def test_a_run_of_the_command_line_is_where_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALPRO_WORKSPACE", "/elsewhere")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").touch()
    request = flow.request_of("", "mine.toml", "", [], "", "", False)
    assert request.passed is None
    assert (request.workspace, request.tracking_uri, request.config) == (tmp_path / "workspace", "", "mine.toml")
    assert os.fspath(Path.cwd()) == str(tmp_path)


def test_a_value_of_the_wrong_type_is_one_line():
    with pytest.raises(InputError, match=r"--set resources\.dask=1: resources\.dask: .*string"):
        load_config("sample", "", ["resources.dask=1"])
