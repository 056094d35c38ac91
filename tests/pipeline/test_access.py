"""What a run of a deployment may read: its workspace and the folders that its worker names, nothing else."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.errors import InputError
from alpro.pipeline import access, flow
from alpro.pipeline.access import Limits
from alpro.pipeline.config import load_config
from tests.pipeline.conftest import TINY

SECRET = "hush-of-the-machine"


@pytest.fixture
def place(tmp_path) -> Path:
    """A workspace with a configuration and data; a folder of videos beside it; secrets outside of both."""
    for folder in ("w/configs", "w/data/mine", "videos/mine", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "w" / "configs" / "tiny.toml").write_text(Path(TINY).read_text())
    (tmp_path / "outside" / "secret.toml").write_text(SECRET)
    (tmp_path / "w" / "configs" / "link.toml").symlink_to(tmp_path / "outside" / "secret.toml")
    (tmp_path / "w" / "data" / "link").symlink_to(tmp_path / "outside")
    return tmp_path


@pytest.fixture
def limits(place) -> Limits:
    return Limits.of(
        {
            "ALPRO_WORKSPACE": str(place / "w"),
            "ALPRO_DATA": f"{place}/videos, s3://bucket/clips",
            "ALPRO_TRACKING_URI": "http://127.0.0.1:5000",
            "ALPRO_HOSTS": "scheduler:8786",
        }
    )


@pytest.mark.parametrize("workspace", ["", "workspace", "{{ $ALPRO_WORKSPACE }}"])
def test_a_worker_needs_a_workspace(workspace):
    """A relative one would be in a folder of the worker's, and each run would begin with an empty one."""
    with pytest.raises(InputError, match=r"ALPRO_WORKSPACE = .* is not an absolute path"):
        Limits.of({"ALPRO_WORKSPACE": workspace})


def test_configurations_ship_or_are_in_the_folder(limits, place):
    file = str(place / "w" / "configs" / "tiny.toml")
    for source, found in [
        ("sample", "sample"),
        ("tiny.toml", file),
        (file, file),
        ("sample + tiny.toml", f"sample+{file}"),
    ]:
        assert limits.check_config(source) == found
    for source in (
        f"{place}/outside/secret.toml",
        "../../outside/secret.toml",
        "link.toml",
        "/etc/passwd",
        "/no/such/file.toml",
        "sample+/etc/passwd",
        "",
    ):
        with pytest.raises(InputError, match=r"neither a shipped configuration \(.*\) nor a .toml file in") as error:
            limits.check_config(source)
        assert SECRET not in str(error.value)


def test_data_is_in_the_workspace_or_in_a_named_folder(limits, place):
    for data, found in [
        ("", ""),
        (f"{place}/videos/mine", f"{place}/videos/mine"),
        ("mine", f"{place}/videos/mine"),
        ("data/mine", f"{place}/w/data/mine"),
        ("s3://bucket/clips", "s3://bucket/clips"),
        ("s3://bucket/clips/a.jsonl", "s3://bucket/clips/a.jsonl"),
    ]:
        assert limits.check_data(data) == found
    for data in (
        f"{place}/outside",
        f"{place}/videos/../outside",
        f"{place}/w/data/link",
        "link",
        "../outside",
        "~",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://bucket/other",
        "s3://bucket/clips-of-others",
        "s3://bucket/clips/../other",
        "s3://bucket/clips/%2e%2e/other",
        "simplecache::file:///etc/passwd",
        "s3://bucket/clips::file:///etc/passwd",
    ):
        with pytest.raises(InputError, match=r"data = .*: not in"):
            limits.check_data(data)


def test_a_password_is_refused_and_not_repeated(limits):
    url = f"s3://key:{SECRET}@bucket/clips"
    for refused in (
        lambda: limits.check_data(url),
        lambda: limits.check_config(url),
        lambda: limits.check_values({"resources": {"artifacts": url}}),
        lambda: limits.check_values({"resources": {"dask": url}}),
    ):
        with pytest.raises(InputError) as error:
            refused()
        assert SECRET not in str(error.value)
    with pytest.raises(InputError, match="this URL contains a user name"):
        limits.check_data(url)


