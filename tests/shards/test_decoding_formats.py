"""Containers, codecs, pixel formats and time bases: frames have the correct times and colors."""

import struct
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from alpro.shards import seeking
from alpro.shards.decoding import decode_video

WAYS = ("seek", "order", "ffmpeg")

X265 = "x265-params=log-level=none:keyint=8:open-gop=1:bframes=4"
# A file, its codec and pixels, and options of the encoder; of a container, of a rate of 25, of a
# size. The second part is not decoded by seeks.
FORMATS = f"""
a.mkv libx264 yuv420p bf=5 b-pyramid=strict g=12
a.ts libx264 yuv420p x264-params=open-gop=1:bframes=3:scenecut=0:keyint=6
a.ts libx264 yuv420p x264-params=interlaced=1
a.flv libx264 yuv420p g=6
a.mov libx264 yuv420p g=6 bf=2
a.mp4 libx264 yuv420p g=6 movflags=frag_keyframe+empty_moov
a.mp4 libx264 yuv420p10le
a.mp4 libx264 yuv444p size=321x181
a.mp4 libx265 yuv420p {X265}
a.ts libx265 yuv420p {X265}
a.webm libvpx yuv420p auto-alt-ref=1 lag-in-frames=12 b=500k
a.webm libvpx yuva420p auto-alt-ref=0
a.webm libvpx-vp9 yuv420p b=300k
a.webm libvpx-vp9 yuva420p
a.mkv libsvtav1 yuv420p10le crf=5
a.mp4 libsvtav1 yuv420p crf=5 preset=10
a.mp4 mpeg4 yuv420p bf=2 g=8 qmax=3
a.avi mpeg4 yuv420p qmax=3
a.avi mjpeg yuvj420p qmax=3
a.mov prores_ks yuv422p10le
a.mov png rgba
a.mov tiff rgb24
a.ts mpeg2video yuv420p rate=25 bf=2 g=8
a.flv flv yuv420p
a.wmv wmv2 yuv420p
a.gif gif rgb8

a.ts libx264 yuv420p x264-params=intra-refresh=1:keyint=8
a.avi libx264 yuv420p g=6 bf=2
a.wmv libx264 yuv420p g=6 bf=2
a.wmv libx264 yuv420p g=1
a.avi h263p yuv420p g=8 size=176x144
a.mpg mpeg2video yuv420p rate=25 bf=2 g=8
a.mpg mpeg1video yuv420p rate=25 bf=2 g=8
a.mpg libx264 yuv420p g=6 bf=2
a.h264 libx264 yuv420p rate=25 g=6 bf=2
a.hevc libx265 yuv420p rate=25 {X265}
a.m2v mpeg2video yuv420p rate=25 bf=2 g=8
"""
SEEKABLE, IN_ORDER = (part.strip().splitlines() for part in FORMATS.split("\n\n"))


def make_form(make_video, form, count=24, **more):
    """The video of a form, its rate and its size."""
    name, codec, pixels, *more_options = form.split()
    options = dict(option.split("=", 1) for option in more_options)
    rate = int(options.pop("rate", 10))
    size = tuple(map(int, options.pop("size", "64x48").split("x")))
    container = {"movflags": options.pop("movflags")} if "movflags" in options else None
    more |= {
        "codec": codec,
        "pixels": pixels,
        "size": size,
        "rate": rate,
        "container": container,
    }
    return make_video(name, count, options, **more), rate, size


@pytest.mark.parametrize("form", SEEKABLE + IN_ORDER)
def test_every_format_gives_the_frames_of_the_requested_time(make_video, numbers, form):
    path, rate, size = make_form(make_video, form)
    for way in WAYS if form in SEEKABLE else ("auto", "ffmpeg"):
        clip = decode_video(path, 24, 32, decoder=way)
        assert numbers(clip) == list(range(24))
        assert (clip.width, clip.height) == size
        assert clip.duration == pytest.approx(24 / rate, abs=0.002)

        window = decode_video(path, 5, 32, 10.1 / rate, 20.1 / rate, decoder=way)
        assert numbers(window) == [10, 12, 14, 16, 18]
        rest = decode_video(path, 7, 32, 17.1 / rate, decoder=way)
        assert numbers(rest) == list(range(17, 24))


FRAMES = 40


