"""The DAG end to end at its smallest size: artifacts, cache, MLflow. One pipeline is run and then looked at."""

import json
import re
import shutil
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock
from uuid import UUID

import httpx
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, TaskRun
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Running

from alpro.artifact import read_record
from alpro.errors import InputError
from alpro.files import write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.cli import run as run_command
from alpro.pipeline.cli.run import plan_rows
from alpro.pipeline.config.load import load_config
from alpro.pipeline.flows import flow, tasks
from alpro.pipeline.plan.dag import plan, planned
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.reports.page import finished_steps, report_file
from alpro.pipeline.reports.results import HEADLINES
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.store.checksums import verify
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.metrics import RETRIEVAL
from alpro.stages.execution.interface import STOP, Interrupted, Outcome, StageFailed, Stopped
from alpro.stages.training.metrics import read_metrics
from tests.conftest import ROOT
from tests.pipeline.conftest import (
    TINY,
    alpro,
    of_shards,
    runs,
    states_of,
    statuses_of,
    summary_of,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("prefect")
STAGES = [
    "render_sample",
    "decode_videos clips",
    "decode_videos stills",
    "train_tokenizer",
    "build_vocabulary",
]
STAGES += [
    "train_prompter",
    "cache_prompts",
    "pretrain",
    "zero_shot",
    "finetune_retrieval",
    "finetune_qa",
    "evaluate",
]
RUN_STAGE = "alpro.pipeline.flows.tasks.run_stage"


def newest_runs() -> tuple[FlowRun, dict[UUID, TaskRun]]:
    """Prefect's run of the newest pipeline and those of its steps, once the server has recorded their final states."""
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))

        def recorded() -> list[TaskRun]:
            found = client.read_task_runs(flow_run_filter=only)
            return (
                found
                if sum(bool(one.state and one.state.is_final()) for one in found) == len(STAGES)
                else []
            )

        return run, {one.id: one for one in wait_for(recorded, 600)}


def test_every_stage_leaves_its_artifact_and_nothing_unfinished(first, workspace):
    assert list(first) == STAGES
    folders = [Path(folder) for folder in first.values()]
    artifacts = [(folder, record) for folder in folders if (record := read_record(folder))]
    assert [record["name"] for _, record in artifacts] == STAGES
    assert list(verify(artifacts)) == []  # every file is recorded
    assert sum(name.endswith(".tar") for _, record in artifacts for name in record["contents"]) == 4
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
        for name in EVALUATIONS
        for row in json.loads((Path(first[name]) / "results.json").read_text())
    ]
    expected = {"zero-shot by matching", "fine-tuned by matching", "question answering", "prompter"}
    assert expected <= {row["what"] for row in rows}
    assert all(row["items"] > 0 for row in rows)
    assert pq.read_table(Path(first["evaluate"]) / "retrieval_t2v.parquet").num_rows == 8
    report = (workspace / "reports" / f"tiny-{Path(first['evaluate']).name[:6]}.html").read_text()
    assert "zero-shot by matching" in report
    pictures = [picture for folder in folders for picture in folder.glob("pictures/*.png")]
    assert report.count("data:image/png;base64,") == len(pictures) > 2


