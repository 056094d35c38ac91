"""Models in MLflow's registry: registered by the command line, loaded as people would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from alpro import Model
from alpro.artifact import RECORD_VERSION
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.pipeline.plan.step import Step
from alpro.pipeline.tracking.registry import registered_folder
from alpro.pipeline.tracking.stage_runs import StageResult, log_result
from alpro.pipeline.tracking.tracker import Run, Tracker
from alpro.stages import decode_videos, evaluate
from alpro.stages.finetune_retrieval import Config as Retrieval
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
    """A workspace with an artifact of each kind of model, and one without a model. MLflow has a run of one of them."""
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
        run = {"at": "2026-01-01T00:00:00", "seconds": 1.0}
        if stage == "finetune_qa":
            tracker = Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow", "sample")
            built = tracker.start(stage, {}, {})
            tracker.end(built)
            run["mlflow_run"] = built.id
        write_json(folder / "artifact.json", record | {"run": run})
    return tmp_path


PHASES = ({"corpora": ("clips",), "steps": 1},)
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
    assert run.info.status == "FINISHED"
    assert (version.run_id == run.info.run_id) == (stage == "finetune_qa")


def test_an_artifact_without_a_model_is_refused(workspace, monkeypatch, capsys):
    name = digest("build_vocabulary")[:16]
    arguments = ("model", "register", name, "--name", "shapes", "--workspace", workspace)
    status, _, err = call(monkeypatch, capsys, *arguments)
    assert (status, err) == (2, f"error: build_vocabulary {name} has no model\n")


def logged_models(tracker: Tracker, metric: str) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """The logged models from the best to the worst score, as the table of models sorts them, with their scores."""
    order = [{"field_name": f"metrics.{metric}", "ascending": False}]
    found = tracker.client.search_logged_models([tracker.experiment], order_by=order)
    return [(model.name, [(m.key, m.value, m.dataset_name) for m in model.metrics or ()]) for model in found]


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow", "sample")


def built(tracker: Tracker, folder: Path, step: Step, **metrics: float) -> Run:
    """Logs an artifact as the pipeline does that builds it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "artifact.json", {})
    record = {"metrics": metrics, "counts": {}, "run": {"seconds": 1.0}, "fingerprint": step.fingerprint}
    run = tracker.start(step.name, {}, {"fingerprint": step.fingerprint})
    log_result(tracker, StageResult(step, folder, record, False), run, None)
    return run


def test_models_are_sorted_by_the_scores_that_evaluations_give_them(tracker, tmp_path):
    """Two models with two evaluations: each score is that of its model, on the corpus that it is of."""
    corpus = Step("decode_videos", "decode_videos clips", decode_videos.Config())
    runs = []
    for lr, score in ((1e-3, 25.0), (1e-4, 75.0)):
        model = Step("finetune_retrieval", "finetune_retrieval", Retrieval(phases=PHASES, lr=lr), {"clips": corpus})
        evaluation = Step(
            "evaluate", "evaluate", evaluate.Config(retrieval="clips"), {"retrieval": model, "clips": corpus}
        )
        (tmp_path / f"{lr}" / "model").mkdir(parents=True)
        (tmp_path / f"{lr}" / "model" / "model.safetensors").write_bytes(b"weights")
        runs.append(built(tracker, tmp_path / f"{lr}", model, **{"validation/mean_recall": 50.0}))
        runs.append(built(tracker, tmp_path / f"of {lr}", evaluation, **{"test/retrieval/t2v/R1": score}))
    names = [name for name, _ in logged_models(tracker, "R1")]
    assert len(set(names)) == 2
    assert all(name.startswith("sample · finetune_retrieval · ") for name in names)
    shown = logged_models(tracker, "R1")
    scores = [{key: (value, dataset) for key, value, dataset in metrics} for _, metrics in shown]
    assert [score["R1"] for score in scores] == [(75.0, "clips"), (25.0, "clips")]
    assert [score["test/retrieval/t2v/R1"][0] for score in scores] == [75.0, 25.0]
    assert [score["validation/mean_recall"] for score in scores] == [(50.0, "clips")] * 2
    trained, evaluated = (tracker.client.get_run(run.id) for run in runs[:2])
    (output,), (used,) = trained.outputs.model_outputs, evaluated.inputs.model_inputs
    assert output.model_id == used.model_id
    assert not list((tmp_path / "mlflow").rglob("*.safetensors"))
    model = tracker.client.get_logged_model(output.model_id)
    assert (model.source_run_id, model.model_type, str(model.status)) == (runs[0].id, "ALPRO", "READY")
    assert model.params == {"finetune_retrieval.lr": "0.001", **model.params}
    assert model.tags["path"] == str(tmp_path / "0.001" / "model")


def test_pictures_of_steps_are_images_over_steps(tracker, tmp_path):
    (tmp_path / "pictures").mkdir()
    write_json(tmp_path / "artifact.json", {})
    for name in ("retrieval", "pseudo_labels-step-000200"):
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / f"{name}.png")
    run = tracker.start("pretrain", {}, {})
    tracker.artifact_folder(run, tmp_path)
    tracker.pictures_of_steps(run, tmp_path)
    listed = [file.path for folder in ("pictures", "images") for file in tracker.client.list_artifacts(run.id, folder)]
    assert listed[0] == "pictures/retrieval.png"
    assert all(re.match(r"images/pseudo_labels\W+step\W+200\W", name) for name in listed[1:])
    assert len(listed) == 3  # the image and its thumbnail
