"""Render the sample corpus: videos of moving shapes, still images, captions, questions and
splits."""

import json
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, model_validator

from alpro.log import progress
from alpro.pool import Died, each
from alpro.shards.sample import scene as grammar
from alpro.shards.sample.draw import render
from alpro.shards.sample.scene import (
    DIRECTIONS,
    HELD_OUT,
    REVERSED,
    Scene,
    draw_count,
    evaluation_scenes,
    training_scene,
)
from alpro.stages.execution.interface import (
    Count,
    Outcome,
    Resources,
    StageConfig,
    StageInputs,
)

VERSION = 6
TIMES = 5  # number of evenly spaced times of a clip with stored boxes


class Config(StageConfig, frozen=True):
    """Sizes of the corpora of the [sample](results.md#how-the-sample-is-made)."""

    seed: NonNegativeInt = 0
    """seed of everything that is rendered"""
    lessons: NonNegativeInt = 150
    """scenes of `lessons`, each with a clip and its reverse"""
    clips: Count = 900
    """training scenes of `clips`; those with a direction also have a reversed clip"""
    stills: NonNegativeInt = 1600
    """images of `stills`"""
    validation: int = Field(default=120, ge=4)
    """clips for validation"""
    test: int = Field(default=200, ge=4)
    """clips for testing"""
    size: int = Field(default=96, ge=32, multiple_of=2)
    """height and width, pixels"""
    frames: int = Field(default=16, ge=4)
    """frames per clip, at 8 frames per second"""

    @model_validator(mode="after")
    def _enough_combinations(self) -> "Config":
        # Rejection sampling slows down when few combinations remain. Only unseen combinations
        # are scarce.
        unseen = round(self.validation * UNSEEN) + round(self.test * UNSEEN)
        available = int(0.8 * len(HELD_OUT))
        if unseen > available:
            raise ValueError(
                f"validation and test need {unseen} combinations that training has not, and "
                f"{available} are available; lower `validation` or `test`"
            )
        return self


FRAMES_PER_SECOND = 8
# Fraction of the validation and test clips with a kind, color and motion not combined in training.
UNSEEN = 0.5
CAPTIONS = 5  # captions of a training clip
X264 = {"qp": "20", "preset": "ultrafast", "bf": "0"}
X264 |= {"x264-params": "mbtree=0:weightp=0:scenecut=0:rc-lookahead=0"}
CAPTION_FUNCTIONS = {
    "lessons": grammar.lesson_caption,
    "clips": grammar.caption,
    "stills": grammar.still_caption,
}
CORPORA = tuple(CAPTION_FUNCTIONS)
# The standard's matrix times 2**16: luma 16 to 235, chroma 16 to 240.
LUMA = np.array([16829, 33039, 6416], np.int32)
CHROMA = np.array([[-9714, -19070, 28784], [28784, -24103, -4681]], np.int32)


@dataclass(frozen=True)
class Item:
    """A file to render and its row in the manifest."""

    scene: Scene
    row: dict[str, Any]


