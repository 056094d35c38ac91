"""The MLflow store of a workspace: it is made once, where the workspace is, and a copy is refused
before it writes into the original."""

import shutil
from unittest.mock import Mock

import pytest

from alpro.errors import InputError
from alpro.pipeline.tracking.store import check_store, store_uri
from alpro.pipeline.tracking.tracker import Tracker
from tests.conftest import one_line
from tests.pipeline.conftest import write_artifact


@pytest.fixture
def original(mlflow_store, tmp_path):
    """Create a workspace with an artifact and an experiment that has a run."""
    folder = tmp_path / "first place"
    folder.mkdir()
    mlflow_store(folder)
    tracker = Tracker.open("", folder, "sample")
    tracker.log_artifact(*write_artifact(folder, "build_vocabulary"))
    return folder


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_the_store_of_a_workspace_that_was_copied_or_moved_is_refused(
    how, original, tmp_path
):
    other = tmp_path / "100% other #2"
    how(original, other)

    with pytest.raises(InputError, match=r"files are in .*first%20place.*move it away"):
        Tracker.open("", other, "sample")
    with pytest.raises(InputError):
        Tracker.open(store_uri(other), other, "another experiment")


def test_a_store_whose_creation_was_interrupted_is_created_by_the_next_run(
    tmp_path, monkeypatch
):
    """Some of its tables would be there, and MLflow would fail for ever to create the others."""
    monkeypatch.setattr(
        "mlflow.store.db.utils._upgrade_db", Mock(side_effect=KeyboardInterrupt)
    )

    with pytest.raises(KeyboardInterrupt):
        Tracker.open("", tmp_path, "x")

    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]


def test_a_workspace_whose_path_would_be_cut_in_an_address_is_refused(tmp_path):
    with one_line("?"):
        Tracker.open("", tmp_path / "a?b", "x")


@pytest.mark.parametrize("content", [b"garbage" * 500, b""])
def test_a_damaged_store_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    (tmp_path / "mlflow.db").write_bytes(content)

    with one_line("mlflow.db", "not a database", "move it away"):
        check_store(tmp_path)


def test_a_deleted_experiment_is_one_line_that_says_how_to_restore_it(original):
    tracker = Tracker.open("", original, "sample")
    tracker.client.delete_experiment(tracker.experiment)

    with pytest.raises(InputError, match=r"deleted.*restore.*--set name"):
        Tracker.open("", original, "sample")

    Tracker.open("", original, "other")
