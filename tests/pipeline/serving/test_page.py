"""The page of `alpro serve` in a browser."""

import shutil
import threading

import numpy as np
import pytest
import uvicorn

from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import Server, guarded
from tests.pipeline.conftest import wait_for

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_page_in_a_browser(models, free_port, videos):
    """Gallery, examples, pages, hover, the dialog and its ways out, a question and a box, filters
    and files."""
    from playwright.sync_api import sync_playwright

    port = free_port()
    server = Server(
        uvicorn.Config(
            guarded(application(models), "127.0.0.1"), "127.0.0.1", port, log_level="warning"
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 400, "height": 800})
            errors = []
            page.set_default_timeout(120_000)  # of a busy machine
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "console",
                lambda message: errors.append(message.text) if message.type == "error" else None,
            )
            address = f"http://127.0.0.1:{port}"
            page.goto(f"{address}/")
            page.wait_for_selector(".card >> nth=11")
            assert page.locator("#examples a").count() == 3
            page.click("#examples a >> nth=0")
            page.wait_for_selector("meter")
            page.click("#pages >> text=Next")
            page.wait_for_selector("#about:text-matches('^13 to')")
            assert "offset=12" in page.url
            page.hover(".card .still >> nth=0")
            page.wait_for_selector(".card .still > video, .card .still > img >> nth=1")

            # The dialog: arrows go to the next hit, a click outside closes it, Back does not open
            # it.
            page.goto(f"{address}/?filter=kind%3Dvideo+day%3E%3D2024-01-01")
            page.click(".card .still >> nth=0")
            page.wait_for_selector("#opened[open] #media video")
            opened = page.url
            page.keyboard.press("ArrowRight")
            page.wait_for_url(lambda url: url != opened)
            page.mouse.click(2, 2)
            page.wait_for_selector("#opened:not([open])", state="attached")
            assert "open=" not in page.url
            page.go_back()
            page.wait_for_timeout(300)
            assert page.locator("#opened[open]").count() == 0
            page.goto(opened)  # a shared address
            page.fill("#ask input", "what moves?")
            page.click("#ask button")
            page.wait_for_selector("#ask dd >> nth=1")

            # A box, after its button.
            assert page.locator("#box").is_hidden()
            page.click("#draw")
            area = page.locator("#media").bounding_box()
            page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 5)
            page.mouse.down()
            page.mouse.move(area["x"] + area["width"] - 2, area["y"] + area["height"] / 2)
            page.mouse.up()
            page.click("#name")
            page.wait_for_selector("#entities dd >> nth=4")
            page.wait_for_selector("#entities .warning:text-matches('always named')")
            page.keyboard.press("Escape")

            page.goto(f"{address}/?filter=kind%3Dvideo+nothing")
            page.click(".empty >> text=Clear the filter")
            page.wait_for_selector(".card >> nth=0")

            # The file is opened while its search is under way, and stays open when the hits come.
            hits = page.locator("#about").inner_text()
            page.evaluate("document.querySelector('#about').textContent = 'searching'")
            waiting = []
            page.route("**/search?*", lambda route: waiting.append(route))
            page.set_input_files("#upload", str(videos[0]))
            page.click("#like >> text=Open it")
            page.wait_for_selector("#caption:text-matches('mp4$')")
            waiting.pop().continue_()
            page.wait_for_selector(f"#about:text-is('{hits}')")
            assert page.locator("#caption").is_visible()
            page.unroute("**/search?*")
            page.keyboard.press("Escape")
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            columns = "getComputedStyle(document.querySelector('#hits')).gridTemplateColumns"
            assert len(page.evaluate(columns).split()) == 3
            assert errors == []
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
    assert np.isfinite(models.index.embeddings).all()
