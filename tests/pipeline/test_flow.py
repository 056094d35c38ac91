"""The DAG end to end at its smallest size: artifacts, cache, MLflow, documentation. One pipeline is
run and then looked at."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from httpx import ConnectError
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import read_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.flows import servers
from alpro.pipeline.store.checksums import describe_contents
from alpro.pipeline.store.runs import RunEntry, write_run
from alpro.stages.evaluation.metrics import RETRIEVAL
from alpro.stages.training.metrics import read_metrics
from tests.conftest import ROOT
from tests.pipeline.conftest import (
    EVALUATED,
    STAGES,
    TINY,
    alpro,
    last_run,
    newest_runs,
    runs,
    states_of,
)
from tests.plans import plan_of

pytestmark = pytest.mark.usefixtures("prefect")


def test_every_stage_leaves_its_artifact_and_nothing_unfinished(first):
    folders = [Path(folder) for folder in first.values()]
    artifacts = list(zip(folders, map(read_record, folders), strict=True))

    assert list(first) == [record.name for _, record in artifacts] == STAGES
    for folder, record in artifacts:
        assert record.contents == describe_contents(folder, {})
    unfinished = ("*.part", "checkpoints", "parts")
    assert not [
        path for folder in folders for name in unfinished for path in folder.rglob(name)
    ]


def test_the_models_of_a_run_are_evaluated_and_reported(first, workspace):
    rows = []
    for name in EVALUATED:
        rows += read_json(Path(first[name]) / "results.json")
    report = plan_of(TINY, workspace=workspace).report

    assert {row["model"] for row in rows} - {""} == {
        "prompter",
        "pre-trained",
        "fine-tuned",
    }
    assert all(row["items"] > 0 for row in rows)
    assert "pre-trained, by matching" in report.read_text()
    assert report.read_text().count("data:image/png;base64,") > 4


def test_mlflow_has_a_run_for_a_pipeline_and_a_nested_one_for_each_stage(
    first, workspace
):
    (*_, parent), nested = runs(workspace)
    stages = {
        run.info.run_name.split(" · ")[0]: run for run in nested[parent.info.run_id]
    }

    assert set(stages) == set(STAGES)
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}
    pipeline = parent.data
    pretrain = stages["pretrain"].data
    assert pipeline.params["pretrain.lr"] == pretrain.params["pretrain.lr"] == "0.001"
    assert pipeline.tags["prefect_flow_run"] == pretrain.tags["prefect_flow_run"] != ""
    assert {"train/loss_vtc", "train/loss_pem"} <= pretrain.metrics.keys()
    kinds = {name.split("/")[0] for name in pipeline.metrics}
    assert kinds == {"score", "test", "training"}


def test_the_description_of_a_run_leads_to_its_report(first, workspace):
    (*_, parent), _ = runs(workspace)
    note = parent.data.tags["mlflow.note.content"]

    page, file = re.findall(r"\[Report\]\(#(\S+)/artifacts/(\S+)\)", note)[0]

    assert page == f"/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    assert file in {listed.path for listed in client.list_artifacts(parent.info.run_id)}
    assert "previous run" not in note


def test_a_run_that_finds_every_artifact_starts_nothing(
    first, workspace, monkeypatch, capsys
):
    """Neither a flow nor a run in MLflow, whatever its arguments: it prints the results."""
    flow = "alpro.pipeline.flows.flow.start"
    monkeypatch.setattr(flow, lambda *_: pytest.fail("a flow was started"))
    monkeypatch.setattr(servers, "start_temporary_server", lambda: lambda: None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = len(runs(workspace)[0])

    def run(*words):
        options = ("--config", TINY, "--workspace", str(workspace))
        assert cli.execute(["run", *words, *options]) == 0
        return capsys.readouterr().out

    whole = run()
    assert whole.startswith("Results")
    assert "report: " in whole
    assert run("--set", "resources.workers=1") == whole
    folder = first["train_prompter"]
    assert run("train_prompter").startswith(f"train_prompter: {folder}")
    assert len(runs(workspace)[0]) == before


@pytest.fixture
def finished(first, workspace, tmp_path):
    """finished(*changes): of a plan in a copy of the workspace, the steps that it finds."""
    shutil.copytree(workspace / "artifacts", tmp_path / "artifacts")
    (tmp_path / "mlflow.db").touch()

    def find(*changes):
        return [
            record.name
            for _, record in plan_of(TINY, *changes, workspace=tmp_path).finished
        ]

    return find


def test_a_run_has_nothing_to_do_if_every_artifact_that_it_needs_exists(
    finished, tmp_path
):
    assert finished() == STAGES
    assert finished("evaluate.seed=77") == []

    shutil.rmtree(tmp_path / "artifacts" / "pretrain")
    assert finished() == [name for name in STAGES if name != "pretrain"]

    (tmp_path / "mlflow.db").unlink()
    assert finished() == []


@pytest.mark.parametrize(("state", "steps"), [("stopped", []), ("finished", STAGES)])
def test_a_run_after_one_that_did_not_finish_has_something_to_do(
    state, steps, finished, tmp_path
):
    report = plan_of(TINY, workspace=tmp_path).report
    report.parent.mkdir()
    report.touch()
    write_run(tmp_path, RunEntry(config=TINY, report=report.name, state=state))

    assert finished() == steps
    report.unlink()
    assert finished() == []


@pytest.fixture(scope="module")
def second(first, workspace):
    """A second run: its artifacts, and its runs in MLflow and Prefect."""
    _, before = runs(workspace)
    folders = alpro(TINY, workspace=workspace)
    (parent, *_), after = runs(workspace)
    flow_run, tasks = newest_runs()
    return SimpleNamespace(
        folders=folders,
        built=after.keys() - before.keys(),
        states=states_of(workspace),
        parent=parent,
        flow_run=flow_run,
        tasks=tasks,
    )


def test_a_second_run_is_all_cached_and_repeats_the_metrics(first, second):
    assert second.folders == first
    assert second.built == set()
    assert second.states == dict.fromkeys(STAGES, "cached")
    for name in EVALUATED:
        for metric, value in read_record(Path(first[name])).metrics.items():
            assert second.parent.data.metrics[metric] == pytest.approx(value, abs=5e-4)


def test_a_report_that_cannot_be_written_does_not_fail_a_run(
    first, workspace, mlflow_store, tmp_path
):
    mlflow_store(tmp_path)
    shutil.copytree(workspace / "artifacts", tmp_path / "artifacts")
    (tmp_path / "reports").touch()  # in place of the folder

    assert alpro(TINY, workspace=tmp_path).keys() == first.keys()

    (pipeline, *_), _ = runs(tmp_path)
    assert (pipeline.info.status, last_run(tmp_path).state) == ("FINISHED", "finished")
    # The next run writes it.
    assert plan_of(TINY, workspace=tmp_path).finished == []


def test_prefect_shows_the_state_and_the_inputs_of_each_step(first, second):
    tasks = second.tasks

    assert second.flow_run.name == f"tiny {Path(first['evaluate qa']).name[:6]}"
    names = {f"{name} · {Path(folder).name[:8]}" for name, folder in first.items()}
    assert {run.name for run in tasks.values()} == names
    assert {run.state.name for run in tasks.values()} == {"Cached"}
    (last,) = (run for run in tasks.values() if run.name.startswith("evaluate qa"))
    inputs = set()
    for sources in last.task_inputs.values():
        inputs |= {tasks[source.id].name.split(" · ")[0] for source in sources}
    assert inputs == {"finetune_qa", "decode_videos clips"}


def built_in(workspace, changes, stage=""):
    """The steps that the last run with these arguments has built."""
    states = states_of(workspace, changes, stage)
    return {name for name, state in states.items() if state == "built"}


AFTER_PRETRAIN = {"pretrain", "finetune_retrieval", "finetune_qa", *EVALUATED[1:]}


@pytest.mark.usefixtures("copied")
def test_a_changed_value_reruns_its_stage_and_what_follows(first, workspace, capsys):
    changes = ["pretrain.lr=5e-4"]

    changed = alpro(TINY, changes=changes, workspace=workspace)

    assert built_in(workspace, changes) == AFTER_PRETRAIN
    assert {name for name in first if changed[name] != first[name]} == AFTER_PRETRAIN
    # The command that `artifacts show` prints has the same fingerprints, so that it builds the same
    # results elsewhere.
    capsys.readouterr()
    cli.execute(
        ["artifacts", "show", changed["evaluate qa"], "--workspace", str(workspace)]
    )
    line = re.search(r"alpro (run .+)", capsys.readouterr().out)
    assert (
        cli.execute([*shlex.split(line[1]), f"--workspace={workspace}", "--dry-run"])
        == 0
    )
    assert Path(changed["evaluate qa"]).name in capsys.readouterr().out


@pytest.mark.usefixtures("copied")
def test_a_deleted_artifact_is_built_again_when_something_needs_it(first, workspace):
    weights = Path(first["cache_prompts"]) / "prompts.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(first["cache_prompts"])

    alpro(TINY, stage="pretrain", workspace=workspace)
    assert states_of(workspace, stage="pretrain")["cache_prompts"] == "unused"

    changes = ["pretrain.lr=2e-4"]
    alpro(TINY, stage="pretrain", changes=changes, workspace=workspace)
    assert built_in(workspace, changes, "pretrain") == {"cache_prompts", "pretrain"}
    assert weights.read_bytes() == before


@pytest.mark.usefixtures("copied")
def test_the_test_split_is_checked_after_decoding_and_before_training(
    mlflow_store, tmp_path
):
    """What evaluation would refuse after days: a corpus without test items."""
    mlflow_store(tmp_path)

    with pytest.raises(InputError, match=r"stills: no test item has captions"):
        alpro(TINY, changes=["evaluate.retrieval=stills"], workspace=tmp_path)

    stages = {folder.name for folder in (tmp_path / "artifacts").iterdir()}
    assert "decode_videos" in stages
    assert "train_prompter" not in stages


# The documentation of a finished pipeline.


def test_the_python_example(first, sample, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    example = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    for name in ("a", "b"):
        shutil.copy(sample / "videos" / "test-00000.mp4", tmp_path / f"{name}.mp4")
    (tmp_path / "workspace").mkdir()
    workspace = Path(first["pretrain"]).parents[2]
    for name in ("artifacts", "refs"):
        (tmp_path / "workspace" / name).symlink_to(workspace / name)
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "docs/python.md", "exec"), {})

    assert len(capsys.readouterr().out.splitlines()) >= 4


# What names of metrics have in the place of a word in angle brackets; other words stand for a name.
PLACES = {
    "split": "test|validation",
    "direction": "t2v|v2t",
    "rank": "|".join(metric.key for metric in RETRIEVAL),
}
NOT_IN_EVERY_RUN = {
    "<split>/decoded/<corpus>/<column>",
    "<split>/left_out/<corpus>",
    "<metric>/of/<corpus>",
    "<split>/<model>/entity_crops/acc_kept",
    "<split>/<model>/entity_crops/acc_confident",
    "train/memory_gib",  # only a GPU has it
    # Only a fine-tuned CLIP has these; tests/stages/test_clip.py has a run with them.
    "<metric>/interpolated/<share>",
    "interpolation_share",
}


def compile_name(name):
    """The pattern of a documented name."""
    return re.compile(
        re.sub(r"<(\w+)>", lambda found: f"({PLACES.get(found[1], '[^/]+')})", name)
    )


def test_every_metric_has_its_name_on_the_page(first):
    page = (
        (ROOT / "docs" / "evaluate.md").read_text().partition("## Names of metrics")[2]
    )
    cells = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
    documented = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    logged = set()
    for folder in map(Path, first.values()):
        logged |= read_record(folder).metrics.keys()
        for line in read_metrics(folder / "metrics.jsonl"):
            logged |= line.keys() - {"step", "time"}

    used = {}
    for name in documented:
        used[name] = {
            metric for metric in logged if compile_name(name).fullmatch(metric)
        }

    assert len(documented) == len(used) > 30
    assert set().union(*used.values()) == logged
    assert {name for name, metrics in used.items() if not metrics} <= NOT_IN_EVERY_RUN


def test_a_run_whose_server_is_gone_at_its_end_has_its_artifacts(
    first, workspace, monkeypatch
):
    store_state = SyncPrefectClient.set_flow_run_state

    def refuse_last(client, flow_run_id, state, force=False):
        if state.is_final():
            raise ConnectError("refused")
        return store_state(client, flow_run_id, state, force)

    monkeypatch.setattr(SyncPrefectClient, "set_flow_run_state", refuse_last)
    built = alpro(TINY, workspace=workspace, stage="render_sample")
    assert built == {"render_sample": first["render_sample"]}