class Inputs(StageInputs):
    """No inputs."""


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write videos/ and images/, and a manifest for each corpus: <corpus>.jsonl."""
    corpora = {
        "lessons": lessons(config),
        "clips": clips(config),
        "stills": stills(config),
    }
    items = list(chain(*corpora.values()))
    for folder in ("videos", "images"):
        (out / folder).mkdir(exist_ok=True)

    batches = [items[i : i + 50] for i in range(0, len(items), 50)]
    render_batch = partial(render_items, config=config, out=out)
    with progress("rendering", len(items), "files") as advance:
        results = each(
            batches, render_batch, resources.worker_count, resources.scheduler
        )
        for _, count in results:
            if isinstance(count, Died):
                raise RuntimeError(f"rendering: {count.reason}")
            advance(count)
    broken = write_broken_items(out)

    counts = {}
    for corpus, corpus_items in corpora.items():
        rows = [item.row for item in corpus_items]
        counts[corpus] = len(rows)
        # Added after the count of good items.
        if corpus == "clips":
            rows += broken

        lines = [json.dumps(row) + "\n" for row in rows]
        (out / f"{corpus}.jsonl").write_text("".join(lines))
    return Outcome(counts | {"broken": len(broken)})


def lessons(config: Config) -> list[Item]:
    """Draw clips of one object that moves across the frame, and the reversed clips, which differ
    only in the motion."""
    # A random stream for each corpus: more scenes of one corpus leave the others unchanged.
    rng = np.random.default_rng([config.seed, 1])
    items = []
    for i in range(config.lessons):
        scene = training_scene(rng, 1, str(rng.choice(list(DIRECTIONS))))
        items += with_reversed("lessons", f"lesson-{i:05d}", scene, rng)
    return items


def clips(config: Config) -> list[Item]:
    """Draw the main corpus: training scenes, and validation and test scenes with combinations that
    are not in training."""
    rng = np.random.default_rng([config.seed, 2])
    items = []
    for i in range(config.clips):
        scene = training_scene(rng, draw_count(rng))
        items += with_reversed("clips", f"train-{i:05d}", scene, rng)

    # Use a separate seed, so that more training clips leave these unchanged.
    rng = np.random.default_rng([config.seed, 3])
    scenes = evaluation_scenes(rng, (config.validation, config.test), UNSEEN)
    for split, scenes_of_split in zip(("validation", "test"), scenes, strict=True):
        for i, scene in enumerate(scenes_of_split):
            name = f"{split}-{i:05d}"
            items.append(item("clips", name, name, scene, rng, split))
    return items


def stills(config: Config) -> list[Item]:
    """Draw still images, which stand in for CC3M."""
    rng = np.random.default_rng([config.seed, 4])
    items = []
    for i in range(config.stills):
        count = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        scene = training_scene(rng, count, "still", wide=True)
        name = f"still-{i:05d}"
        items.append(item("stills", name, name, scene, rng))
    return items


def with_reversed(
    corpus: str, name: str, scene: Scene, rng: np.random.Generator
) -> list[Item]:
    """Return the scene and, if it differs, the reversed scene in the same group."""
    items = [item(corpus, name, name, scene, rng)]
    if scene.main.motion in REVERSED:
        items.append(item(corpus, f"{name}-back", name, scene.reverse(), rng))
    return items


def item(
    corpus: str,
    name: str,
    group: str,
    scene: Scene,
    rng: np.random.Generator,
    split: str = "train",
) -> Item:
    """Return an item. Items for training have several captions, and items of `clips` questions."""
    is_image = corpus == "stills"
    # Captions are drawn before questions, because both use `rng`.
    if split == "train":
        drawn = [CAPTION_FUNCTIONS[corpus](scene, rng) for _ in range(CAPTIONS)]
    else:
        drawn = [grammar.full_caption(scene, rng)]
    questions = grammar.questions(scene, rng) if corpus == "clips" else []
    things = [
        {"kind": thing.kind, "color": thing.color, "motion": thing.motion}
        for thing in scene.things
    ]

    row = {
        "id": name,
        "path": f"images/{name}.jpg" if is_image else f"videos/{name}.mp4",
        "kind": "image" if is_image else "video",
        # Captions are drawn with replacement; equal ones count once.
        "captions": list(dict.fromkeys(drawn)),
        "questions": questions,
        "split": split,
        "group": group,
        "things": things,
        "entities": [thing.kind for thing in scene.things],
        "places": places(scene, 1 if is_image else TIMES),
        "unseen": split != "train" and scene.main.held_out,
    }
    return Item(scene, row)


def places(scene: Scene, times: int) -> dict[str, list[list[float]]]:
    """Return the bounding boxes of each kind of object at evenly spaced times of the clip: left, top,
    right and bottom as fractions of the frame."""
    squares_of_kind = {}
    for thing in scene.things:
        squares = []
        for time in np.linspace(0, 1, times):
            x, y, radius, _ = thing.pose(time)
            corners = (x - radius, y - radius, x + radius, y + radius)
            squares.append([round(value, 3) for value in corners])

        squares_of_kind[thing.kind] = squares
    return squares_of_kind


def render_items(items: list[Item], config: Config, out: Path) -> int:
    """Render files and return their number. Existing files are rendered again, because after an
    interruption they may be incomplete."""
    for item in items:
        path = out / item.row["path"]
        if path.suffix == ".jpg":
            Image.fromarray(render(item.scene, 1, config.size)[0]).save(
                path, "JPEG", quality=92
            )
        else:
            encode_video(render(item.scene, config.frames, config.size), path)
    return len(items)


def encode_video(frames: np.ndarray, path: Path) -> None:
    """Encode frames as an H.264 MP4, reproducible byte for byte.

    x264's lookahead reads uninitialized memory, which makes it nondeterministic, and the vector
    code of FFmpeg's color conversion differs between processors. Both are disabled.

    Shape:
        frames: (T, H, W, 3) uint8, of even height and width.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # x264's output depends on the number of threads.
        stream.thread_count = 1
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(yuv420(pixels), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))  # flush the encoder


def yuv420(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB (H, W, 3) uint8 to planar YUV 4:2:0 (H * 3/2, W) uint8: BT.601, limited range,
    chroma averaged."""
    height, width = pixels.shape[:2]
    rgb = pixels.astype(np.int32)
    luma = (rgb @ LUMA + (16 << 16) + (1 << 15)) >> 16

    # Chroma has half of the resolution: the sums of four pixels, hence 2**18.
    sums = rgb.reshape(height // 2, 2, width // 2, 2, 3).sum((1, 3), np.int32)
    chroma = (CHROMA @ sums.reshape(-1, 3).T + (128 << 18) + (1 << 17)) >> 18

    planes = np.concatenate([luma.ravel(), chroma.ravel()])
    return planes.astype(np.uint8).reshape(height * 3 // 2, width)


def write_broken_items(out: Path) -> list[dict[str, Any]]:
    """Write a few items that must be rejected, each for a different reason, and return their
    manifest rows."""
    good = (out / "videos" / "train-00000.mp4").read_bytes()
    files = {
        "broken-empty.mp4": b"",
        "broken-text.mp4": b"this is no video\n" * 50,
        "broken-cut.mp4": good[: len(good) // 3],
        "broken-playlist.mp4": b"#EXTM3U\n#EXTINF:1,\ntrain-00000.mp4\n#EXT-X-ENDLIST\n",
        "broken-silent.mp4": good,
    }
    for name, content in files.items():
        (out / "videos" / name).write_bytes(content)

    rows = []
    for name in (*files, "broken-missing.mp4"):
        # A valid file without captions is also rejected.
        captions = [] if name == "broken-silent.mp4" else ["a red star moves left"]
        row = {"id": Path(name).stem, "path": f"videos/{name}", "kind": "video"}
        rows.append(row | {"captions": captions, "split": "train"})
    return rows
