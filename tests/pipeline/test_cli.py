"""The command line: every error of a person is one line with status 2, options arrive, and nothing
slow is imported."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import Mock

import pytest

from alpro.errors import InputError
from alpro.files import write_json
from alpro.pipeline.cli import main as cli
from alpro.pipeline.cli.options import Source
from alpro.pipeline.config.command import Command
from alpro.stages.execution.interface import StageFailed
from tests.conftest import write_lines
from tests.pipeline.conftest import ROOT, TINY, write_artifact

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shards/a.tar")


ASKED = (
    '{"path": "b.mp4", "split": "train", "caption": "y", "questions": '
    '[{"question": "what?", "answer": "x"}, {"question": "who?", "answer": "z"}]}'
)
FILES = {
    "there.toml": "mine",
    "empty.jsonl": "",
    "one.jsonl": '{"path": "a.mp4", "caption": "x", "split": "train"}\n',
    "asked.jsonl": f"{ASKED}\n"
    + '{"path": "a.mp4", "caption": "x", "split": "test"}\n',
    "secret.jsonl": '{"path": "https://me:hush@host/a.mp4", "caption": "a"}',
    **dict.fromkeys(["a.mp4", "b.mp4", "store/mlflow.db"], ""),
}
# What the line of a wrong command must name, and the commands. {tmp}: a folder with files that the
# test makes.
MISTAKES = {
    "pretrain": ["run pretran"],
    "mean 'sample'": ["run --config smaple"],
    "mean 'objectives'": ["study objetives"],
    '"add"': ["index ad"],
    "import-checkpoint": ["import-checkpoint"],
    "--config": ["run --confg sample"],
    "--epochs": ["run --epochs 3"],
    "--zzz": ["artifacts gc --zzz"],
    "VIDEO": ["model ask m"],
    "--port": ["ui --port", "ui --port 80000"],
    "--window": ["index add index videos --window nan"],
    "/dev/null/x": ["run --workspace /dev/null/x"],
    "/proc": ["run --workspace /proc"],
    "cdcd": ["config show msvd_qa --data {tmp} --pretrained cdcd"],
    "--data": ["config show own_videos"],
    "alpro run": ["ui --workspace {tmp} --port {free}"],
    "abc": ["artifacts show abc --workspace {tmp}"],
    "no artifacts": [
        f"artifacts {name} --workspace {{tmp}}/none" for name in ("verify", "gc")
    ],
    "none.jsonl": ["data check {tmp}/none.jsonl", "run --data {tmp}/none.jsonl"],
    "empty.jsonl": ["run --data {tmp}/empty.jsonl"],
    "render_sample": ["run render_sample --config own_videos --data {tmp}/one.jsonl"],
    "test item": ["run --dry-run --data {tmp}/one.jsonl"],
    "no test item has captions": ["run --config finetune_clip --data {tmp}/one.jsonl"],
    "no test item has questions": ["run --data {tmp}/asked.jsonl"],
    "this URL contains ": [
        "run --data http://host:1/m.jsonl?sig=hush",
        "index add index http://me:hush@host/m.jsonl",
        "eval model http://me:hush@host/m.jsonl",
        "run --config=http://me:hush@host/m.jsonl",
        "run --set train_prompter.clip=http://me:hush@host/m.jsonl",
    ],
    "line 1: path": ["run --data {tmp}/secret.jsonl"],
    "--tracking-uri": [
        "run --tracking-uri postgresql+psycopg://me:hush@host --dry-run"
    ],
    "loop.toml": ["run --config {tmp}/loop.toml", "run --data {tmp}/loop.toml"],
    "fifo": ["run --data {tmp}/fifo", "run --config {tmp}/fifo"],
    "ARTIFACT": ["artifacts rm"],
    "none": ["study none", "serve {tmp}/none --port {free}", "eval {tmp}/none {tmp}"],
    "{used}": ["up --prefect-port {used}", "ui --port {used} --workspace {tmp}/store"],
    "INDEX": ["serve --port {free}"],
    "--token-file": ["serve {tmp}/none --host 0.0.0.0 --port {free}"],
    "there.toml": ["serve {tmp}/none --token-file {tmp}/there.toml --port {free}"],
    "--public-name": ["serve {tmp}/none --public-name a.example --port {free}"],
    "--model": ["index add {tmp}/i {tmp}"],
    "no/clip": ["eval no/clip {tmp}/asked.jsonl"],
}


@pytest.mark.parametrize(
    ("command", "named"),
    [(one, named) for named in MISTAKES for one in MISTAKES[named]],
)
def test_a_mistake_is_one_line_that_names_it_and_writes_nothing(
    command, named, hub, tmp_path, monkeypatch, call, free_port
):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "fifo")

    with socket.create_server(("127.0.0.1", 0)) as used:
        places = {"tmp": tmp_path, "used": used.getsockname()[1], "free": free_port()}
        status, out, err = call(*command.format(**places).split())

    notes = ("configuration: ", "warning: no questions in ")
    (line,) = (one for one in err.splitlines() if not one.startswith(notes))
    assert (status, line[:7]) == (2, "error: ")
    assert named.format(**places) in line
    assert "hush" not in out + err
    assert (tmp_path / "there.toml").read_text() == "mine"
    assert not list(tmp_path.glob("workspace/mlflow.db"))
    assert not list(tmp_path.glob("*/artifacts/*/*/artifact.json"))
    written = [path for path in tmp_path.glob("workspace/**/*") if path.is_file()]
    assert not any(b"hush" in path.read_bytes() for path in written)


def test_a_read_only_workspace_is_a_line_with_status_2(tmp_path):
    folder = tmp_path / "artifacts" / "pretrain"
    (folder / "ab").mkdir(parents=True)
    program = "import sys; from alpro.pipeline.cli.main import execute; print(execute(sys.argv[1:]))"
    command = [sys.executable, "-c", program]
    command += ["run", "pretrain", "--workspace", str(tmp_path)]
    if os.geteuid() == 0:  # root may write everywhere
        command[:0] = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

    for path in (folder, tmp_path):
        path.chmod(0o555)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tmp_path.chmod(0o755)

    line = done.stderr.splitlines()[-1]
    assert done.stdout.endswith("2\n")
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_a_dry_run_lists_the_stages_that_would_run(tmp_path, call):
    stage = ("evaluate qa", "--config", TINY, "--workspace", tmp_path)
    options = ("--dry-run", "--set", "pretrain.lr=0.5")

    status, out, err = call("run", *stage, *options)

    heads, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert heads.split() == ["state", "name", "fingerprint", "reason"]
    assert [line.split()[2] for line in lines][-2:] == ["finetune_qa", "evaluate"]
    assert all(line.startswith("to run") for line in lines)


def test_ui_prints_its_address_and_becomes_mlflows_program(
    mlflow_store, tmp_path, monkeypatch, call, free_port
):
    """From a folder with nobody's files."""
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.chdir(tmp_path)
    mlflow_store(tmp_path)

    port = free_port()

    _, out, _ = call("ui", "--port", port, "--workspace", tmp_path)

    assert out.startswith(f"MLflow at http://127.0.0.1:{port}")
    (command,) = started
    assert command[1:5] == ["-P", "-m", "mlflow", "ui"]
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in command
    assert os.path.isfile("os.py")  # noqa: PTH113 - the current folder


