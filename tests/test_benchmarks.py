"""The benchmark of the training step runs at a small size and reports variants that do not agree; the comparison of
losses runs the code and the configuration of each side."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["five passes, float32 (a)", "five passes, bfloat16 (b)", "ours, float32"]),
        (["--tricks", "fusion", "AdamW"], ["ours, float32", "without merged fusion pass", "without fused AdamW"]),
    ],
)
def test_small_steps_agree_and_are_timed(tmp_path, options, names):
    out = tmp_path / "figures.json"
    shared = ["--device", "cpu", "--size", "small", "--batch", "8", "--repeats", "1", "--warmup", "0", "--json", out]
    done = subprocess.run(
        [sys.executable, FILE, *map(str, shared), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert list(figures["variants"]) == names
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
        out, plot = tmp_path / "figures.json", tmp_path / "plot.png"
        command = [sys.executable, COMPARE, a, b, "--stage", "train_prompter", "--steps", "3", "--json", out, *options]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command), "--plot", str(plot)], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert plot.read_bytes().startswith(b"\x89PNG")
        return json.loads(out.read_text())["losses"]["loss_vtc"]

    return run


@pytest.fixture
def changed_code(tmp_path) -> Path:
    """A checkout with another schedule."""
    code = tmp_path / "changed"
    for name in ("alpro", "models", "shards", "stages", "pipeline"):
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


def test_the_search_finds_what_a_sort_does(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, FILE.with_name("search.py"), "--clips", "3000", "--queries", "2", "--json", out]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(out.read_text())["milliseconds"]) == {"read and sort", "mapped"}
