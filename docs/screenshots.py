"""Take the pictures of the documentation from a run of the sample.

python docs/screenshots.py --workspace W [--mlflow URL] [--serve URL]

The workspace has the newest report and the pictures that the stages wrote. `alpro serve` prints its
address (docs/results.md has the command), and MLflow's is that of an experiment's page of runs. Needs
playwright and Chromium.
"""

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, sync_playwright

from alpro.shards.pictures import INK, PAPER, TILE, font, sample_strips, sheet
from alpro.shards.reader import ShardReader

OUT = Path(__file__).parent / "pictures"
SHEET_WIDTH = 8 * (TILE + 4) + 12
QUERY = "a cyan ball moves to the left"

# Stills below the window are loaded when the page scrolls to them.
STILLS_ARE_SHOWN = """
[...document.querySelectorAll(".card img")]
  .filter((image) => image.getBoundingClientRect().top < innerHeight)
  .every((image) => image.complete && image.naturalWidth)
"""

# A paused video is the same in each picture, and the path of a file begins with the workspace.
WITHOUT_THIS_MACHINE = """
const video = document.querySelector("#media video");
video.pause();
video.currentTime = 0.5;
const facts = document.querySelector("#facts");
facts.textContent = facts.textContent.replace(/^.*?(?=workspace)/, "");
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument(
        "--mlflow", default="", metavar="URL", help="address of an experiment's runs"
    )
    parser.add_argument(
        "--serve",
        default="",
        metavar="URL",
        help="address of `alpro serve` on the sample",
    )
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    draw_sample(workspace / "artifacts")

    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=next(filter(None, programs), None),
            chromium_sandbox=os.getuid() != 0,
        )
        page = chromium.new_page(viewport={"width": 1100, "height": 1340})
        page.goto(
            find_newest(workspace, "reports/*.html").as_uri(), wait_until="networkidle"
        )
        save(page, "report")
        if arguments.mlflow:
            shoot_mlflow(chromium, arguments.mlflow)
        if arguments.serve:
            shoot_page(chromium, arguments.serve)
        chromium.close()


def find_newest(folder: Path, pattern: str) -> Path:
    """Return the newest file of a pattern."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def write_image(image: Image.Image, name: str) -> None:
    """Write a picture with few colors, so that it is small."""
    few_colors = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few_colors.save(OUT / f"{name}.png", optimize=True)


def draw_sample(artifacts: Path) -> None:
    """Join pictures that the stages wrote: clips with their texts, the pseudo-labels of the first
    batch of pre-training, and retrieval on test clips."""
    folders = [
        path.parents[1]
        for path in artifacts.glob("decode_videos/*/pictures/samples.png")
    ]
    clips = next(
        one for one in folders if "clips" in (one / "artifact.json").read_text()
    )
    pictures = {
        "Clips of the sample with captions and questions": sheet(
            sample_strips(ShardReader(clips, "train"), 2), 2
        ),
        "The prompter's pseudo-labels on crops (Figure 3 of the paper)": Image.open(
            find_newest(artifacts, "pretrain/*/pictures/pseudo_labels.png")
        ),
        "The four best test clips for the texts with the best ranks (above) and the worst "
        "(below)": Image.open(
            find_newest(artifacts, "evaluate/*/pictures/retrieval.png")
        ),
    }
    rows = []
    for title, picture in pictures.items():
        heading = Image.new("RGB", (SHEET_WIDTH, 34), PAPER)
        ImageDraw.Draw(heading).text((2, 8), title, INK, font(20))
        rows += [heading, picture]
    image = Image.new("RGB", (SHEET_WIDTH, sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        image.paste(row, (0, top))
        top += row.height
    write_image(image, "sample")


def save(page: Page, name: str) -> None:
    """Save a picture of the window."""
    write_image(Image.open(io.BytesIO(page.screenshot())), name)


def shoot_mlflow(chromium: Browser, url: str) -> None:
    """Save a comparison of the two newest runs: what differs, and the scores."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator(".ag-row").nth(1).wait_for()
    page.get_by_label("Close").last.click()  # an assistant beside the runs
    for row in (0, 1):
        page.wait_for_timeout(1000)
        box = page.locator(".ag-row .ag-selection-checkbox").nth(row).bounding_box()
        assert box
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Show diff only").first.click()
    page.get_by_text("Visualizations").click()  # folds the plots
    page.wait_for_timeout(2000)
    save(page, "mlflow")


def shoot_page(chromium: Browser, url: str) -> None:
    """Save the results of a text, and a clip with a question and a box."""
    page = chromium.new_page(viewport={"width": 1100, "height": 900}, bypass_csp=True)
    page.set_default_timeout(120_000)
    page.goto(f"{url}?text={QUERY}")
    page.locator(".card").first.wait_for()
    page.wait_for_function(STILLS_ARE_SHOWN)
    save(page, "serve-search")

    page.set_viewport_size({"width": 1100, "height": 1300})
    page.locator(".card .still").first.click()
    page.locator("#media video").wait_for()
    page.evaluate(WITHOUT_THIS_MACHINE)
    page.get_by_label("Question").fill("what color is the ball?")
    page.get_by_role("button", name="Ask").click()
    page.locator("#ask dd").nth(4).wait_for()

    page.get_by_role("button", name="Draw a box").click()
    area = page.locator("#media").bounding_box()
    assert area
    left = area["x"] + 0.4 * area["width"]
    top = area["y"] + 0.15 * area["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 0.46 * area["width"], top + 0.65 * area["height"], steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Name what the box shows").click()
    page.locator("#entities dd").nth(4).wait_for()
    save(page, "serve-video")


if __name__ == "__main__":
    main()
