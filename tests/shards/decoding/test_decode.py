"""Frames of videos with both decoders, and reasons for rejection."""

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alpro.errors import InputError
from alpro.shards.decoding.decode import Clip, DecodeError, Limits, decode_image, decode_video, ffmpeg_binary
from alpro.shards.decoding.ffmpeg_binary import _reason as ffmpeg_reason
from alpro.shards.decoding.ffmpeg_binary import ffmpeg_version
from alpro.shards.decoding.request import DecodeRequest

pytest.importorskip("av")
pytest.importorskip("ffmpeg")

Make = Callable[..., Path]
Numbers = Callable[[Clip], list[int]]

decoders = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
every_decoder = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg", "auto"])

LONG_GOP = {"g": "250", "bf": "3"}  # one key frame, and frames that refer to later ones
FREQUENT_KEYS = {"g": "3", "bf": "0"}
OPEN_GOP = {"g": "6", "x264-params": "open-gop=1:bframes=3:scenecut=0"}  # frames that refer across a key frame


@pytest.mark.parametrize("options", [LONG_GOP, FREQUENT_KEYS, OPEN_GOP], ids=["long", "frequent", "open"])
def test_the_first_frame_of_each_segment_is_decoded(make_video: Make, numbers: Numbers, options: dict[str, str]):
    path = make_video("a.mp4", 24, options)
    for count, wanted in (
        (6, [0, 4, 8, 12, 16, 20]),  # segments of 24 / 6 = 4 frames
        (5, [0, 4, 9, 14, 19]),  # 4.8: 0, 4.8, 9.6, 14.4, 19.2
        (1, [0]),
        (24, list(range(24))),
    ):
        for decoder in ("pyav", "ffmpeg"):
            clip = decode_video(path, count, 32, decoder=decoder)
            assert numbers(clip) == wanted
            assert clip.frames.shape == (count, 32, 32, 3)
            assert clip.frames.dtype == np.uint8
            assert clip.frames.flags.c_contiguous
            assert (clip.width, clip.height) == (64, 48)
            assert clip.duration == pytest.approx(2.4)  # 24 frames, 10 a second


def test_only_the_window_is_decoded(make_video: Make, numbers: Numbers):
    path = make_video("a.mp4", 24, FREQUENT_KEYS)
    for start, end, wanted, duration in (
        (1.0, 2.0, [10, 12, 15, 17], 1.0),  # frames 10..19 in segments of 2.5
        (None, 0.8, [0, 2, 4, 6], 0.8),  # frames 0..7
        (1.6, None, [16, 18, 20, 22], 0.8),  # frames 16..23
        (1.55, 1.95, [16, 17, 18, 19], 0.4),  # the first frame at or after the start is 16
        (2.0, 60.0, [20, 21, 22, 23], 0.4),  # an end beyond the video's is the video's
        (0.5, 0.6, [5, 5, 5, 5], 0.1),  # frame 6 begins when the window ends
    ):
        for decoder in ("pyav", "ffmpeg"):
            clip = decode_video(path, 4, 32, start, end, decoder=decoder)
            assert numbers(clip) == wanted
            assert clip.duration == pytest.approx(duration)


def test_every_frame_position_is_decoded(make_video: Make, numbers: Numbers):
    """Seeking to each frame on its own gives that frame: before, on and after key frames."""
    path = make_video("a.mp4", 24, {"g": "5", "bf": "3"})
    assert [numbers(decode_video(path, 1, 32, i / 10, decoder="pyav")) for i in range(24)] == [[i] for i in range(24)]


@decoders
def test_frames_repeat_if_there_are_too_few(make_video: Make, numbers: Numbers, decoder):
    path = make_video("a.mp4", 3)
    clip = decode_video(path, 8, 32, decoder=decoder)
    assert numbers(clip) == [0, 0, 0, 1, 1, 1, 2, 2]  # i * 3 // 8


