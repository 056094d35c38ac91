"""Which frames of a video are decoded, bit for bit, and why a file is rejected."""

import sys

import av
import numpy as np
import pytest

from alpro.errors import InputError
from alpro.shards import clip
from alpro.shards.clip import Limits
from alpro.shards.decoding import decode_video
from alpro.shards.duration import video_seconds
from alpro.shards.ffmpeg_copy import ffmpeg_error
from tests.shards.conftest import Clock, refusal

every_way = pytest.mark.parametrize("way", ["seek", "order", "ffmpeg"])

GROUPS = {
    # One key frame, and frames that refer to later ones.
    "long": {"g": "250", "bf": "3"},
    "frequent": {"g": "3", "bf": "0"},
    # Frames that refer across a key frame.
    "open": {"g": "6", "x264-params": "open-gop=1:bframes=3:scenecut=0"},
}
# Count, start and end of a request; the frames and the duration of its clip. The video has 24 frames,
# 10 a second.
REQUESTS = """
6 -    -    | 0 4 8 12 16 20 | 2.4 | segments of 24 / 6 = 4 frames
5 -    -    | 0 4 9 14 19    | 2.4 | of 4.8: 0, 4.8, 9.6, 14.4, 19.2
1 -    -    | 0              | 2.4 |
4 1.0  2.0  | 10 12 15 17    | 1.0 | frames 10 to 19 in segments of 2.5
4 -    0.8  | 0 2 4 6        | 0.8 |
4 1.6  -    | 16 18 20 22    | 0.8 |
4 1.55 1.95 | 16 17 18 19    | 0.4 | the first frame at or after the start is 16
4 2.0  60.0 | 20 21 22 23    | 0.4 | an end beyond the video's is the video's
4 0.5  0.6  | 5 5 5 5        | 0.1 | frame 6 begins when the window ends
8 -    0.3  | 0 0 0 1 1 1 2 2 | 0.3 | too few: i * 3 // 8
"""


@every_way
@pytest.mark.parametrize("group", GROUPS)
def test_the_first_frame_of_each_segment_is_decoded(make_video, numbers, way, group):
    path = make_video("a.mp4", 24, GROUPS[group])
    for line in REQUESTS.strip().splitlines():
        request, frames, duration, _ = line.split("|")
        count, *window = request.split()
        start, end = (None if time == "-" else float(time) for time in window)

        clip = decode_video(path, int(count), 32, start, end, decoder=way)

        assert numbers(clip) == [*map(int, frames.split())]
        assert clip.frames.shape == (int(count), 32, 32, 3)
        assert clip.frames.flags.c_contiguous
        assert clip.width == 64
        assert clip.height == 48
        assert clip.duration == pytest.approx(float(duration))


@pytest.mark.parametrize(
    ("count", "window", "most"),
    [
        # Five seconds before the window, the window, and up to two groups for each of its frames.
        (4, (150.0, 151.0), 90 + 4 * 20),
        # A clip at the start is not read to its end.
        (2, (None, 1.0), 20 + 2 * 20),
    ],
)
def test_only_what_the_frames_need_is_read(
    make_video, monkeypatch, count, window, most
):
    path = make_video("b.mp4", 2000, {"g": "10", "bf": "2", "preset": "ultrafast"})
    clock = Clock()
    monkeypatch.setattr(clip, "time", clock)

    decode_video(path, count, 32, *window, decoder="seek")

    assert count < clock.readings < most


def test_the_length_of_a_video_is_that_of_its_packets(make_video, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")

    assert video_seconds(make_video("a.mp4", 24)) == pytest.approx(2.4)
    assert video_seconds(make_video("a.mkv", 3, stamps=[0, 40, 100_000])) > 100
    # Senseless.
    assert video_seconds(make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])) == 0
    assert video_seconds(tmp_path / "missing.mp4") == 0
    assert video_seconds(tmp_path / "text.mp4") == 0


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    return path.read_bytes()


@pytest.mark.parametrize("way", ["seek", "order", "auto"])
def test_a_file_without_frames_is_rejected_with_the_reason(tmp_path, make_video, way):
    whole = make_video("a.mp4", 24, {"g": "5"}).read_bytes()
    early = make_video(
        "a.mp4", 24, {"g": "5"}, container={"movflags": "faststart"}
    ).read_bytes()
    contents = {
        b"": "empty",
        b"this is not a video\n" * 50: "unreadable",
        np.random.default_rng(0).bytes(5000): "unreadable",
        whole[: len(whole) // 3]: "unreadable",  # its index was at the end
        early[:-150]: "unreadable",  # its index names frames that were cut off
        write_sound(tmp_path / "sound.mp4"): "no video",
    }

    assert refusal(tmp_path / "nowhere.mp4", way) == "missing"
    assert refusal(tmp_path, way) == "missing"
    for content, reason in contents.items():
        (tmp_path / "b.mp4").write_bytes(content)
        assert refusal(tmp_path / "b.mp4", way).partition(":")[0] == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git-lfs pointer: run",
        ),
        (bytes(100_000), "zero-filled file: download it again"),
    ],
)
@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_was_stored_in_place_of_a_file_is_named(tmp_path, kind, content, reason):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)

    assert refusal(path, "auto", kind=kind).startswith(f"unreadable: {reason}")


@every_way
def test_a_window_after_the_end_and_an_impossible_duration_are_rejected(
    make_video, way
):
    path = make_video("a.mp4", 10)
    endless = make_video("a.mkv", 3, stamps=[0, 40, 3_000_000_000])

    detail = "5 s to the end; the video has 0.90 s"
    assert refusal(path, way, start=5.0) == f"no frames: {detail}"
    assert refusal(path, way, start=15.0, end=17.5).startswith(
        "no frames: 15 s to 17.5"
    )
    assert refusal(endless, way) == "unreadable: it would last 4500000 seconds"


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (1, "", "unreadable: no frame could be decoded"),
        (
            1,
            "[h264 @ 0x1] Invalid NAL size (0 > 115).\nlater",
            "unreadable: Invalid NAL size",
        ),
        (
            1,
            "[ffv1 @ 0x1] Cannot allocate memory\n",
            "too much memory: more than 2048 MiB",
        ),
        (-11, "", "crashed: ffmpeg ended by SIGSEGV"),
        (-9, "", "too much memory: more than 2048 MiB"),  # the kernel killed it
    ],
)
def test_the_reason_is_the_first_error_in_ffmpegs_log(code, log, reason):
    assert str(ffmpeg_error(code, log, Limits())).startswith(reason)


def test_a_full_disk_is_no_fault_of_the_file():
    assert isinstance(ffmpeg_error(1, "x: No space left on device", Limits()), OSError)


@pytest.mark.parametrize(
    ("way", "package"),
    [
        ("auto", "av"),
        ("ffmpeg", "ffmpeg"),
        ("ffmpeg", "imageio_ffmpeg"),
    ],
)
def test_a_missing_decoder_raises_an_input_error(make_video, monkeypatch, way, package):
    path = make_video("a.mp4", 4)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(InputError, match=r"install"):
        decode_video(path, 2, 32, decoder=way)
