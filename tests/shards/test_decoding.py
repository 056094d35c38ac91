"""Which frames of a video are decoded, bit for bit, still images, and why a file is rejected."""

import struct
import sys
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.shards import clip, ffmpeg_decoder, pyav_decoder
from alpro.shards.clip import DecodeError, Limits
from alpro.shards.decoding import decode_image, decode_video
from alpro.shards.ffmpeg_decoder import ffmpeg_binary
from alpro.shards.pyav_decoder import video_seconds
from tests.shards.conftest import refusal

every_decoder = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg", "auto"])

LONG_GOP = {"g": "250", "bf": "3"}  # one key frame, and frames that refer to later ones
FREQUENT_KEYS = {"g": "3", "bf": "0"}
OPEN_GOP = {
    "g": "6",
    "x264-params": "open-gop=1:bframes=3:scenecut=0",
}  # frames that refer across a key frame


@every_decoder
@pytest.mark.parametrize(
    "options", [LONG_GOP, FREQUENT_KEYS, OPEN_GOP], ids=["long", "frequent", "open"]
)
def test_the_first_frame_of_each_segment_is_decoded(make_video, numbers, decoder, options):
    path = make_video("a.mp4", 24, options)
    for count, start, end, frames, duration in (
        (6, None, None, [0, 4, 8, 12, 16, 20], 2.4),  # segments of 24 / 6 = 4 frames, 10 a second
        (5, None, None, [0, 4, 9, 14, 19], 2.4),  # 4.8: 0, 4.8, 9.6, 14.4, 19.2
        (1, None, None, [0], 2.4),
        (24, None, None, list(range(24)), 2.4),
        (4, 1.0, 2.0, [10, 12, 15, 17], 1.0),  # frames 10 to 19 in segments of 2.5
        (4, None, 0.8, [0, 2, 4, 6], 0.8),
        (4, 1.6, None, [16, 18, 20, 22], 0.8),
        (4, 1.55, 1.95, [16, 17, 18, 19], 0.4),  # the first frame at or after the start is 16
        (4, 2.0, 60.0, [20, 21, 22, 23], 0.4),  # an end beyond the video's is the video's
        (4, 0.5, 0.6, [5, 5, 5, 5], 0.1),  # frame 6 begins when the window ends
        (8, None, 0.3, [0, 0, 0, 1, 1, 1, 2, 2], 0.3),  # too few: i * 3 // 8
    ):
        clip = decode_video(path, count, 32, start, end, decoder=decoder)
        assert numbers(clip) == frames
        assert (clip.frames.shape, clip.frames.dtype) == ((count, 32, 32, 3), np.uint8)
        assert clip.frames.flags.c_contiguous
        assert (clip.width, clip.height, clip.duration) == (64, 48, pytest.approx(duration))


def test_only_what_the_frames_need_is_read_and_decoded(make_video, monkeypatch):
    """How many packets are read of a video, and how many frames are decoded."""
    frames_from = pyav_decoder._frames_from
    were_decoded = []
    readings = []

    def decoded(*arguments):
        frames = list(frames_from(*arguments))
        were_decoded.append(len(frames))
        return iter(frames)

    class Clock:
        """Looked at once for each packet."""

        def monotonic(self) -> float:
            readings.append(0)
            return 0.0

    monkeypatch.setattr(pyav_decoder, "_frames_from", decoded)
    monkeypatch.setattr(clip, "time", Clock())
    x264 = "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0"
    path = make_video("a.mp4", 40, {"g": "20", "x264-params": x264})
    decode_video(path, 2, 32, decoder="pyav")  # frames 0 and 20: two key frames
    decode_video(path, 1, 32, 1.6, decoder="pyav")  # frame 16: four that it refers to, and itself
    assert were_decoded == [1, 1, 5]

    readings.clear()
    path = make_video("b.mp4", 2000, {"g": "10", "bf": "2", "preset": "ultrafast"})
    decode_video(path, 4, 32, 150.0, 151.0, decoder="pyav")
    # Five seconds before the window, the window, and up to two groups for each of its frames.
    assert 50 < len(readings) < 90 + 4 * 20


def test_the_length_of_a_video_is_that_of_its_packets(make_video, tmp_path):
    assert video_seconds(make_video("a.mp4", 24)) == pytest.approx(2.4)
    assert video_seconds(make_video("a.mkv", 3, stamps=[0, 40, 100_000])) > 100
    assert video_seconds(make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])) == 0  # senseless
    assert video_seconds(tmp_path / "missing.mp4") == 0
    (tmp_path / "text.mp4").write_text("no video")
    assert video_seconds(tmp_path / "text.mp4") == 0


