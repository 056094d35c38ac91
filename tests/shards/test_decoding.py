"""Which frames of a video are decoded, bit for bit, and why a file is rejected."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.shards import decoding
from alpro.shards.decoding import DecodeError, Limits, decode_image, decode_video, ffmpeg_binary, video_seconds
from tests.shards.conftest import refusal

every_decoder = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg", "auto"])

LONG_GOP = {"g": "250", "bf": "3"}  # one key frame, and frames that refer to later ones
FREQUENT_KEYS = {"g": "3", "bf": "0"}
OPEN_GOP = {"g": "6", "x264-params": "open-gop=1:bframes=3:scenecut=0"}  # frames that refer across a key frame


@every_decoder
@pytest.mark.parametrize("options", [LONG_GOP, FREQUENT_KEYS, OPEN_GOP], ids=["long", "frequent", "open"])
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


SIZE, FRAMES = 32, 40
CODECS = {
    "libx264": ["a.mp4", "a.mkv", "a.ts", "a.flv"],
    "libx265": ["a.mp4", "a.ts"],
    "mpeg4": ["a.mp4", "a.mkv", "a.avi"],
    "mpeg2video": ["a.ts", "a.mkv"],
    "libvpx": ["a.webm"],
    "libvpx-vp9": ["a.webm"],
    "mjpeg": ["a.mov"],
}
X264 = ["b-pyramid=none", "b-pyramid=strict", "b-pyramid=normal:open-gop=1", "intra-refresh=1", "interlaced=1"]


def moving(seed: int) -> Callable[[int], np.ndarray]:
    """Moving noise with cuts, which makes encoders use all kinds of frames."""
    rng = np.random.default_rng(seed)
    texture, cuts = rng.integers(0, 255, (60, 200, 3), np.uint8), set(rng.integers(0, FRAMES, 2).tolist())

    def picture(number: int) -> np.ndarray:
        scene = sum(number >= cut for cut in cuts)
        return np.roll(texture, scene * 67, axis=1)[number // 8 : number // 8 + 48, number * 2 : number * 2 + 64]

    return picture


@st.composite
def recipes(draw) -> tuple[str, dict]:
    codec, g = draw(st.sampled_from(sorted(CODECS))), str(draw(st.sampled_from([1, 5, 12, 60])))
    opened, frames = draw(st.sampled_from([0, 1])), str(draw(st.integers(0, 5)))
    options = {
        "libx264": {"x264-params": draw(st.sampled_from(X264)), "bf": frames, "preset": "fast"},
        "libx265": {"x265-params": f"log-level=none:keyint={g}:bframes=3:open-gop={opened}:frame-threads=1"},
        "libvpx": {"auto-alt-ref": "1", "lag-in-frames": "12", "b": "200k", "deadline": "realtime"},
        "libvpx-vp9": {"b": "200k", "deadline": "realtime", "cpu-used": "8"},
        "mjpeg": {},
    }.get(codec, {"bf": "1"})
    name = draw(st.sampled_from(CODECS[codec]))
    options = {"g": g} | options | ({"bf": "0"} if name == "a.avi" else {})
    more = {"codec": codec, "options": options, "rate": 25, "picture": moving(draw(st.integers(0, 99)))}
    return name, more | {"pixels": "yuvj420p" if codec == "mjpeg" else "yuv420p"}


windows = st.tuples(st.integers(0, FRAMES - 1), st.integers(1, FRAMES)).filter(lambda w: w[0] < w[1])
common = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=12, **common)
@given(recipe=recipes(), window=windows, count=st.integers(1, FRAMES))
def test_frames_equal_those_of_decoding_everything(make_video, monkeypatch, recipe, window, count: int):
    """Whether it skips, seeks or reads only a part; by the length that counts as far."""
    name, more = recipe
    with tempfile.TemporaryDirectory() as folder:
        path = make_video(name, FRAMES, **more).rename(Path(folder) / name)
        with av.open(str(path)) as container:
            frames = container.decode(video=0)
            whole = [f.reformat(SIZE, SIZE, "gbrp", interpolation="BICUBIC").to_ndarray() for f in frames]
        assert len(whole) == FRAMES
        start, end = window[0] / 25 or None, None if window[1] == FRAMES else window[1] / 25
        wanted = [window[0] + i * (window[1] - window[0]) // count for i in range(count)]
        for far in (10.0, 0.05):  # a short video is read like an hour-long one
            monkeypatch.setattr(decoding, "FAR_SECONDS", far)
            monkeypatch.setattr(decoding, "BACK_SECONDS", 0.2)
            try:
                clip = decode_video(path, count, SIZE, start, end, decoder="pyav")
                equal = (clip.frames == np.stack(whole)[wanted]).all(axis=(1, 2, 3))
            except DecodeError:  # a seek leads elsewhere in this file: ffmpeg, whose colors differ a little
                unreliable = name == "a.flv" or "intra-refresh=1" in str(more["options"])  # an FLV of key frames alone
                assert far < 10 or unreliable
                frames = decode_video(path, count, SIZE, start, end).frames.astype(int)
                nearest = [int(np.abs(np.stack(whole) - frame).mean(axis=(1, 2, 3)).argmin()) for frame in frames]
                equal = np.array([(whole[i] == whole[n]).all() for i, n in zip(nearest, wanted, strict=True)])
            assert equal.all(), (far, np.flatnonzero(~equal).tolist())


@pytest.mark.long
@settings(max_examples=400, **common)
@given(recipe=recipes(), window=windows, count=st.integers(1, FRAMES))
def test_frames_equal_those_of_decoding_everything_at_length(make_video, monkeypatch, recipe, window, count: int):
    test_frames_equal_those_of_decoding_everything.hypothesis.inner_test(make_video, monkeypatch, recipe, window, count)


def test_only_what_the_frames_need_is_read_and_decoded(make_video, monkeypatch):
    """How many timestamps are read of a video, and how many frames are decoded."""
    timestamps, frames_from, were_read, were_decoded = decoding._timestamps, decoding._frames_from, [], []

    def read(*arguments):
        result = timestamps(*arguments)
        were_read.append(len(result[0]))
        return result

    def decoded(*arguments):
        frames = list(frames_from(*arguments))
        were_decoded.append(len(frames))
        return iter(frames)

    monkeypatch.setattr(decoding, "_timestamps", read)
    monkeypatch.setattr(decoding, "_frames_from", decoded)
    x264 = "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0"
    path = make_video("a.mp4", 40, {"g": "20", "x264-params": x264})
    decode_video(path, 2, 32, decoder="pyav")  # frames 0 and 20: two key frames
    decode_video(path, 1, 32, 1.6, decoder="pyav")  # frame 16: four that it refers to, and itself
    assert were_decoded == [1, 1, 5]
    were_read.clear()
    path = make_video("b.mp4", 2000, {"g": "10", "bf": "2", "preset": "ultrafast"})
    decode_video(path, 4, 32, 150.0, 151.0, decoder="pyav")
    assert len(were_read) == 1  # in the first attempt
    assert 50 < were_read[0] < 90  # five seconds before it, the window, and no more


def test_the_length_of_a_video_is_that_of_its_header(make_video, tmp_path):
    assert video_seconds(make_video("a.mp4", 24)) == pytest.approx(2.4)
    assert video_seconds(make_video("a.mkv", 3, stamps=[0, 40, 100_000])) == 0  # of less than 100 bytes a second
    assert video_seconds(tmp_path / "missing.mp4") == 0


@every_decoder
def test_a_file_without_frames_is_rejected_with_the_reason(tmp_path, make_video, decoder):
    assert refusal(tmp_path / "nowhere.mp4", decoder) == "missing"
    assert refusal(tmp_path, decoder) == "missing"
    whole = make_video("a.mp4", 24, {"g": "5"}).read_bytes()
    early = make_video("a.mp4", 24, {"g": "5"}, container={"movflags": "faststart"}).read_bytes()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
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
    assert refusal(path, decoder, start=5.0) == "no frames: between 5 and the end s; the video has 0.90 s"
    assert refusal(path, decoder, start=15.0, end=17.5).startswith("no frames: between 15 and 17.5 s")
    path = make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])
    assert refusal(path, decoder) == "unreadable: it would last 4500000 seconds"


def test_the_reason_is_the_first_error_in_ffmpegs_log():
    ended = "[fc#0 @ 0x1] Task finished with error code: -1094995529 (Invalid data found when processing input)\n"
    for code, log, reason in (
        (1, ended, "unreadable: no frame could be decoded"),
        (1, f"[h264 @ 0x1] Invalid NAL unit size (0 > 115).\n{ended}", "unreadable: Invalid NAL unit size (0 > 115)."),
        (1, "[IMGUTILS @ 0x2] Picture size 64x0 is invalid\n", "unreadable: 64 x 0 pixels"),
        (1, "[IMGUTILS @ 0x2] Picture size 90000x80000 is invalid\n", "too large: 90000 x 80000 pixels"),
        (1, "[h264 @ 0x1] dimensions, size 640x480 exceeds max pixel count 9\n", "too large: 640 x 480 pixels"),
        (1, "[h264 @ 0x1] get_buffer() failed\n", "too much memory: more than 2048 MiB"),
        (1, "Stream map 'V' matches no streams.\n", "no video"),
        (-11, "", "crashed: ffmpeg ended by SIGSEGV"),
    ):
        assert str(decoding._ffmpeg_error(code, log, Limits())) == reason


def test_a_path_that_is_not_a_regular_file_is_rejected(tmp_path):
    (tmp_path / "a folder.mp4").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("a folder.mp4", "a\0.mp4", 300 * "x" + ".mp4", "file/a.mp4", "pipe.mp4", "zero.mp4"):
        for decode in (lambda path: decode_image(path, 32), lambda path: decode_video(path, 2, 32)):
            with pytest.raises(DecodeError, match=r"missing|File name too long"):
                decode(tmp_path / name)


def test_a_missing_decoder_raises_an_input_error(make_video, monkeypatch):
    path = make_video("a.mp4", 4)
    monkeypatch.setattr("shutil.which", lambda name: None)
    for decoder, package in (("pyav", "av"), ("auto", "av"), ("ffmpeg", "ffmpeg"), ("ffmpeg", "imageio_ffmpeg")):
        ffmpeg_binary.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=r"install"):
                decode_video(path, 2, 32, decoder=decoder)
