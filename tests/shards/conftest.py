"""Little videos whose every frame is known, and shards written from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.decode import Clip
from shards.schema import Row


def colour(number: int) -> tuple[int, int, int]:
    """Of frame `number` of a test video (up to 36): far from every other's."""
    return 40 * (number % 6) + 20, 40 * (number // 6) + 20, 128


@pytest.fixture(scope="session")
def numbers() -> Callable[[Clip], list[int]]:
    """Tells by its colour which frame of a test video each frame of a clip is."""
    palette = np.array([colour(number) for number in range(36)])

    def tell(clip: Clip) -> list[int]:
        means = clip.frames.reshape(len(clip.frames), -1, 3).mean(axis=1)
        return [int(np.abs(palette - mean).sum(axis=1).argmin()) for mean in means]

    return tell


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """make_video(name, count, options, picture, faststart): H.264, 64 x 48, 10 frames a second, by default each
    frame of its own flat colour."""
    import av

    def make(
        name: str,
        count: int = 24,
        options: dict[str, str] | None = None,
        picture: Callable[[int], np.ndarray] = lambda number: np.full((48, 64, 3), colour(number), np.uint8),
        faststart: bool = False,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
            stream = container.add_stream("libx264", rate=10, options=options or {})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """make_row(id, ...): a row of a manifest with a caption, and whatever else is given."""

    def make(name: str, **more) -> Row:
        given = {"path": Path(f"/data/{name}.mp4"), "kind": "video", "captions": (f"about {name}",), "group": name}
        return Row(id=name, **(given | {"split": "train"} | more))

    return make


@pytest.fixture
def smooth_clip() -> Callable[..., Clip]:
    """smooth_clip(seed, count): frames (count, 32, 32, 3) of colours that run from edge to edge, as in photographs."""

    def make(seed: int, count: int = 3) -> Clip:
        rng = np.random.default_rng(seed)
        start, along, down = (rng.uniform(0, 120, (count, 1, 1, 3)) for _ in range(3))
        at = np.linspace(0, 1, 32)
        frames = start + along * at[None, :, None, None] + down * at[None, None, :, None]
        return Clip(np.clip(frames, 0, 255).astype(np.uint8), duration=2.5, width=64, height=48)

    return make
