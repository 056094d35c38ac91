"""The documentation: links lead somewhere, and its commands and configurations are valid."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml

from alpro.pipeline.cli.main import app
from alpro.pipeline.cli.options import Source
from alpro.pipeline.cli.run import run, study
from alpro.pipeline.config.command import CONFIGS, STUDIES, shipped
from alpro.pipeline.config.load import read_settings
from alpro.pipeline.execution.processes import GRACE_SECONDS, get_command
from alpro.pipeline.flows.study import Study, load_study
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.plan import build_steps
from alpro.shards.schema import Reason
from alpro.shards.sources.form import Columns
from alpro.stages import STAGES
from alpro.stages.execution.interface import Resources
from tests.conftest import ROOT
from tests.plans import configure

PAGES = {
    page.name: page
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
TEXTS = {name: page.read_text() for name, page in PAGES.items()}


def anchors(page):
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    for link, heading in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", TEXTS[name]):
        target = PAGES[name].parent / link if link else PAGES[name]
        assert "://" in link or target.exists(), link
        assert not heading or "://" in link or heading in anchors(target), (
            f"{link}#{heading}"
        )


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name):
    made_by_the_reader = "stages/count_words.py"
    for file in re.findall(r"`((?:\w+/)+\w+\.(?:py|toml|sh))`", TEXTS[name]):
        places = (ROOT / file, ROOT / "docs" / file)
        assert file == made_by_the_reader or any(place.is_file() for place in places), (
            file
        )


def test_the_tests_that_hold_the_laws_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {
        name for text in sources for name in re.findall(r"^def (test_\w+)", text, re.M)
    }

    assert len(named) > 20
    assert named - defined == set()


def test_every_page_is_in_the_readme_and_every_picture_on_a_page():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in TEXTS["README.md"], page
    texts = "".join(TEXTS.values())
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.name in texts, picture


def test_tables_of_the_pages_are_complete():
    stages = {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")}
    assert stages - {"dag"} == {*STAGES} == {*first_column("method.md", "stage")}
    assert tuple(first_column("prepare_data.md", "reason")) == get_args(Reason)
    assert {*first_column("prepare_data.md", "key")} == Columns.model_fields.keys()
    assert {*first_column("evaluate.md", "shipped study")} == {*shipped(STUDIES)}
    keys = {field.alias or name for name, field in Study.model_fields.items()}
    assert keys <= {*first_column("evaluate.md", "key")}


def first_column(page, head):
    """Return the code spans of the first column of a table."""
    table = TEXTS[page].partition(f"| {head} |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def shell_lines(text):
    """The lines of code blocks, without comments and with continued lines joined; and code
    spans."""
    block = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    prose = block.sub("", text)
    code = [code for language, code in block.findall(text) if not language]
    code += re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", prose)
    for line in lines:
        command = re.split(r"\s+#", line)[0].strip()
        # Variables that are set for the command.
        command = re.sub(r"^(\w+=\S+ )+", "", command)
        yield re.sub(r'^eval "\$\((.+)\)"$', r"\1", command)


def commands(program):
    """The calls of a program on all pages and in the headers of configurations: page and
    arguments."""
    sources = {name: text for name, text in TEXTS.items() if name != "CHANGELOG.md"}
    for path in sorted(CONFIGS.rglob("*.toml")):
        header = path.read_text().partition("\nname = ")[0].partition("\nconfig = ")[0]
        text = re.sub(r"^#\s*", "", header, flags=re.MULTILINE)
        sources[path.name] = f"```\n{text}\n```\n"

    calls = []
    for name, text in sources.items():
        for line in shell_lines(text):
            # A program without arguments is only mentioned.
            if line.startswith(f"{program} "):
                calls.append((name, shlex.split(line)[1:]))
    return calls


# Commands without arguments may be only mentioned.
ALPRO = [
    call
    for call in commands("alpro")
    if len(call[1]) > 2 or call[1][:1] in (["run"], ["up"])
]


@pytest.mark.parametrize(
    ("page", "arguments"),
    ALPRO,
    ids=[f"{page}: {shlex.join(call)}" for page, call in ALPRO],
)
def test_alpro_accepts_the_command(page, arguments, tmp_path):
    assert len(ALPRO) > 30
    words = [argument for argument in arguments if argument != "..."]
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    given = bound.arguments
    source = given.get("source", Source())
    config = given.get("config", "")
    if command is run:
        # This folder stands for the user's files.
        (tmp_path / "config.json").write_text('{"task": "pretrain"}')
        if config not in shipped():
            config = "own_videos" if config or source.data else "sample"
        needs_data = source.data or config in ("own_videos", "from_weights")
        data = str(tmp_path) if needs_data else ""
        pretrained = str(tmp_path) if source.pretrained else ""
        source = replace(source, data=data, pretrained=pretrained)

        settings = read_settings(source.command(config, tmp_path))

        assert settings.name == config
        if "stage" in given:
            stage = given["stage"].partition(" ")[0]
            digests = Digests(tmp_path / "digests.sqlite")
            assert stage in {step.stage for step in build_steps(settings, digests)[1]}
    if command is study and given["file"] != "FILE":
        assert load_study(given["file"])


def test_toml_on_the_pages_is_a_configuration_or_a_study(tmp_path):
    """As a study, or as tables of a configuration that starts from a model."""
    (tmp_path / "base.toml").write_text('name = "base"\npretrained = "model"\n')
    own = tmp_path / "own.toml"
    blocks = re.findall(
        r"^```toml\n(.*?)^```$", "\n".join(TEXTS.values()), re.DOTALL | re.MULTILINE
    )
    for text in blocks:
        values = tomllib.loads(text)
        if "variants" in values:
            own.write_text(text)
            assert load_study(str(own)).variants
            continue

        own.write_text(text if "base" in values else f'base = "base.toml"\n{text}')
        changes = []
        for name, keys in values.get("corpora", {"data": {}}).items():
            if not {"data", "shards"} & keys.keys():
                changes.append(f"corpora.{name}.data={tmp_path}")
        assert configure(str(own), *changes).name == "base"


def test_pools_and_deployments_of_the_commands_are_those_of_prefect_yaml():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    names = {f"alpro/{deployment['name']}" for deployment in deployments}

    for _, words in commands("prefect"):
        if "--pool" in words:
            assert words[words.index("--pool") + 1] in pools
        assert {word for word in words if word.startswith("alpro/")} <= names


def test_other_programs_targets_and_extras_exist():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert {arguments[0] for _, arguments in commands("make")} <= targets

    for page, (program, *arguments) in commands("python"):
        if program == "-m":
            program = f"{arguments[0].removeprefix('alpro.').replace('.', '/')}.py"
        assert program == "pytest.py" or (ROOT / program).is_file(), page

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"'\.\[([\w,]+)\]'", "".join(TEXTS.values()))
    extras = set(",".join(named).split(","))
    assert {"all"} <= extras <= project["optional-dependencies"].keys()


# docs/cluster: the files for Slurm agree with the code.

SCRIPTS = sorted((ROOT / "docs" / "cluster").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_jobs_have_time_for_a_checkpoint_are_queued_again_and_print_their_usage(script):
    text = script.read_text()
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("usage: ")

    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    shell, seconds = options["signal"].split("@")
    assert shell == "B:TERM"
    assert int(seconds) > GRACE_SECONDS + 20
    assert "requeue" in options
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    # Slurm reads options up to the first command.
    assert text.index("#SBATCH --requeue") < text.index("set -u")
    for module in re.findall(r"-m (alpro\.[\w.]+)", text):
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file()


def test_other_nodes_start_what_the_pipeline_starts():
    script = (ROOT / "docs" / "cluster" / "slurm_nodes.sh").read_text()
    resources = Resources(nodes=2, rendezvous="host:29500")
    started = " ".join(get_command("pretrain", Path("work.json"), resources, node=1))
    modules = re.compile(r"-m ([a-z][\w.]+)")
    assert modules.findall(script) == modules.findall(started)
    options = re.compile(r"--(?:nnodes|node-rank|rdzv-endpoint|rdzv-id|rdzv-conf)")
    assert set(options.findall(script)) == set(options.findall(started))


@pytest.mark.long  # It waits as the script does.
def test_other_nodes_wait_for_what_a_requeued_job_starts(tmp_path):
    """node 0 needs two seconds; work.json of the time before the job was queued again is there."""
    programs = {
        "scontrol": "echo host",
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
        "alpro": 'sleep 2; echo host:20007 > "$4/artifacts/pretrain/new/work.json"; sleep 7',
        "python": 'echo "$@" > "$workspace/joined"',
    }
    for name, text in programs.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    for name in ("new", "old"):
        (tmp_path / "artifacts" / "pretrain" / name).mkdir(parents=True)
    (tmp_path / "artifacts/pretrain/old/work.json").write_text("host:20007")

    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": ""}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    script = ROOT / "docs" / "cluster" / "slurm_nodes.sh"
    command = ["bash", script, "pretrain", tmp_path]
    subprocess.run(command, env=os.environ | job | {"PATH": path}, check=True)

    assert "--rdzv-id new" in (tmp_path / "joined").read_text()


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck_accepts_the_scripts():
    assert (
        subprocess.run(["shellcheck", ROOT / ".ci" / "run", *SCRIPTS]).returncode == 0
    )


def test_prefect_accepts_the_automations():
    """Each is about runs of the flow `alpro` that send none of the expected events."""
    from prefect.events.schemas.automations import AutomationCore

    text = (ROOT / "docs" / "cluster" / "automation.yaml").read_text()
    automations = yaml.safe_load(text)["automations"]
    events = ("prefect.flow-run.heartbeat", "prefect.flow-run.Pending")

    for values, event in zip(automations, events, strict=True):
        trigger = AutomationCore.model_validate(values).trigger
        assert trigger.after & {*events} == {event}
        assert trigger.posture.value == "Proactive"
        assert trigger.within.total_seconds() == 900
        assert trigger.match_related["prefect.resource.name"] == ["alpro"]
