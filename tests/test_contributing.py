"""The worked examples of CONTRIBUTING.md: their diffs apply, pass lint and the rules of the project, and work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FOLDERS = ("models", "shards", "stages", "inference", "pipeline")
UNUSED = shutil.ignore_patterns("__pycache__")

# What runs in the copy: the checks of the examples, their own tests, and the rules for every change.
TESTS = [
    "tests/worked_examples.py",
    "tests/stages/test_count_words.py",
    "tests/models/test_losses.py",
    "tests/test_layering.py",
    "tests/test_docs.py::test_the_method_lists_every_stage",
    "tests/test_paper_configurations.py::test_the_model_and_the_losses_are_those_of_the_paper",
    "tests/pipeline/test_config.py::test_the_page_of_the_configuration_is_up_to_date",
    "tests/pipeline/test_cli.py::test_every_module_of_a_stage_is_a_stage_of_the_run",
    "tests/pipeline/test_deployments.py::test_every_flow_has_a_deployment_in_its_pool",
]


def diffs() -> dict[str, str]:
    """The diff of each example, by its heading."""
    sections = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)[1:]
    blocks = {
        heading: "".join(re.findall(r"^```diff\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {heading: diff for heading, diff in blocks.items() if diff}


def changed(diff: str) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)$", diff, re.MULTILINE)


def copy_project(folder: Path) -> Path:
    """A copy of the project, and in `.types` the package `alpro` with links to its folders, as for `make lint`."""
    for name in ("alpro", *FOLDERS, "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=UNUSED)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, folder / path.name)
    package = folder / ".types" / "alpro"
    package.mkdir(parents=True)
    for target in (*(folder / "alpro").glob("*.py"), *(folder / name for name in FOLDERS)):
        (package / target.name).symlink_to(target)
    return folder


def apply(diff: str, folder: Path) -> None:
    """Applies a diff with git, or with patch where git is missing."""
    command = ["git", "apply", "-"] if shutil.which("git") else ["patch", "-p1", "--fuzz=0"]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # in a repository, git skips paths
    done = subprocess.run(command, cwd=folder, env=environment, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run_in(folder: Path, *arguments: str) -> None:
    """Runs Python on the code of a copy, which precedes the installed package."""
    path = f"{folder / '.types'}{os.pathsep}{folder}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},  # not the current folder before it
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def contributed(tmp_path_factory) -> Path:
    """A copy of the project with all the examples."""
    folder = copy_project(tmp_path_factory.mktemp("contributed"))
    for diff in diffs().values():
        apply(diff, folder)
    return folder


def test_the_page_has_the_examples_with_few_files_each():
    files = {heading: [f for f in changed(diff) if not f.startswith("tests/")] for heading, diff in diffs().items()}
    counts = {"A prompt template": 1, "A metric": 1, "An objective": 3, "A stage": 6}
    assert {heading: len(names) for heading, names in files.items()} == counts


@pytest.mark.parametrize("example", diffs())
def test_an_example_applies_without_the_others(example, tmp_path):
    for name in changed(diffs()[example]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / name)
    before = {
        name: (ROOT / name).read_bytes() if (ROOT / name).exists() else None for name in changed(diffs()[example])
    }
    apply(diffs()[example], tmp_path)
    assert [name for name, text in before.items() if (tmp_path / name).read_bytes() == text] == []


def test_the_examples_pass_lint(contributed):
    files = [name for diff in diffs().values() for name in changed(diff) if name.endswith(".py")]
    run_in(contributed, "-m", "ruff", "check", "--no-cache", *files)
    run_in(contributed, "-m", "ruff", "format", "--no-cache", "--check", *files)


@pytest.mark.long
def test_the_examples_work_and_keep_the_rules_of_the_project(contributed, tmp_path):
    for program in set(re.findall(r"`\.venv/bin/python (docs/\S+\.py)`", PAGE)):
        run_in(contributed, program)
    run_in(contributed, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", *TESTS)
