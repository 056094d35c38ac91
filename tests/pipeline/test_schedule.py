"""Which stages run at the same time, how they are stopped, and plans on a machine that lacks the videos."""

import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.errors import InputError
from alpro.pipeline.cli.main import parser
from alpro.pipeline.cli.run import plan_rows, print_plan, run_pipeline
from alpro.pipeline.config.pipeline_config import load_config
from alpro.pipeline.flows.flow import alpro
from alpro.pipeline.plan.dag import plan, planned
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.steps import check_files
from alpro.pipeline.store.artifacts import Step, Store
from alpro.stages.execution.interface import Outcome, StageFailed
from alpro.stages.execution.stop import STOP
from tests.pipeline.conftest import TINY, newest, runs
from tests.stages.conftest import write_manifest

CORPORA = ["corpora.clips.quality=71", "corpora.stills.quality=71"]
FINE_TUNING = ["finetune_retrieval.lr=7e-4", "finetune_qa.lr=7e-4"]


@pytest.fixture
def work(monkeypatch) -> SimpleNamespace:
    """Replaces the work of a stage: it waits for `together` stages to run, notes how many run, and fails."""
    seen = SimpleNamespace(together=1, running=0, most=0, started=[])
    changed = threading.Condition()

    def fail(step: Step, *_: object) -> Outcome:
        with changed:
            seen.started.append(step.name)
            seen.running += 1
            seen.most = max(seen.most, seen.running)
            changed.notify_all()
            assert changed.wait_for(lambda: seen.most >= seen.together, timeout=120)
            seen.running -= 1
        raise StageFailed(f"{step.name} broke")

    monkeypatch.setattr("alpro.pipeline.flows.tasks.run_stage", fail)
    return seen


@pytest.mark.parametrize(
    ("changes", "limits", "together"),
    [
        (CORPORA, [], 1),
        (CORPORA, ["resources.max_stages=2"], 2),
        (FINE_TUNING, [], 1),
        (FINE_TUNING, ["resources.max_stages=2"], 2),
    ],
)
def test_independent_stages_run_at_the_same_time_within_the_limits(changes, limits, together, first, workspace, work):
    work.together = together
    with pytest.raises(StageFailed, match="broke"):
        alpro(TINY, changes=[*changes, *limits], workspace=str(workspace))
    assert len(work.started) == 2
    assert work.most == together
    if together == 1:  # in the order of the plan
        assert work.started == [name for name in first if name in work.started]


def test_stages_that_run_at_the_same_time_stop_together(first, workspace, monkeypatch):
    running = threading.Barrier(2)

    def run_until_stopped(*_: object) -> Outcome:
        if running.wait(120) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        STOP.get().wait(120)
        raise AssertionError("not stopped")

    monkeypatch.setattr("alpro.pipeline.flows.tasks.run_stage", run_until_stopped)
    limits = ["resources.max_stages=2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            alpro(TINY, changes=[*FINE_TUNING, *limits], workspace=str(workspace))
    finally:
        signal.signal(signal.SIGINT, before)
    parents, _ = runs(workspace)
    statuses = {name: run.info.status for name, run in newest(workspace).items()}
    assert parents[0].info.status == "KILLED"
    assert (statuses["finetune_retrieval"], statuses["finetune_qa"]) == ("KILLED", "KILLED")
    assert "evaluate" not in statuses


@pytest.fixture
def walls(tmp_path) -> Callable[[str], tuple[list[Step], Store]]:
    """walls(machine): the steps of the tiny pipeline on pictures of the user's, planned on a machine that shares its
    artifacts with others, and that machine's store."""
    rows = [{"id": f"wall {n}", "captions": [f"a wall and a dog {n}"], "split": "train"} for n in range(6)]
    manifest = str(write_manifest(tmp_path / "data", rows))
    changes = [f"resources.artifacts='{tmp_path}/shared'", "corpora.data.size=16"]

    def steps(machine: str) -> tuple[list[Step], Store]:
        config = load_config(TINY, manifest, changes)
        (tmp_path / machine).mkdir(exist_ok=True)
        store = Store(tmp_path / machine / "artifacts", config.resources.artifacts)
        return plan(config, Digests(tmp_path / machine / "digests.sqlite"), store), store

    return steps


@pytest.mark.parametrize("left", ["nothing", "manifest", "changed manifest"])
def test_on_a_machine_without_the_videos_recorded_digests_suffice(
    left, walls, tmp_path, resources, inline_pool, capsys
):
    steps, store = walls("a")
    decode = steps[0]
    store.make(decode, lambda step, out: step.module.run(step.config, step.paths, out, resources), {})
    assert store.share(decode) == ""
    if left == "nothing":
        shutil.rmtree(tmp_path / "data")
    for picture in tmp_path.glob("data/*.png"):
        picture.unlink()
    if left == "changed manifest":
        with open(tmp_path / "data" / "items.jsonl", "a") as file:
            file.write('{"id": "another", "path": "wall 0.png", "caption": "one more"}\n')
    elsewhere, other_store = walls("b")
    same = elsewhere[0].fingerprint == decode.fingerprint
    assert same == (left != "changed manifest")
    assert ("using its artifact of 20" in capsys.readouterr().err) == same
    check_files(elsewhere[:1], other_store)


def test_a_dry_run_shows_what_is_blocked_and_a_run_fails_at_once(tmp_path, capsys):
    config, data = "own_videos", str(tmp_path / "none")
    _, steps, store = planned("", config, data, [], tmp_path)
    print_plan(plan_rows(steps, store))
    lines = {line[11:35].strip(): (line[:10].strip(), line[54:]) for line in capsys.readouterr().out.splitlines()}
    assert {state for state, _ in lines.values()} == {"blocked"}
    assert f"{data}: no such file or folder" in lines["decode_videos data"][1]
    assert lines["build_vocabulary"] == ("blocked", "needs decode_videos data")
    with pytest.raises(InputError, match="no such file or folder"):
        alpro(config, data, workspace=str(tmp_path))
    assert not Path(tmp_path / "mlflow.db").exists()


def test_the_command_reports_missing_files_before_a_flow_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("alpro.pipeline.cli.run.prepare_prefect", lambda home: None)  # it changes the environment
    monkeypatch.setattr("alpro.pipeline.flows.flow.alpro", lambda *_: pytest.fail("a flow was started"))
    arguments = parser().parse_args(["run", "--data", str(tmp_path / "none"), "--workspace", str(tmp_path)])
    with pytest.raises(InputError, match="no such file or folder"):
        run_pipeline(arguments)
