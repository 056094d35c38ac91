"""A workspace that is copied or moved takes its MLflow files with it."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.entities import LoggedModelInput
from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.cli import main as cli
from alpro.pipeline.tracking.relocation import relocate
from alpro.pipeline.tracking.tracker import Tracker


@pytest.fixture
def original(mlflow_store, tmp_path) -> Path:
    """A workspace with a run that has a file, a logged model and a registered one."""
    folder = tmp_path / "first place"
    folder.mkdir()
    mlflow_store(folder)
    tracker = Tracker.open("", folder, "sample")
    (folder / "note.txt").write_text("of the original")
    with tracker.run("one", {}, {}) as run:
        tracker.client.log_artifact(run, str(folder / "note.txt"))
        tags = {"path": str(folder / "artifacts" / "pretrain")}
        model = tracker.client.create_logged_model(tracker.experiment, "m", run, tags)
        tracker.client.log_inputs(run, models=[LoggedModelInput(model.model_id)])
    tracker.client.create_registered_model("demo")
    source = (folder / "mlflow" / "sample" / "models" / "m").as_uri()
    tracker.client.create_model_version("demo", source)
    return folder


def addresses(workspace: Path) -> str:
    """All that the store of a workspace says, as text."""
    store = sqlite3.connect(workspace / "mlflow.db")
    text = "\n".join(store.iterdump())
    store.close()
    return text


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_copied_or_moved_workspace_writes_into_itself(how, original, tmp_path):
    how(original, tmp_path / "100% other #2")
    other = tmp_path / "100% other #2"
    kept = addresses(original) if original.exists() else ""

    tracker = Tracker.open("", other, "sample")
    with tracker.run("two", {}, {}) as run:
        tracker.client.log_artifact(run, str(other / "note.txt"))
    found = tracker.client.search_runs([tracker.experiment])
    assert len(found) == 2
    for one in found:  # the one of the original, too, whose file was copied
        (file,) = tracker.client.list_artifacts(one.info.run_id)
        assert file.path == "note.txt"
        assert (other / "mlflow").as_uri() in one.info.artifact_uri
    assert str(original) not in addresses(other)
    assert original.as_uri() not in addresses(other)
    if kept:
        assert addresses(original) == kept
    else:
        assert not original.exists()


def test_a_workspace_that_stays_is_not_written(original):
    before = (original / "mlflow.db").read_bytes()
    relocate(original)
    relocate(original / "nowhere")
    assert (original / "mlflow.db").read_bytes() == before


def test_addresses_of_other_places_stay(original, tmp_path):
    client = MlflowClient(f"sqlite:///{original / 'mlflow.db'}")
    bucket = client.create_experiment("in a bucket", "s3://bucket/experiment")
    beside = client.create_experiment("beside", f"{original.as_uri()}/mlflow2/beside")
    shutil.copytree(original, tmp_path / "copy")
    relocate(tmp_path / "copy")

    copied = MlflowClient(f"sqlite:///{tmp_path / 'copy' / 'mlflow.db'}")
    for identity in (bucket, beside):
        before = client.get_experiment(identity).artifact_location
        assert copied.get_experiment(identity).artifact_location == before


def test_a_file_that_is_no_store_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, and longer than its header " * 9)
    with pytest.raises(InputError, match=r"mlflow\.db: not usable.*move it away"):
        relocate(tmp_path)


def test_a_deleted_experiment_is_one_line_at_the_start(original):
    tracker = Tracker.open("", original, "sample")
    tracker.client.delete_experiment(tracker.experiment)
    with pytest.raises(InputError, match=r"deleted.*restore -x 1.*--set name"):
        Tracker.open("", original, "sample")
    Tracker.open("", original, "other")

    tracker.client.restore_experiment(tracker.experiment)
    assert Tracker.open("", original, "sample").experiment == tracker.experiment
    assert cli.execute(["artifacts", "ls", "--workspace", str(original)]) == 0
