"""The README's picture, from the artifacts of a run of the sample: `python docs/readme_picture.py
[--workspace W]`.

Clips with their texts, the pseudo-labels of the first batch of pre-training, and retrieval on test
clips: the pictures that the stages write, as they are.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from alpro.shards.pictures import INK, PAPER, TILE, font, sample_strips, sheet
from alpro.shards.reader import ShardReader

OUT = Path(__file__).parent / "pictures" / "sample.png"
WIDTH = 8 * (TILE + 4) + 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    artifacts = parser.parse_args().workspace / "artifacts"
    clips = latest(artifacts, "decode_videos/*/pictures/samples.png", "clips").parents[1]
    pseudo_labels = Image.open(latest(artifacts, "pretrain/*/pictures/pseudo_labels.png"))
    retrieval = Image.open(latest(artifacts, "evaluate/*/pictures/retrieval.png"))
    parts = [
        (
            "Clips of the sample with captions and questions",
            sheet(sample_strips(ShardReader(clips, "train"), 2), 2),
        ),
        (
            "The prompter's pseudo-labels on crops (Figure 3 of the paper): green if the crop "
            "shows the entity",
            pseudo_labels,
        ),
        (
            "The four best test clips for the texts with the best ranks (left) and the worst "
            "(right)",
            retrieval,
        ),
    ]
    rows = [row for title, picture in parts for row in (heading(title), picture)]
    sheet(rows).quantize(128, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(OUT)


def latest(artifacts: Path, pattern: str, corpus: str = "") -> Path:
    """The newest file of a pattern; of a corpus if it is set."""
    files = [
        p for p in artifacts.glob(pattern) if corpus in (p.parents[1] / "artifact.json").read_text()
    ]
    return max(files, key=lambda path: path.stat().st_mtime)


def heading(title: str) -> Image.Image:
    image = Image.new("RGB", (WIDTH, 34), PAPER)
    ImageDraw.Draw(image).text((2, 8), title, INK, font(20))
    return image


if __name__ == "__main__":
    main()
