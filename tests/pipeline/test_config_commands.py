"""`alpro config ...` and `alpro --version`."""

import json
import tomllib
from importlib.metadata import version

import pytest
from rich.console import Console

from alpro.pipeline.cli.config import to_toml, values_of
from alpro.pipeline.config.pipeline_config import CONFIGS, load_config, shipped
from alpro.pipeline.reports import terminal
from tests.pipeline.conftest import TINY
from tests.pipeline.test_cli import call


def places(name: str, folder) -> list[str]:
    """The changes that a shipped configuration needs to be complete."""
    values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    changes = [f"corpora.{key}.data={folder}" for key, corpus in values["corpora"].items() if "manifest" not in corpus]
    return [*changes, f"pretrained={folder / 'model'}"] if {"pretrained", "base"} & values.keys() else changes


@pytest.mark.parametrize("name", shipped())
def test_a_shown_configuration_is_the_same_configuration(name, tmp_path, monkeypatch, capsys):
    changes = [*places(name, tmp_path), "resources.workers=3"]
    options = [part for change in changes for part in ("--set", change)]
    status, out, err = call(monkeypatch, capsys, "config", "show", name, *options)
    assert (status, err) == (0, "")
    (tmp_path / "shown.toml").write_text(out)
    shown = load_config(str(tmp_path / "shown.toml"))
    assert shown == load_config(name, changes=changes)
    assert shown.resources.workers == 3


def test_values_are_written_as_toml():
    values = {
        "text": 'a "b" \\ \n\x7fü',
        "numbers": [1, 1e-5, 2.0, True],
        "empty": {},
        "a key": {"x": 1, "y": {"z": []}},
        "only": {"tables": {"x": 1}},
        "phases": [{"corpora": ["a"], "weights": {"vtc": 1.0}}, {}],
    }
    assert tomllib.loads(to_toml(values)) == values


def test_the_models_sizes_are_written_once():
    values = values_of(load_config("sample"))
    assert "model" in values
    assert "model" not in values["pretrain"]


def test_the_sizes_of_the_prompter_are_shown_if_they_differ(tmp_path, monkeypatch, capsys):
    changes = ["train_prompter.model.video.depth=3", "pretrain.start=scratch"]
    out = call(monkeypatch, capsys, "config", "show", TINY, *(p for c in changes for p in ("--set", c)))[1]
    (tmp_path / "shown.toml").write_text(out)
    shown = load_config(str(tmp_path / "shown.toml"))
    assert shown == load_config(TINY, changes=changes)
    assert shown.train_prompter.model.video.depth == 3


def test_the_shipped_configurations_are_listed_with_their_first_comment(monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "config", "list")
    assert status == 0
    first = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert first == shipped()
    described = json.loads(call(monkeypatch, capsys, "config", "list", "--json")[1])
    assert list(described) == shipped()
    for name, comment in described.items():
        assert (CONFIGS / f"{name}.toml").read_text().startswith(f"# {comment}\n")
    assert out.split() == [word for name, comment in described.items() for word in (name, *comment.split())]


def test_the_list_of_configurations_fits_into_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", Console(width=80))
    _, out, _ = call(monkeypatch, capsys, "config", "list")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("source", shipped())
def test_a_new_file_is_a_copy_with_its_own_name(source, tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.toml"
    status, out, _ = call(monkeypatch, capsys, "config", "init", file, "--from", source)
    assert (status, out) == (0, f"{file}: edit it, then run: alpro run --config {file}\n")
    changes = places(source, tmp_path)
    copy, original = load_config(str(file), changes=changes), load_config(source, changes=changes)
    assert copy == original.model_copy(update={"name": "mine"})
    assert f"alpro run --config {file}" in file.read_text()
    assert f"--config {source}" not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["there.toml"], "there.toml: File exists"),
        (["no/folder.toml"], "no/folder.toml: No such file or directory"),
        (["mine.txt"], "mine.txt: the file must be named NAME.toml"),
        (["my config.toml"], "my config.toml: the file must be named NAME.toml"),
        (["mine.toml", "--from", "nothing"], "nothing: no such shipped configuration; those are didemo_retrieval, "),
    ],
)
def test_a_file_that_cannot_be_written_is_a_one_line_error(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("mine")
    status, _, err = call(monkeypatch, capsys, "config", "init", *arguments)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert (tmp_path / "there.toml").read_text() == "mine"


def test_a_configuration_that_lacks_its_data_is_a_one_line_error(monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, "config", "show", "own_videos")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--data" in err


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"alpro-pipeline {version('alpro-pipeline')}\n", "")
