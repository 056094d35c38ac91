"""The report and the page of a comparison in a real browser: errors, widths, colors, keyboard."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpro.pipeline import cli, commands
from tests.pipeline.conftest import TINY

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page

from docs.screenshots import PROGRAMS, browser, opened

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not any(map(shutil.which, PROGRAMS)), reason="no Chromium"),
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
FOCUSED = "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def urls(first, workspace) -> dict[str, str]:
    """The pages of a run with a run before it, of one that failed, and of a comparison."""
    from alpro.pipeline.flow import alpro

    changed = alpro(TINY, changes=["evaluate.seed=5"], workspace=str(workspace))
    with pytest.raises(Exception, match="9998"):
        alpro(TINY, changes=["build_vocabulary.entities=9998"], workspace=str(workspace))
    failed = next(p for p in workspace.glob("reports/*.json") if '"build_vocabulary.entities=9998"' in p.read_text())
    names = [Path(run["evaluate"]).name[:8] for run in (first, changed)]
    parsed = cli.parser().parse_args(["compare", *names, "--workspace", str(workspace)])
    assert commands.execute(parsed) == 0
    paths = {
        "report": workspace / "reports" / f"tiny-{names[1][:6]}.html",
        "failed": failed.with_suffix(".html"),
        "compare": workspace / "reports" / f"compare-{'-'.join(names)}.html",
    }
    return {name: path.as_uri() for name, path in paths.items()}


@pytest.mark.parametrize("name", ["report", "failed", "compare"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_errors_no_requests_and_enough_contrast(name, dark, urls, chromium):
    page = chromium.new_page(color_scheme="dark" if dark else "light")
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
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 22, 26)" if dark else "rgb(255, 255, 255)")
    page.close()


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("name", ["report", "failed", "compare"])
def test_on_a_phone_only_tables_and_pictures_scroll(name, width, urls, chromium):
    with opened(chromium, urls[name], {"width": width, "height": 800}) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        wider = "element => element.scrollWidth > element.clientWidth"
        assert any(region.evaluate(wider) for region in page.locator(".scroll").all())


def focused(page: Page) -> str:
    page.keyboard.press("Tab")
    return page.evaluate(FOCUSED)


def test_the_report_can_be_read_by_keyboard(urls, chromium):
    with opened(chromium, urls["report"], {"width": 390, "height": 800}) as page:
        assert focused(page) == "Skip to the content"
        assert page.locator(".skip").bounding_box()["x"] >= 0  # visible while it has the focus
        page.keyboard.press("Enter")
        assert page.url.endswith("#main")
        regions = page.locator(".scroll").evaluate_all(
            "regions => regions.filter(region => region.checkVisibility()).map(region => region.ariaLabel)"
        )
        summaries = page.locator("summary").all_inner_texts()
        assert "Retrieval" in regions
        assert "The DAG" in regions
        reached = [focused(page) for _ in range(len(regions) + len(summaries))]
        assert sorted(reached) == sorted([*regions, *summaries])
        region = page.get_by_role("region", name="Retrieval")
        region.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("region => region.scrollLeft > 0", arg=region.element_handle())
