"""The command line: errors of the user, and commands that only print."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.errors import InputError
from alpro.files import write_json
from alpro.log import log
from alpro.pipeline.cli import main as cli
from alpro.pipeline.cli.arguments import changes_of
from alpro.stages import STAGES
from alpro.stages.execution.interface import Interrupted, StageFailed

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.toml")


def call(monkeypatch, capsys, *arguments):
    """Calls the command line; returns its exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["alpro", *map(str, arguments)])
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a command sets variables for its own process
    monkeypatch.setattr("alpro.pipeline.cli.run.start_temporary_server", lambda: None)  # flows here do not need it
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shards/a.tar")


def manifest(folder, *rows):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "no such file or folder"),
        ([], "no rows"),
        ([{"path": "a.mp4"}], "no column 'captions', 'caption' or 'questions'"),
        ([{"file": "a.mp4", "caption": "x"}], "no column 'path'"),
        (
            [{"id": "a", "path": "a.mp4", "caption": "x"}, {"id": "a", "path": "b.mp4", "caption": "y"}],
            "id 'a' is also",
        ),
        ([{"path": "../a.mp4", "caption": "x"}], "is outside the data folder"),
    ],
)
def test_an_unusable_manifest_is_a_one_line_error_and_nothing_is_written(rows, message, tmp_path, monkeypatch, capsys):
    data = tmp_path / "none.jsonl" if rows is None else manifest(tmp_path, *rows)
    work = tmp_path / "work"
    status, _, err = call(monkeypatch, capsys, "run", "--config", "own_videos", "--data", data, "--workspace", work)
    assert status == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (work / "artifacts").exists()
    assert not (work / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "pretrain.lrr=1"], "unknown key"),
        (["--set", "pretrain.batch_size=0"], "pretrain.batch_size"),
        (["--config", "nothing"], "neither a file nor a shipped configuration"),
        (["--workspace", "/dev/null/x"], "--workspace"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(monkeypatch, capsys, "run", "pretrain", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.fixture
def unprivileged() -> list[str]:
    """A prefix for a command that makes file permissions apply to it, also if the tests run as root."""
    if os.geteuid() != 0:
        return []
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], capture_output=True).returncode != 0:
        pytest.skip("root without setpriv: it can write everywhere")
    return drop


@pytest.mark.parametrize("command", [["run", "pretrain"], ["run", "--config", "own_videos", "--dry-run", "--data"]])
def test_a_read_only_workspace_is_a_one_line_error(command, unprivileged, tmp_path, monkeypatch, capsys):
    workspace = tmp_path / "workspace"
    data = [manifest(tmp_path, {"path": "a.mp4", "caption": "x"})] if "--data" in command else []
    (tmp_path / "a.mp4").write_bytes(b"one")
    assert call(monkeypatch, capsys, "run", "pretrain", "--dry-run", "--workspace", workspace)[0] == 0
    folders = [workspace, *(path for path in workspace.rglob("*") if path.is_dir())]
    for path in (*folders, workspace / "digests.sqlite"):
        path.chmod(0o555)
    arguments = [
        *unprivileged,
        sys.executable,
        "-m",
        "alpro.pipeline.cli.main",
        *command,
        *data,
        "--workspace",
        workspace,
    ]
    done = subprocess.run([str(part) for part in arguments], cwd=ROOT, capture_output=True, text=True)
    for path in folders:
        path.chmod(0o755)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert str(workspace) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_stage_without_a_table_in_the_configuration_is_an_error(tmp_path, monkeypatch, capsys):
    path = manifest(tmp_path, {"path": "a.mp4", "caption": "x"})
    arguments = ["run", "render_sample", "--config", "own_videos", "--data", path, "--workspace", tmp_path / "w"]
    status, _, err = call(monkeypatch, capsys, *arguments)
    assert (status, err) == (2, "error: this configuration has no stage render_sample\n")


def test_a_port_in_use_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = call(monkeypatch, capsys, "ui", "--port", port, "--workspace", tmp_path)
    assert status == 2
    assert f"port {port} is in use" in err
    assert "--port" in err


def test_a_dry_run_fails_as_the_run_would(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.csv").write_text("clip_file,words\n1,2\n")
    arguments = ["run", "--config", "own_videos", "--data", tmp_path / "a.csv", "--workspace", tmp_path / "w"]
    status, out, err = call(monkeypatch, capsys, *arguments, "--dry-run")
    assert status == 2
    assert out.startswith("blocked")
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'a.csv'}: no column 'path'")


