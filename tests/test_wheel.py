"""A wheel, installed beside a user's own folders `models`, `stages`, `shards` and `pipeline`."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("alpro", "models", "shards", "stages", "inference", "pipeline")
BUILD = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
BUILD += ["--no-deps", "--no-index", "--no-build-isolation"]

PROGRAM = """
import sys
from functools import partial
from pathlib import Path

import models, pipeline, shards, stages

assert [module.OWNER for module in (models, pipeline, shards, stages)] == ["the user"] * 4

import alpro.pipeline.flows.flow
from alpro.stages.execution.interface import Resources
from alpro.stages.execution.workers import run_units
from alpro.stages.vocabulary.nouns import tag_unit

unit = ["a dog runs on the grass"], [1]
((_, words),) = run_units([unit], partial(tag_unit, tagger="embedded"), Resources(workers=1))  # in a spawned process
assert words["dog", True] == 1
own = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "alpro"}
assert all(Path(file).is_relative_to(sys.argv[1]) for file in own.values()), own
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the project, since setuptools writes into the source folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*FOLDERS, "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*BUILD, "--wheel-dir", out, source], check=True)
    (file,) = out.glob("*.whl")
    return file


def test_a_wheel_contains_the_package_and_its_data_alone(wheel):
    every = zipfile.ZipFile(wheel).namelist()
    names = {name for name in every if ".dist-info/" not in name}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in every)  # beside exported code
    files = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert names == {(path if path.parts[0] == "alpro" else "alpro" / path).as_posix() for path in files}


@pytest.mark.long
def test_an_installed_wheel_works_beside_folders_of_the_same_names(wheel, tmp_path):
    site, user = tmp_path / "site", tmp_path / "user"
    zipfile.ZipFile(wheel).extractall(site)
    for name in FOLDERS[1:]:
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text('OWNER = "the user"\n')
    # -S: without .pth files, and so without the editable installation of this checkout.
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_HOME": str(tmp_path / "prefect")}

    def run(*arguments: object) -> str:
        command = [sys.executable, "-S", *map(str, arguments)]
        return subprocess.run(command, cwd=user, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    run("-c", PROGRAM, site)
    assert "pretrain" in run("-m", "alpro.pipeline.cli.main", "run", "--config", "sample", "--dry-run")
