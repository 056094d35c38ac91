"""The benchmark of the training step runs at a small size and reports variants that do not agree; the comparison of
losses runs the code and the configuration of each side; the trials of the GPU trip run on a CPU."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_docs import commands

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "train_step.py"


def loaded(file: Path):
    """A program as a module."""
    sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_step():
    return loaded(FILE)


@pytest.mark.long
def test_small_steps_agree_and_are_timed(tmp_path):
    out = tmp_path / "figures.json"
    shared = ["--device", "cpu", "--size", "small", "--batch", "8", "--repeats", "1", "--warmup", "0", "--json", out]
    done = subprocess.run(
        [sys.executable, FILE, *map(str, shared)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert list(figures["variants"]) == ["five passes, float32 (a)", "five passes, bfloat16 (b)", "ours, float32"]
    negatives = [one["negatives"] for name, one in figures["losses"].items() if "bfloat16" not in name]
    assert len(negatives[0]) == 16
    assert negatives == negatives[:1] * len(negatives)
    for one in figures["variants"].values():
        assert 0.5 < sum(one["parts"].values()) / one["seconds"] < 1.01


FIVE = {"loss_vtc": 1.0, "grad_norm": 10.0, "negatives": [1, 0]}


@pytest.mark.parametrize(
    ("dtype", "changed", "fine"),
    [
        ("float32", {}, True),
        ("float32", {"loss_vtc": 1.001}, False),
        ("bfloat16", {"loss_vtc": 1.001}, True),
        ("bfloat16", {"loss_vtc": 1.03}, False),
        ("float32", {"grad_norm": 10.1}, False),
        ("float32", {"negatives": [1, 1]}, False),
        ("bfloat16", {"negatives": [1, 1]}, True),  # similarities are rounded, so a draw may fall to the next
        ("float32", {"loss_vtc": float("nan")}, False),
    ],
)
def test_the_variants_that_agree(train_step, dtype, changed, fine):
    chosen = [train_step.Variant("five", "float32", five_passes=True), train_step.Variant("ours", dtype)]
    assert train_step.agree(chosen, [FIVE, FIVE | changed]) is fine


COMPARE = FILE.with_name("compare_losses.py")


@pytest.fixture
def compare(tmp_path):
    """compare(a, b, *options): the figures of two trainings of the prompter of three steps each."""

    def run(a: object, b: object, *options: str) -> dict:
        out = tmp_path / "figures.json"
        command = [sys.executable, COMPARE, a, b, "--stage", "train_prompter", "--steps", "3", "--json", out, *options]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(out.read_text())["losses"]["loss_vtc"]

    return run


@pytest.fixture
def changed_code(tmp_path) -> Path:
    """A checkout with another schedule."""
    code = tmp_path / "changed"
    for name in ("alpro", "models", "shards", "stages", "inference", "pipeline"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", code)
    file = code / "stages" / "training" / "optim.py"
    text = file.read_text()
    file.write_text(text.replace("return config.lr * (step + 1)", "return 2 * config.lr * (step + 1)"))
    assert file.read_text() != text
    return code


@pytest.mark.long
def test_each_side_trains_with_its_own_code(compare, changed_code):
    """The first loss is of the same weights and batch; the schedule shows in the second."""
    losses = compare(ROOT, changed_code, "--set", "warmup_ratio=0.5")
    assert losses["first"] == 2
    assert losses["a"][0] == losses["b"][0]


@pytest.mark.long
def test_each_side_trains_with_its_own_configuration(compare):
    assert compare(ROOT, ROOT, "--set-b", "lr=1e-3", "--set", "warmup_ratio=0")["first"] == 2


@pytest.mark.long
def test_the_same_code_trains_to_the_same_losses_also_interrupted(compare):
    losses = compare(ROOT, ROOT, "--stop-b", "1")
    assert (losses["largest"], losses["first"]) == (0, 0)


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="requires a git repository")
def test_a_commit_is_a_side(compare):
    assert len(compare("HEAD", ROOT)["a"]) == 3


DOCUMENTED = [arguments[1:] for _, arguments in commands("python") if arguments[0] == "benchmarks/compare_losses.py"]


@pytest.mark.parametrize("arguments", DOCUMENTED, ids=shlex.join)
def test_the_documented_comparisons_are_valid(arguments, monkeypatch):
    """Of options, stages and keys."""
    module = loaded(COMPARE)
    monkeypatch.setattr(sys, "argv", ["compare_losses.py", *arguments])
    options = module.arguments()
    for own in (options.set_a, options.set_b):
        changes = dict(map(module.parsed, [*options.set, *own]))
        config, resources = module.divided(options.stage, changes)
        stage = importlib.import_module(f"alpro.stages.{options.stage}")
        stage.Config.model_validate(module.tiny_world.configuration(options.stage, options.steps, config))
        chosen = module.Resources.model_validate(resources).model_dump()
        assert {name: chosen[name] for name in resources} == resources


def test_differences_against_a_table():
    """Relative to A; where A is 0, absolute."""
    module = loaded(COMPARE)
    figures = module.compared({"x": [2.0, 4.0, 0.0], "only in A": [1.0]}, {"x": [2.0, 3.0, 0.5]})
    assert figures == {
        "x": {"a": [2.0, 4.0, 0.0], "b": [2.0, 3.0, 0.5], "largest": 0.5, "mean": 0.25, "step": 3, "first": 2}
    }


# The GPU trip

GPU = FILE.with_name("gpu.py")
SITE = """
import sys

