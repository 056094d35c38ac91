"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

from shards.schema import REASONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_reason_of_a_reject_is_documented():
    page = (ROOT / "docs" / "data.md").read_text()
    assert re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", page, re.MULTILINE)[: len(REASONS)] == list(REASONS.items())
