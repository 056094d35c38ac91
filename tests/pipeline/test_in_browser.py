"""The report and the page of a comparison in a real browser: errors, requests, contrast."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpro.pipeline.cli import main as cli
from tests.pipeline.conftest import TINY, alpro

pytest.importorskip("playwright")

from playwright.sync_api import Browser, sync_playwright

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PROGRAM, reason="no Chromium"),
]
# The lowest contrast (WCAG) of the text of any element to the background of its page or box.
CONTRAST = """() => {
  const light = color => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255);
    const [r, g, b] = parts.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const ratios = [...document.querySelectorAll("h1, h2, p, b, td, th, dt, dd, figcaption, code, li, a")].map(element => {
    const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
  return Math.min(...ratios);
}"""  # noqa: E501


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, chromium_sandbox=os.getuid() != 0)
        yield started
        started.close()


@pytest.fixture(scope="module")
def urls(first, workspace, tmp_path_factory) -> dict[str, str]:
    """The pages of a run with a run before it, of one that failed, and of a comparison."""

    changed = alpro(TINY, changes=["evaluate.seed=5"], workspace=workspace)
    nouns = tmp_path_factory.mktemp("nouns") / "nouns.txt"
    nouns.write_text("ball\nstar\n")
    changes = [f"build_vocabulary.entities_file={nouns}", "build_vocabulary.entities=9998"]
    with pytest.raises(Exception, match="9998"):
        alpro(TINY, changes=changes, workspace=workspace)
    failed = next(p for p in workspace.glob("reports/*.json") if '"build_vocabulary.entities=9998"' in p.read_text())
    names = [Path(run["evaluate"]).name[:8] for run in (first, changed)]
    assert cli.execute(["artifacts", "compare", *names, "--workspace", str(workspace)]) == 0
    paths = {
        "report": workspace / "reports" / f"tiny-{names[1][:6]}.html",
        "failed": failed.with_suffix(".html"),
        "compare": workspace / "reports" / f"compare-{'-'.join(names)}.html",
    }
    return {name: path.as_uri() for name, path in paths.items()}


@pytest.mark.parametrize("name", ["report", "failed", "compare"])
def test_no_errors_no_requests_and_enough_contrast(name, urls, chromium):
    page = chromium.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(urls[name], wait_until="networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [urls[name]]
    broken = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("() => [...document.images].every(image => image.alt)")
    assert page.locator("h1").count() == 1
    assert page.evaluate(CONTRAST) >= 4.5
    page.close()