def test_more_frames_than_are_stored_are_a_warning(tmp_path, monkeypatch, capsys):
    arguments = ["run", "evaluate", "--config", TINY, "--dry-run", "--workspace", tmp_path]
    assert call(monkeypatch, capsys, *arguments)[2] == ""
    _, _, err = call(monkeypatch, capsys, *arguments, "--set", "evaluate.frames=9")
    assert err == "evaluate uses 9 frames of a clip, and clips stores 4: some are repeated\n"


def test_own_data_without_a_configuration_is_that_of_own_videos(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.csv").write_text("path,captions\na.mp4,a dog\n")
    arguments = ["run", "--dry-run", "--workspace", tmp_path / "w", "--json"]
    _, out, err = call(monkeypatch, capsys, *arguments, "--data", tmp_path / "a.csv")
    assert "configuration: own_videos, small models from random weights for a first look, not for results; " in err
    assert not any(row["name"] == "render_sample" for row in json.loads(out))
    _, out, err = call(monkeypatch, capsys, *arguments)
    assert json.loads(out)[0]["name"] == "render_sample"
    assert "own_videos" not in err


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """The model folder of an artifact of pretrain in the workspace tmp_path."""
    folder = tmp_path / "artifacts" / "pretrain" / ("ab" * 8)
    record = {"version": RECORD_VERSION, "stage": "pretrain", "name": "pretrain", "fingerprint": "ab" * 32}
    write_json(make(folder / "model") / "config.json", {})
    write_json(folder / "artifact.json", record)
    return folder / "model"


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["pretrain", "abab", "pretrain@abab", "{folder}", "{folder}/model"])
def test_a_pretrained_model_is_named_like_any_artifact_and_set_overrides_it(name, pretrained, tmp_path):
    name = name.format(folder=pretrained.parent)
    for options in (["--set", "pretrained=b", "--pretrained", name], ["--pretrained", name, "--set", "pretrained=b"]):
        arguments = cli.parser().parse_args(["run", *options, "--workspace", str(tmp_path)])
        expected = [f'pretrained="{pretrained}"', "train_prompter=false", "pretrain=false", "pretrained=b"]
        assert changes_of(arguments) == expected


