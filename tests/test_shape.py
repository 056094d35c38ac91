"""The shape of the project: files that a reader can hold, and few keys and options for a user to
learn."""

import re

import pytest

from alpro.pipeline.cli.main import app
from tests.conftest import ROOT

SOURCES = {".py", ".js", ".css", ".html"}
FOLDERS = [
    "alpro",
    "models",
    "shards",
    "stages",
    "inference",
    "pipeline",
    "experiments",
    "benchmarks",
    "docs",
    "tests",
]
LINES_OF_A_FILE = 550
# These two guard the user: a commit that raises one says why.
KEYS = 167
OPTIONS = 40


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_tells_one_story(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in SOURCES and "noun_tagger/model" not in str(path):
            assert len(path.read_text().splitlines()) <= LINES_OF_A_FILE, path


def test_keys_of_the_configuration():
    """The rows of the generated page, each a key."""
    page = (ROOT / "docs/configuration.md").read_text()
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) <= KEYS


def test_options_of_the_command_line():
    """An option that several commands have counts once."""

    def options(app):
        groups = [app[name] for name in app if not name.startswith("-")]
        own = app.assemble_argument_collection() if app.default_command else []
        names = {
            argument.name
            for argument in own
            if argument.show and argument.name.startswith("-")
        }
        return names.union(*(options(group) for group in groups))

    assert len(options(app)) <= OPTIONS
