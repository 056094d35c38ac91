"""The command line: what bad input gets, and what looking around shows."""

import json
import socket
import sys

import pytest

from pipeline import cli
from shards.schema import InputError
from stages.artifacts import Store


def call(monkeypatch, capsys, *arguments):
    """Calls the command line; returns its exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["alpro", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr()
    return left.value.code, told.out, told.err


def manifest(folder, *rows):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (None, "no such file or folder"),
        ([], "no rows"),
        ([{"path": "a.mp4"}], "no column 'captions', 'caption' or 'questions'"),
        ([{"file": "a.mp4", "caption": "x"}], "no column 'path'"),
        (
            [{"id": "a", "path": "a.mp4", "caption": "x"}, {"id": "a", "path": "b.mp4", "caption": "y"}],
            "id 'a' is also",
        ),
        ([{"path": "../a.mp4", "caption": "x"}], "leaves the data folder"),
    ],
)
def test_an_unusable_manifest_is_one_line_and_leaves_nothing(rows, told, tmp_path, monkeypatch, capsys):
    data = tmp_path / "none.jsonl" if rows is None else manifest(tmp_path, *rows)
    work = tmp_path / "work"
    status, _, err = call(monkeypatch, capsys, "run", "--config", "own_videos", "--data", data, "--workspace", work)
    assert status == 2
    assert told in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (work / "artifacts").exists()
    assert not (work / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "pretrain.lrr=1"], "unknown key"),
        (["--set", "pretrain.batch_size=0"], "pretrain.batch_size"),
        (["--config", "nothing"], "neither a file nor a configuration that ships"),
        (["--workspace", "/dev/null/x"], "--workspace"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(monkeypatch, capsys, "pretrain", *arguments)
    assert status == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_stage_that_the_configuration_lacks_is_told(tmp_path, monkeypatch, capsys):
    path = manifest(tmp_path, {"path": "a.mp4", "caption": "x"})
    arguments = ["render-sample", "--config", "own_videos", "--data", path, "--workspace", tmp_path / "w"]
    status, _, err = call(monkeypatch, capsys, *arguments)
    assert (status, err) == (2, "error: this configuration has no stage render_sample\n")


def test_a_taken_port_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = call(monkeypatch, capsys, "ui", "--port", port, "--workspace", tmp_path)
    assert status == 2
    assert f"port {port} is taken" in err
    assert "--port" in err


def test_dry_run_says_what_would_run(tmp_path, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "pretrain", "--dry-run", "--workspace", tmp_path)
    assert status == 0
    assert [line.split()[2] for line in out.splitlines()][-2:] == ["cache_prompts", "pretrain"]
    assert "evaluate" not in out
    assert all(line.startswith("to run") for line in out.splitlines())


def test_help_names_every_command(monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "--help")
    assert status == 0
    for command in ("run", "decode-videos", "pretrain", "evaluate", "ls", "show", "ui"):
        assert f"    {command} " in out


def test_an_empty_workspace_is_told(tmp_path, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "ls", "--workspace", tmp_path)
    assert status == 0
    assert "no artifacts" in out
    status, _, err = call(monkeypatch, capsys, "show", "abc", "--workspace", tmp_path)
    assert status == 2
    assert "no artifact begins with this" in err
    status, _, err = call(monkeypatch, capsys, "ui", "--workspace", tmp_path)
    assert "no MLflow store there yet" in err


def test_showing_needs_one_artifact(tmp_path):
    assert list(Store(tmp_path).all()) == []
    with pytest.raises(InputError):
        cli.show_artifact(cli.parser().parse_args(["show", "a", "--workspace", str(tmp_path)]))


@pytest.mark.parametrize("port", ["80000", "0", "x"])
def test_what_is_no_port_is_told(port, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "ui", "--port", port)
    assert status == 2
    assert "is no port" in err
