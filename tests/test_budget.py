"""The size of the house. These numbers only fall: a change that needs more takes something away first."""

import re
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App

from alpro.pipeline.cli.main import app

ROOT = Path(__file__).parents[1]
SOURCES = {".py", ".js", ".css", ".html", ".jinja"}
PRODUCT = ("alpro", "models", "shards", "stages", "inference", "pipeline")
PROGRAMS = ("benchmarks", "docs")
LINES = {
    "alpro": 550,
    "models": 2_245,
    "shards": 3_743,
    "stages": 6_403,
    "inference": 1_912,
    "pipeline": 5_600,
    "experiments": 685,
    "tests": 17_999,
    "programs": 1_409,
}
FILES = 145
KEYS = 137
OPTIONS = 41
WORDS = 13_942


@cache
def sources(folder: str) -> list[Path]:
    return [
        path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES and "noun_tagger/model" not in str(path)
    ]


def lines(*folders: str) -> int:
    return sum(len(path.read_text().splitlines()) for folder in folders for path in sources(folder))


@pytest.mark.parametrize("folder", LINES)
def test_lines(folder):
    assert lines(*PROGRAMS if folder == "programs" else [folder]) <= LINES[folder]


def test_files_of_the_product():
    assert sum(len(sources(folder)) for folder in PRODUCT) <= FILES


def test_keys_of_the_configuration():
    """The rows of the generated page, each a key."""
    assert len(re.findall(r"^\| `", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)) <= KEYS


def test_options_of_the_command_line():
    """An option that several commands have counts once."""

    def options(app: App) -> set[str]:
        groups = [app[name] for name in app if not name.startswith("-")]
        own = app.assemble_argument_collection() if app.default_command else []
        names = {argument.name for argument in own if argument.show and argument.name.startswith("-")}
        return names.union(*(options(group) for group in groups))

    assert len(options(app)) <= OPTIONS


def test_words_of_the_documentation():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert sum(len(page.read_text().split()) for page in pages) <= WORDS