def moving(seed):
    """Moving noise with cuts, which makes encoders use all kinds of frames."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (60, 200, 3), np.uint8)
    cuts = set(rng.integers(0, FRAMES, 2).tolist())

    def picture(number):
        scene = sum(number >= cut for cut in cuts)
        top = number // 8
        left = number * 2
        return np.roll(texture, scene * 67, axis=1)[top : top + 48, left : left + 64]

    return picture


def decode_everything(path):
    """All frames as PyAV returns them (n, 32, 32, 3)."""
    drawn = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scaled = frame.reformat(32, 32, "gbrp", interpolation="BICUBIC")
            drawn.append(scaled.to_ndarray())
    return np.stack(drawn)


# The reference scales the fields of an interlaced frame apart.
INEXACT = ("libsvtav1", "interlaced", "yuva", "yuv422", "yuv444", "10le", "rgb", "yuvj")
EXACT = [
    form for form in SEEKABLE + IN_ORDER if not any(word in form for word in INEXACT)
]
windows = st.tuples(st.integers(0, FRAMES - 1), st.integers(1, FRAMES)).filter(
    lambda w: w[0] < w[1]
)


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    form=st.sampled_from(EXACT),
    seed=st.integers(0, 99),
    window=windows,
    count=st.integers(1, FRAMES),
)
# Its times go back.
@example(
    form="a.mpg mpeg2video yuv420p rate=25 bf=2 g=8", seed=20, window=(0, 40), count=40
)
# MPEG-1 centers chroma between pixels, unlike MPEG-2.
@example(
    form="a.mpg mpeg1video yuv420p rate=25 bf=2 g=8", seed=1, window=(8, 30), count=5
)
# Each packet is marked as a key frame.
@example(form="a.avi h263p yuv420p g=8 size=176x144", seed=1, window=(8, 30), count=5)
# Its times are guesses, and other ones after a seek.
@example(form="a.wmv libx264 yuv420p g=1", seed=1, window=(1, 4), count=3)
def test_frames_equal_those_of_decoding_everything(
    make_video, monkeypatch, form, seed, window, count
):
    """Whether it skips, seeks, reads only a part or everything; by the length that counts as
    far."""
    with tempfile.TemporaryDirectory() as folder:
        path, rate, _ = make_form(make_video, form, FRAMES, picture=moving(seed))
        path = path.rename(Path(folder) / path.name)
        whole = decode_everything(path)
        assert len(whole) == FRAMES

        first, last = window
        start = (first + 0.1) / rate if first else None
        end = None if last == FRAMES else (last + 0.1) / rate
        wanted = [first + i * (last - first) // count for i in range(count)]
        for far in (10.0, 0.05):  # a short video is read like an hour-long one
            monkeypatch.setattr(seeking, "FAR_SECONDS", far)
            monkeypatch.setattr(seeking, "BACK_SECONDS", 0.2)
            frames = decode_video(path, count, 32, start, end).frames
            assert np.array_equal(frames, whole[wanted]), far


def test_a_video_with_one_frame(make_video, numbers):
    for name in ("a.mp4", "a.avi", "a.mkv", "a.ts", "a.gif"):
        more = (
            {"codec": "gif", "pixels": "rgb8"}
            if name == "a.gif"
            else {"options": {"bf": "0"}}
        )
        path = make_video(name, 1, **more)
        for way in WAYS:
            assert numbers(decode_video(path, 3, 32, decoder=way)) == [0, 0, 0]


CLOCKS = {  # when frames are shown, milliseconds
    "few": [100 * i if i < 12 else 1100 + 40 * (i - 11) for i in range(24)],
    "many": [
        0,
        *np.cumsum(np.random.default_rng(0).choice([20, 33, 50, 80, 120], 23)).tolist(),
    ],
    "pause": [*range(0, 1000, 100), *range(30_000, 31_400, 100)],
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_variable_frame_rates_use_the_frames_timestamps(
    make_video, numbers, clock, name
):
    """The first frame of a window is the one nearest to `start`: within half a frame."""
    path = make_video(name, 24, {"g": "7", "bf": "2"}, stamps=CLOCKS[clock])
    times = np.array(CLOCKS[clock]) / 1000
    for way in ("auto", "order", "ffmpeg"):
        assert numbers(decode_video(path, 24, 32, decoder=way)) == list(range(24))
        for start in np.random.default_rng(1).uniform(0, times[-1], 2):
            (number,) = numbers(decode_video(path, 1, 32, start, decoder=way))
            away = np.abs(times - start)
            assert away[number] == pytest.approx(away.min(), abs=0.002)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("a.mkv", 7_000),
        ("a.ts", 40_000_000),
        ("a.ts", 95_442_500),  # over the end of MPEG-TS's clock
        ("a.mp4", 5_000),  # with an edit list
        ("a.flv", 3_000),
    ],
)
def test_times_are_relative_to_the_first_frame(make_video, numbers, name, first):
    stamps = [first + 100 * i for i in range(24)]
    path = make_video(name, 24, {"g": "6", "bf": "2"}, stamps=stamps)
    for way in WAYS:
        assert numbers(decode_video(path, 6, 32, decoder=way)) == [0, 4, 8, 12, 16, 20]
        window = decode_video(path, 5, 32, 1.0, 2.0, decoder=way)
        assert numbers(window) == [10, 12, 14, 16, 18]


def test_frames_outside_an_edit_list_are_not_decoded(make_video, numbers):
    """Frames 0 to 8 are in the file because frame 9 depends on them, and are not shown."""
    path = make_video("a.mp4", 24, {"g": "50", "bf": "2"})
    content = bytearray(path.read_bytes())
    # Name, version and flags, number of entries; then its length and its media time.
    at = content.find(b"elst") + 12
    media_time = int.from_bytes(content[at + 4 : at + 8], "big")
    header = content.find(b"mdhd")
    ticks = int.from_bytes(content[header + 16 : header + 20], "big")
    content[at + 4 : at + 8] = (media_time + ticks * 9 // 10).to_bytes(4, "big")
    path.write_bytes(content)

    for way in WAYS:
        assert numbers(decode_video(path, 15, 32, decoder=way)) == list(range(9, 24))
        assert numbers(decode_video(path, 2, 32, 1.0, 1.2, decoder=way)) == [19, 20]


def scenery(number):
    """A smooth picture (48, 64, 3) with light from the left, which moves."""
    down, across = np.mgrid[0:48, 0:64]
    channel = np.arange(3)
    wave = np.sin((across + 2 * number)[..., None] / 11 + channel)
    swell = np.cos(down[..., None] / 9 - channel)
    return (128 + 90 * wave * swell).astype(np.uint8)


def write_matrix(path, matrix):
    """Write the matrix (a b; c d) of an MP4's track: (x, y) is shown at (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    # After the name are 40 bytes of flags, times, number, length, layer and volume.
    at = content.find(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
MATRICES += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_rotated_or_mirrored_video_is_decoded_upright(make_video, matrix):
    path = make_video("a.mp4", 4, picture=scenery)
    (plain,) = decode_video(path, 1, 40).frames.astype(int)
    write_matrix(path, matrix)
    a, b, c, d = matrix
    x, y = np.meshgrid(range(40), range(40))
    shown_x = a * x + c * y
    shown_y = b * x + d * y
    upright = np.empty_like(plain)
    upright[shown_y - shown_y.min(), shown_x - shown_x.min()] = plain
    assert np.abs(upright - plain).mean() > 10 or matrix == (1, 0, 0, 1)

    # ffmpeg turns the frames before they are scaled, and chroma with them.
    for way, bound in (("auto", 2), ("order", 2), ("ffmpeg", 4)):
        clip = decode_video(path, 1, 40, decoder=way)
        assert np.abs(clip.frames[0].astype(int) - upright).mean() < bound
        assert (clip.width, clip.height) == ((48, 64) if b else (64, 48))


def cropped(path, left):
    """A copy whose H.264 stream says that `left` columns are not shown."""
    copy = path.with_stem("cropped")
    with av.open(str(path)) as video, av.open(str(copy), "w") as out:
        stream = out.add_stream_from_template(video.streams.video[0])
        crop = f"h264_metadata=crop_left={left}"
        metadata = BitStreamFilterContext(crop, video.streams.video[0], stream)
        for packet in video.demux(video=0):
            for changed in metadata.filter(packet if packet.size else None):
                changed.stream = stream
                out.mux(changed)
    return copy


@pytest.mark.parametrize("left", [2, 8, 32])
def test_the_margin_that_a_stream_hides_is_cut_off(make_video, left):
    """In whole, not in multiples of the bytes to which rows are aligned in memory."""
    path = cropped(make_video("a.mp4", 1, {"crf": "1"}, picture=scenery), left)
    shown = Image.fromarray(scenery(0)[:, left:]).resize(
        (40, 40), Image.Resampling.BICUBIC
    )
    for way in ("auto", "order", "ffmpeg"):
        clip = decode_video(path, 1, 40, decoder=way)
        assert clip.width == 64 - left
        assert clip.height == 48
        assert np.abs(clip.frames[0].astype(int) - np.asarray(shown)).mean() < 4


# FFmpeg's numbers
BT709 = 1
BT601 = 5
LIMITED = 1
FULL = 2
BARS = [
    (255, 255, 255),
    (235, 60, 40),
    (30, 200, 50),
    (40, 50, 220),
    (230, 220, 40),
    (128, 128, 128),
    (0, 0, 0),
    (20, 200, 200),
]


def bars(number):
    return np.repeat(np.array(BARS, np.uint8)[None], 48, 0).repeat(8, 1)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT601, BT709])