def test_a_folder_is_recorded_as_it_was_written_and_a_wrong_name_is_one_line(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(pretrained)
    assert changes_of(cli.parser().parse_args(["run", "--pretrained", "."]))[0] == 'pretrained="."'
    options = ["--config", "msvd_qa", "--data", tmp_path, "--pretrained", "cdcd", "--workspace", tmp_path]
    for command in (["run", *options], ["config", "show", "msvd_qa", *options[2:]]):
        assert call(monkeypatch, capsys, *command)[2].startswith("error: cdcd: no such folder, and no artifact starts")


@pytest.mark.parametrize(("options", "expected"), [([], "webvid_cc3m"), (["--config", "sample"], "sample")])
def test_a_study_has_its_own_configuration_unless_another_is_given(options, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.toml").write_text('config = "webvid_cc3m"\n')
    seen = []
    monkeypatch.setattr("alpro.pipeline.studies.study.members_of", lambda _, config, *more: seen.append(config) or [])
    monkeypatch.setattr("alpro.pipeline.studies.study.work_left", lambda members: {})
    call(monkeypatch, capsys, "study", tmp_path / "mine.toml", "--dry-run", "--workspace", tmp_path / "w", *options)
    assert seen == [expected]


def test_output_that_nothing_reads_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "alpro.pipeline.cli.main", "config", "list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_dry_run_lists_the_stages_that_would_run(tmp_path, monkeypatch, capsys):
    command = ["run", "pretrain", "--dry-run", "--workspace", tmp_path]
    status, out, _ = call(monkeypatch, capsys, *command)
    assert status == 0
    assert [line.split()[2] for line in out.splitlines()][-2:] == ["cache_prompts", "pretrain"]
    assert "evaluate" not in out
    assert all(line.startswith("to run") for line in out.splitlines())
    rows = json.loads(call(monkeypatch, capsys, *command, "--json")[1])
    assert [row["name"] for row in rows][-2:] == ["cache_prompts", "pretrain"]
    found = {(row["state"], row["reason"], len(row["fingerprint"])) for row in rows}
    assert found == {("to run", "no artifact yet", 64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "pretran"], "no stage pretran; did you mean pretrain?"),
        (["serch"], "alpro has no command serch; did you mean search? (alpro --help)"),
        (["index", "ad"], "alpro index has no command ad; did you mean add? (alpro index --help)"),
        (["import-checkpoint"], "alpro has no command import-checkpoint (alpro --help)"),
        (["run", "--confg", "sample"], "unknown option --confg; did you mean --config? (alpro run --help)"),
        (["run", "--confg=sample"], "unknown option --confg; did you mean --config? (alpro run --help)"),
        (["artifacts", "gc", "--zzz"], "unknown option --zzz (alpro artifacts gc --help)"),
        (["run", "pretrain", "sample"], "unknown argument sample (alpro run --help)"),
        (["ask", "m"], "the following arguments are required: VIDEO, QUESTION (alpro ask --help)"),
        (["data"], "the following arguments are required: COMMAND (alpro data --help)"),
        (["run", "-q", "-v"], "argument -v/--verbose: not allowed with argument -q/--quiet (alpro run --help)"),
        (["ui", "--port"], "argument --port: expected one argument (alpro ui --help)"),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_name(arguments, message, monkeypatch, capsys):
    assert call(monkeypatch, capsys, *arguments) == (2, "", f"error: {message}\n")


def helps(parser) -> list:
    """A parser and the parsers of all its commands."""
    groups = [action for action in parser._actions if hasattr(action, "add_parser")]
    return [parser, *(one for group in groups for command in group.choices.values() for one in helps(command))]


def test_every_help_fits_a_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parsers = helps(cli.parser())
    assert len(parsers) > 25
    lines = {parser.prog: parser.format_help().splitlines() for parser in parsers}
    assert {name for name, text in lines.items() if len(text) > 40} == set()
    groups = ("alpro artifacts", "alpro data", "alpro config", "alpro model", "alpro index")
    assert all(len(lines[name]) <= 24 for name in groups)
    assert max(len(line) for text in lines.values() for line in text) <= 80


def test_every_command_that_prints_a_table_has_json():
    """The others print one line, or text of another format: TOML, a script, addresses."""
    plain = {f"alpro {name}" for name in ("config show", "config init", "model import", "model export", "ui", "up")}
    plain |= {"alpro model register", "alpro serve"}
    for parser in helps(cli.parser()):
        if parser.prog.count(" ") and not any(hasattr(action, "add_parser") for action in parser._actions):
            assert ("--json" in parser._option_string_actions) == (parser.prog not in plain), parser.prog


def test_every_command_that_runs_stages_is_quiet_or_verbose():
    verbose = {parser.prog for parser in helps(cli.parser()) if "--verbose" in parser._option_string_actions}
    assert verbose == {parser.prog for parser in helps(cli.parser()) if "-q" in parser._option_string_actions}
    assert verbose == {"alpro run", "alpro study"}


def test_verbose_prints_paths_and_quiet_no_configuration(tmp_path, monkeypatch, capsys):
    level = log.level
    monkeypatch.setattr("alpro.pipeline.flows.flow.start", lambda *arguments: {})
    command = ["run", "pretrain", "--config", TINY, "--workspace", tmp_path]
    try:
        errors = {option: call(monkeypatch, capsys, *command, option)[2] for option in ("-v", "-q")}
    finally:
        log.setLevel(level)
    assert f"workspace {tmp_path}, MLflow {tmp_path}/mlflow.db\n" in errors["-v"]
    assert f"reading {TINY}\n" in errors["-v"]
    assert errors["-q"] == ""


def test_an_empty_workspace_has_no_artifacts_and_no_mlflow_store(tmp_path, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "artifacts", "ls", "--workspace", tmp_path)
    assert status == 0
    assert "no artifacts" in out
    status, _, err = call(monkeypatch, capsys, "artifacts", "show", "abc", "--workspace", tmp_path)
    assert status == 2
    assert "no artifact starts with it" in err
    status, _, err = call(
        monkeypatch, capsys, "compare", "sample abcdef · pretrain.lr=5e-4", "def", "--workspace", tmp_path
    )
    assert status == 2
    assert err.startswith("error: abcdef: ")
    status, _, err = call(monkeypatch, capsys, "ui", "--workspace", tmp_path)
    assert "no MLflow store; `alpro run` creates it" in err


@pytest.mark.parametrize("port", ["80000", "0", "x"])
def test_an_invalid_port_is_refused(port, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "ui", "--port", port)
    assert status == 2
    assert f"'{port}' is not a valid port (1 to 65535)" in err


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, out, _ = call(monkeypatch, capsys, "artifacts", "ls", "--workspace=~/w")
    assert f"no artifacts in {tmp_path}/w/artifacts" in out
    command = "model import ~/a.pt ~/out --task pretrain --tokenizer ~/bert --words ~/words.json"
    arguments = cli.parser().parse_args(command.split())
    paths = (arguments.file, arguments.out, arguments.words, Path(arguments.tokenizer))
    assert paths == tuple(tmp_path / name for name in ("a.pt", "out", "words.json", "bert"))
    assert cli.parser().parse_args(["data", "inspect", "x", "--out=~/o"]).out == tmp_path / "o"


def test_data_in_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"")
    manifest(tmp_path, {"path": "a.mp4", "caption": "x"})
    arguments = ["--config", "own_videos", "--data=~/manifest.jsonl", "--workspace=~/w", "--dry-run"]
    status, out, err = call(monkeypatch, capsys, "run", *arguments)
    assert (status, err) == (0, "no questions in ~/manifest.jsonl: question answering is skipped\n")
    assert out.startswith("to run     decode_videos data ")
    assert (tmp_path / "w" / "digests.sqlite").is_file()
    # The reason is another one if a change leaves it out.
    assert call(monkeypatch, capsys, "run", *arguments, "--set", "finetune_qa=false")[2] == ""


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        ({}, 0, ""),
        (StageFailed("pretrain ended with status 1"), 1, "error: pretrain ended with status 1\n"),
        (InputError("no nouns"), 2, "error: no nouns\n"),
        (FULL, 2, "error: shards/a.tar: No space left on device; free some disk space and run again to resume\n"),
        (Interrupted("pretrain stopped"), 75, "pretrain stopped; run the same command again to continue\n"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to continue\n"),
    ],
)
def test_the_exit_status_of_a_run(outcome, status, message, tmp_path, monkeypatch, capsys):
    from alpro.pipeline.flows import flow

    def alpro(*arguments):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(flow, "start", alpro)
    code, _, err = call(monkeypatch, capsys, "run", "--workspace", tmp_path)
    assert (code, err) == (status, message)


