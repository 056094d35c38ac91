"""The registry: models are registered by the command line, and loaded as users of MLflow would."""

import shutil
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from alpro import Model
from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import digest
from alpro.pipeline.tracking.registry import registered_folder
from alpro.pipeline.tracking.store import store_uri
from alpro.pipeline.tracking.tracker import Tracker

TEXTS = ["a red ball moves left", "where does it go?"]


def predict(model, stage, videos):
    """Return the expected predictions for pairs of a video and a text, by column."""
    if stage == "finetune_qa":
        columns: dict[str, Any] = {"answer": [], "probability": []}
        for video, text in zip(videos, TEXTS, strict=True):
            ((answer, probability),) = model.ask(video, text, top_k=1)
            columns["answer"].append(answer)
            columns["probability"].append(pytest.approx(probability, abs=1e-5))
        return columns

    similarities = model.similarity(TEXTS, videos).diagonal()
    matches = model.match(TEXTS, videos).diagonal()
    return {
        "similarity": pytest.approx(similarities, abs=1e-5),
        "match": pytest.approx(matches, abs=1e-5),
    }


@pytest.mark.parametrize(
    "stage", ["finetune_retrieval", pytest.param("finetune_qa", marks=pytest.mark.long)]
)
def test_a_registered_model_predicts_what_the_model_does(
    stage, mlflow_store, trained, sample, monkeypatch, call, tmp_path
):
    """It is loaded by its alias, without pickle, when the artifact is gone. MLflow has one as a
    logged model."""
    mlflow_store(tmp_path)
    shutil.copytree(trained / "artifacts", tmp_path / "artifacts")
    qa, folder = (
        tmp_path / "artifacts" / name / digest(name)[:16]
        for name in ("finetune_qa", stage)
    )
    Tracker.open("", tmp_path, "sample").log_artifact(qa, read_record(qa))
    videos = [str(path) for path in sorted((sample / "videos").glob("test-*.mp4"))[:2]]
    expected = predict(Model.load(folder, device="cpu"), stage, videos)

    arguments = ("--name", "shapes", "--alias", "champion", "--workspace", tmp_path)
    for version in (1, 2):
        status, out, err = call("model", "register", digest(stage)[:6], *arguments)
        assert (status, err) == (0, "")
        assert f"shapes, version {version}" in out
        assert "mlflow.pyfunc.load_model('models:/shapes@champion')" in out

    call("artifacts", "gc", "--yes", "--workspace", tmp_path)
    assert folder.is_dir()  # models of the registry stay
    folder.rename(tmp_path / "gone")

    uri = store_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/shapes@champion")
    predicted = loaded.predict(pd.DataFrame({"video": videos, "text": TEXTS})).to_dict(
        "list"
    )
    assert predicted == expected
    assert not list(tmp_path.rglob("*.pkl"))

    with pytest.raises(InputError, match="version=9"):
        registered_folder("", tmp_path, "models:/shapes/9")

    client = MlflowClient(uri)
    version = client.get_model_version_by_alias("shapes", "champion")
    assert version.tags["fingerprint"] == digest(stage)
    experiments = [str(number) for number in range(3)]
    (model,) = client.search_logged_models(
        experiments, f"tags.fingerprint = '{digest(stage)}'"
    )
    assert client.get_run(model.source_run_id).data.tags["stage"] == stage