def test_colors_follow_the_tags(make_video, pixels, matrix, color_range):
    tags = {"colorspace": matrix, "color_range": color_range}
    path = make_video("a.mp4", 2, {"crf": "5"}, picture=bars, pixels=pixels, tags=tags)
    for way in ("auto", "order", "ffmpeg"):
        assert np.abs(read_bars(path, way) - BARS).max() <= 6


def read_bars(path, way):
    """The decoded colors of the bars (8, 3)."""
    (frame,) = decode_video(path, 1, 64, decoder=way).frames.astype(int)
    return frame[32, 4::8]


@pytest.mark.parametrize("way", ["auto", "order", "ffmpeg"])
def test_untagged_colors_are_bt601_and_a_frame_of_the_target_size_keeps_its_brightness(
    make_video, way
):
    """BT.601 in the limited range, as in FFmpeg, for any size."""
    large = make_video("large.mp4", 1, {"crf": "1"}, picture=bars, size=(1280, 768))
    same = make_video("same.mp4", 1, {"crf": "1"}, picture=bars, size=(64, 64))

    assert np.abs(read_bars(large, way) - BARS).max() <= 6
    differences = read_bars(same, way) - BARS
    assert np.abs(differences).max() <= 4
    assert np.abs(differences.mean(axis=0)).max() < 0.5
