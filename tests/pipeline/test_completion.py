"""Completion scripts, in the shells themselves."""

import shutil
import subprocess

import pytest

from alpro.pipeline.cli.completion import completion
from alpro.pipeline.config.pipeline_config import shipped
from alpro.pipeline.studies.study_config import shipped_studies
from alpro.stages import STAGES
from tests.pipeline.test_cli import call

# Calls the function of the completion as bash does when a person presses Tab after the last word.
PRESS_TAB = """
function=$(complete -p alpro | sed -E 's/.* -F ([^ ]+) .*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
$function alpro "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    from alpro.pipeline.cli.main import parser

    return completion(parser(), "bash")


@pytest.fixture
def press_tab(script, tmp_path):
    """press_tab(*words): what bash offers for the last word."""

    def press(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", script + PRESS_TAB, "bash", "alpro", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        assert done.stderr == ""
        return done.stdout.split()

    return press


def test_bash_completes_commands_groups_options_and_choices(press_tab):
    assert set(press_tab("")) >= {"run", "study", "model", *(stage.replace("_", "-") for stage in STAGES)}
    assert press_tab("pret") == ["pretrain"]
    assert press_tab("artifacts", "") == ["ls", "show", "lineage", "verify", "gc"]
    assert press_tab("model", "im") == ["import"]
    assert press_tab("model", "ask", "--dev") == ["--device"]
    assert press_tab("model", "ask", "--device", "") == ["auto", "cpu", "cuda"]
    assert "--quiet" in press_tab("pretrain", "--")


def test_bash_completes_names_and_files(press_tab, tmp_path):
    (tmp_path / "own.toml").touch()
    (tmp_path / "own_folder").mkdir()
    assert press_tab("run", "--config", "") == [*shipped(), "own.toml", "own_folder"]
    assert press_tab("study", "prompts") == [name for name in shipped_studies() if name.startswith("prompts")]
    assert press_tab("config", "init", "new.toml", "--from", "sam") == ["sample"]
    assert sorted(press_tab("run", "--data", "own")) == ["own.toml", "own_folder"]
    assert press_tab("run", "--workspace", "own") == ["own_folder"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_is_printed_and_valid(shell, monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, "--completion", shell)
    assert (status, err) == (0, "")
    assert "finetune-retrieval" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)