def test_own_data_without_a_configuration_is_that_of_own_videos(
    tmp_path, monkeypatch, call
):
    """A tilde is the home folder, also after a =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"")
    row = {"path": "a.mp4", "caption": "x"}
    rows = [{**row, "split": split} for split in ("validation", "test")]
    write_lines(tmp_path / "manifest.jsonl", rows)
    words = ["run", "--dry-run", "--workspace=~/w", "--data=~/manifest.jsonl"]

    _, out, err = call(*words)

    assert "own_videos" in err
    assert "question answering is skipped" in err
    assert "decode_videos data" in out
    assert (tmp_path / "w" / "manifests").is_dir()


def test_a_pretrained_model_is_named_like_any_artifact_and_set_overrides_it(tmp_path):
    folder, _ = write_artifact(tmp_path, "pretrain", fingerprint="ab" * 32)
    (folder / "model").mkdir()
    write_json(folder / "model" / "config.json", {})
    for name in ("abab", str(folder), f"{folder}/model"):
        command = Source(pretrained=name, set=("pretrained=b",)).command(
            "tiny", tmp_path
        )
        assert command.changes == (f'pretrained="{folder / "model"}"', "pretrained=b")


def test_output_that_nothing_reads_is_no_traceback(monkeypatch):
    read, write = os.pipe()
    with open(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        os.close(read)
        assert cli.execute(["config", "show", "tiny"]) == 141


def test_a_command_that_a_message_names_exists():
    rooms = ("alpro", "models", "shards", "stages", "inference", "pipeline")
    files = [path for room in rooms for path in (ROOT / room).rglob("*")]
    texts = [
        path.read_text("utf-8")
        for path in files
        if path.suffix in (".py", ".toml", ".html")
    ]
    named = {
        match for text in texts for match in re.findall(r"`alpro ([a-z][^`]*)`", text)
    }

    assert len(named) > 5
    for command in named:
        app = cli.app
        for word in command.split():
            # The rest are arguments.
            if not re.fullmatch(r"[a-z][a-z-]*", word) or all(
                name[0] == "-" for name in app
            ):
                break
            assert word in app, command
            app = app[word]


def end(number):
    """Return a flow that receives a signal, and others while it ends. A signal to all processes also
    stops Prefect's server, and Prefect then raises a connection error."""

    def start(*arguments):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            print("checkpoint", file=sys.stderr)
            raise ConnectionError  # noqa: B904

    return start


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        ([{}], 0, ""),
        (
            StageFailed("pretrain ended with status 1"),
            1,
            "error: pretrain ended with status 1\n",
        ),
        (InputError("no nouns"), 2, "error: no nouns\n"),
        (
            FULL,
            2,
            "error: shards/a.tar: No space left on device; check this path and its disk, and run "
            "again to resume\n",
        ),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to continue\n"),
        (
            end(signal.SIGTERM),
            143,
            "checkpoint\nstopped; run the same command again to continue\n",
        ),
        (
            end(signal.SIGHUP),
            129,
            "checkpoint\nstopped; run the same command again to continue\n",
        ),
        (ZeroDivisionError(), None, ""),
    ],
)
def test_the_exit_status_of_a_run(
    outcome, status, message, mlflow_store, tmp_path, monkeypatch, call
):
    mlflow_store(tmp_path)
    monkeypatch.setattr("alpro.pipeline.flows.flow.start", Mock(side_effect=outcome))
    with pytest.raises(ZeroDivisionError) if status is None else nullcontext():
        code, _, err = call("run", "--workspace", tmp_path)
        assert (code, err) == (status, message)


