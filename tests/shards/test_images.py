"""Still images become one upright frame, animated ones a clip; and why an image is rejected."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from alpro.shards.clip import DecodeError, Limits
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.duration import video_seconds
from tests.shards.conftest import color, flat, refusal


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.jpg", "L"),
        ("a.bmp", "RGB"),
    ],
)
def test_a_still_image_is_one_rgb_frame(tmp_path, name, mode):
    # A color of the usual palette too.
    grey = Image.new("RGB", (60, 40), (102, 102, 102))
    grey.convert(mode).save(tmp_path / name)

    clip = decode_image(tmp_path / name, 32)

    assert clip.frames.shape == (1, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert np.abs(clip.frames.astype(int) - 102).max() <= 3
    assert clip.width == 60
    assert clip.height == 40
    assert clip.duration == 0


def test_an_image_can_keep_its_aspect_ratio_and_is_never_enlarged(tmp_path):
    """`size` is then its shorter side, so that a random resized crop is of the image and not of a
    square."""
    sizes = {
        (64, 48): (43, 32),
        (48, 64): (32, 43),
        (2000, 40): (1600, 32),
        (20, 90): (20, 90),
        (33, 31): (33, 31),
    }
    for size, stored in sizes.items():
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
        clip = decode_image(tmp_path / "a.png", 32, keep_ratio=True)
        assert clip.frames.shape == (1, *stored[::-1], 3)
        assert (clip.width, clip.height) == size


QUARTERS = np.zeros((48, 64, 3), np.uint8)  # red, green above blue, white
QUARTERS[:24, :32, 0] = 255
QUARTERS[:24, 32:, 1] = 255
QUARTERS[24:, :32, 2] = 255
QUARTERS[24:, 32:] = 255
# What a camera writes so that, shown as its EXIF says, the quarters come out: by the orientation.
TRANSPOSED = QUARTERS.transpose(1, 0, 2)
ORIENTED = [
    QUARTERS,
    QUARTERS[:, ::-1],
    QUARTERS[::-1, ::-1],
    QUARTERS[::-1],
    TRANSPOSED,
    np.rot90(QUARTERS, 1),
    TRANSPOSED[::-1, ::-1],
    np.rot90(QUARTERS, -1),
]


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_exif_orientation_is_applied(tmp_path, name):
    for orientation, picture in enumerate(ORIENTED, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        written = Image.fromarray(np.ascontiguousarray(picture))
        written.save(tmp_path / name, exif=exif, quality=95)

        clip = decode_image(tmp_path / name, 32)

        corners = clip.frames[0].astype(int)[[4, 4, -4, -4], [4, -4, 4, -4]]
        expected = [
            (255, 0, 0),
            (0, 255, 0),
            (0, 0, 255),
            (255, 255, 255),
        ]
        assert np.abs(corners - expected).max() < 40
        assert clip.width == 64
        assert clip.height == 48


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.webp", "RGBA"),
        ("a.gif", "RGBA"),
    ],
)
def test_transparency_becomes_white(tmp_path, name, mode):
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 30, 40))
    image.convert(mode).save(tmp_path / name, lossless=True)

    frame = decode_image(tmp_path / name, 32).frames[0].astype(int)

    assert np.abs(frame[:, :12] - 90).max() <= 8
    assert (frame[:, 20:] >= 250).all()


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    )


def test_the_size_of_an_image_is_checked_before_decoding(tmp_path):
    """A PNG of some kilobytes with this size in its header, and valid rows as far as they are
    read."""
    rows = chunk(b"IDAT", zlib.compress(bytes(1 << 22))) + chunk(b"IEND", b"")
    for size in ((100_000, 100_000), (1_000_000, 8), (8200, 8200)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows)
        with pytest.raises(DecodeError, match="too large"):
            decode_image(tmp_path / "a.png", 32)

    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    decode_image(tmp_path / "a.jpg", 32, Limits(max_pixels=64 * 48))
    with pytest.raises(DecodeError, match="too large: 64 x 48 pixels"):
        decode_image(tmp_path / "a.jpg", 32, Limits(max_pixels=64 * 48 - 1))


def test_an_invalid_image_is_rejected_with_the_reason(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "whole.png")
    # An invalid resolution unit raises struct.error in Pillow when it rotates the image.
    turned = (0x0112, 3, 1, 6 << 16)
    unit = (0x0128, 4, 1, 100000)
    fields = struct.pack(">IHHHIIHHIII", 8, 2, *turned, *unit, 0)
    exif = b"Exif\0\0MM\0*" + fields
    Image.fromarray(QUARTERS).save(tmp_path / "exif.jpg", exif=exif)
    # Ghostscript would run this.
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    contents = {
        b"": "empty",
        b"not an image": "unreadable",
        script: "unreadable",
        (tmp_path / "whole.png").read_bytes()[:100]: "unreadable",
        (tmp_path / "exif.jpg").read_bytes(): "unreadable",
    }
    for content, reason in contents.items():
        (tmp_path / "a.png").write_bytes(content)
        assert (
            refusal(tmp_path / "a.png", "auto", kind="image").partition(":")[0]
            == reason
        )


ANIMATED = ["a.png", "a.webp", "a.avif"]


@pytest.fixture
def write_animation(tmp_path):
    """write_animation(name, count, ...): frames of known colors, 10 a second by default."""

    def write(name, count=8, **options):
        frames = [Image.fromarray(flat(number)) for number in range(count)]
        exact = {"duration": 100, "lossless": True, "quality": 100} | options
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **exact
        )
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ANIMATED)
def test_an_animated_image_is_decoded_as_a_video(write_animation, numbers, name):
    path = write_animation(name)

    whole = decode_video(path, 4, 32)
    window = decode_video(path, 2, 32, 0.3, 0.5)
    last = decode_video(path, 3, 32, 0.7)

    assert numbers(whole) == [0, 2, 4, 6]
    assert numbers(window) == [3, 4]
    assert numbers(last) == [7, 7, 7]
    durations = [whole.duration, window.duration, last.duration]
    assert durations == pytest.approx([0.8, 0.2, 0.1])
    assert whole.width == 64
    assert whole.height == 48
    assert video_seconds(path) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_frames_of_an_animation_have_their_own_durations(
    write_animation, numbers, name
):
    path = write_animation(name, 4, duration=[1000, 100, 100, 300])
    assert numbers(decode_video(path, 3, 32, 0.9, 1.3)) == [1, 2, 3]

    # Browsers show frames without a duration for a tenth of a second.
    path = write_animation(name, 4, duration=0)
    assert decode_video(path, 1, 32).duration == pytest.approx(0.4)


def test_the_still_image_before_an_animation_is_not_a_frame_of_it(
    write_animation, numbers
):
    path = write_animation("a.png", 5, default_image=True)

    assert numbers(decode_video(path, 4, 32)) == [1, 2, 3, 4]
    assert numbers(decode_image(path, 32)) == [0]


def test_transparency_of_an_animation_becomes_white(tmp_path):
    empty = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    full = Image.new("RGBA", (64, 48), (*color(3), 255))
    for name in ("a.png", "a.webp"):
        empty.save(tmp_path / name, save_all=True, append_images=[full], lossless=True)
        first, second = decode_video(tmp_path / name, 2, 32).frames
        assert (first == 255).all()
        assert np.abs(second.astype(int) - color(3)).max() <= 2


@pytest.mark.parametrize("name", ANIMATED)
def test_an_animation_keeps_the_limits(write_animation, name):
    path = write_animation(name)
    content = path.read_bytes()

    assert (
        refusal(path, "auto", Limits(max_pixels=64 * 48 - 1))
        == "too large: 64 x 48 pixels"
    )
    assert refusal(path, "auto", Limits(timeout=0)) == "too slow: longer than 0 s"
    assert refusal(path, "auto", start=5.0).startswith("no frames: 5 s to the end")
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path, "auto").startswith("unreadable: ")
    assert video_seconds(path) == 0


def test_grey_of_16_bits_is_not_clipped(tmp_path):
    for grey in (12, 102, 255):
        pixels = np.full((40, 60), grey * 257, np.uint16)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        assert (decode_image(tmp_path / "a.png", 32).frames == grey).all()
