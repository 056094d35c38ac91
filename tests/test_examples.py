"""The programs of examples/ run as their first lines say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_here(monkeypatch, capsys):
    """run_here(name, *arguments): as `run`, in this process, which has imported torch."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def run(name, *arguments):
    """Run an example, and return the lines that it prints."""
    command = [sys.executable, "-P", EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.usefixtures("videos")
def test_videos_are_searched_in_python(run_here, folders, videos):
    folder = videos[0].parent

    lines = run_here(
        "search_in_python.py", folders["retrieval"], folder, "a red ball", "-k", 2
    )

    scored = [line.split("  ") for line in lines if not line.startswith("left out")]
    assert len(scored) == 2
    assert float(scored[0][0]) >= float(scored[1][0])
    assert all(Path(file).is_file() for _, file in scored)


def test_a_stage_of_ones_own_runs_alone(run_here, tmp_path):
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    pq.write_table(
        pa.table({"entity": ["red ball", "square"]}), vocabulary / "entities.parquet"
    )

    lines = run_here("own_stage.py", vocabulary, tmp_path / "out")

    assert lines == ["{'words': 1}"]
    assert json.loads((tmp_path / "out" / "words.json").read_text()) == ["square"]


def test_a_form_of_ones_own_is_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").touch()
    table = tmp_path / "texte.csv"
    table.write_text(
        "Datei,Kurztext,Langtext\na,a dog,a brown dog\nb,a cat,a black cat\n"
    )

    lines = run("own_form.py", tmp_path, table)

    assert lines == ["a: a.mp4: a dog | a brown dog", "b: b.mp4: a cat | a black cat"]
