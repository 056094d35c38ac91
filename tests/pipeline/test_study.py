"""Studies: shared stages are built once, failures stay with their run, the table is that of the results, reruns are
cached. Stages are replaced by a function here; `test_a_real_study` runs them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from mlflow.tracking import MlflowClient

from alpro.artifact import RECORD_VERSION
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.pipeline.flows import flow
from alpro.pipeline.plan import dag as planning
from alpro.pipeline.plan.step import Step
from alpro.pipeline.studies import study as studies
from alpro.pipeline.studies.study import (
    Member,
    Source,
    folder_of,
    members_of,
    print_study_plan,
    run_study,
    work_left,
)
from alpro.pipeline.studies.study_config import Study, load_study, shipped_studies
from alpro.stages.execution.interface import Outcome, StageFailed
from tests.pipeline.conftest import TINY

VARIANTS = [{"name": "fast"}, {"name": "slow", "set": {"pretrain": {"lr": 1e-5}}}]
NAMES = ["fast", "slow"]
# R@1 by learning rate and seed: differences of -10 and -20.
VALUES = {(1e-3, 5): 50.0, (1e-3, 6): 70.0, (1e-5, 5): 40.0, (1e-5, 6): 50.0}
# Few stages: without prompter and images.
SMALL = ["pretrain.weights.pem=0", "pretrain.start=scratch", "evaluate.qa=''"]
SMALL += ["pretrain.phases=[{corpora=['clips'], steps=6}]"]


def row(value: float) -> dict:
    """A row of results.json."""
    shown = {"table": "retrieval", "what": "zero-shot retrieval", "direction": "t2v", "metric": "R@1", "unit": "%"}
    numbers = {"value": value, "higher_is_better": True, "items": 8, "chance": 12.5, "baseline": "chance"}
    numbers |= {"videos": 8, "independent_videos": 8.0, "low": None, "high": None, "protocol": "all pairs, 4 frames"}
    return {"name": "zero_shot/t2v/R1", **shown, **numbers}


@pytest.fixture
def built(monkeypatch, prefect) -> list[Step]:
    """The steps that were built, by a function in the place of the stages."""
    steps: list[Step] = []

    def work(step: Step, out: Path, *_: object) -> Outcome:
        steps.append(step)
        if step.stage == "zero_shot":
            pretrain = step.inputs["pretrained"].config
            write_json(out / "results.json", [row(VALUES[pretrain.lr, pretrain.seed])])
        return Outcome()

    monkeypatch.setattr("alpro.pipeline.flows.tasks.run_stage", work)
    monkeypatch.setattr("alpro.pipeline.flows.tasks.check_test_split", lambda *_: None)
    return steps


def source_of(root: Path, variants: list[dict] = VARIANTS, **values: object) -> Source:
    values = {"seed_stages": ["pretrain"], "seeds": [5, 6], "until": "zero_shot", **values}
    study = Study.model_validate({"name": "rates", "variants": variants, **values})
    return Source(study, TINY, "", SMALL, root)


def client_of(root: Path) -> tuple[MlflowClient, list]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("rates").experiment_id], max_results=1000)


def test_shared_stages_are_built_once_and_the_table_is_that_of_the_results(built, tmp_path, capsys):
    source = source_of(tmp_path)
    members = members_of(source)
    assert [member.title for member in members] == [f"{name} · seed {seed}" for seed in (5, 6) for name in NAMES]
    planned = {name: work["to_run"] for name, work in work_left(members).items()}
    print_study_plan(members, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: {"to_run": count, "cached": 0} for name, count in planned.items()}
    run_study(source, members)
    assert len({step.fingerprint for step in built}) == len(built)
    assert Counter(step.name for step in built) == planned
    once = ("render_sample", "decode_videos clips", "train_tokenizer", "build_vocabulary")
    assert planned == {**dict.fromkeys(once, 1), "pretrain": 4, "zero_shot": 4}
    assert {work["to_run"] for work in work_left(members).values()} == {0}

    (folder,) = (path for path in (tmp_path / "reports").iterdir() if path.is_dir())
    first, second = read_json(folder / "study.json")["scores"]
    assert (first["values"], first["mean"], first["difference"]) == ([50.0, 70.0], 60.0, None)
    assert (second["values"], second["mean"], second["difference"]) == ([40.0, 50.0], 45.0, -15.0)
    assert second["difference_interval"] == pytest.approx(12.706 * 5, rel=1e-3)  # 5: of -10 and -20, s / sqrt(2)
    assert "-15.0" in capsys.readouterr().out
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")

    client, runs = client_of(tmp_path)
    by_id = {run.info.run_id: run for run in runs}
    variants = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert {name: run.info.status for name, run in variants.items()} == dict.fromkeys(NAMES, "FINISHED")
    assert variants["slow"].data.metrics["difference/zero_shot/t2v/R1"] == -15
    listed = {file.path for file in client.list_artifacts(variants["fast"].info.run_id, "study")}
    assert listed == {"study/study.json", "study/study.png"}
    pipelines = [run for run in runs if "seed" in run.data.tags]
    parents = {(by_id[run.data.tags["mlflow.parentRunId"]].info.run_name, run.info.run_name) for run in pipelines}
    assert parents == {(member.variant, member.title) for member in members}
    stages = {by_id[run.data.tags["mlflow.parentRunId"]].info.run_name for run in runs if "stage" in run.data.tags}
    assert stages == {member.title for member in members}


def test_a_study_goes_on_after_a_stop_and_after_a_failure(tmp_path, monkeypatch, capsys):
    ends = iter(["done", KeyboardInterrupt(), "done", StageFailed("it broke"), "done"])

    def start(
        plan: planning.Planned, arguments: dict, workspace: Path, uri: str, title: str, tags: dict, parent: object
    ) -> dict[str, str]:
        assert (arguments["stage"], workspace, uri) == ("zero_shot", tmp_path, "")
        assert title == f"{tags['variant']} · seed {tags['seed']}"
        if isinstance(end := next(ends), BaseException):
            raise end
        settings, _, _ = plan
        folder = tmp_path / f"{settings.pretrain.lr}"
        folder.mkdir(exist_ok=True)
        write_json(folder / "artifact.json", {"version": RECORD_VERSION, "stage": "zero_shot"})
        write_json(folder / "results.json", [row(VALUES[settings.pretrain.lr, settings.pretrain.seed])])
        return {"zero_shot": str(folder)}

    monkeypatch.setattr(flow, "start", start)
    broken = {"name": "broken", "set": ["pretrain.batch_size=7"]}
    source = source_of(tmp_path, [VARIANTS[0], broken, VARIANTS[1]], seeds=[5])
    with pytest.raises(KeyboardInterrupt):
        run_study(source, members_of(source))
    assert statuses(tmp_path) == dict.fromkeys(["fast", "broken", "slow"], "KILLED")
    with pytest.raises(StageFailed, match="1 of 3 runs failed: broken · seed 5"):
        run_study(source, members_of(source))
    assert next(ends, "no more") == "no more"
    assert statuses(tmp_path) == {"fast": "FINISHED", "broken": "FAILED", "slow": "FINISHED"}
    assert "broken · seed 5: failed: it broke" in capsys.readouterr().err
    (folder,) = (path for path in (tmp_path / "reports").iterdir() if path.is_dir())
    report = read_json(folder / "study.json")
    assert report["failed"] == {"broken · seed 5": "it broke"}
    rows = [(row["variant"], row["values"], row["difference"]) for row in report["scores"]]
    assert rows == [("fast", [50.0], None), ("slow", [40.0], -10.0)]


def statuses(root: Path) -> dict[str, str]:
    """The status of each variant's newest run."""
    runs = [run for run in client_of(root)[1] if "mlflow.parentRunId" not in run.data.tags]
    return {run.info.run_name.removesuffix(" · run 2"): run.info.status for run in reversed(runs)}


