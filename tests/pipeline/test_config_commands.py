"""`alpro config ...`."""

import json
import tomllib

import pytest
from rich.console import Console

from alpro.pipeline.cli.config import to_toml
from alpro.pipeline.config.pipeline_config import CONFIGS, load_config, shipped
from alpro.pipeline.reports import terminal
from tests.pipeline.conftest import TINY
from tests.pipeline.test_cli import call


def places(name: str, folder) -> list[str]:
    """The changes that a configuration needs to be complete."""
    if name == TINY:  # sizes of its own
        return ["train_prompter.model.video.depth=3", "pretrain.start=scratch"]
    values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    changes = [f"corpora.{key}.data={folder}" for key, corpus in values["corpora"].items() if "manifest" not in corpus]
    return [*changes, f"pretrained={folder / 'model'}"] if {"pretrained", "base"} & values.keys() else changes


@pytest.mark.parametrize("name", [TINY, *shipped()])
def test_a_shown_configuration_is_the_same_configuration(name, tmp_path, monkeypatch, capsys):
    changes = [*places(name, tmp_path), "resources.workers=3"]
    options = [part for change in changes for part in ("--set", change)]
    status, out, err = call(monkeypatch, capsys, "config", "show", name, *options)
    assert (status, err) == (0, "")
    (tmp_path / "shown.toml").write_text(out)
    shown = load_config(str(tmp_path / "shown.toml"))
    assert shown == load_config(name, changes=changes)
    assert shown.resources.workers == 3
    assert "model" not in tomllib.loads(out).get("pretrain", {})  # written once


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


def test_the_shipped_configurations_are_listed_with_their_first_comment(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", Console(width=80))
    out = call(monkeypatch, capsys, "config", "list")[1]
    described = json.loads(call(monkeypatch, capsys, "config", "list", "--json")[1])
    assert list(described) == shipped()
    assert all((CONFIGS / f"{name}.toml").read_text().startswith(f"# {text}\n") for name, text in described.items())
    assert out.split() == [word for name, comment in described.items() for word in (name, *comment.split())]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("source", shipped())
def test_a_new_file_is_a_copy_with_its_own_name(source, tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.toml"
    assert call(monkeypatch, capsys, "config", "init", file, "--from", source)[0] == 0
    changes = places(source, tmp_path)
    copy, original = load_config(str(file), changes=changes), load_config(source, changes=changes)
    assert copy == original.model_copy(update={"name": "mine"})
    assert f"alpro run --config {file}" in file.read_text()
    assert f"--config {source}" not in file.read_text()