@every_decoder
def test_a_file_without_frames_is_rejected_with_the_reason(tmp_path, make_video, decoder):
    assert refusal(tmp_path / "nowhere.mp4", decoder) == "missing"
    assert refusal(tmp_path, decoder) == "missing"
    whole = make_video("a.mp4", 24, {"g": "5"}).read_bytes()
    early = make_video("a.mp4", 24, {"g": "5"}, container={"movflags": "faststart"}).read_bytes()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    for content, reason in (
        (b"", "empty"),
        (b"this is not a video\n" * 50, "unreadable"),
        (np.random.default_rng(0).bytes(5000), "unreadable"),
        (whole[: len(whole) // 3], "unreadable"),  # its index was at the end
        (early[:-150], "unreadable"),  # its index names frames that were cut off
        (sound.read_bytes(), "no video"),
    ):
        (tmp_path / "b.mp4").write_bytes(content)
        assert refusal(tmp_path / "b.mp4", decoder).partition(":")[0] == reason


@every_decoder
def test_a_window_after_the_end_and_an_impossible_duration_are_rejected(make_video, decoder):
    path = make_video("a.mp4", 10)
    assert (
        refusal(path, decoder, start=5.0)
        == "no frames: between 5 and the end s; the video has 0.90 s"
    )
    assert refusal(path, decoder, start=15.0, end=17.5).startswith(
        "no frames: between 15 and 17.5 s"
    )
    path = make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])
    assert refusal(path, decoder) == "unreadable: it would last 4500000 seconds"


def test_the_reason_is_the_first_error_in_ffmpegs_log():
    ended = "[fc#0 @ 0x1] [error] Task finished with error code: -1094995529 (Invalid data)\n"
    for code, log, reason in (
        (1, ended, "unreadable: no frame could be decoded"),
        (
            1,
            f"[h264 @ 0x1] [error] Invalid NAL unit size (0 > 115).\n{ended}",
            "unreadable: Invalid NAL unit size (0 > 115).",
        ),
        (1, "[IMGUTILS @ 0x2] [error] Picture size 64x0 is invalid\n", "unreadable: 64 x 0 pixels"),
        (
            1,
            "[IMGUTILS @ 0x2] [error] Picture size 90000x80000 is invalid\n",
            "too large: 90000 x 80000 pixels",
        ),
        (
            1,
            "[h264 @ 0x1] [error] dimensions, size 640x480 exceeds max pixel count 9\n",
            "too large: 640 x 480 pixels",
        ),
        (1, "[h264 @ 0x1] [error] get_buffer() failed\n", "too much memory: more than 2048 MiB"),
        (-11, "", "crashed: ffmpeg ended by SIGSEGV"),
        (-9, "", "too much memory: more than 2048 MiB"),  # the kernel killed it
        (-24, "", "too slow: longer than 60 s"),  # SIGXCPU
    ):
        assert str(ffmpeg_decoder.ffmpeg_error(code, log, Limits())) == reason


def test_a_missing_decoder_raises_an_input_error(make_video, monkeypatch):
    path = make_video("a.mp4", 4)
    monkeypatch.setattr("shutil.which", lambda name: None)
    for decoder, package in (
        ("pyav", "av"),
        ("auto", "av"),
        ("ffmpeg", "ffmpeg"),
        ("ffmpeg", "imageio_ffmpeg"),
    ):
        ffmpeg_binary.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=r"install"):
                decode_video(path, 2, 32, decoder=decoder)


def test_a_still_image_is_one_rgb_frame(tmp_path):
    for name, mode in (("a.png", "RGBA"), ("a.png", "P"), ("a.jpg", "L"), ("a.bmp", "RGB")):
        grey = Image.new("RGB", (60, 40), (102, 102, 102)).convert(
            mode
        )  # a color of the usual palette too
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
    """`size` is then its shorter side, so that a random resized crop is of the image and not of a
    square."""
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
    """What a camera writes so that, shown as it says, the quarters come out: by the orientation in
    its EXIF, from 1."""
    p = quarters()
    other = p.transpose(1, 0, 2)
    turned = [
        p,
        p[:, ::-1],
        p[::-1, ::-1],
        p[::-1],
        other,
        np.rot90(p, 1),
        other[::-1, ::-1],
        np.rot90(p, -1),
    ]
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
            assert (
                np.abs(corners - [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]).max()
                < 40
            )


def test_transparency_becomes_white(tmp_path):
    for name, mode in (("a.png", "RGBA"), ("a.png", "LA"), ("a.webp", "RGBA"), ("a.gif", "RGBA")):
        image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
        image.paste((90, 90, 90, 255), (0, 0, 30, 40))
        image.convert(mode).save(
            tmp_path / name, **({"lossless": True} if name == "a.webp" else {})
        )
        (frame,) = decode_image(tmp_path / name, 32).frames.astype(int)
        assert np.abs(frame[:, :12] - 90).max() <= 8
        assert (frame[:, 20:] >= 250).all()


def test_the_size_of_an_image_is_checked_before_decoding(tmp_path):
    """A PNG of some kilobytes with this size in its header, and valid rows as far as they are
    read."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

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
    turned = (0x0112, 3, 1, 6 << 16)
    unit = (0x0128, 4, 1, 100000)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIIHHIII", 8, 2, *turned, *unit, 0)
    Image.fromarray(quarters()).save(tmp_path / "exif.jpg", exif=exif)
    for content, reason in (
        (b"", "empty"),
        (b"not an image", "unreadable"),
        ((tmp_path / "whole.png").read_bytes()[:100], "unreadable"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
            "unreadable",
        ),  # would start Ghostscript
        ((tmp_path / "exif.jpg").read_bytes(), "unreadable"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DecodeError, match=reason) as error:
            decode_image(tmp_path / "a.png", 32)
        assert str(tmp_path) not in str(error.value)