def test_mlflow_has_a_run_a_pipeline_a_nested_run_a_stage_and_models_with_their_headline_scores(
    first, workspace
):
    (*_, parent), nested = runs(workspace)
    stages = {run.info.run_name.split(" · ")[0]: run for run in nested[parent.info.run_id]}
    assert set(stages) == set(STAGES)
    for run in (parent, *stages.values()):
        assert (run.info.status, run.data.tags["mlflow.source.name"]) == ("FINISHED", "alpro")
        assert run.data.tags["mlflow.user"]
    assert parent.data.params["pretrain.lr"] == "0.001"
    assert {"evaluate.top_k", "pretrain.seed"}.isdisjoint(
        parent.data.params
    )  # only what is not the default
    pretrain = stages["pretrain"]
    assert pretrain.data.tags["fingerprint"].startswith(Path(first["pretrain"]).name)
    assert pretrain.data.tags["commit"] == parent.data.tags["commit"]
    assert pretrain.data.tags["prefect_run"]
    assert parent.data.tags["prefect_flow_run"]
    assert {"train/loss_vtc", "train/loss_vtm", "train/loss_mlm", "train/loss_pem"} <= set(
        pretrain.data.metrics
    )
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")

    def listed(run, folder):
        return {Path(f.path).name for f in client.list_artifacts(run.info.run_id, folder)}

    assert listed(pretrain, "pictures") == {"pseudo_labels.png", "search.png"}
    assert listed(stages["decode_videos clips"], "pictures") == {"samples.png"}
    assert listed(stages["evaluate"], "pictures") == {"retrieval.png"}
    assert "results.json" in listed(stages["evaluate"], "tables")
    assert "entities.json" in listed(stages["build_vocabulary"], "tables")

    assert {name.split("/")[0] for name in parent.data.metrics} - set(HEADLINES) == {
        "test",
        "training",
    }
    names = {run.info.run_id: name for name, run in stages.items()}
    models = client.search_logged_models([parent.info.experiment_id])
    models = {names[model.source_run_id]: model for model in models if model.source_run_id in names}
    reached = {"train_prompter": "entities", "pretrain": "R1_zero_shot"}
    reached |= {"finetune_retrieval": "R1", "finetune_qa": "QA"}
    assert models.keys() == reached.keys()
    for stage, model in models.items():
        assert model.name == f"{Path(first[stage]).name[:8]} {stage} · tiny"
        assert model.tags["path"] == f"{first[stage]}/model"
        assert reached[stage] in {metric.key for metric in model.metrics}


def test_a_run_that_finds_every_artifact_starts_nothing(first, workspace, monkeypatch, capsys):
    """Neither Prefect and its server nor a run in MLflow, whatever its arguments: it prints the results."""
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
    report = report_file(tmp_path, planned("", TINY, "", [], tmp_path))

    def finished(*changes: str) -> list[str]:
        return [
            step.name
            for step in finished_steps(planned("", TINY, "", list(changes), tmp_path), report)
        ]

    assert finished() == []  # nothing of it is in MLflow
    (tmp_path / "mlflow.db").touch()
    assert finished() == STAGES
    assert finished("evaluate.seed=77") == []
    report.parent.mkdir()
    for state, steps in (("stopped", []), ("failed", []), ("finished", STAGES)):
        write_json(report.with_suffix(".json"), {"state": state})
        assert finished() == steps, state
    shutil.rmtree(tmp_path / "artifacts" / "pretrain")
    assert finished() == [
        name for name in STAGES if name != "pretrain"
    ]  # nothing that has to run needs it
    shutil.rmtree(tmp_path / "artifacts" / "evaluate")
    assert finished() == []


def test_a_second_run_is_all_cached_and_repeats_the_metrics(first, workspace):
    """Its run has every number, and no run is added for a stage. Prefect knows the inputs of each task."""
    before = sum(map(len, runs(workspace)[1].values()))
    assert alpro(TINY, workspace=workspace) == first
    (parent, *_), nested = runs(workspace)
    assert parent.info.run_id not in nested
    assert sum(map(len, nested.values())) == before
    assert states_of(workspace) == dict.fromkeys(STAGES, "cached")
    for name, folder in first.items():
        prefix = "" if name in EVALUATIONS else f"training/{name.split(' ')[0]}/"
        repeated = {
            f"{prefix}{metric}": value
            for metric, value in read_record(Path(folder))["metrics"].items()
        }
        assert repeated.items() <= parent.data.metrics.items(), name
    newest_flow, tasks = newest_runs()
    assert newest_flow.name == parent.info.run_name == f"tiny {Path(first['evaluate']).name[:6]}"
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
    steps = plan(load_config(TINY), Digests(workspace / "digests.sqlite"))
    assert arrows == {(other.name, step.name) for step in steps for other in step.inputs.values()}


