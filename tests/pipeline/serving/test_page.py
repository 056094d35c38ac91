"""The page of `alpro serve` in a browser, as wide as a phone."""

import shutil
import socket
import threading

import pytest
import uvicorn

from alpro.pipeline.serving.app import application
from alpro.pipeline.serving.guard import guarded

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
WIDTH = 390

pytestmark = [pytest.mark.long, pytest.mark.skipif(not CHROMIUM, reason="no Chromium")]


@pytest.fixture(scope="module")
def address(models):
    app = guarded(application(models))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page with all clips. At the end, no script has failed and nothing leaves the screen."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 800})
    errors = []
    page.set_default_timeout(120_000)  # for a busy machine
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".card >> nth=11")
    yield page
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    page.close()


def open_next(page, key="ArrowRight"):
    """Press an arrow in the dialog, and wait until it shows another clip."""
    shown = page.locator("#position").inner_text()
    page.keyboard.press(key)
    page.wait_for_function(
        "shown => document.querySelector('#position').innerText != shown", arg=shown
    )


def test_a_search_has_pages(page):
    page.fill("#search [name=text]", "a red ball")
    page.keyboard.press("Enter")
    page.wait_for_selector("meter")
    page.click("#pages >> text=Next")
    page.wait_for_selector("#about:text-matches('^13 to')")
    assert "offset=12" in page.url


def test_a_pointer_on_a_card_plays_it(page):
    page.hover(".card .still >> nth=0")
    page.wait_for_selector(".card .still > video, .card .still > img >> nth=1")


def test_a_clip_opens_closes_and_has_an_address(page):
    page.click(".card .still >> nth=1")
    page.wait_for_selector("#opened[open] #media > :first-child")
    assert "null" not in page.inner_text("#facts")  # it has no day
    address = page.url

    page.mouse.click(2, 2)
    page.wait_for_selector("#opened:not([open])", state="attached")
    assert "open=" not in page.url

    page.goto(address)
    page.wait_for_selector("#opened[open]")


def test_arrow_keys_go_to_the_next_clip_also_after_a_question(page):
    page.click(".card .still >> nth=0")
    page.wait_for_selector("#opened button:focus")
    open_next(page)
    for key in ("Enter", None):
        page.fill("#ask input", "what moves?")
        page.keyboard.press(key) if key else page.click("#ask button")
        page.wait_for_selector("#ask dd >> nth=1")
        open_next(page)
    open_next(page, "ArrowLeft")


def test_a_box_is_drawn_and_its_entities_are_named(page):
    page.click(".card .still >> nth=0")
    page.wait_for_selector("#opened[open]")
    assert page.locator("#box").is_hidden()
    page.click("#draw")
    area = page.locator("#media").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 2, area["y"] + area["height"] / 2)
    page.mouse.up()

    page.click("#name >> text=the box")

    page.wait_for_selector("#entities dd >> nth=4")
    page.wait_for_selector("#entities .warning:text-matches('always named')")


def test_a_ready_condition_is_added_and_removed_by_a_click(page):
    page.click("summary")
    page.click("#ready >> text=kind = 'image'")
    page.wait_for_selector("#about:text-matches('of 1 clips')")
    page.click("#ready >> text=duration >= 60")
    page.wait_for_selector(".empty")
    assert page.input_value("[name=where]") == "kind = 'image' AND duration >= 60"
    page.click(".empty >> text=Clear the filter")
    page.wait_for_selector(".card >> nth=11")


def test_a_wrong_condition_keeps_the_results(page):
    page.fill("[name=where]", "color = 'red'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#warning:text-matches('No field named color')")
    assert page.locator(".card").count() == 12


def test_an_uploaded_video_has_similar_clips_until_all_are_shown(page, videos):
    page.set_input_files("#upload", str(videos[0]))
    page.wait_for_selector("meter")
    page.click("#like >> text=Open it")
    page.wait_for_selector("#caption:text-matches('mp4$')")
    page.keyboard.press("Escape")

    area = page.locator("#like >> text=Show all").bounding_box()
    assert area["x"] + area["width"] <= WIDTH
    page.click("#like >> text=Show all")
    page.wait_for_selector("meter", state="detached")

    page.go_back()
    page.wait_for_selector("meter")
    page.go_back()
    page.wait_for_selector("meter", state="detached")


def test_an_upload_that_is_no_video_is_a_warning(page, tmp_path):
    file = tmp_path / "report.mp4"
    file.write_bytes(b"%PDF-1.7")
    page.set_input_files("#upload", str(file))
    page.wait_for_selector(
        "#warning:text-matches('report.mp4: this file cannot be decoded')"
    )
    assert page.locator(".card").count() == 12