def test_reordered_frames_in_avi_give_the_same_frames(make_video: Make, numbers: Numbers):
    path = make_video("a.avi", 24, {"g": "6", "bf": "2"})
    assert numbers(decode_video(path, 8, 32)) == [0, 3, 6, 9, 12, 15, 18, 21]


def scenery(number: int) -> np.ndarray:
    """A smooth picture (48, 64, 3) with light from the left, which moves."""
    down, across = np.mgrid[0:48, 0:64]
    waves = [128 + 90 * np.sin((across + 2 * number) / 11 + k) * np.cos(down / 9 - k) for k in range(3)]
    return np.stack(waves, axis=2).astype(np.uint8)


def test_both_decoders_give_the_same_frames(make_video: Make):
    path = make_video("a.mp4", 12, picture=scenery)
    by_pyav, by_ffmpeg = (decode_video(path, 4, 40, decoder=decoder) for decoder in ("pyav", "ffmpeg"))
    difference = np.abs(by_pyav.frames.astype(int) - by_ffmpeg.frames)
    assert difference.mean() < 2
    # Not for want of a picture: another frame differs by far more.
    assert np.abs(by_pyav.frames[0].astype(int) - by_ffmpeg.frames[2]).mean() > 10


def red_above_blue(number: int) -> np.ndarray:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :, 0] = picture[24:, :, 2] = 255
    return picture


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a display matrix into an MP4: the point (x, y) is to be shown at (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    at = content.find(b"tkhd") + 44  # 4 of the name, then 40 of flags, times, number, length, layer and volume
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def test_a_rotated_video_is_decoded_upright(make_video: Make):
    # The matrix of a track (a b; c d) as phones write it: turned right, left, upside down.
    for matrix, red_side, size in (
        ((0, 1, -1, 0), "right", (48, 64)),
        ((0, -1, 1, 0), "left", (48, 64)),
        ((-1, 0, 0, -1), "bottom", (64, 48)),
    ):
        path = make_video("a.mp4", 4, picture=red_above_blue)
        turned(path, matrix)
        for decoder in ("pyav", "ffmpeg"):
            clip = decode_video(path, 1, 32, decoder=decoder)
            (frame,) = clip.frames.astype(int)
            redness = frame[:, :, 0] - frame[:, :, 2]
            sides = {"left": redness[:, :8], "right": redness[:, -8:], "top": redness[:8], "bottom": redness[-8:]}
            assert max(sides, key=lambda side: sides[side].mean()) == red_side
            assert sides[red_side].mean() > 200
            assert (clip.width, clip.height) == size


def test_both_decoders_handle_rotation_and_mirroring_equally(make_video: Make):
    for matrix in [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]:
        path = turned(make_video("a.mp4", 4, picture=scenery), matrix)
        by_pyav, by_ffmpeg = (decode_video(path, 2, 40, decoder=decoder) for decoder in ("pyav", "ffmpeg"))
        assert np.abs(by_pyav.frames.astype(int) - by_ffmpeg.frames).mean() < 2
        assert (by_pyav.width, by_pyav.height) == (by_ffmpeg.width, by_ffmpeg.height)


def refusal(path: Path, decoder, **more) -> str:
    with pytest.raises(DecodeError) as error:
        decode_video(path, 4, 32, decoder=decoder, **more)
    assert "\n" not in str(error.value)
    assert str(path) not in str(error.value)  # the row has it
    return str(error.value)


@every_decoder
def test_a_file_without_frames_is_rejected_with_the_reason(tmp_path: Path, make_video: Make, decoder):
    assert refusal(tmp_path / "nowhere.mp4", decoder) == "missing"
    assert refusal(tmp_path, decoder) == "missing"
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert refusal(tmp_path / "empty.mp4", decoder) == "empty"
    for name, content in {
        "text.mp4": b"this is not a video\n" * 50,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "page.mp4": b"<!doctype html><title>404</title>",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name, decoder).startswith("unreadable: ")


@every_decoder
def test_a_file_truncated_before_its_index_is_rejected(tmp_path: Path, make_video: Make, decoder):
    content = make_video("a.mp4", 24).read_bytes()
    assert content.find(b"moov") > content.find(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 3])
    reason = refusal(tmp_path / "cut.mp4", decoder)
    assert reason.startswith("unreadable: ")
    if decoder != "pyav":
        assert reason == "unreadable: moov atom not found"


