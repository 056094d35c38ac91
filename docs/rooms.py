"""Draws docs/pictures/rooms.png: the rooms of the code, and who imports whom: `python
docs/rooms.py`.

Everything in the picture is read from the import statements, so a new dependency shows when it is
drawn again.
"""

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "pictures" / "rooms.png"
INK = "#222222"
# Center (x, y), color, and what the room is for.
ROOMS = {
    "pipeline": ((5.0, 9.0), "#f4cccc", "configuration, plan, store, flow,\nMLflow, reports, serve, command line"),
    "stages": ((5.0, 7.0), "#fff2cc", "what each stage reads and writes;\ntraining, evaluation"),
    "inference": ((5.0, 5.0), "#d9ead3", "the engine: find, load, encode, match,\nsearch; Model, Index, export"),
    "models": ((2.4, 3.0), "#cfe2f3", "torch modules, losses, tokenizers,\nranks, weights of others"),
    "shards": ((7.6, 3.0), "#cfe2f3", "manifest, decoding, shards,\nreading, augmentation"),
    "alpro": ((5.0, 1.0), "#e3e3e3", "errors, files, records, log, threads;\nimported by every room"),
}  # fmt: skip
WIDTH = 4.4
HEIGHT = 1.1


def find_room(module: str) -> str | None:
    """Return the room of a first-party module: `shards` for alpro.shards.reader, `alpro` for
    alpro.files."""
    if not module.startswith("alpro."):
        return None
    name = module.split(".")[1]
    return name if name in ROOMS else "alpro"


def count_imports() -> Counter[tuple[str, str]]:
    """Count the import statements from each room to each other room."""
    counts: Counter[tuple[str, str]] = Counter()
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if file == ROOT / "alpro" / "__init__.py":
                # The public face, which names rooms above it when they are used.
                continue

            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    target = find_room(node.module)
                    if target and target != room:
                        counts[room, target] += 1
    return counts


def count_lines(room: str) -> int:
    return sum(
        len(file.read_text("utf-8").splitlines())
        for file in (ROOT / room).rglob("*.py")
    )


def draw() -> None:
    figure, axes = plt.subplots(figsize=(10, 9))
    axes.set_xlim(0, 10)
    axes.set_ylim(0.2, 9.8)
    axes.axis("off")

    for (source, target), count in sorted(count_imports().items()):
        assert ROOMS[source][0][1] > ROOMS[target][0][1], (
            f"{source} imports {target}, above it"
        )
        if (
            target != "alpro"
        ):  # every room imports the ground floor: the arrows would hide the others
            draw_arrow(axes, source=source, target=target, count=count)
    for room, ((x, y), color, job) in ROOMS.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = "round,pad=0.02,rounding_size=0.12"
        box = FancyBboxPatch(
            corner, WIDTH, HEIGHT, boxstyle=style, fc=color, ec=INK, zorder=3
        )
        axes.add_patch(box)
        title = f"{room}/   {round(count_lines(room), -2):,} lines"
        axes.text(
            x,
            y + 0.27,
            title,
            ha="center",
            va="center",
            fontsize=12,
            weight="bold",
            zorder=4,
        )
        axes.text(x, y - 0.2, job, ha="center", va="center", fontsize=10.5, zorder=4)

    figure.savefig(OUT, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_arrow(axes: plt.Axes, *, source: str, target: str, count: int) -> None:
    """Draw an arrow from the lower edge of a room to the upper edge of another, with the number of
    imports."""
    (x0, y0), (x1, y1) = ROOMS[source][0], ROOMS[target][0]
    # An arrow past a floor bends outwards, around the rooms between.
    floors = round((y0 - y1) / 2)
    side = 1 if x1 >= 5 else -1
    bend = 0.0 if floors <= 1 else -side * (0.2 + 0.12 * floors)
    reach = 0 if floors <= 1 else side * 1.6
    arrow = FancyArrowPatch(
        (x0 + reach, y0 - HEIGHT / 2),
        (x1 + (reach if x1 == 5 else 0), y1 + HEIGHT / 2),
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=14,
        lw=0.6 + count / 40,
        color="#888888",
        zorder=1,
    )
    axes.add_patch(arrow)


if __name__ == "__main__":
    draw()