def test_options_reach_the_flow(tmp_path, monkeypatch, call):
    start, opened = Mock(return_value={}), Mock()
    monkeypatch.setattr("alpro.pipeline.flows.flow.start", start)
    monkeypatch.setattr("alpro.pipeline.tracking.tracker.Tracker.open", opened)
    options = (
        f"--config {TINY} --tracking-uri http://host:5000 --workspace {tmp_path} --set "
    )

    call("run", "train_prompter", *options.split(), "pretrain.lr=1e-4")

    (plan, _), _ = start.call_args
    assert plan.command == Command(TINY, ("pretrain.lr=1e-4",), "train_prompter")
    assert opened.call_args.args[0] == "http://host:5000"


def test_the_command_line_imports_no_slow_package(tmp_path):
    """`--help` and usage errors import only the options of all commands, a dry run neither Prefect
    nor MLflow, and models and their training not the compiler of torch; Prefect finds its
    environment set: no output of its own, its files in the workspace."""
    program = f"""
import sys, alpro.pipeline.cli.main as cli
slow = {{"prefect", "torch", "mlflow", "pydantic", "pyarrow", "fsspec", "numpy", "pandas"}}
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
assert cli.execute(["run", "pretrain", "--dry-run", "--workspace", {str(tmp_path)!r}]) == 0
assert not {{"prefect", "mlflow", "pandas"}} & sys.modules.keys()
import alpro.models.weights as weights, alpro.models.alpro as models
with weights.meta_device():
    models.Alpro(models.ModelConfig())
from functools import partialmethod
from tests.stages.training.conftest import ALONE, Path
from tests.stages.training.part_of_steps import RUNS, Trainer, train
Trainer.train = partialmethod(Trainer.train, dict)  # validates, with no metrics
train(Path({str(tmp_path)!r}), ALONE, **RUNS["resumed"])
assert not {{"torch._dynamo", "sympy"}} & sys.modules.keys()
from prefect.settings import get_current_settings
settings = get_current_settings()
print(settings.server.analytics_enabled, settings.logging.level, settings.home)
"""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFECT", "DO_NOT_TRACK"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"CRITICAL {tmp_path}/prefect")


def test_data_check_prints_problems_and_ends_with_status_1(tmp_path, call):
    (tmp_path / "a.mp4").write_bytes(b"")
    row = {"path": "a.mp4", "caption": "a b c"}
    data = write_lines(tmp_path / "manifest.jsonl", [row])

    status, out, _ = call("data", "check", data)

    assert status == 1
    assert "1 items" in out
    assert "problem: data: no test item has captions" in out