@every_decoder
def test_a_file_truncated_after_its_index_is_rejected(tmp_path: Path, make_video: Make, decoder):
    content = make_video("a.mp4", 24, {"g": "5"}, faststart=True).read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(content[:-150])
    assert refusal(tmp_path / "cut.mp4", decoder).startswith("unreadable: ")


@every_decoder
def test_audio_without_video_is_rejected(tmp_path: Path, decoder):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refusal(path, decoder) == "no video"


@every_decoder
def test_a_window_after_the_end_is_rejected_with_the_duration(make_video: Make, decoder):
    path = make_video("a.mp4", 10)
    assert refusal(path, decoder, start=5.0) == "no frames: between 5 and the end s; the video has 0.90 s"
    assert refusal(path, decoder, start=5.0, end=7.5).startswith("no frames: between 5 and 7.5 s")


def test_the_version_of_the_binary():
    assert re.fullmatch(r"[nN]?-?\d[\w.+-]*", ffmpeg_version())


def test_the_reason_is_the_first_error_in_ffmpegs_log():
    """Lines as ffmpeg 9 writes them."""
    request = DecodeRequest(Path("a.mp4"), 4, 32, None, None, Limits())
    ended = "[fc#0 @ 0x1] Task finished with error code: -1094995529 (Invalid data found when processing input)\n"
    ended += "[fc#0 @ 0x1] Terminating thread with return code -1094995529 (Invalid data found when processing input)\n"
    for log, reason in (
        (ended, "unreadable: no frame could be decoded"),
        ("", "unreadable: no frame could be decoded"),
        (
            f"[in#0/mov @ 0x1] stream 0, offset 0x6ff: partial file\n{ended}",
            "unreadable: stream 0, offset 0x6ff: partial file",
        ),
        (f"[h264 @ 0x1] Invalid NAL unit size (0 > 115).\n{ended}", "unreadable: Invalid NAL unit size (0 > 115)."),
        ("[mjpeg @ 0x1] [IMGUTILS @ 0x2] Picture size 0x0 is invalid\n", "unreadable: frames without a size"),
        ("[IMGUTILS @ 0x2] Picture size 64x0 is invalid\n", "unreadable: frames without a size"),
        ("[IMGUTILS @ 0x2] Picture size 90000x80000 is invalid\n", "too large: 90000 x 80000 pixels"),
        ("[h264 @ 0x1] dimensions, size 640x480 exceeds max pixel count 9\n", "too large: 640 x 480 pixels"),
    ):
        assert str(ffmpeg_reason(1, log.encode(), request)) == reason


@decoders
def test_an_impossible_duration_is_rejected(make_video: Make, decoder):
    path = make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])
    assert refusal(path, decoder) == "unreadable: it would last 4500000 seconds"


@pytest.mark.parametrize("name", ["a folder.mp4", "a\0.mp4", 300 * "x" + ".mp4", "file/a.mp4"])
def test_a_path_that_is_not_a_file_is_rejected(tmp_path: Path, name: str):
    (tmp_path / "a folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for decode in (lambda path: decode_image(path, 32), lambda path: decode_video(path, 2, 32)):
        with pytest.raises(DecodeError, match=r"missing|unreadable: File name too long"):
            decode(tmp_path / name)


@pytest.mark.parametrize(
    ("decoder", "package"), [("pyav", "av"), ("auto", "av"), ("ffmpeg", "ffmpeg"), ("ffmpeg", "imageio_ffmpeg")]
)
def test_a_missing_decoder_raises_an_input_error(make_video: Make, monkeypatch, decoder, package: str):
    path = make_video("a.mp4", 4)
    ffmpeg_binary.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"install"):
        decode_video(path, 2, 32, decoder=decoder)
