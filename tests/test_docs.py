"""The documentation: linked files exist, and its commands are valid."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from alpro.pipeline.cli.arguments import changes_of
from alpro.pipeline.cli.main import parser
from alpro.pipeline.config.pipeline_config import CONFIGS, load_config, shipped
from alpro.pipeline.studies.study_config import Study, load_study, shipped_studies
from alpro.shards.schema import Reason
from alpro.stages import STAGES
from docs.write_command_line import document, leaves

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_linked_files_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_linked_headings_exist(page):
    links = re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", page.read_text())
    missing = [
        f"{file}#{anchor}" for file, anchor in links if anchor not in anchors(page.parent / file if file else page)
    ]
    assert missing == []


def test_the_documentation_is_short():
    """A user reads all of it in an afternoon."""
    words = {page.name: len(page.read_text().split()) for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    assert words["README.md"] <= 700
    assert sum(words.values()) <= 20_000


def test_every_page_is_in_the_readme_and_every_picture_on_a_page():
    readme, texts = (ROOT / "README.md").read_text(), "".join(page.read_text() for page in PAGES)
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []
    assert [picture.name for picture in (ROOT / "docs" / "pictures").iterdir() if picture.name not in texts] == []


def test_messages_name_existing_pages():
    """Also docstrings and comments of the code."""
    folders = ("alpro", "models", "shards", "stages", "inference", "pipeline", "benchmarks", "tests", "docs")
    suffixes = (".py", ".toml", ".sh")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    named = {page for path in files for page in re.findall(r"docs/\w+\.md", path.read_text("utf-8"))}
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


def test_the_page_of_the_command_line_is_up_to_date():
    page = (ROOT / "docs" / "command_line.md").read_text()
    assert page == document(), "run: python docs/write_command_line.py"


def test_the_method_lists_every_stage():
    table = (ROOT / "docs" / "method.md").read_text().partition("| stage |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))


def test_every_reason_of_a_reject_is_documented():
    page = (ROOT / "docs" / "formats.md").read_text()
    table = page.partition("| reason |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `([a-z ]+)` \| .* \|$", table, re.MULTILINE)) == get_args(Reason)


def shell_lines(text: str) -> list[str]:
    """The lines of code blocks, without comments and with continued lines joined; and code spans."""
    block = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    fenced = [code for language, code in block.findall(text) if not language]
    prose = block.sub("", text)
    indented = re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`\n]+)`", prose)
    return [re.split(r"\s+#", line)[0].strip() for line in (*lines, *spans)]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """The calls of a program on all pages and in the headers of configurations: page and arguments."""
    named = ("CHANGELOG.md", "command_line.md")  # they name commands, without their arguments
    sources = {page.name: page.read_text() for page in PAGES if page.name not in named}
    for path in sorted(CONFIGS.rglob("*.toml")):
        header = path.read_text().partition("\nname = ")[0].partition("\nconfig = ")[0]
        sources[path.name] = "```\n" + re.sub(r"^#\s*", "", header, flags=re.MULTILINE) + "\n```\n"
    calls = []
    for name, text in sources.items():
        for line in shell_lines(text):
            line = re.sub(r"^(\w+=\S+ )+", "", line)  # variables that are set for the command
            line = re.sub(r'^eval "\$\((.+)\)"$', r"\1", line)
            if line.startswith(f"{program} "):  # a program without arguments is only mentioned
                calls.append((name, shlex.split(line)[1:]))
    return calls


NAMES = {name for name, _ in leaves(parser(), "")}
# A command without its arguments is only mentioned.
ALPRO = [call for call in commands("alpro") if " ".join(call[1]) not in NAMES]
IDS = [f"{page}: {shlex.join(arguments)}" for page, arguments in ALPRO]


def test_the_documented_commands_are_detected():
    assert len(ALPRO) > 30
    assert len(commands("prefect")) >= 10
    assert {page for page, _ in ALPRO} >= {"README.md", "reproduce.md", "deploying.md", "msvd_qa.toml"}


@pytest.mark.parametrize(("page", "arguments"), ALPRO, ids=IDS)
def test_alpro_accepts_the_command(page, arguments, tmp_path):
    parsed = parser().parse_args([argument for argument in arguments if argument != "..."])
    if parsed.command == "run":
        assert parsed.stage in ("", *STAGES)
        config = parsed.config if parsed.config in shipped() else "own_videos"  # instead of the user's file
        data = str(tmp_path) if parsed.data or config in ("own_videos", "from_weights") else ""
        (tmp_path / "config.json").touch()
        parsed.pretrained = parsed.pretrained and str(tmp_path)  # instead of the user's model
        assert load_config(config, data, changes_of(parsed)).name == config
    if parsed.command == "study" and parsed.file != "FILE":
        study, data = load_study(parsed.file), str(tmp_path) if parsed.data else ""
        for variant in study.variants:
            changes = [*study.changes, *parsed.changes, *variant.changes]
            assert load_config(parsed.config or study.config, data, changes)


def test_every_shipped_study_has_its_command_and_a_row(tmp_path):
    named = {arguments[1] for page, arguments in ALPRO if arguments[0] == "study" and page == f"{arguments[1]}.toml"}
    assert named == set(shipped_studies())
    table = (ROOT / "docs" / "evaluate.md").read_text().partition("| shipped study |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == named


def test_the_keys_and_the_example_of_a_study_are_valid(tmp_path):
    page = (ROOT / "docs" / "evaluate.md").read_text()
    keys = [field.alias or name for name, field in Study.model_fields.items()]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page.partition("| key |")[2], re.MULTILINE)[: len(keys)]) == sorted(
        keys
    )
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.toml").write_text(example)
    study = load_study(str(tmp_path / "mine.toml"))
    assert (study.name, len(study.variants)) == ("mine", 3)
    for variant in study.variants:
        assert load_config(study.config, str(tmp_path), [*study.changes, *variant.changes]).pretrain.lr == 5e-4


def toml_snippets() -> list[tuple[str, str]]:
    """The TOML on all pages: page and text. A table of TOML in a block without a language is an error."""
    blocks = [
        (page.name, language, text)
        for page in PAGES
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert [page for page, language, text in blocks if not language and re.match(r"\[+[a-z_.]+\]+$", text, re.M)] == []
    return [(page, text) for page, language, text in blocks if language == "toml"]


@pytest.mark.parametrize(("page", "text"), toml_snippets())
def test_toml_on_the_pages_is_a_configuration_or_a_study(page, text, tmp_path):
    """Each snippet is valid as a study, or as tables of a configuration that starts from a model."""
    (tmp_path / "snippet.toml").write_text(text)
    values = tomllib.loads(text)
    if "variants" in values:
        assert load_study(str(tmp_path / "snippet.toml")).variants
        return
    (tmp_path / "base.toml").write_text('name = "base"\npretrained = "model"\n')
    changes = [
        f"corpora.{name}.data={tmp_path}"
        for name, corpus in values.get("corpora", {"data": {}}).items()
        if not {"data", "shards"} & corpus.keys()
    ]
    config = load_config(f"{tmp_path / 'base.toml'}+{tmp_path / 'snippet.toml'}", changes=changes)
    assert config.name == "base"
    for name, corpus in values.get("corpora", {}).items():
        assert corpus.keys() <= config.corpora[name].model_fields_set


def test_the_versions_of_torch_are_those_of_the_lock_file():
    named = re.findall(r"\b(torch(?:vision)?==[\d.]+)", (ROOT / "README.md").read_text())
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(named) == 2
    assert set(named) <= set(locked)


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["title"], citation["license"]) == (
        project["version"],
        project["name"],
        project["license"],
    )
    assert f"\n## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_single_changes_on_the_pages_are_keys_of_a_configuration():
    """Such as `--set pretrain.weights.vtc=0`, beside a command."""
    changes = {
        change
        for page in PAGES
        if page.name != "command_line.md"
        for span in re.findall(r"`([^`\n]+)`", page.read_text())
        if span.startswith("--set ")
        for change in re.findall(r"--set (\S+)", span)
        if "..." not in change and change != "stage.key=value"
    }
    assert len(changes) >= 5
    for change in sorted(changes):
        load_config("own_videos" if change.startswith("corpora.data.") else "sample", changes=[change])


def test_prefect_accepts_the_commands():
    """Prefect parses each command, and the work pools and deployments in it are those of prefect.yaml."""
    from prefect.cli._app import _app

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    pools, names = set(), set()
    for page, words in commands("prefect"):
        arguments = [word for word in words if word != "--no-prompt"]  # of the program, not of a command
        function, bound, _ = _app.parse_args(arguments, exit_on_error=False, print_error=False)
        words = [word.replace("-", "_") for word in arguments]
        assert {function.__name__, function.__name__.partition("_")[0]} & set(words[:3]), (
            f"{page}: prefect {shlex.join(arguments)}"
        )
        if "work_pool" in words[0]:
            pools.add(bound.arguments["name"])
        if words[0] == "deployment" and bound.arguments:
            names.add(bound.arguments["name"])
    listed = {deployment["work_pool"]["name"] for deployment in deployments}
    assert pools == listed
    assert {"alpro/alpro"} < names <= {f"{d['name']}/{d['name']}" for d in deployments}


def test_make_has_the_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {arguments[0] for _, arguments in commands("make")}
    assert {"run", "test", "ui"} <= named <= targets


def test_documented_python_programs_exist():
    for page, arguments in commands("python"):
        program = (
            arguments[0] if arguments[0] != "-m" else arguments[1].removeprefix("alpro.").replace(".", "/") + ".py"
        )
        assert (ROOT / program).is_file(), page


def test_documented_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra
        for page in PAGES
        for list_ in re.findall(r"'\.\[([\w,]+)\]'", page.read_text())
        for extra in list_.split(",")
    }
    assert {"all", "dask"} <= named <= set(known)