def test_without_an_evaluation_nothing_is_written(tmp_path, capsys):
    source = source_of(tmp_path)
    outcomes = {member: [] for member in members_of(source)}
    studies.report(source, outcomes, tmp_path / "report", tracker=None, runs={})
    assert "no scores: no run finished an evaluation" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_missing_files_are_reported_before_the_first_run(tmp_path):
    source = source_of(tmp_path, [*VARIANTS, {"name": "moved", "set": ["corpora.clips={data='/none', size=36}"]}])
    with pytest.raises(InputError, match="/none"):
        run_study(source, members_of(source))
    assert not (tmp_path / "mlflow.db").exists()


def test_an_invalid_variant_is_named(tmp_path):
    source = source_of(tmp_path, [{"name": "a"}, {"name": "b", "set": {"pretrain.lrr": 1}}])
    with pytest.raises(InputError, match=r"variant 'b': --set pretrain.lrr=1: pretrain.lrr: unknown key"):
        members_of(source)


def test_repeated_frames_are_one_warning_for_all_members(tmp_path, capsys):
    source = source_of(
        tmp_path, [{"name": "a", "set": {"evaluate.frames": 9}}, {"name": "b", "set": {"evaluate.frames": 9}}]
    )
    assert len(members_of(source)) > 1
    assert (
        capsys.readouterr().err.count("zero_shot uses 9 frames of a clip, and clips stores 4: some are repeated") == 1
    )