class Present:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else self.finder.find_spec(name, path, target)

# What an editable installation of this project adds is removed too.
sys.meta_path[:] = [Present(finder) for finder in sys.meta_path if "__editable__" not in finder.__module__]
"""
NOT_CARRIED = ["prefect", "mlflow", "spacy", "psutil", "av", "pandas", "matplotlib", "scipy", "transformers", "jinja2"]


@pytest.fixture(scope="module")
def gpu():
    return loaded(GPU)


@pytest.fixture(scope="module")
def gpu_trials():
    return loaded(FILE.with_name("gpu_trials.py"))


def test_every_trial_has_its_function(gpu, gpu_trials):
    assert [trial.name for trial in gpu.TRIALS] == list(gpu_trials.TRIALS)
    limits = [trial.limit for trial in gpu.TRIALS[1:]]  # the machine comes first
    assert limits == sorted(limits)


@pytest.mark.parametrize(
    ("written", "exit_status", "status", "summary"),
    [
        ({"status": "passed", "summary": ["fine"]}, 0, "passed", ["fine"]),
        ({"status": "skipped", "summary": ["requires a GPU"]}, 0, "skipped", ["requires a GPU"]),
        ({"status": "failed", "summary": ["wrong"]}, 1, "failed", ["wrong"]),
        ({"status": "running", "summary": ["half"]}, None, "time limit", ["half", "killed at the time limit"]),
        ({"status": "running", "summary": ["half"]}, -9, "failed", ["half", "exit status -9", "last line"]),
        ({"status": "passed", "summary": ["fine"]}, 134, "failed", ["fine", "exit status 134", "last line"]),
        (None, 1, "failed", ["exit status 1", "last line"]),
        (None, 0, "failed", ["exit status 0", "last line"]),
    ],
)
def test_the_result_of_a_trial(gpu, tmp_path, written, exit_status, status, summary):
    (tmp_path / "log").write_text("first line\nlast line\n")
    if written:
        (tmp_path / "result.json").write_text(json.dumps(written))
    result = gpu.result_of(gpu.TRIALS[0], exit_status, tmp_path / "result.json", tmp_path / "log")
    assert (result.name, result.status, result.summary) == ("machine", status, summary)


def test_a_process_of_a_trial_ends_or_is_killed_with_its_children(gpu, tmp_path, wait_for_end):
    log = tmp_path / "log"
    assert gpu.run_process([sys.executable, "-c", "print('output'); raise SystemExit(3)"], 600, log, os.environ) == 3
    assert log.read_text().endswith("output\n")
    assert gpu.run_process(["sleep", "600"], 0, log, os.environ) is None
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    child = int(process.stdout.readline())
    gpu.kill_group(process)
    wait_for_end(child)


def test_a_trial_is_passed_skipped_or_failed(gpu_trials, tmp_path, monkeypatch):
    def passed(context):
        context.report("half", figure=1)
        assert json.loads((tmp_path / "result.json").read_text())["status"] == "running"

    def failed(context):
        context.report("half")
        raise gpu_trials.Failed("the losses differ")

    def broken(context):
        raise ValueError("a message\nof two lines")

    trials = {"passed": passed, "skipped": gpu_trials.no_synchronization, "failed": failed, "broken": broken}
    monkeypatch.setattr(gpu_trials, "TRIALS", trials)
    actual = {}
    for name in trials:
        status = gpu_trials.run(name, tmp_path, 60, "cpu")
        result = json.loads((tmp_path / "result.json").read_text())
        actual[name] = status, result["status"], result["summary"]
    assert actual == {
        "passed": (0, "passed", ["half"]),
        "skipped": (0, "skipped", ["requires a GPU"]),
        "failed": (1, "failed", ["half", "the losses differ"]),
        "broken": (1, "failed", ["ValueError: a message"]),
    }


def test_ranks_and_losses_are_compared(gpu_trials):
    expected = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert gpu_trials.ranks_agree(expected * 2, expected) == {"correlation": pytest.approx(1), "first": 1}
    other = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert gpu_trials.ranks_agree(other, expected) == {"correlation": pytest.approx(0), "first": 0.5}
    difference = gpu_trials.gpu_runs.difference
    assert difference({"a": [1.0, 2.0], "b": [0.0, 4.0]}, {"a": [1.0, 2.5], "b": [0.1, 4.0]}) == pytest.approx(0.25)
    assert difference({"a": [1.0, 2.0]}, {"a": [1.0]}) == float("inf")
    assert difference({"a": [1.0]}, {"b": [1.0]}) == float("inf")


@pytest.mark.long
def test_the_trials_run_on_a_cpu_with_few_packages_and_without_an_installation(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE.format(names=set(NOT_CARRIED)))
    out = tmp_path / "out"
    command = [sys.executable, GPU, "--device", "cpu", "--minutes", "60", "--out", out]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "gpu.log").read_text()
    absent = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('alpro'), u.find_spec('mlflow'))"]
    assert subprocess.check_output(absent, cwd=tmp_path, env=env, text=True) == "None None\n"
    links = loaded(FILE.with_name("checkout.py")).link(ROOT, tmp_path / "links")
    program = f"import sys; sys.path.append({str(FILE.parent)!r}); import gpu_trials as g; print(*g.run_marked_tests())"
    env |= {"PYTHONPATH": f"{links}:{tmp_path}"}
    marked = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert re.search(r"\b[4-9] (passed|skipped), \d+ deselected", marked.stdout), marked.stdout
    trials = {trial["name"]: trial for trial in json.loads((out / "gpu.json").read_text())["trials"]}
    skipped = {"sync", "tests"}
    assert {name for name, trial in trials.items() if trial["status"] == "skipped"} == skipped
    assert {trial["status"] for name, trial in trials.items() if name not in skipped} == {"passed"}
    assert trials["resume"]["figures"]["difference"] == 0
    assert trials["step"]["figures"]["agree"]
    assert trials["objectives"]["figures"]["eager"].keys() == {"prompter", "pretrain", "retrieval", "qa"}
    assert "compiled: skipped, requires a GPU" in trials["objectives"]["summary"]
    assert "links/alpro" not in (out / "gpu.log").read_text()  # no traceback
    assert (out / "gpu.md").read_text().strip() in done.stdout


def test_growth_has_the_exponent_of_each_curve():
    curve = {10: {"seconds": 5.0}, 100: {"seconds": 1.0}, 1000: {"seconds": 100.0}}
    assert loaded(FILE.with_name("growth.py")).exponent(curve, "seconds") == pytest.approx(2)


@pytest.mark.long
def test_growth_measures_and_plots_each_curve(tmp_path):
    growth = loaded(FILE.with_name("growth.py"))
    command = [sys.executable, ROOT / "benchmarks" / "growth.py", "--turns", "1", "--curves", "search", "artifacts ls"]
    for clips in (30, 300):
        growth.index(tmp_path, clips)
    options = ["--sizes", "30", "300", "--folder", tmp_path, "--json", tmp_path / "figures.json"]
    printed = subprocess.run([*command, *options, "--plot", tmp_path / "plot.png"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    curves = json.loads((tmp_path / "figures.json").read_text())
    assert {name: list(curve) for name, curve in curves.items()} == {
        "search": ["30", "300"],
        "artifacts ls": ["30", "300"],
    }
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.long
def test_no_request_of_many_clients_is_lost(tmp_path):
    """More clients than places."""
    options = ["--clients", "40", "--requests", "2", "--videos", "8", "--json", tmp_path / "figures.json"]
    command = [sys.executable, ROOT / "benchmarks" / "serve.py", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert {name: row["answers"] for name, row in rows.items()} == {
        "similarity, 1 client": 8,
        "similarity, 40 clients": 80,
        "matching, 1 client": 8,
        "matching, 40 clients": 40,
    }
    assert all(0 < row["p50"] <= row["p99"] for row in rows.values())


def test_costs_are_items_divided_by_rates():
    costs = loaded(FILE.with_name("costs.py"))
    stage = costs.Stage(lambda clips: clips, "clips", 0.5, 400e3, passes=10)
    assert (stage.hours(2_500_000, 2.0), stage.gigabytes(2_500_000)) == (pytest.approx(3472.2, abs=0.1), 1000.0)
    assert (costs.pairs(1000), costs.pairs(2_500_000)) == (10_000, 1_000_000)
    rows = {line.split(" | ")[0]: line for line in costs.table([1000, 20_000], {"decode": 10.0})}
    assert rows["| decode"].endswith("| 0.028, 0.3 | 0.56, 6 | 10 |")
    assert rows["| pretrain"].endswith("| ? | ? | ? |")
    assert "\n".join(costs.table(costs.CLIPS, {})) in (ROOT / "docs" / "train.md").read_text()
