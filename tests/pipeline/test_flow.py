"""The DAG end to end at its smallest size: artifacts, cache, MLflow. One pipeline is run and then looked at."""

import json
import re
import shutil
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from prefect import flow as prefect_flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort

from alpro.errors import InputError
from alpro.pipeline.artifacts.digests import Digests
from alpro.pipeline.artifacts.store import Step, Store, read_record
from alpro.pipeline.commands import print_plan
from alpro.pipeline.config import Corpus, load_config
from alpro.pipeline.flow import alpro, plan
from alpro.pipeline.flow import build_vocabulary as vocabulary_flow
from alpro.pipeline.flow import pretrain as pretrain_flow
from alpro.pipeline.steps import check_files, decoding, needed
from alpro.pipeline.tasks import interrupted
from alpro.shards.reader import ShardReader
from alpro.stages import CORPUS_STAGES, EVALUATIONS, declaration
from alpro.stages.execution.interface import Interrupted, Outcome, Resources, StageFailed
from alpro.stages.training.metrics import read_metrics
from tests.stages.conftest import write_manifest

pytestmark = pytest.mark.usefixtures("prefect")
TINY = str(Path(__file__).parents[1] / "tiny.toml")
STAGES = ["render_sample", "decode_videos clips", "decode_videos stills", "build_vocabulary", "train_prompter"]
STAGES += ["cache_prompts", "pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"]


def runs(workspace: Path) -> tuple[list, dict[str, list]]:
    """The pipelines' MLflow runs, newest first, and the nested runs of each."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    nested: dict[str, list] = {}
    for run in found:
        nested.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    return nested.pop(""), nested


def newest(workspace: Path) -> dict[str, dict]:
    """The nested runs of the newest pipeline: whether cached, by the stage's name."""
    parents, nested = runs(workspace)
    return {run.info.run_name.split(" · ")[0]: run for run in nested[parents[0].info.run_id]}


def was_cached(run) -> bool:
    return run.data.tags.get("cached") == "true"


def test_every_stage_leaves_its_artifact(first, workspace):
    assert list(first) == STAGES
    for name, folder in first.items():
        manifest = read_record(Path(folder))
        assert manifest is not None, name
        assert manifest["name"] == name
        assert manifest["versions"]["python"]
    rows = [row for name in EVALUATIONS for row in json.loads((Path(first[name]) / "results.json").read_text())]
    kinds = {row["what"] for row in rows}
    assert {
        "zero-shot retrieval",
        "fine-tuned retrieval",
        "control: colours alone",
        "question answering",
        "prompter",
    } <= kinds
    assert all(row["items"] > 0 for row in rows)
    assert pq.read_table(Path(first["evaluate"]) / "retrieval_t2v.parquet").num_rows == 8
    report = (workspace / "reports" / f"tiny-{Path(first['evaluate']).name[:6]}.html").read_text()
    assert "zero-shot retrieval" in report
    assert report.count("data:image/png;base64,") >= 6


def test_nothing_unfinished_is_left(first):
    for folder in first.values():
        assert not (Path(folder) / "checkpoints").exists()
        assert not (Path(folder) / "parts").exists()
        assert not [p for p in Path(folder).rglob("*") if p.name.endswith(".part")]


def test_mlflow_has_a_run_a_pipeline_and_a_nested_run_a_stage(first, workspace):
    (*_, parent), nested = runs(workspace)
    stages = {run.info.run_name.split(" · ")[0]: run for run in nested[parent.info.run_id]}
    assert set(stages) == set(STAGES)
    assert {run.info.status for run in [parent, *stages.values()]} == {"FINISHED"}
    assert parent.data.params["pretrain.lr"] == "0.001"
    assert "test/retrieval/t2v/R1" in parent.data.metrics
    pretrain = stages["pretrain"]
    assert pretrain.data.tags["fingerprint"].startswith(Path(first["pretrain"]).name)
    assert pretrain.data.tags["commit"] == parent.data.tags["commit"]
    assert pretrain.data.tags["prefect_run"]
    assert {"train/loss_vtc", "train/loss_vtm", "train/loss_mlm", "train/loss_pem"} <= set(pretrain.data.metrics)
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    steps = [point.step for point in client.get_metric_history(pretrain.info.run_id, "train/loss_pem")]
    assert steps == [2, 4, 6]

    def listed(run, folder):
        return {Path(f.path).name for f in client.list_artifacts(run.info.run_id, folder)}

    assert listed(pretrain, "pictures") == {"augmentation.png", "curves.png", "pseudo_labels.png"}
    assert listed(stages["decode_videos clips"], "pictures") == {"samples.png"}
    assert listed(stages["evaluate"], "pictures") == {"retrieval.png"}
    assert "results.json" in listed(stages["evaluate"], "tables")
    assert "entities.json" in listed(stages["build_vocabulary"], "tables")
    assert "prompts.json" in listed(stages["cache_prompts"], "tables")


