"""Nothing of the current folder runs: people work in folders of downloaded data."""

import os
import re
import textwrap

import pytest

from alpro.interpreter import interpreter
from alpro.pipeline.execution.processes import Processes
from tests.conftest import ROOT

SHADOWING = (
    "queue",
    "calendar",
    "secrets",
    "token",
    "prefect",
    "av",
    "ctypes",
    "multiprocessing",
)


def run_supervised(program, lines):
    """Run a program as this project runs one; returns its exit status."""
    command = interpreter("-c", program)
    return Processes(command, os.environ, on_line=lines.append).wait()


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A current folder with files named like modules, each of which leaves a mark when it is
    imported."""
    for name in SHADOWING:
        program = f"import pathlib; pathlib.Path({str(tmp_path)!r}, 'ran').write_text('{name}')"
        (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_child_imports_from_the_current_folder(downloads, monkeypatch):
    """Neither a program that this project starts, nor what a library starts in it."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    program = textwrap.dedent("""
        import ctypes, queue, multiprocessing, subprocess, sys
        multiprocessing.set_start_method("spawn")
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                assert pool.map(abs, [-3]) == [3]
            plain = [sys.executable, "-c", "import calendar, secrets, token, ctypes"]
            subprocess.run(plain, check=True)""")
    lines: list[str] = []
    assert run_supervised(program, lines) == 0, lines
    assert not (downloads / "ran").exists()


@pytest.mark.long
def test_prefect_takes_no_settings_from_the_current_folder(tmp_path, monkeypatch):
    """They could name a configuration of logging, which runs programs."""
    (tmp_path / "prefect.toml").write_text("[logging]\nconfig_path = 'of_data.yml'\n")
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://host.example/api\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    program = textwrap.dedent("""
        from alpro.environment import outside_current_folder
        with outside_current_folder():
            import prefect
            from prefect.settings import get_current_settings
        settings = get_current_settings()
        print(settings.logging.config_path, settings.api.url)""")

    lines: list[str] = []
    assert run_supervised(program, lines) == 0, lines
    assert "of_data.yml" not in lines[-1]
    assert "host.example" not in lines[-1]


def test_one_function_makes_the_command_of_a_child():
    """A plain `python -m` or `python -c` has the current folder first on its path. A program that
    starts again has the options that it had."""
    rooms = ("alpro", "models", "shards", "stages", "inference", "pipeline")
    sources = {path.resolve() for room in rooms for path in (ROOT / room).rglob("*.py")}
    naming = {
        path.name for path in sources if re.search(r"sys\.executable", path.read_text())
    }
    assert naming == {"environment.py", "interpreter.py"}
