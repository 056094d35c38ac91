"""The documentation of a finished pipeline: its commands and code run, and its metrics have the documented names."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alpro.artifact import read_record
from alpro.files import read_json
from alpro.pipeline.flows import flow
from alpro.stages.evaluation.metrics import RETRIEVAL
from alpro.stages.training.metrics import read_metrics
from tests.pipeline.conftest import TINY

ROOT = Path(__file__).parents[2]


def blocks(page: str, heading: str) -> list[str]:
    """The code blocks of a page below a heading."""
    text = (ROOT / page).read_text().partition(f"\n{heading}\n")[2]
    return re.findall(r"^```\w*\n(.*?)^```$", re.split(r"^## ", text, flags=re.MULTILINE)[0], re.DOTALL | re.MULTILINE)


@pytest.fixture
def unfinished(first, workspace, tmp_path) -> Path:
    """A workspace in which fine-tuning was interrupted, as a pipeline leaves it."""
    shutil.copytree(workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("*.lock"))
    folder = tmp_path / "workspace" / Path(first["finetune_qa"]).relative_to(workspace)
    work = read_json(folder / "work.json")
    shutil.rmtree(folder)
    folder.mkdir()
    text = json.dumps(work).replace(str(workspace), str(tmp_path / "workspace"))
    (folder / "work.json").write_text(text)
    return folder


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.long)], ids=["one process", "four"])
def test_a_stage_runs_by_hand_as_documented(number, first, unfinished):
    command = blocks("docs/deploying.md", "## A stage by hand")[0].splitlines()[number]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command), cwd=unfinished, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"done: {unfinished}"
    record, before = read_record(unfinished), read_record(Path(first["finetune_qa"]))
    differ = ("run", "metrics") if number else ("run",)  # the order of sums differs on four processes
    differ += ("contents", "sum")
    assert {k: v for k, v in record.items() if k not in differ} == {k: v for k, v in before.items() if k not in differ}
    changed = {name for name, file in record["contents"].items() if file != before["contents"][name]}
    assert number or changed == {"metrics.jsonl"}  # it has seconds
    assert record["metrics"].keys() == before["metrics"].keys()
    assert not (unfinished / "checkpoints").exists()
    flow.finetune_qa(TINY, workspace=str(unfinished.parents[2]))
    assert read_record(unfinished) == record  # a pipeline uses it unchanged


def test_the_python_example(first, sample, tmp_path, monkeypatch, capsys):
    (example,) = blocks("docs/python.md", "## A trained model")
    for name, video in zip("ab", sorted((sample / "videos").glob("test-*.mp4")), strict=False):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    assert re.findall(r"Model\.load\(\"(\w+)\"\)", example) == ["finetune_retrieval", "finetune_qa", "train_prompter"]
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
    "rank": "|".join(metric.key for metric in RETRIEVAL if not metric.validation_only),
    "subset": r"\w+",
    "name": r"\w+",
}
NOT_IN_EVERY_RUN = {
    "<split>/decoded/<corpus>",
    "<split>/named/pointing",
    "<split>/qa/acc_answers_<group>",
    "<split>/named/recall",
    "<split>/named_vtc/recall",
}


def test_every_metric_has_its_name_on_the_page(first):
    page = (ROOT / "docs" / "metrics.md").read_text().partition("\n## Names\n")[2]
    cells = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    documented = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(documented) == len(set(documented)) > 30
    logged = set()
    for folder in map(Path, first.values()):
        logged |= read_record(folder)["metrics"].keys()
        logged |= {name for line in read_metrics(folder / "metrics.jsonl") for name in line}
    logged -= {"step", "time"}

    def pattern(name: str) -> re.Pattern[str]:
        validated = {"rank": "|".join(metric.key for metric in RETRIEVAL)}
        places = PLACES | (validated if name.startswith("validation/") else {})
        parts = re.split(r"<(\w+)>", name)
        named = [f"({places.get(p, r'[^/]+')})" if i % 2 else re.escape(p) for i, p in enumerate(parts)]
        return re.compile("".join(named))

    patterns = {name: pattern(name) for name in documented}
    assert [name for name in logged if not any(p.fullmatch(name) for p in patterns.values())] == []
    unused = {name for name, p in patterns.items() if not any(p.fullmatch(one) for one in logged)}
    assert unused - NOT_IN_EVERY_RUN == set()
