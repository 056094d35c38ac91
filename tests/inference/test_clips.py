"""Clips of sources: what is a video and what an image."""

import pytest
from PIL import Image

from alpro.inference.clips import get_row, load_clip


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_an_animated_image_is_loaded_as_a_video(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "still.png")
    frames[0].save(
        tmp_path / name, save_all=True, append_images=frames[1:], lossless=True
    )

    assert get_row(tmp_path / "still.png").kind == "image"
    assert get_row(tmp_path / name).kind == "video"
    assert len(load_clip(tmp_path / name, 3, 8).frames) == 3


def test_a_url_is_an_image_by_its_extension():
    assert get_row("https://host/a.png?x=1").kind == "image"
    assert get_row("https://host/a.mp4").kind == "video"