def test_a_second_run_is_all_cached_and_repeats_the_metrics(first, workspace):
    assert alpro(TINY, workspace=str(workspace)) == first
    parents, nested = runs(workspace)
    found = {run.info.run_id: run for run in (*parents, *(run for runs in nested.values() for run in runs))}
    cached = nested[parents[0].info.run_id]
    assert len(cached) == len(STAGES)
    for run in cached:
        assert was_cached(run)
        maker = found[run.data.tags["built_by_run"]]
        assert not was_cached(maker)
        assert run.data.metrics == maker.data.metrics, run.info.run_name
    results = {name: value for run in cached for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert len(results) > 10
    assert results.items() <= parents[0].data.metrics.items()


def test_a_changed_pretraining_value_reruns_pretraining_and_what_follows(first, workspace):
    changed = alpro(TINY, changes=["pretrain.lr=5e-4"], workspace=str(workspace))
    made = {name for name, run in newest(workspace).items() if not was_cached(run)}
    assert made == {"pretrain", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
    assert {name for name in first if changed[name] != first[name]} == made


def test_a_deleted_artifact_is_built_again_when_a_step_needs_it(first, workspace):
    weights = Path(first["cache_prompts"]) / "prompts.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(first["cache_prompts"])
    pretrain_flow(TINY, workspace=str(workspace))
    assert "cache_prompts" not in newest(workspace)  # the pre-trained model exists: nothing needs the prompts
    pretrain_flow(TINY, changes=["pretrain.lr=2e-4"], workspace=str(workspace))
    assert {name for name, run in newest(workspace).items() if not was_cached(run)} == {"cache_prompts", "pretrain"}
    assert weights.read_bytes() == before


def test_a_failed_branch_stops_only_what_depends_on_it(first, workspace, monkeypatch, capsys):
    started: list[str] = []

    def fail(step: Step, *_: object) -> Outcome:
        started.append(step.name)
        raise StageFailed(f"{step.name} broke") if step.stage == "finetune_retrieval" else InputError("also broken")

    monkeypatch.setattr("alpro.pipeline.tasks.work", fail)
    monkeypatch.setenv("ALPRO_COMMAND_LINE", "1")
    changes = ["finetune_retrieval.lr=3e-4", "finetune_qa.lr=3e-4"]
    with pytest.raises(StageFailed, match="finetune_retrieval broke"):
        alpro(TINY, changes=changes, workspace=str(workspace))
    assert started == ["finetune_retrieval", "finetune_qa"]
    printed = capsys.readouterr().err
    assert "finetune_retrieval: failed: finetune_retrieval broke" in printed
    assert "evaluate: skipped, because finetune_retrieval failed" in printed


def edges(steps: list[Step]) -> set[tuple[str, str]]:
    """The arrows of a plan, by the names of the stages."""
    return {(other.stage, step.stage) for step in steps for other in step.inputs.values()}


def test_prefect_knows_the_inputs_of_every_task_and_nothing_else(first, workspace):
    alpro(TINY, workspace=str(workspace))
    with get_client(sync_client=True) as client:
        (newest_flow,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        only = FlowRunFilter(id=FlowRunFilterId(any_=[newest_flow.id]))
        tasks = {run.id: run for run in client.read_task_runs(flow_run_filter=only)}
    assert newest_flow.name == "tiny"
    arrows = {
        (tasks[source.id].name, run.name)
        for run in tasks.values()
        for many in run.task_inputs.values()
        for source in many
    }
    steps = plan(load_config(TINY), Digests(workspace / "digests.sqlite"))
    assert arrows == {(other.name, step.name) for step in steps for other in step.inputs.values()}


@pytest.fixture
def two_plans(tmp_path) -> list[list[Step]]:
    """The plans of the tiny pipeline, of its sample and of existing shards; together they have every arrow."""
    (tmp_path / "a.tar").write_bytes(b"shard")
    configs = [load_config(TINY), load_config(of_shards(tmp_path, tmp_path))]
    return [plan(config, Digests(tmp_path / "digests.sqlite")) for config in configs]


def test_the_steps_have_the_inputs_that_their_stages_declare(two_plans):
    for step in (step for steps in two_plans for step in steps):
        inputs = {name: other.stage for name, other in step.inputs.items()}
        corpora = {name for name, stage in inputs.items() if stage in CORPUS_STAGES}
        declared = declaration(step.stage)
        assert declared.corpora == bool(corpora)
        assert {name: stage for name, stage in inputs.items() if name not in corpora} == {
            name: stage for name, stage in declared.inputs.items() if name != "sample" or inputs
        }


def test_the_diagram_in_the_readme_is_the_dag(two_plans):
    dag = {arrow for steps in two_plans for arrow in edges(steps)}
    readme = (Path(TINY).parents[1] / "README.md").read_text()
    diagram = readme.partition("```mermaid\n")[2].partition("```")[0]
    drawn = set()
    for line in diagram.splitlines():
        if "-->" in line:
            sources, targets = (side.split("&") for side in line.split("-->"))
            drawn |= {(source.strip(), target.strip()) for source in sources for target in targets}
    assert drawn == dag


def test_a_dry_run_says_what_would_run_and_why(first, workspace, capsys):
    def printed(change: str) -> dict[str, tuple[str, str]]:
        steps = plan(load_config(TINY, changes=[change]), Digests(workspace / "digests.sqlite"))
        print_plan(steps, Store(workspace / "artifacts"))
        lines = capsys.readouterr().out.splitlines()
        return {line[11:35].strip(): (line[:10].strip(), line[54:]) for line in lines}

    before = printed("resources.workers=1")
    assert set(before.values()) == {("cached", "")}
    after = printed("pretrain.lr=7e-4")
    assert {name for name, (state, _) in after.items() if state == "to run"} == {
        "pretrain",
        "zero_shot",
        "finetune_retrieval",
        "finetune_qa",
        "evaluate",
    }
    assert re.fullmatch(r"pretrain\.lr = 0\.0007 \(was [\d.]+\)", after["pretrain"][1])
    assert after["finetune_qa"] == ("to run", "input model")
    shutil.move(first["decode_videos stills"], workspace / "aside")
    without = printed("evaluate.seed=91")
    shutil.move(workspace / "aside", first["decode_videos stills"])
    assert without["decode_videos stills"] == ("not needed", "")
    assert re.fullmatch(r"evaluate\.seed = 91 \(was \d+\)", without["evaluate"][1])
    assert printed("render_sample.seed=7")["decode_videos stills"] == ("to run", "input sample")


def test_a_pipeline_that_fails_ends_its_runs_as_failed(first, workspace):
    with pytest.raises(Exception, match="9999"):
        alpro(TINY, changes=["build_vocabulary.entities=9999"], workspace=str(workspace))
    parents, nested = runs(workspace)
    assert parents[0].info.status == "FAILED"
    statuses = {r.info.run_name.split(" · ")[0]: r.info.status for r in nested[parents[0].info.run_id]}
    assert statuses["build_vocabulary"] == "FAILED"
    assert statuses["decode_videos clips"] == "FINISHED"


def test_a_pipeline_that_is_stopped_ends_its_runs_as_killed(first, workspace, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alpro.pipeline.tasks.work", stop)
    with pytest.raises(KeyboardInterrupt):
        alpro(TINY, changes=["evaluate.seed=31"], workspace=str(workspace))
    parents, nested = runs(workspace)
    statuses = {r.info.run_name.split(" · ")[0]: r.info.status for r in nested[parents[0].info.run_id]}
    assert (parents[0].info.status, statuses["evaluate"], statuses["pretrain"]) == ("KILLED", "KILLED", "FINISHED")


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_the_test_split_is_checked_before_the_first_training(task, first, workspace, monkeypatch):
    """What evaluation would refuse after days: a corpus without test items."""
    started: list[str] = []
    monkeypatch.setattr("alpro.pipeline.tasks.work", lambda step, *_: started.append(step.stage))
    changes = [f"evaluate.{task}=stills", "build_vocabulary.entities=7", "train_prompter.lr=2e-3"]
    with pytest.raises(InputError, match=r"stills: no test item has (captions|questions)"):
        alpro(TINY, changes=changes, workspace=str(workspace))
    assert started == []


def of_shards(folder: str | Path, tmp_path: Path) -> str:
    """The tiny pipeline with existing shards in the place of its clips."""
    text = Path(TINY).read_text()
    clips = text[text.index("[corpora.clips]") : text.index("[corpora.stills]")]
    path = tmp_path / "of_shards.toml"
    path.write_text(text.replace(clips, f'[corpora.clips]\nshards = "{folder}"\n'))
    return str(path)


@pytest.mark.parametrize("before", [True, False], ids=["before it is decoded", "after"])
def test_files_that_change_while_a_stage_runs_make_no_artifact(before, tmp_path, resources, inline_pool, monkeypatch):
    """The fingerprint would be of other contents. What did not change is taken over by the next run."""
    rows = [{"id": f"wall {n}", "captions": [f"wall {n}"], "split": "train"} for n in range(24)]
    corpus = Corpus(data=str(write_manifest(tmp_path / "data", rows)), samples_per_shard=4, size=16)
    store, wall, aside = Store(tmp_path / "artifacts"), tmp_path / "data" / "wall 5.png", tmp_path / "wall 5.png"

    def make() -> tuple[Path, dict]:
        step = decoding("walls", corpus, None, Digests(tmp_path / "digests.sqlite"))
        made = store.make(step, lambda _, out: step.module.run(step.config, step.paths, out, resources), {})
        return store.folder(step), made["counts"]

    def change(*_: object) -> None:
        wall.rename(aside)
        Image.new("RGB", (20, 10), "white").save(wall)

    with monkeypatch.context() as patch:
        patch.setattr(f"alpro.stages.decode_videos.{'check_texts' if before else 'draw_samples'}", change)
        with pytest.raises(
            InputError, match=r"decode_videos walls: its input files changed during the run \(.*items.jsonl\)"
        ):
            make()
    assert list(store.all()) == []
    aside.rename(wall)  # as it was: nothing of what was made meanwhile may stay
    folder, counts = make()
    assert (counts["linked"], counts["samples"]) == (0, 24)
    reader = ShardReader(folder)
    assert max(reader[number].frames().max() for number in range(24)) == 0
    change()
    assert make()[1]["linked"] == 20


def test_existing_shards_take_the_place_of_decoding(first, workspace, tmp_path):
    for shard in Path(first["decode_videos clips"]).glob("*.tar"):
        shutil.copy(shard, tmp_path)
    made = vocabulary_flow(of_shards(tmp_path, tmp_path), workspace=str(workspace))
    assert list(made) == ["render_sample", "index_shards clips", "decode_videos stills", "build_vocabulary"]
    entities = [pq.read_table(Path(one["build_vocabulary"]) / "entities.parquet") for one in (made, first)]
    assert entities[0] == entities[1]


@pytest.mark.long
def test_existing_shards_go_through_every_stage(first, workspace, tmp_path):
    """Those of an earlier run, moved elsewhere: the model learns from the same samples."""
    for shard in Path(first["decode_videos clips"]).glob("*.tar"):
        shutil.copy(shard, tmp_path)
    made = alpro(of_shards(f"file://{tmp_path}", tmp_path), workspace=str(workspace))
    assert list(made) == [name.replace("decode_videos clips", "index_shards clips") for name in STAGES]
    manifest, decoded = (read_record(Path(folder)) for folder in (made["index_shards clips"], first[STAGES[1]]))
    for count in ("samples", "train", "validation", "test", "captions", "questions"):
        assert manifest["counts"][count] == decoded["counts"][count]
    results = [row for name in EVALUATIONS for row in json.loads((Path(made[name]) / "results.json").read_text())]
    assert {"zero-shot retrieval", "question answering"} <= {row["what"] for row in results}
    assert {was_cached(run) for name, run in newest(workspace).items() if "stills" in name} == {True}


def test_changed_shards_are_another_corpus(tmp_path, memory):
    def fingerprint(folder) -> str:
        config = load_config(of_shards(folder, tmp_path))
        steps = plan(config, Digests(tmp_path / "digests.sqlite"))
        return next(step.fingerprint for step in steps if step.stage == "index_shards")

    store = fsspec.filesystem("memory")
    (tmp_path / "a.tar").write_bytes(b"one")
    store.pipe_file("/bucket/corpus/a.tar", b"one")
    for folder in (tmp_path, memory):
        before = fingerprint(folder)
        assert fingerprint(folder) == before
        (tmp_path / "a.tar").write_bytes(b"two, and more" if folder == tmp_path else b"one")
        store.pipe_file("/bucket/corpus/a.tar", b"two")
        assert fingerprint(folder) != before
    steps = plan(load_config(of_shards("memory://bucket/none", tmp_path)), Digests(tmp_path / "digests.sqlite"))
    with pytest.raises(InputError, match="no such folder of shards"):
        check_files(steps, Store(tmp_path / "artifacts"))


@pytest.mark.parametrize("form", ["file", pytest.param("memory", marks=pytest.mark.long)])
def test_what_one_machine_made_another_fetches(first, workspace, tmp_path, memory, form):
    shared = {"file": f"file://{tmp_path}/shared", "memory": memory}[form]
    place = [f"resources.artifacts='{shared}'"]
    assert alpro(TINY, changes=place, workspace=str(workspace)) == first  # nothing is made anew; all is sent
    elsewhere = tmp_path / "elsewhere"
    fetched = alpro(TINY, changes=place, workspace=str(elsewhere))
    assert all(was_cached(run) for run in newest(elsewhere).values())
    for name, folder in fetched.items():
        assert Path(folder) == elsewhere / "artifacts" / Path(first[name]).relative_to(workspace / "artifacts")
        assert contents(folder) == {n: c for n, c in contents(first[name]).items() if n != "work.json"}
    assert newest(elsewhere)["evaluate"].data.metrics == newest(workspace)["evaluate"].data.metrics


def contents(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def steps_of(tmp_path, *changes: str) -> dict[str, Step]:
    config = load_config(TINY, changes=list(changes))
    return {step.name: step for step in plan(config, Digests(tmp_path / "digests.sqlite"))}


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ("render_sample.seed=1", "render_sample"),
        ("corpora.clips.quality=80", "decode_videos clips"),
        ("build_vocabulary.entities=7", "build_vocabulary"),
        ('templates.image=["{}"]', "build_vocabulary"),
        ("train_prompter.lr=1e-4", "train_prompter"),
        ("pretrain.weights.pem=0.5", "pretrain"),
        ("finetune_qa.lr=3e-4", "finetune_qa"),
        ("evaluate.controls=false", "evaluate"),
    ],
)
def test_a_change_reaches_what_rests_on_it_and_nothing_else(change, first_changed, tmp_path):
    before, after = steps_of(tmp_path), steps_of(tmp_path, change)
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    resting = {name for name in before if before[first_changed] in needed(list(before.values()), before[name].stage)}
    if first_changed == "decode_videos clips":  # both corpora have one stage name; stills do not rest on clips
        resting -= {"decode_videos stills"}
    assert changed == resting


def test_zero_shot_is_a_step_of_its_own_that_waits_for_no_fine_tuning(tmp_path):
    """It comes before fine-tuning, needs none of it, and what both evaluations read changes both."""
    before, after = steps_of(tmp_path), steps_of(tmp_path, "evaluate.frames=8")
    assert list(before).index("zero_shot") < list(before).index("finetune_retrieval")
    alone = {step.name for step in needed(list(before.values()), "zero_shot")}
    assert not any(name.startswith("finetune") for name in alone)
    assert {name for name in before if before[name].fingerprint != after[name].fingerprint} == set(EVALUATIONS)
    assert set(before["zero_shot"].inputs) == {"pretrained", "vocabulary", "prompter", "prompts", "clips"}
    assert set(before["evaluate"].inputs) == {"retrieval", "qa", "clips"}


@pytest.mark.parametrize(
    "change", ["resources.workers=2", "resources.processes=3", "resources.device='cpu'", "resources.artifacts='s'"]
)
def test_resources_change_no_fingerprint(change, tmp_path):
    before, after = steps_of(tmp_path), steps_of(tmp_path, change)
    assert [s.fingerprint for s in before.values()] == [s.fingerprint for s in after.values()]


def test_files_are_in_the_fingerprint_by_their_contents(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"one")
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({"path": "a.mp4", "caption": "x"}) + "\n")

    def fingerprint() -> str:
        steps = plan(load_config("own_videos", str(path)), Digests(tmp_path / "digests.sqlite"))
        return steps[0].fingerprint

    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "a.mp4").write_bytes(b"two")
    assert fingerprint() != before
    (tmp_path / "a.mp4").write_bytes(b"one")
    assert fingerprint() == before
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("a.mp4", "manifest.jsonl"):
        shutil.move(tmp_path / name, moved / name)
    assert (
        plan(load_config("own_videos", str(moved / "manifest.jsonl")), Digests(tmp_path / "d"))[0].fingerprint == before
    )


def test_only_an_interrupted_stage_is_tried_again():
    @prefect_flow
    def failing(error: str) -> None:
        raise Interrupted("x") if error == "interrupted" else ValueError("x")

    states = {error: failing(error, return_state=True) for error in ("interrupted", "broken")}
    assert interrupted(None, None, states["interrupted"])
    assert not interrupted(None, None, states["broken"])


def test_the_flows_form_shows_types_and_descriptions():
    from prefect.utilities.callables import parameter_schema

    for one in (alpro, pretrain_flow):
        shown = parameter_schema(one).properties
        assert {"config", "data", "changes", "workspace"} <= set(shown)
        assert all(field.get("description") and field.get("type") for field in shown.values())


def test_the_store_lists_what_was_made(first, workspace):
    names = [manifest["name"] for _, manifest in Store(workspace / "artifacts").all()]
    assert set(STAGES) <= set(names)


@pytest.mark.parametrize("row", ["", "vtm mlm", "vtm mlm pem", "vtc vtm mlm", "vtc vtm mlm pem"])
def test_the_rows_of_table_1_are_weights_of_pre_training(row, first, workspace, tmp_path):
    """Only the losses of the row are computed, and a prompter is trained for PEM alone."""
    off = [f"pretrain.weights.{name}=0" for name in ("vtc", "vtm", "mlm", "pem") if name not in row.split()]
    steps = plan(load_config(TINY, changes=[*off, "pretrain.start=scratch"]), Digests(workspace / "digests.sqlite"))
    assert ("train_prompter" in [step.stage for step in steps]) == ("pem" in row)
    step = next(step for step in steps if step.stage == "pretrain")
    inputs = {name: Store(workspace / "artifacts").folder(other) for name, other in step.inputs.items()}
    (tmp_path / "pretrain").mkdir()
    outcome = step.module.run(step.config, inputs, tmp_path / "pretrain", Resources(device="cpu", workers=1))
    assert (tmp_path / "pretrain" / "model" / "model.safetensors").is_file()
    assert (outcome.counts["steps"] > 0) == bool(row)
    names = {name for line in read_metrics(tmp_path / "pretrain" / "metrics.jsonl") for name in line}
    assert {name.removeprefix("train/loss_") for name in names if name.startswith("train/loss_")} == set(row.split())
