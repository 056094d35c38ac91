"""Models in MLflow's registry: registered by the command line, loaded as people would."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mlflow.tracking import MlflowClient

from alpro import Model
from alpro.artifact import RECORD_VERSION
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.pipeline.tracking.registry import registered_folder
from alpro.pipeline.tracking.tracker import Tracker
from tests.pipeline.test_cli import call

LOAD = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = model.predict(pd.DataFrame(json.loads(sys.argv[3])))
print(json.dumps({"inputs": model.metadata.get_input_schema().input_names(),
                  "outputs": model.metadata.get_output_schema().input_names(), "rows": rows.to_dict("list")}))
"""


@pytest.fixture
def workspace(tmp_path, tiny_model, tokenizer):
    """A workspace with an artifact of each kind of model, of which MLflow has one as a logged model, and one without a
    model."""
    config = tiny_model(tokenizer.get_vocab_size())
    torch.manual_seed(0)
    folders = {
        "train_prompter": ModelFolder("prompter", Prompter(config), tokenizer),
        "finetune_retrieval": ModelFolder("retrieval", Alpro(config), tokenizer),
        "finetune_qa": ModelFolder("qa", Alpro(config, answers=2), tokenizer, answers=["ball", "box"]),
        "build_vocabulary": None,
    }
    for stage, model in folders.items():
        folder = tmp_path / "artifacts" / stage / digest(stage)[:16]
        folder.mkdir(parents=True)
        if model:
            model.save_pretrained(folder / "model")
        record = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": digest(stage), "inputs": {}}
        record |= {"run": {"at": "2026-01-01T00:00:00", "seconds": 1.0}, "config": {}, "counts": {}, "metrics": {}}
        write_json(folder / "artifact.json", record)
        if stage == "finetune_qa":
            Tracker.open("", tmp_path, "sample").log_artifact(folder, record)
    return tmp_path


LONG = [pytest.param(stage, marks=pytest.mark.long) for stage in ("train_prompter", "finetune_qa")]


@pytest.mark.parametrize("stage", ["finetune_retrieval", *LONG])
def test_a_registered_model_predicts_what_the_model_does(stage, workspace, sample, monkeypatch, capsys, tmp_path):
    """Another process loads it by its alias, without pickle, when the artifact is gone."""
    folder = workspace / "artifacts" / stage / digest(stage)[:16]
    videos = [str(path) for path in sorted((sample / "videos").glob("test-*.mp4"))[:2]]
    texts = ["a red ball moves left", "where does it go?"]
    model = Model.from_pretrained(folder, device="cpu")
    if stage == "finetune_qa":
        pairs = [model.ask(video, text, top_k=1)[0] for video, text in zip(videos, texts, strict=True)]
        expected = {"answer": [word for word, _ in pairs], "probability": [p for _, p in pairs]}
    else:
        expected = {"similarity": (model.embed_videos(videos) * model.embed_texts(texts)).sum(1).tolist()}
    if stage == "finetune_retrieval":
        expected["match"] = model.match(texts, videos).diagonal().tolist()

    arguments = ("--name", "shapes", "--alias", "champion", "--workspace", workspace)
    for _ in range(2):  # the same model is the same version
        status, out, err = call(monkeypatch, capsys, "model", "register", digest(stage)[:6], *arguments)
        assert (status, err) == (0, "")
        assert out == "shapes, version 1; load it with mlflow.pyfunc.load_model('models:/shapes@champion')\n"
    folder.rename(tmp_path / "gone")

    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", LOAD, uri, "models:/shapes@champion", json.dumps({"video": videos, "text": texts})]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["inputs"] == ["video", "text"]
    assert loaded["outputs"] == list(expected)
    for name, values in expected.items():
        assert loaded["rows"][name] == (values if name == "answer" else pytest.approx(values, abs=1e-5))
    version = MlflowClient(uri).get_model_version_by_alias("shapes", "champion")
    assert (str(version.version), version.tags["fingerprint"]) == ("1", digest(stage))
    assert not list(workspace.rglob("*.pkl"))
    assert Model.load(registered_folder(uri, "models:/shapes@champion"), device="cpu").pair_columns == tuple(expected)
    with pytest.raises(InputError, match="models:/shapes/9: not in the MLflow store"):
        registered_folder(uri, "models:/shapes/9")
    (run,) = MlflowClient(uri).search_runs([str(n) for n in range(3)])  # no run of its own
    models = MlflowClient(uri).search_logged_models([str(n) for n in range(3)])
    ours = [model for model in models if model.tags.get("fingerprint") == digest(stage)]
    assert [(model.source_run_id == run.info.run_id) for model in ours] == [stage == "finetune_qa"]


def test_an_artifact_without_a_model_is_refused(workspace, monkeypatch, capsys):
    name = digest("build_vocabulary")[:16]
    arguments = ("model", "register", name, "--name", "shapes", "--workspace", workspace)
    status, _, err = call(monkeypatch, capsys, *arguments)
    assert (status, err) == (2, f"error: build_vocabulary {name} has no model\n")