def test_the_folder_of_the_report_depends_on_the_configuration(tmp_path):
    """Of which the last stage of every member has all in its fingerprint."""
    source = source_of(tmp_path, [{"name": "a"}])
    changed = Source(source.study, source.config, "", ["pretrain.lr=0.5"], tmp_path)
    one, other = (folder_of(s, members_of(s)) for s in (source, changed))
    assert one != other
    assert one == folder_of(source, members_of(source))
    assert one.name.startswith(f"{source.study.name}-")


def seeds_of(member: Member) -> dict[str, int]:
    stages = member.plan[0].model_dump(include={"render_sample", "train_prompter", "pretrain", "finetune_qa"})
    return {stage: values["seed"] for stage, values in stages.items()}


def test_a_seed_sets_the_seeds_of_all_stages_or_of_those_of_the_study(tmp_path):
    study = Study(name="s", seeds=(3,))
    (member,) = members_of(Source(study, TINY, "", [], tmp_path))
    assert set(seeds_of(member).values()) == {3}
    only = study.model_copy(update={"seed_stages": ("train_prompter", "pretrain")})
    (member,) = members_of(Source(only, TINY, "", ["render_sample.seed=4"], tmp_path))
    assert seeds_of(member) == {"render_sample": 4, "train_prompter": 3, "pretrain": 3, "finetune_qa": 0}


def test_changes_of_a_variant_come_after_those_of_the_command_line_and_of_the_study(tmp_path):
    changes = {"name": "a", "set": ["pretrain.lr=1e-3"]}
    study = Study.model_validate({"name": "s", "seeds": [0], "set": {"pretrain.lr": 3, "pretrain.eps": 3}})
    study = Study.model_validate(study.model_dump(by_alias=True) | {"variants": [changes, {"name": "b"}]})
    members = members_of(Source(study, TINY, "", ["pretrain.lr=2", "pretrain.eps=2"], tmp_path))
    assert [(m.plan[0].pretrain.lr, m.plan[0].pretrain.eps) for m in members] == [(1e-3, 2), (2, 2)]


