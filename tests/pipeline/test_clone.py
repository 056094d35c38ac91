"""The command that `alpro artifacts show` prints builds the same results on a fresh clone of the commit."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from alpro.pipeline.store.artifacts import Store

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command; with `path`, that folder is first in PATH."""
    left_out = ("PREFECT_", "ALPRO_", "PYTHON", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clone(folder: Path, commit: str) -> Path:
    """A fresh clone of a commit, installed in an environment of its own. Returns the environment's programs.

    All other packages are those of this environment, whose own installation of the project is not active there.
    """
    run("git", "clone", "--quiet", ROOT, folder, cwd=folder.parent)
    run("git", "checkout", "--quiet", "--detach", commit, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", ".venv", cwd=folder)
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    programs = folder / ".venv" / "bin"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(programs / "python", "-m", "pip", "install", *options, "-e", ".", cwd=folder)
    where = run(programs / "python", "-c", "import alpro.pipeline.flows.flow as f; print(f.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return programs


def built(folder: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """The records of everything that an artifact was built from, by fingerprint."""
    store = Store(folder / "workspace" / "artifacts")
    (last,) = (record for _, record in store.all() if record["fingerprint"].startswith(prefix))
    return {record["fingerprint"]: record for _, record in store.lineage(last)}


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_printed_command_gives_the_same_results_on_a_fresh_clone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    programs = clone(first, run("git", "rev-parse", "HEAD", cwd=ROOT).strip())
    run("alpro", "run", "--config", "tests/tiny.toml", "--set", "pretrain.lr=3e-4", cwd=first, path=programs)
    (folder,) = (first / "workspace" / "artifacts" / "evaluate").glob("*/artifact.json")
    fingerprint = folder.parent.name
    printed = run("alpro", "artifacts", "show", fingerprint, cwd=first, path=programs)
    found = re.search(r"^To build it again, at commit ([0-9a-f]+):\n  (.*)$", printed, re.MULTILINE)
    assert found, printed
    commit, command = found.groups()
    run("bash", "-c", command, cwd=second, path=clone(second, commit))
    one, other = built(first, fingerprint), built(second, fingerprint)
    assert list(one) == list(other)
    for mark, record in one.items():
        same = ("name", "config", "inputs", "files", "counts", "metrics", "versions")
        assert {key: record[key] for key in same} == {key: other[mark][key] for key in same}
        assert record["run"]["commit"] == other[mark]["run"]["commit"] == commit
        for name, file in record["contents"].items():
            # metrics.jsonl has times; keys in units.parquet contain the folders of the files
            if name not in ("metrics.jsonl", "units.parquet") and not name.endswith(".png"):
                assert file == other[mark]["contents"][name], (record["name"], name)