@pytest.mark.usefixtures("copied")
def test_a_changed_value_or_a_deleted_artifact_reruns_its_stage_and_what_follows(
    first, workspace, capsys
):
    changes = ["pretrain.lr=5e-4"]
    changed = alpro(TINY, changes=changes, workspace=workspace)
    made = {name for name, state in states_of(workspace, changes).items() if state == "built"}
    assert made == {"pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
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
    # The command that `artifacts show` prints has the same fingerprints, so that it builds the same results elsewhere.
    capsys.readouterr()
    cli.execute(["artifacts", "show", changed["evaluate"], "--workspace", str(workspace)])
    words = re.findall(r"^  alpro (run .+)$", capsys.readouterr().out, re.MULTILINE)[0].split()
    assert cli.execute([*words, "--workspace", str(workspace), "--dry-run", "--json"]) == 0
    found = {row["name"]: row["fingerprint"][:16] for row in json.loads(capsys.readouterr().out)}
    assert found == {name: Path(changed[name]).name for name in STAGES if name != "zero_shot"}


def test_a_dry_run_says_what_would_run_and_why(first, workspace):
    def rows(change: str) -> dict[str, tuple[str, str]]:
        found = plan_rows(planned("", TINY, "", [change], workspace))
        return {row["name"]: (row["state"], row["reason"]) for row in found}

    assert set(rows("resources.workers=1").values()) == {("cached", "")}
    after = rows("pretrain.lr=7e-4")
    made = {"pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
    assert {name for name, (state, _) in after.items() if state == "to run"} == made
    assert re.fullmatch(r"pretrain\.lr = 0\.0007 \(was [\d.]+\)", after["pretrain"][1])
    assert after["finetune_qa"] == ("to run", "input model")
    shutil.move(first["decode_videos stills"], workspace / "aside")
    without = rows("evaluate.seed=91")
    shutil.move(workspace / "aside", first["decode_videos stills"])
    assert without["decode_videos stills"] == ("not needed", "")
    assert re.fullmatch(r"evaluate\.seed = 91 \(was \d+\)", without["evaluate"][1])
    assert rows("render_sample.seed=7")["decode_videos stills"] == ("to run", "input sample")
    arguments = {
        "config": "configs/own.toml",
        "data": "/home/me/films",
        "changes": ["a=1", "b=2"],
        "stage": "evaluate",
    }
    title = f"tiny {Path(first['evaluate']).name[:6]} · evaluate · films · a=1 b=2"
    assert tasks.title_of(planned("", TINY, "", [], workspace), arguments) == title


def test_the_test_split_is_checked_before_the_first_training(first, workspace, monkeypatch):
    """What evaluation would refuse after days: a corpus without test items."""
    started: list[str] = []
    monkeypatch.setattr(RUN_STAGE, lambda step, *_: started.append(step.stage))
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


CORPORA = ["corpora.clips.timeout=71", "corpora.stills.timeout=71"]
FINE_TUNING = ["finetune_retrieval.lr=7e-4", "finetune_qa.lr=7e-4"]


@pytest.mark.parametrize(
    ("changes", "limit", "most", "beside"),  # beside: how many stages with a model share the cores
    [
        (CORPORA, 1, 1, {}),
        (FINE_TUNING, 2, 2, {"finetune_retrieval": 2, "finetune_qa": 2}),
        (FINE_TUNING[1:], 2, 1, {"finetune_qa": 1}),  # the other one is cached
        (["pretrain.lr=7e-4"], 2, 1, {"pretrain": 1}),  # the others need it
    ],
)
def test_independent_stages_run_together_within_the_limit_and_a_failure_stops_only_what_depends_on_it(
    changes, limit, most, beside, first, workspace, monkeypatch, capsys
):
    seen = SimpleNamespace(running=0, most=0, started={})
    changed = threading.Condition()

    def fail(step: Step, *others: object) -> Outcome:
        with changed:
            seen.started[step.name] = others[-1]
            seen.running += 1
            seen.most = max(seen.most, seen.running)
            changed.notify_all()
            assert changed.wait_for(lambda: seen.most >= most, timeout=120)
            seen.running -= 1
        raise StageFailed(f"{step.name} broke")

    monkeypatch.setattr(RUN_STAGE, fail)
    monkeypatch.setenv("ALPRO_COMMAND_LINE", "1")
    changes = [*changes, f"resources.max_stages={limit}"]
    with pytest.raises(StageFailed) as raised:
        alpro(TINY, changes=changes, workspace=workspace)
    in_order = [name for name in STAGES if name in seen.started]
    assert (len(in_order), seen.most, str(raised.value)) == (
        len(changes) - 1,
        most,
        f"{in_order[0]} broke",
    )
    assert limit == 2 or list(seen.started) == in_order
    assert beside.items() <= seen.started.items()
    printed = capsys.readouterr().err
    assert all(f"{name}: failed: {name} broke" in printed for name in in_order)
    assert "evaluate: skipped" in printed
    assert statuses_of(workspace) == dict.fromkeys(["", *in_order], "FAILED")
    summary, states = summary_of(workspace, changes), states_of(workspace, changes)
    assert (summary["state"], summary["reason"]) == ("failed", f"{in_order[0]} broke")
    assert {name for name in STAGES if states[name] == "failed"} == seen.started.keys()
    assert (states["render_sample"], states["evaluate"]) == ("cached", "unfinished")


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stages_that_run_at_the_same_time_stop_together_and_their_runs_are_killed(
    first, workspace, monkeypatch
):
    running = threading.Barrier(2)

    def run_until_stopped(*_: object) -> Outcome:
        if running.wait(120) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        STOP.get().wait(120)
        raise AssertionError("not stopped")

    monkeypatch.setattr(RUN_STAGE, run_until_stopped)
    monkeypatch.setattr(flow, "GRACE_SECONDS", 600)  # they end because they are asked to
    changes = [*FINE_TUNING, "resources.max_stages=2"]
    with pytest.raises(KeyboardInterrupt):
        alpro(TINY, changes=changes, workspace=workspace)
    assert statuses_of(workspace) == {
        "": "KILLED",
        "finetune_retrieval": "KILLED",
        "finetune_qa": "KILLED",
    }
    assert summary_of(workspace, changes)["state"] == "stopped"
    assert states_of(workspace, changes)["finetune_qa"] == "unfinished"


@pytest.mark.parametrize(
    ("errors", "seed", "times", "state"),
    [
        ([Interrupted("evaluate: it received SIGTERM")], 101, 2, "Completed"),
        ([Interrupted("evaluate: lost")] * 4, 102, 4, "Interrupted"),
        ([InputError("a: no\ncaptions")], 103, 1, "Failed"),
        ([Stopped("evaluate was stopped")], 104, 1, "Interrupted"),
        ([OSError("a bug")], 105, 1, "Failed"),
    ],
)
def test_only_an_interrupted_stage_runs_again(
    errors, seed, times, state, first, workspace, monkeypatch
):
    left, tried = list(errors), []

    def work(step: Step, out: Path, *_: object) -> Outcome:
        tried.append(step.name)
        if left:
            raise left.pop(0)
        shutil.copy(Path(first["evaluate"]) / "results.json", out)
        return Outcome({"items": 1})

    monkeypatch.setattr(RUN_STAGE, work)
    monkeypatch.setattr(tasks.make, "retry_delay_seconds", [0, 0, 0])
    with nullcontext() if state == "Completed" else pytest.raises(type(errors[0])):
        alpro(TINY, changes=[f"evaluate.seed={seed}"], workspace=workspace)
    assert tried == ["evaluate"] * times
    (found,) = (run.state for run in newest_runs()[1].values() if run.name.startswith("evaluate"))
    assert found.name == state
    assert "\n" not in (found.message or "")


def client_of(*states: object) -> MagicMock:
    """Prefect's client, for a deployment of the pool `cpu`; a run has the next of `states`, which may be an error."""
    stages = [
        ("finetune_qa", "gpu"),
        ("evaluate", "gpu"),
        ("build_vocabulary", "cpu"),
        ("nightly", "gpu"),
    ]
    client = MagicMock()
    client.__enter__.return_value = client
    client.read_deployment.return_value.work_pool_name = "cpu"
    client.read_deployments.return_value = [
        SimpleNamespace(
            name=name,
            work_pool_name=pool,
            parameters={"stage": name.replace("nightly", "pretrain")},
        )
        for name, pool in stages
    ]
    found = [
        state if isinstance(state, Exception) else SimpleNamespace(state=state) for state in states
    ]
    client.read_flow_run.side_effect = found
    return client


@pytest.fixture
def deployed(first, workspace, monkeypatch):
    """deployed(client, changes): runs `alpro` as the run of a deployment; the deployments that it starts, each with its
    parameters. `build` does their work, in the same workspace."""

    def start(client: MagicMock, changes: list[str], build: bool = True) -> list[tuple[str, dict]]:
        started = []

        def run_deployment(
            name: str, parameters: dict, timeout: int, flow_run_name: str
        ) -> SimpleNamespace:
            started.append((name, parameters))
            if build:
                alpro(
                    TINY,
                    changes=parameters["changes"],
                    stage=parameters["stage"],
                    workspace=workspace,
                )
            return SimpleNamespace(id="r", name="blue-fox")

        for module in (flow, tasks):
            monkeypatch.setattr(module, "get_client", lambda sync_client: client)
        monkeypatch.setattr(flow, "deployment", SimpleNamespace(id="d"))
        monkeypatch.setattr(flow, "end_with_parent", lambda *_: None)
        monkeypatch.setattr(tasks, "run_deployment", run_deployment)
        monkeypatch.setattr(tasks, "POLL_SECONDS", 0)
        monkeypatch.setenv("ALPRO_WORKSPACE", str(workspace))
        monkeypatch.chdir(workspace)
        flow.alpro(TINY, changes=changes)
        return started

    return start


@pytest.mark.usefixtures("copied")
def test_a_stage_with_a_deployment_in_another_pool_is_that_deployments_run(deployed, workspace):
    changes = ["finetune_qa.lr=2e-3"]
    client = client_of(
        Running(), httpx.ConnectError("refused"), AwaitingRetry(), Completed(), Completed()
    )
    started = deployed(client, changes)
    parameters = {"config": TINY, "data": "", "changes": changes}
    assert started == [
        (f"alpro/{stage}", parameters | {"stage": stage}) for stage in ("finetune_qa", "evaluate")
    ]
    states = states_of(workspace, changes)
    assert (states["finetune_retrieval"], states["finetune_qa"], states["evaluate"]) == (
        "cached",
        "built",
        "built",
    )
    assert (
        client.update_flow_run.call_args_list[0].kwargs["name"]
        == summary_of(workspace, changes)["title"]
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Failed(message="no captions"), "no captions"),
        (Crashed(), "finetune_qa"),
        (Completed(), "does not exist"),
    ],
)
def test_a_deployment_that_fails_or_builds_elsewhere_fails_the_step(state, message, deployed):
    with pytest.raises(StageFailed, match=message):
        deployed(client_of(state), ["finetune_qa.lr=3e-3"], build=False)