def test_the_workspace_and_the_store_are_those_of_the_worker(limits, place):
    assert limits.check_workspace("") == str(place / "w")
    assert limits.check_workspace(f"{place}/w/second") == f"{place}/w/second"
    for workspace in (f"{place}/outside", f"{place}/w/../outside", f"{place}/w/data/link", "second", "/"):
        with pytest.raises(InputError, match="workspace = "):
            limits.check_workspace(workspace)
    assert limits.check_tracking_uri("") == "http://127.0.0.1:5000"
    assert limits.check_tracking_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    for uri in ("sqlite:////etc/x.db", "http://elsewhere"):
        with pytest.raises(InputError, match="this worker logs to"):
            limits.check_tracking_uri(uri)


@pytest.mark.parametrize(
    "change",
    [
        "pretrained=/etc",
        "templates=/etc/passwd",
        "templates='{place}/outside/secret.toml'",
        "build_vocabulary.entities_file='{place}/w/data/link/secret.toml'",
        "build_vocabulary.tagger=/etc",
        "corpora.clips.manifest=../../../outside/secret.toml",
        "corpora.clips.manifest=/etc/passwd",
        "corpora.clips={{data='/etc'}}",
        "corpora.clips.annotations.train=/etc/passwd",
        "corpora.clips.root=/",
        "corpora.clips.shards=http://169.254.169.254/",
        "pretrain.vit=~/x",
        "train_prompter.bert=a/../../../etc",
        "resources.artifacts=/tmp",
        "resources.artifacts=s3://bucket/other",
        "resources.dask=tcp://evil:8786",
        "resources.rendezvous=evil:29500",
    ],
)
def test_a_changed_value_leads_nowhere_else(change, limits, place, monkeypatch):
    monkeypatch.chdir(place / "outside")
    with pytest.raises(InputError) as error:
        load_config("sample", "", [change.format(place=place)], limits.check_values)
    assert "not in" in str(error.value) or "not one of the addresses" in str(error.value)
    assert SECRET not in str(error.value)


def test_named_places_and_names_on_the_hub_are_allowed(limits, place):
    changes = [
        f"resources.artifacts={place}/videos/shared",
        "pretrain.vit=google/vit-base-patch16-224",
        "resources.dask=tcp://scheduler:8786",
        "render_sample.seed=3",
    ]
    assert load_config("sample", "", changes, limits.check_values) == load_config("sample", "", changes)


def test_a_configuration_in_the_folder_is_checked_too(limits, place):
    (place / "w" / "configs" / "far.toml").write_text("[corpora.clips]\nroot = '/etc'\n")
    with pytest.raises(InputError, match=r"corpora\.clips\.root = /etc: not in"):
        load_config(limits.check_config("sample+far.toml"), "", [], limits.check_values)


@pytest.fixture
def deployed(limits, place, monkeypatch) -> None:
    """This process runs a deployment."""
    monkeypatch.setattr(access, "deployed", lambda: True)
    monkeypatch.setenv("ALPRO_WORKSPACE", str(place / "w"))
    for name in ("ALPRO_CONFIGS", "ALPRO_DATA", "ALPRO_TRACKING_URI", "ALPRO_HOSTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("prefect", "deployed")
@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "/etc/passwd"},
        {"data": "/etc"},
        {"workspace": "/tmp"},
        {"tracking_uri": "sqlite:////tmp/x.db"},
        {"changes": ["build_vocabulary.entities_file=/etc/passwd"]},
        {"values": {"entities_file": "/etc/passwd"}},
        {"handover": {"experiment": "x", "parent_run": "", "resources": {"artifacts": "/tmp"}, "steps": []}},
    ],
)
def test_a_run_of_a_deployment_stops_before_it_reads_anything(parameters, place):
    with pytest.raises(InputError, match=r"passwd|not in|logs to"):
        flow.build_vocabulary(**parameters)
    assert not (place / "w" / "artifacts").exists()
    assert not (place / "w" / "mlflow.db").exists()


def test_a_handed_step_is_checked(limits):
    step = {"config": {"size": 64}, "paths": {"data": "/etc"}}
    with pytest.raises(InputError, match=r"steps\.0\.paths\.data = /etc: not in"):
        limits.check_values({"steps": [step]})


@pytest.mark.parametrize("deployment", [None, "d1"])
def test_only_runs_of_deployments_have_limits(deployment, place, monkeypatch):
    monkeypatch.setattr("prefect.runtime.deployment", SimpleNamespace(id=deployment))
    monkeypatch.setenv("ALPRO_WORKSPACE", str(place / "w"))
    assert (access.current_limits() is not None) is (deployment is not None)