@pytest.mark.parametrize("name", shipped_studies())
def test_every_variant_of_every_shipped_study_is_a_valid_plan_of_its_own(name, tmp_path):
    study = load_study(name)
    assert study.name == name
    corpora = {"webvid": "webvid_cc3m", "cc3m": "webvid_cc3m", "msrvtt": "msrvtt_", "msvd": "msvd_qa"}
    data = [f"corpora.{corpus}.data=/{corpus}" for corpus, config in corpora.items() if config in study.config]
    members = members_of(Source(study, study.config, "", data, tmp_path))
    assert len({member.plan[1][-1].fingerprint for member in members}) == len(study.variants) * len(study.seeds)
    stages = {step.stage for member in members for step in member.plan[1]}
    reported = {"retrieval": "evaluate", "qa": "evaluate"}
    reported |= dict.fromkeys(("zero_shot", "entities", "named"), "zero_shot")
    for score in study.scores:
        assert score == "*" or reported[score.split("/")[0].removesuffix("_vtc")] in stages, score


def test_both_variants_of_the_full_study_of_prompts_have_the_same_entities(tmp_path):
    """Words of a template are left out of the entities, as excluded ones are."""
    study = load_study("prompts_full")
    data = ["corpora.webvid.data=/a", "corpora.cc3m.data=/b", "corpora.msrvtt.data=/c"]
    members = members_of(Source(study, study.config, "", data, tmp_path))
    configs = [member.plan[0].build_vocabulary for member in members]
    left_out = [config.templates.words() | set(config.exclude) for config in configs]
    letters = [{word for word in words if len(word) >= configs[0].min_letters} for words in left_out]
    assert letters[0] == letters[1]
    assert [len(config.templates.video) for config in configs] == [1, 12]


@pytest.mark.long
def test_a_real_study(tmp_path):
    """2 variants x 2 seeds by the command line: the table is recomputed from the artifacts; a rerun is all cached."""
    file = tmp_path / "pem.toml"
    study = {"seeds": "[0, 1]", "until": "'zero_shot'", "seed_stages": "['train_prompter', 'pretrain']"}
    variants = "\n[[variants]]\nname = 'all'\n[[variants]]\nname = 'no PEM'\nset = ['pretrain.weights.pem=0']\n"
    file.write_text("".join(f"{key} = {value}\n" for key, value in study.items()) + variants)
    command = [sys.executable, "-m", "alpro.pipeline.cli.main", "study", str(file), "--config", TINY]
    command += ["--workspace", str(tmp_path / "w")]

    def run(*more: str) -> subprocess.CompletedProcess:
        done = subprocess.run([*command, *more], env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    assert "4 runs: 16 stage runs to do, 0 cached" in run("--dry-run").stdout
    progress = run().stderr.splitlines()
    assert sum(line.endswith(": started") for line in progress) == 16
    artifacts = [read_json(path) for path in (tmp_path / "w" / "artifacts").glob("*/*/artifact.json")]
    by_print = {artifact["fingerprint"]: artifact for artifact in artifacts}
    found = {}
    for path in (tmp_path / "w" / "artifacts" / "zero_shot").glob("*/results.json"):
        pretrain = by_print[read_json(path.with_name("artifact.json"))["inputs"]["pretrained"]["fingerprint"]]
        place = ("all" if pretrain["config"]["weights"]["pem"] else "no PEM", pretrain["config"]["seed"])
        found[place] = {row["name"]: row["value"] for row in json.loads(path.read_text())}
    assert len(found) == 4
    (report,) = (tmp_path / "w" / "reports").glob("*/study.json")
    rows = read_json(report)["scores"]
    # No crop may be above PEM's threshold: then that run has no accuracy of these crops.
    assert {(one["variant"], one["score"]) for one in rows} == {(at[0], score) for at in found for score in found[at]}
    for one in rows:
        values = {seed: found[one["variant"], seed].get(one["score"]) for seed in (0, 1)}
        values = {seed: value for seed, value in values.items() if value is not None}
        base = {seed: found["all", seed].get(one["score"]) for seed in values}
        differences = [value - base[seed] for seed, value in values.items() if base[seed] is not None]
        assert one["seeds"] == list(values)
        assert one["values"] == list(values.values())
        assert one["mean"] == mean(values.values())
        paired = one["variant"] != "all" and differences
        assert one["difference"] == (mean(differences) if paired else None)
    again = run()
    assert "started" not in again.stderr