@pytest.mark.usefixtures("interruptible")
def test_a_pipeline_that_stops_cancels_the_runs_of_deployments(deployed):
    client, main = client_of(), threading.main_thread().ident

    def stop(one: str) -> SimpleNamespace:
        if client.read_flow_run.call_count == 2:
            signal.pthread_kill(main, signal.SIGINT)
            STOP.get()._requested.wait(120)
        return SimpleNamespace(state=Running())

    client.read_flow_run.side_effect = stop
    with pytest.raises(KeyboardInterrupt):
        deployed(client, ["finetune_qa.lr=4e-3"], build=False)
    assert [call.args[1].name for call in client.set_flow_run_state.call_args_list] == [
        "Cancelling"
    ]


def test_a_worker_names_an_absolute_workspace(prefect, monkeypatch):
    monkeypatch.setattr(flow, "deployment", SimpleNamespace(id="d"))
    monkeypatch.setattr(flow, "end_with_parent", lambda *_: None)
    for workspace in ("", "relative/folder"):
        monkeypatch.setenv("ALPRO_WORKSPACE", workspace)
        with pytest.raises(InputError, match="ALPRO_WORKSPACE"):
            flow.alpro(TINY)


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
    for folder in map(Path, first.values()):
        place = tmp_path / "workspace" / "artifacts" / folder.parent.name / folder.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


PLACES = {
    "split": "test|validation",
    "direction": "t2v|v2t",
    "rank": "|".join(metric.key for metric in RETRIEVAL),
}
NOT_IN_EVERY_RUN = {"<split>/decoded/<corpus>/<column>"}
NOT_IN_EVERY_RUN |= {f"<split>/entity_crops/acc_{which}" for which in ("kept", "sure")}


def test_every_metric_has_its_name_on_the_page(first):
    page = (ROOT / "docs" / "metrics.md").read_text()
    cells = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    documented = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(documented) == len(set(documented)) > 30
    logged = set()
    for folder in map(Path, first.values()):
        logged |= read_record(folder)["metrics"].keys()
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
