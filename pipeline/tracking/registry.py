"""Models in MLflow's registry: a version with an alias, which `mlflow.pyfunc.load_model` loads.

A registered model has a copy of the model folder (safetensors and JSON, no pickle). The machine
that loads it needs this package.
"""

from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.artifacts import download_artifacts
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema

from alpro import Model
from alpro.artifact import Record
from alpro.errors import InputError
from alpro.pipeline.tracking.store import find_store, one_line_errors
from alpro.pipeline.tracking.tracker import Tracker

EXPERIMENT = "models"  # where models from another store are registered
INPUTS = Schema([ColSpec("string", "video"), ColSpec("string", "text")])


def register(
    uri: str, workspace: Path, folder: Path, record: Record, name: str, alias: str
) -> str:
    """Register a copy of the model of an artifact as a new version, and set an alias.

    Returns:
        The version.

    Raises:
        InputError: If the artifact has no model, or if MLflow refuses.
    """
    if not (folder / "model").is_dir():
        raise InputError(f"{record.name} {record.fingerprint[:16]} has no model")

    tracker = Tracker.open(uri, workspace, EXPERIMENT)
    with one_line_errors(tracker.uri):
        # The version links the logged model of its training, which has the scores. The training may
        # have been logged to another store.
        if not tracker.logged_model(record.fingerprint):
            tracker.log_artifact(folder, record)

        # `log_model` belongs to the fluent API, which has one store per process.
        mlflow.set_tracking_uri(tracker.uri)
        # Hide MLflow's request for an example: no video exists on every machine.
        with redirect_stderr(StringIO()):
            model_info = mlflow.pyfunc.log_model(
                model_id=tracker.logged_model(record.fingerprint),
                name=record.stage,
                loader_module=__name__,
                data_path=str(folder / "model"),
                signature=ModelSignature(INPUTS),
                pip_requirements=["alpro-pipeline"],
                registered_model_name=name,
            )
        version = str(model_info.registered_model_version)
        client = tracker.client
        client.set_model_version_tag(name, version, "fingerprint", record.fingerprint)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    return version


def registered_folder(uri: str, workspace: Path, name: str) -> Path:
    """Return the model folder of models:/NAME@ALIAS or models:/NAME/VERSION, downloaded if the store
    is on another machine.

    Args:
        uri: Address of the store; empty: the workspace's own.

    Raises:
        InputError: If the store does not have it.
    """
    uri = uri or find_store(workspace)
    with one_line_errors(uri):
        mlflow.set_tracking_uri(uri)
        folder = Path(download_artifacts(artifact_uri=name))
        # `log_model` chose the name of the folder inside the model's.
        return folder / MlflowModel.load(folder).flavors["python_function"]["data"]


def registered_fingerprints(uri: str) -> set[str]:
    """Return the fingerprints of the artifacts whose models are in the registry of a store."""
    with one_line_errors(uri):
        versions = MlflowClient(uri).search_model_versions()
    # A version that was registered without this project has no fingerprint.
    return {version.tags.get("fingerprint", "") for version in versions}


@dataclass
class ServedModel:
    """The model that `mlflow.pyfunc.load_model` wraps."""

    model: Model

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Score pairs of a video and a text.

        Args:
            inputs: Columns `video` (a file) and `text` (a caption, or a question).

        Returns:
            A row for each pair: `answer` and `probability` of a question; otherwise `similarity` of
            the embeddings, -1 to 1, and `match`, the probability that they belong together, except
            for a prompter.

        Raises:
            DecodeError: If a file to ask about cannot be decoded. The scores of such a file are NaN,
                with a warning.
        """
        rows = []
        for video, text in zip(inputs["video"], inputs["text"], strict=True):
            if self.model.folder.answers:
                ((answer, probability),) = self.model.ask(video, text, top_k=1)
                rows.append({"answer": answer, "probability": probability})
                continue

            scores = {"similarity": self.model.similarity([text], [video]).item()}
            if self.model.can_match:
                scores["match"] = self.model.match([text], [video]).item()
            rows.append(scores)
        return pd.DataFrame(rows)


def _load_pyfunc(path: str) -> ServedModel:
    # MLflow calls this function by its name, with the folder that `data_path` was copied to.
    return ServedModel(Model.load(path))
