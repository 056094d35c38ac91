"""Still images: upright 8-bit RGB, and reasons for rejection."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from alpro.shards.decoding import DecodeError, Limits, decode_image


def test_a_still_image_is_one_rgb_frame(tmp_path):
    for name, mode in (("a.png", "RGBA"), ("a.png", "P"), ("a.jpg", "L"), ("a.bmp", "RGB")):
        grey = Image.new("RGB", (60, 40), (102, 102, 102)).convert(mode)  # a color of the usual palette too
        grey.save(tmp_path / name)
        clip = decode_image(tmp_path / name, 32)
        assert clip.frames.shape == (1, 32, 32, 3)
        assert clip.frames.dtype == np.uint8
        assert np.abs(clip.frames.astype(int) - 102).max() <= 3
        assert (clip.width, clip.height, clip.duration) == (60, 40, 0)
    for grey in (0, 12, 102, 255):  # 16 bits are not clipped
        Image.fromarray(np.full((40, 60), grey * 257, np.uint16)).save(tmp_path / "a.png")
        assert (decode_image(tmp_path / "a.png", 32).frames == grey).all()


def test_an_image_can_keep_its_aspect_ratio_and_is_never_enlarged(tmp_path):
    """`size` is then its shorter side, so that a random resized crop is of the image and not of a square."""
    sizes = {(64, 48): (43, 32), (48, 64): (32, 43), (64, 64): (32, 32), (2000, 40): (1600, 32)}
    for size, stored in (sizes | {(20, 90): (20, 90), (33, 31): (33, 31)}).items():
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
        clip = decode_image(tmp_path / "a.png", 32, keep_ratio=True)
        assert clip.frames.shape == (1, *stored[::-1], 3)
        assert (clip.width, clip.height) == size


def quarters() -> np.ndarray:
    """Red, green above blue, white: (48, 64, 3)."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32, 0] = picture[:24, 32:, 1] = picture[24:, :32, 2] = 255
    picture[24:, 32:] = 255
    return picture


def test_exif_orientation_is_applied(tmp_path):
    """What a camera writes so that, shown as it says, the quarters come out: by the orientation in its EXIF, from 1."""
    p = quarters()
    other = p.transpose(1, 0, 2)
    turned = [p, p[:, ::-1], p[::-1, ::-1], p[::-1], other, np.rot90(p, 1), other[::-1, ::-1], np.rot90(p, -1)]
    for orientation, picture in enumerate(turned, 1):
        for name in ("a.jpg", "a.webp", "a.png"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            written = Image.fromarray(np.ascontiguousarray(picture))
            written.save(tmp_path / name, exif=exif, quality=95)
            clip = decode_image(tmp_path / name, 32)
            (frame,) = clip.frames.astype(int)
            assert (clip.width, clip.height) == (64, 48)
            corners = frame[[4, 4, -4, -4], [4, -4, 4, -4]]
            assert np.abs(corners - [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]).max() < 40


def test_transparency_becomes_white(tmp_path):
    for name, mode in (("a.png", "RGBA"), ("a.png", "LA"), ("a.webp", "RGBA"), ("a.gif", "RGBA")):
        image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
        image.paste((90, 90, 90, 255), (0, 0, 30, 40))
        image.convert(mode).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
        (frame,) = decode_image(tmp_path / name, 32).frames.astype(int)
        assert np.abs(frame[:, :12] - 90).max() <= 8
        assert (frame[:, 20:] >= 250).all()


def test_the_size_of_an_image_is_checked_before_decoding(tmp_path):
    """A PNG of some kilobytes with this size in its header, and valid rows as far as they are read."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = chunk(b"IDAT", zlib.compress(bytes(1 << 22))) + chunk(b"IEND", b"")
    for size in ((100_000, 100_000), (1_000_000, 8), (8200, 8200), (13_000, 13_000)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows)
        with pytest.raises(DecodeError, match="too large"):
            decode_image(tmp_path / "a.png", 32)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    decode_image(tmp_path / "a.jpg", 32, Limits(max_pixels=64 * 48))
    with pytest.raises(DecodeError, match="too large: 64 x 48 pixels"):
        decode_image(tmp_path / "a.jpg", 32, Limits(max_pixels=64 * 48 - 1))


def test_an_invalid_image_is_rejected_with_the_reason(tmp_path):
    Image.fromarray(quarters()).save(tmp_path / "whole.png")
    # An invalid resolution unit raises struct.error in Pillow when it rotates the image.
    turned, unit = (0x0112, 3, 1, 6 << 16), (0x0128, 4, 1, 100000)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIIHHIII", 8, 2, *turned, *unit, 0)
    Image.fromarray(quarters()).save(tmp_path / "exif.jpg", exif=exif)
    for content, reason in (
        (b"", "empty"),
        (b"not an image", "unreadable"),
        ((tmp_path / "whole.png").read_bytes()[:100], "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unreadable"),  # would start Ghostscript
        ((tmp_path / "exif.jpg").read_bytes(), "unreadable"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DecodeError, match=reason) as error:
            decode_image(tmp_path / "a.png", 32)
        assert str(tmp_path) not in str(error.value)
