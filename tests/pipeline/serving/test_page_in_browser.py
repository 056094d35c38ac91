"""The page of `alpro serve` in headless Chromium: clips play, a question is answered, a box is named."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpro import Model
from alpro.files import digest
from alpro.shards.decoding import ffmpeg_binary

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from docs.screenshots import PROGRAMS, browser

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not any(map(shutil.which, PROGRAMS)), reason="no Chromium"),
]
RETRIEVAL, QA, PROMPTER = (digest(stage)[:8] for stage in ("finetune_retrieval", "finetune_qa", "train_prompter"))
TIMES = "() => [...document.querySelectorAll('.card video')].map(video => video.currentTime > 0.05)"
SOURCE = "() => document.querySelector('#player video').currentSrc"
PLAYS = "() => { const video = document.querySelector('#player video'); return video && video.currentTime > 0.05; }"


@pytest.fixture(scope="module")
def videos(sample, tmp_path_factory) -> list[Path]:
    """Two videos that Chromium plays, and one, an .avi with MPEG-4, that it does not."""
    folder = tmp_path_factory.mktemp("serve") / "videos"
    folder.mkdir()
    copies = [Path(shutil.copy(video, folder)) for video in sorted((sample / "videos").glob("test-*.mp4"))[:3]]
    subprocess.run([ffmpeg_binary(), "-v", "error", "-i", copies[2], "-c:v", "mpeg4", folder / "old.avi"], check=True)
    copies[2].unlink()
    return [*copies[:2], folder / "old.avi"]


@pytest.fixture(scope="module")
def url(videos, trained) -> Iterator[str]:
    """The page of a process of its own. Ctrl-C ends it and deletes its files."""
    root = videos[0].parents[1]
    program = [sys.executable, "-c", "from alpro.pipeline.cli.main import main; main()"]
    shared = ["--workspace", trained, "--device", "cpu"]
    subprocess.run(
        [*program, "index", "add", root / "index", videos[0].parent, "--model", RETRIEVAL, *shared], check=True
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--ask", QA, "--entities", PROMPTER, "--port", port, *shared]
    temporary = root / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [*program, "serve", root / "index", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout
    line = process.stdout.readline()
    address = f"http://127.0.0.1:{port}"
    assert line == f"the page is at {address}, the API at {address}/api/docs (Ctrl-C stops them)\n"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 0
    assert list(temporary.glob("alpro-serve-*")) == []


@pytest.fixture
def page(url) -> Iterator[Page]:
    """The page in a window. At the end there is no error on its console, and no request to elsewhere."""
    errors, requests = [], []
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(60_000)
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        yield page
        page.close()
    assert errors == []
    assert [address for address in requests if not address.startswith((f"{url}/", "data:", f"blob:{url}/"))] == []


expect.set_options(timeout=300_000)  # the default, 5 s, is too short for a busy machine


def search(page: Page, text: str) -> None:
    page.get_by_label("What the videos should show").fill(text)
    page.get_by_role("button", name="Search").click()


def scores(page: Page, part: str) -> list[str]:
    """The words of a list of probabilities, in order."""
    rows = page.locator(f"#{part} .confidence-set")
    rows.first.wait_for()
    return [text.split("\n")[0].strip() for text in rows.all_inner_texts()]


def test_a_search_shows_clips_that_play_with_their_scores(page, videos, trained):
    search(page, "a red ball moves left")
    expect(page.locator(".card")).to_have_count(3)
    page.wait_for_function(f"() => ({TIMES})().length === 3 && ({TIMES})().every(Boolean)")
    model = Model.load(RETRIEVAL, trained, device="cpu")
    for path in videos:
        card = page.locator(".card").filter(has_text=path.name)
        for method in ("similarity", "match"):
            value = getattr(model, method)([path], ["a red ball moves left"]).item()
            expect(card).to_contain_text(f"{value:.3f}")
    search(page, " ")
    expect(page.get_by_text("Write what the videos should show.")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_a_result_is_asked_and_a_box_on_it_is_named(page, videos, trained):
    search(page, "a red ball moves left")
    page.locator(".card").filter(has_text=videos[0].name).get_by_role("button").click()
    page.wait_for_function(PLAYS)
    page.get_by_label("Question").fill("what moves?")
    page.get_by_role("button", name="Ask").click()
    expected = [word for word, _ in Model.load(QA, trained, device="cpu").ask(videos[0], "what moves?", 5)]
    assert scores(page, "answers") == expected

    area = page.locator("#frame img").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 1)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 1, area["y"] + area["height"] - 1, steps=4)
    page.mouse.up()
    named = scores(page, "entities")
    box = [float(part) for part in page.get_by_label("Region").input_value().split(",")]
    assert box == pytest.approx([0.5, 0.0, 0.5, 1.0], abs=0.02)
    prompter = Model.load(PROMPTER, trained, device="cpu")
    assert named == [word for word, _ in prompter.entities(videos[0], tuple(box), 5)]
    page.get_by_label("Region").fill("2, 0, 1, 1")
    page.get_by_role("button", name="Name").click()
    expect(page.get_by_text("is not a region of the frame: it takes left, top, width and height")).to_be_visible()


def test_an_uploaded_video_that_chromium_does_not_play_is_converted(page, videos, trained, tmp_path):
    page.get_by_role("tab", name="One video").click()
    page.get_by_label("Question").fill("what moves?")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("Upload a video, or choose a clip of the search results.")).to_be_visible()
    upload = page.locator("#upload input[type=file]")
    upload.set_input_files(videos[2])
    page.wait_for_function(PLAYS)
    assert page.evaluate(SOURCE).endswith("/preview")
    page.get_by_role("button", name="Ask").click()
    expected = [word for word, _ in Model.load(QA, trained, device="cpu").ask(videos[2], "what moves?", 5)]
    assert scores(page, "answers") == expected
    upload.set_input_files({"name": "bad.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    expect(page.get_by_text("This file cannot be decoded: unreadable (moov atom not found).")).to_be_visible()
    upload.set_input_files(videos[1])  # another clip in the same player
    page.wait_for_function(PLAYS)
    assert not page.evaluate(SOURCE).endswith("/preview")


def test_the_page_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    search(page, "a red ball moves left")
    expect(page.locator(".card")).to_have_count(3)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
