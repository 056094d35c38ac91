"""The DAG end to end at its smallest size: artifacts, cache, MLflow, documentation. One pipeline is
run and then looked at."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.pipeline.cli import main as cli
from alpro.pipeline.cli import run as run_command
from alpro.pipeline.cli.run import plan_rows
from alpro.pipeline.store.checksums import verify
from alpro.pipeline.store.runs import Run, Runs
from alpro.stages.evaluation.metrics import RETRIEVAL
from alpro.stages.training.metrics import read_metrics
from tests.conftest import ROOT
from tests.pipeline.conftest import (
    EVALUATED,
    RUN_STAGE,
    STAGES,
    TINY,
    alpro,
    newest_runs,
    of_shards,
    runs,
    states_of,
)
from tests.plans import plan_of

pytestmark = pytest.mark.usefixtures("prefect")


def test_every_stage_leaves_its_artifact_and_nothing_unfinished(first, workspace):
    assert list(first) == STAGES
    folders = [Path(folder) for folder in first.values()]
    artifacts = [(folder, record) for folder in folders if (record := read_record(folder))]
    assert [record.name for _, record in artifacts] == STAGES
    assert list(verify(artifacts)) == []  # every file is recorded
    assert sum(name.endswith(".tar") for _, record in artifacts for name in record.contents) == 4
    left = [path for folder in folders for path in folder.rglob("*") if path.name.endswith(".part")]
    assert (
        left
        + [
            path
            for folder in folders
            for name in ("checkpoints", "parts")
            for path in folder.glob(name)
        ]
        == []
    )
    rows = [
        row
        for name in EVALUATED
        for row in json.loads((Path(first[name]) / "results.json").read_text())
    ]
    models = {row["model"] for row in rows} - {""}
    assert models == {"prompter", "pre-trained", "fine-tuned"}
    assert all(row["items"] > 0 for row in rows)
    assert pq.read_table(Path(first["evaluate retrieval"]) / "matching_t2v.parquet").num_rows == 8
    report = (
        workspace / "reports" / f"tiny-{Path(first['evaluate qa']).name[:6]}.html"
    ).read_text()
    assert "pre-trained, by matching" in report
    pictures = [picture for folder in folders for picture in folder.glob("pictures/*.png")]
    assert report.count("data:image/png;base64,") == len(pictures) + 2 > 4  # those of the scores


def test_mlflow_has_a_run_a_pipeline_a_nested_run_a_stage_and_models_with_their_headline_scores(
    first, workspace
):
    (*_, parent), nested = runs(workspace)
    stages = {run.info.run_name.split(" · ")[0]: run for run in nested[parent.info.run_id]}
    assert set(stages) == set(STAGES)
    for run in (parent, *stages.values()):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.user"]
    params = parent.data.params
    assert (params["pretrain.lr"], params["finetune_retrieval.lr"]) == ("0.001", "0.0001")
    assert (params["pretrain.start"], params["finetune_retrieval.random_crop"]) == (
        "prompter",
        "0.875",
    )
    commit = parent.data.tags["mlflow.source.git.commit"]
    assert params["commit"].startswith(commit.removesuffix("+"))
    assert stages["finetune_retrieval"].data.params["finetune_retrieval.lr"] == "0.0001"
    pretrain = stages["pretrain"]
    assert pretrain.data.tags["fingerprint"].startswith(Path(first["pretrain"]).name)
    assert pretrain.data.tags["mlflow.source.git.commit"] == commit
    assert pretrain.data.tags["prefect_run"]
    assert parent.data.tags["prefect_flow_run"]
    assert {"train/loss_vtc", "train/loss_vtm", "train/loss_mlm", "train/loss_pem"} <= set(
        pretrain.data.metrics
    )
    corpora = {f"decode_videos {name}" for name in ("clips", "stills")}
    marks = {name.split(" ")[1]: Path(first[name]).name[:8] for name in corpora}
    of_pretrain = {one.dataset.name: one.dataset.digest for one in pretrain.inputs.dataset_inputs}
    assert of_pretrain.items() <= marks.items()
    assert of_pretrain
    of_run = {one.dataset.name: one.dataset for one in parent.inputs.dataset_inputs}
    assert {name: one.digest for name, one in of_run.items()} == marks
    assert json.loads(of_run["clips"].source) == {"uri": first["decode_videos clips"]}

    note = parent.data.tags["mlflow.note.content"]
    assert "| Fine-tuned" in note or "| fine-tuned" in note
    assert "No value was changed" in note
    # A link of MLflow's page to a file of this run: the report.
    page, _, file = re.findall(r"\[Report\]\(#(\S+)/(artifacts)/(\S+)\)", note)[0]
    assert page == f"/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")

    def listed(run, folder):
        return {Path(f.path).name for f in client.list_artifacts(run.info.run_id, folder)}

    assert file in listed(parent, "")
    assert listed(pretrain, "pictures") == {"pseudo_labels.png", "search.png"}
    assert listed(stages["decode_videos clips"], "pictures") == {"samples.png"}
    assert listed(stages["evaluate retrieval"], "pictures") == {"retrieval.png"}
    assert "results.json" in listed(stages["evaluate retrieval"], "tables")
    assert "entities.json" in listed(stages["build_vocabulary"], "tables")

    assert {name.split("/")[0] for name in parent.data.metrics} == {
        "score",
        "test",
        "training",
    }
    names = {run.info.run_id: name for name, run in stages.items()}
    models = client.search_logged_models([parent.info.experiment_id])
    models = {names[model.source_run_id]: model for model in models if model.source_run_id in names}
    reached = {"train_prompter": "score/entities", "pretrain": "score/R1_pretrained"}
    reached |= {"finetune_retrieval": "score/R1", "finetune_qa": "score/QA"}
    assert models.keys() == reached.keys()
    for stage, model in models.items():
        assert model.name == f"{stage} {Path(first[stage]).name[:8]}"
        assert model.tags["path"] == f"{first[stage]}/model"
        assert reached[stage] in {metric.key for metric in model.metrics}


def test_a_run_that_finds_every_artifact_starts_nothing(first, workspace, monkeypatch, capsys):
    """Neither Prefect and its server nor a run in MLflow, whatever its arguments: it prints the
    results."""
    monkeypatch.setattr(run_command, "run_flow", lambda *_: pytest.fail("a flow was started"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = len(runs(workspace)[0])

    def printed(*words: str) -> dict:
        assert cli.execute([*words, "--config", TINY, "--workspace", str(workspace), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    whole = printed("run")
    assert {name: one["folder"] for name, one in whole["artifacts"].items()} == first
    assert whole["results"]
    assert Path(whole["report"]).is_file()
    assert printed("run", "--set", "resources.workers=1") == whole
    part = printed("run", "train_prompter")
    assert list(part["artifacts"]) == [*STAGES[:4], "train_prompter"]
    assert part["report"] == ""  # no run was of this stage
    assert len(runs(workspace)[0]) == before


def test_which_runs_have_nothing_to_do(first, workspace, tmp_path):
    shutil.copytree(workspace / "artifacts", tmp_path / "artifacts")

    def finished(*changes: str) -> list[str]:
        plan = plan_of(TINY, *changes, workspace=tmp_path)
        return [step.name for step in plan.finished_steps]

    assert finished() == []  # nothing of it is in MLflow
    (tmp_path / "mlflow.db").touch()
    assert finished() == STAGES
    assert finished("evaluate.seed=77") == []
    runs = Runs(tmp_path)
    for state, steps in (("stopped", []), ("failed", []), ("finished", STAGES)):
        run = Run(config=TINY, report=plan_of(TINY, workspace=tmp_path).report.name)
        runs.begin(run)
        runs.end(run, state=state)
        assert finished() == steps, state

    # Nothing that has to run needs it.
    shutil.rmtree(tmp_path / "artifacts" / "pretrain")
    assert finished() == [name for name in STAGES if name != "pretrain"]

    shutil.rmtree(tmp_path / "artifacts" / "evaluate")
    assert finished() == []


def test_a_second_run_is_all_cached_and_repeats_the_metrics(first, workspace):
    """Its run has every number, and no run is added for a stage. Prefect knows the inputs of each
    task."""
    before = sum(map(len, runs(workspace)[1].values()))
    assert alpro(TINY, workspace=workspace) == first
    (parent, *_), nested = runs(workspace)
    assert parent.info.run_id not in nested
    assert sum(map(len, nested.values())) == before
    assert states_of(workspace) == dict.fromkeys(STAGES, "cached")
    for name, folder in first.items():
        prefix = "" if name in EVALUATED else f"training/{name.split(' ')[0]}/"
        metrics = read_record(Path(folder)).metrics
        for metric, value in metrics.items():
            assert parent.data.metrics[f"{prefix}{metric}"] == pytest.approx(value, abs=5e-4)
    newest_flow, tasks = newest_runs()
    assert newest_flow.name == parent.info.run_name == f"tiny {Path(first['evaluate qa']).name[:6]}"
    assert {run.name for run in tasks.values()} == {
        f"{n} · {Path(folder).name[:8]}" for n, folder in first.items()
    }
    assert {run.state.name for run in tasks.values()} == {"Cached"}
    arrows = {
        (tasks[source.id].name.split(" · ")[0], run.name.split(" · ")[0])
        for run in tasks.values()
        for many in run.task_inputs.values()
        for source in many
    }
    steps = plan_of(TINY, workspace=workspace).steps
    assert arrows == {(other.name, step.name) for step in steps for other in step.inputs.values()}


@pytest.mark.usefixtures("copied")
def test_a_changed_value_or_a_deleted_artifact_reruns_its_stage_and_what_follows(
    first, workspace, capsys
):
    changes = ["pretrain.lr=5e-4"]
    changed = alpro(TINY, changes=changes, workspace=workspace)
    made = {name for name, state in states_of(workspace, changes).items() if state == "built"}
    assert made == {"pretrain", "finetune_retrieval", "finetune_qa", *EVALUATED[1:]}
    assert {name for name in first if changed[name] != first[name]} == made
    weights = Path(first["cache_prompts"]) / "prompts.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(first["cache_prompts"])
    alpro(TINY, stage="pretrain", workspace=workspace)
    assert (
        states_of(workspace, stage="pretrain")["cache_prompts"] == "unused"
    )  # nothing that has to run needs it
    changes = ["pretrain.lr=2e-4"]
    alpro(TINY, stage="pretrain", changes=changes, workspace=workspace)
    states = states_of(workspace, changes, "pretrain")
    assert {name for name in states if states[name] == "built"} == {"cache_prompts", "pretrain"}
    assert weights.read_bytes() == before
    # The command that `artifacts show` prints has the same fingerprints, so that it builds the same
    # results elsewhere.
    capsys.readouterr()
    cli.execute(["artifacts", "show", changed["evaluate qa"], "--workspace", str(workspace)])
    words = re.findall(r"^alpro (run .+)$", capsys.readouterr().out, re.MULTILINE)[0].split()
    assert cli.execute([*words, "--workspace", str(workspace), "--dry-run", "--json"]) == 0
    found = {row["name"]: row["fingerprint"][:16] for row in json.loads(capsys.readouterr().out)}
    assert found == {name: Path(changed[name]).name for name in STAGES}


def test_a_dry_run_says_what_would_run_and_why(first, workspace):
    def rows(change: str) -> dict[str, tuple[str, str]]:
        found = plan_rows(plan_of(TINY, change, workspace=workspace))
        return {row["name"]: (row["state"], row["reason"]) for row in found}

    assert set(rows("resources.workers=1").values()) == {("cached", "")}
    after = rows("pretrain.lr=7e-4")
    made = {"pretrain", "finetune_retrieval", "finetune_qa", *EVALUATED[1:]}
    assert {name for name, (state, _) in after.items() if state == "to run"} == made
    assert re.fullmatch(r"pretrain\.lr = 0\.0007 \(previous run: [\d.]+\)", after["pretrain"][1])
    assert after["finetune_qa"] == ("to run", "finetune_qa input model differs")
    shutil.move(first["decode_videos stills"], workspace / "aside")
    without = rows("evaluate.seed=91")
    shutil.move(workspace / "aside", first["decode_videos stills"])
    assert without["decode_videos stills"] == ("not needed", "")
    assert re.fullmatch(
        r"evaluate\.seed = 91 \(previous run: \d+\)", without["evaluate retrieval"][1]
    )
    assert rows("render_sample.seed=7")["decode_videos stills"] == (
        "to run",
        "decode_videos stills input sample differs",
    )


def test_the_test_split_is_checked_before_the_first_training(first, workspace, monkeypatch):
    """What evaluation would refuse after days: a corpus without test items."""
    started: list[str] = []
    monkeypatch.setattr(RUN_STAGE, lambda step, *_, **__: started.append(step.stage))
    changes = ["evaluate.retrieval=stills", "build_vocabulary.entities=7", "train_prompter.lr=2e-3"]
    with pytest.raises(InputError, match=r"stills: no test item has captions"):
        alpro(TINY, changes=changes, workspace=workspace)
    assert started == []


def test_existing_shards_take_the_place_of_decoding(first, workspace, tmp_path):
    for shard in Path(first["decode_videos clips"]).glob("*.tar"):
        shutil.copy(shard, tmp_path)
    made = alpro(of_shards(tmp_path, tmp_path), stage="build_vocabulary", workspace=workspace)
    assert list(made) == [
        "render_sample",
        "index_shards clips",
        "decode_videos stills",
        "build_vocabulary",
    ]
    entities = [
        pq.read_table(Path(one["build_vocabulary"]) / "entities.parquet") for one in (made, first)
    ]
    assert entities[0] == entities[1]


# The documentation of a finished pipeline.


def test_the_python_example(first, sample, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    example = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    for name, video in zip("ab", sorted((sample / "videos").glob("test-*.mp4")), strict=False):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    assert re.findall(r"Model\.load\(\s*\"(\w+)\"\s*\)", example) == [
        "finetune_retrieval",
        "finetune_qa",
        "cache_prompts",
    ]
    (tmp_path / "workspace").mkdir()
    workspace = Path(first["pretrain"]).parents[2]
    for name in ("artifacts", "refs"):
        (tmp_path / "workspace" / name).symlink_to(workspace / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


PLACES = {
    "split": "test|validation",
    "direction": "t2v|v2t",
    "rank": "|".join(metric.key for metric in RETRIEVAL),
}
NOT_IN_EVERY_RUN = {"<split>/decoded/<corpus>/<column>"}
NOT_IN_EVERY_RUN |= {"<split>/<model>/entity_crops/acc_kept"}
# Of a fine-tuned CLIP; tests/stages/test_clip.py has a run with them.
NOT_IN_EVERY_RUN |= {"<metric>/interpolated/<share>", "interpolation_share"}


def test_every_metric_has_its_name_on_the_page(first):
    page = (ROOT / "docs" / "evaluate.md").read_text().partition("## Names of metrics")[2]
    cells = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    documented = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(documented) == len(set(documented)) > 30
    logged = set()
    for folder in map(Path, first.values()):
        logged |= read_record(folder).metrics.keys()
        logged |= {name for line in read_metrics(folder / "metrics.jsonl") for name in line}
    logged -= {"step", "time"}

    def pattern(name: str) -> re.Pattern[str]:
        parts = re.split(r"<(\w+)>", name)
        named = [
            f"({PLACES.get(p, r'[^/]+')})" if i % 2 else re.escape(p) for i, p in enumerate(parts)
        ]
        return re.compile("".join(named))

    patterns = {name: pattern(name) for name in documented}
    assert [name for name in logged if not any(p.fullmatch(name) for p in patterns.values())] == []
    unused = {name for name, p in patterns.items() if not any(p.fullmatch(one) for one in logged)}
    assert unused - NOT_IN_EVERY_RUN == set()