@pytest.mark.parametrize("free", [0, 2**30])
def test_an_error_of_a_server_while_the_disk_is_full_is_one_line(free, tmp_path, monkeypatch, capsys):
    """Prefect answers with status 500, and SQLite's error is one of SQLAlchemy."""
    from alpro.pipeline.flows import flow

    def alpro(*arguments):
        raise RuntimeError("Server error '500 Internal Server Error'\nFor more information ...")

    monkeypatch.setattr(flow, "start", alpro)
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    if free:
        with pytest.raises(RuntimeError):
            call(monkeypatch, capsys, "run", "--workspace", tmp_path)
        return
    code, _, err = call(monkeypatch, capsys, "run", "--workspace", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(
        f"error: the disk of {tmp_path} is full (Server error '500 Internal Server Error'); free some"
    )


@pytest.mark.parametrize(("command", "stage"), [(("run",), ""), (("run", "train_prompter"), "train_prompter")])
def test_options_reach_the_flow(command, stage, tmp_path, monkeypatch, capsys):
    received = []
    monkeypatch.setattr("alpro.pipeline.flows.flow.start", lambda *arguments: received.extend(arguments) or {})
    changes = ["--set", "resources.workers=3", "--set", "pretrain.lr=1e-4"]
    options = ["--config", TINY, *changes, "--tracking-uri", "http://host:5000"]
    assert call(monkeypatch, capsys, *command, *options, "--workspace", tmp_path)[0] == 0
    expected = ["resources.workers=3", "pretrain.lr=1e-4"]
    plan, parameters, *where = received
    assert parameters == {"config": TINY, "data": "", "changes": expected, "stage": stage}
    assert where == [tmp_path, "http://host:5000"]
    assert [step.stage for step in plan[1]][-1] == (stage or "evaluate")


def test_an_error_after_ctrl_c_is_not_shown(tmp_path, monkeypatch, capsys):
    """Ctrl-C in a terminal also stops Prefect's server, and Prefect then raises a connection error."""

    def alpro(*arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ConnectionError("no server") from None

    monkeypatch.setattr("alpro.pipeline.flows.flow.start", alpro)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, _, err = call(monkeypatch, capsys, "run", "--workspace", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, err) == (130, "stopped; run the same command again to continue\n")


def test_an_unexpected_exception_is_raised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alpro.pipeline.cli.run.start_temporary_server", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["alpro", "run", "--workspace", str(tmp_path)])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.long
def test_an_error_in_a_flow_is_one_line_without_the_output_of_prefect(tmp_path):
    command = ["run", "build_vocabulary", "--config", TINY, "--set", "build_vocabulary.entities=9999"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-m", "alpro.pipeline.cli.main", *command, "--workspace", str(tmp_path / "new")],
        cwd=ROOT,
        env=inherited,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    *progress, error = done.stderr.splitlines()
    assert [re.sub(r"(?<=: done) in \d+ s|: /.*/rejects.parquet", "", line) for line in progress] == [
        f"configuration: {TINY}",
        "stage 1 of 4, render_sample: started",
        "render_sample: done",
        "stage 2 of 4, decode_videos clips: started",
        "6 of 47 items are rejected (3 unreadable, 1 empty, 1 no text, 1 missing)",
        "decode_videos clips: done",
        "stage 3 of 4, decode_videos stills: started",
        "decode_videos stills: done",
        "stage 4 of 4, build_vocabulary: started",
    ]
    assert error.startswith("error: build_vocabulary.entities = 9999")


def test_every_module_of_a_stage_is_a_stage_of_the_run(monkeypatch, capsys):
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    _, out, _ = call(monkeypatch, capsys, "run", "--help")
    assert ", ".join(STAGES) in " ".join(out.split())


def run_python(program: str, **environment: str) -> str:
    """The standard output of a program in a new Python process, without Prefect's settings of this process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "DO_NOT_TRACK"))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "alpro.pipeline.cli.main",
            ("prefect", "torch", "mlflow", "pydantic", "pyarrow", "fsspec", "rich", "numpy"),
        ),
        ("alpro.pipeline.cli.run", ("prefect", "torch", "mlflow", "transformers", "matplotlib", "pandas")),
    ],
)
def test_the_command_line_imports_no_slow_package(module, heavy):
    """`--help` and usage errors import only the options of all commands."""
    assert run_python(f"import sys, {module}; print(sorted(set({heavy}) & sys.modules.keys()))") == "[]\n"


SETTINGS = """
from prefect.settings import get_current_settings
settings = get_current_settings()
print(settings.server.ephemeral.startup_timeout_seconds, settings.server.analytics_enabled)
print(settings.logging.level, settings.home)
"""


@pytest.mark.parametrize(("module", "seconds"), [("tasks", ""), ("flow", "7")])
def test_prefect_is_imported_after_its_environment_is_set_and_keeps_the_users(module, seconds):
    given = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": seconds} if seconds else {}
    program = f"import alpro.pipeline.flows.{module}{SETTINGS}import os; print(os.environ['DO_NOT_TRACK'])"
    printed = run_python(program, **given).splitlines()
    assert (printed[0], printed[2]) == (f"{seconds or 180} False", "1")


def test_a_run_silences_prefect_and_keeps_its_files_in_the_workspace(tmp_path):
    program = f"""
import sys
from alpro.pipeline.cli import main as cli
sys.argv = ["alpro", "run", "pretrain", "--dry-run", "--workspace", {str(tmp_path)!r}]
try:
    cli.main()
except SystemExit as left:
    assert left.code == 0
{SETTINGS}"""
    printed = run_python(program).splitlines()
    assert printed[-2:] == ["180 False", f"CRITICAL {tmp_path}/prefect"]


def test_without_a_command_the_help_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alpro"])
    cli.main()
    assert capsys.readouterr().out == cli.parser().format_help()


def test_data_check_prints_problems_or_json(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    manifest(tmp_path, {"path": "a.mp4", "caption": "x"})
    status, out, _ = call(monkeypatch, capsys, "data", "check", tmp_path / "manifest.jsonl")
    assert status == 1
    assert "1 items (1 videos)" in out
    assert "a: empty" in out
    assert "problem: no test split" in out
    status, out, _ = call(monkeypatch, capsys, "data", "check", tmp_path / "manifest.jsonl", "--json")
    assert (status, json.loads(out)["decoded"]["rejected"]) == (1, {"empty": 1})
    status, _, err = call(monkeypatch, capsys, "data", "check", tmp_path / "none.jsonl")
    assert (status, err.startswith("error: ")) == (2, True)


def test_a_run_without_a_test_split_ends_before_decoding(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    manifest(tmp_path, {"path": "a.mp4", "caption": "x", "split": "train"})
    arguments = ["--config", "own_videos", "--data", tmp_path / "manifest.jsonl", "--workspace", tmp_path / "w"]
    status, _, err = call(monkeypatch, capsys, "run", *arguments)
    assert status == 2
    assert "error: data: no test item has captions: the rows name the splits train (1); assign some" in err
    assert not (tmp_path / "w" / "artifacts" / "decode_videos").exists()
