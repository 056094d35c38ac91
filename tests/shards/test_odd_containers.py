"""Containers with a wrong or missing length, odd metadata, several streams, changing sizes, and
joined files. The ffmpeg binary writes them; the luma of a frame is its number."""

import functools
import struct
import subprocess

import numpy as np
import pytest

from alpro.shards.clip import DecodeError
from alpro.shards.decoding import decode_video
from alpro.shards.duration import video_seconds
from alpro.shards.ffmpeg_copy import ffmpeg_binary

SECONDS = 6
RATE = 10
STEP = 3  # levels of luma between one frame and the next


def source(first=0, size="128x96", seconds=SECONDS):
    """Options of an input whose frames are numbered from `first`."""
    luma = f"geq=lum='16+(N+{first})*{STEP}':cb=128:cr=128"
    return ["-f", "lavfi", "-i", f"color=black:s={size}:r={RATE}:d={seconds},{luma}"]


B_FRAMES_IN_AVI = ("-c:v", "mpeg4", "-bf", "2", "-q:v", "2")
PROGRAM_STREAM = ("-c:v", "mpeg2video", "-q:v", "2", "-r", "25")
X264 = ("-c:v", "libx264", "-bf", "2", "-g", "20", "-preset", "veryfast")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """films(name, *options, inputs=...): the bytes of a film of 6 s, 10 frames a second, that
    ffmpeg writes."""
    folder = tmp_path_factory.mktemp("films")

    @functools.cache  # several tests damage the same film
    def film(name, *options, inputs):
        command = [ffmpeg_binary(), "-y", "-v", "error", *inputs, *options]
        if "-f" in options:  # as to a pipe: the header cannot be written again
            return subprocess.run(
                [*command, "-"], check=True, capture_output=True
            ).stdout
        subprocess.run([*command, str(folder / name)], check=True)
        return (folder / name).read_bytes()

    return film


@pytest.fixture
def write_film(films, tmp_path):
    """write_film(name, *options, inputs=...): such a film as a file."""

    def write(name, *options, inputs=None):
        path = tmp_path / name
        path.write_bytes(films(name, *options, inputs=tuple(inputs or source())))
        return path

    return write


def numbers(path, count, *window, decoder="auto"):
    """The numbers of the frames that are decoded."""
    clip = decode_video(path, count, 32, *window, decoder=decoder)
    middle = clip.frames[:, 8:24, 8:24].mean(axis=(1, 2, 3))
    luma = middle * 219 / 255  # full range to limited
    return np.round(luma / STEP).astype(int).tolist()


def every(first, last, count):
    return [first + i * (last - first) // count for i in range(count)]


LENGTHS = [
    ("live.webm", ("-c:v", "libvpx", "-f", "webm")),
    ("pipe.mkv", (*X264, "-f", "matroska")),
    ("live.flv", (*X264, "-f", "flv")),
    ("live.mp4", (*X264, "-movflags", "empty_moov+frag_keyframe", "-f", "mp4")),
    ("live.ts", (*X264, "-f", "mpegts")),
    ("live.avi", ("-c:v", "mpeg4", "-f", "avi")),
    ("live.ogv", ("-c:v", "libtheora", "-q:v", "9", "-f", "ogg")),
    ("a.mkv", X264),
    ("a.avi", B_FRAMES_IN_AVI),
    ("a.h264", X264),
    ("a.mpg", PROGRAM_STREAM),
]


@pytest.mark.parametrize(
    ("name", "options"), LENGTHS, ids=[name for name, _ in LENGTHS]
)
def test_the_length_is_known_whatever_the_container_states(write_film, name, options):
    path = write_film(name, *options)
    assert video_seconds(path) == pytest.approx(SECONDS, abs=0.11)
    assert decode_video(path, 4, 32).duration == pytest.approx(SECONDS, abs=0.11)


@pytest.mark.parametrize("stated", [0.5, 720.0])
def test_a_stated_length_that_is_wrong_is_not_believed(write_film, stated):
    """Matroska's is a float of eight bytes, milliseconds."""
    path = write_film("a.mkv", *X264)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 1000 * stated)
    path.write_bytes(content)

    assert video_seconds(path) == pytest.approx(SECONDS, abs=0.11)


def test_an_mp4_without_composition_offsets_is_read_in_the_decoders_order(write_film):
    """Its times are those of decoding; the frames that the decoder returns get them in order."""
    path = write_film("a.mp4", *X264, "-use_editlist", "0")
    content = path.read_bytes()
    assert content.count(b"ctts") == 1
    path.write_bytes(content.replace(b"ctts", b"free"))

    assert numbers(path, 60) == list(range(60))
    for first in (0, 1, 2, 3, 19, 20, 21, 58):
        assert numbers(path, 1, first / RATE) == [first]
    assert numbers(path, 4, 2.5, 4.5) == every(25, 45, 4)

    path.write_bytes(path.read_bytes()[: len(content) // 2])
    with pytest.raises(DecodeError):
        decode_video(path, 4, 32)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", (*X264, "-use_editlist", "0")),
        ("a.avi", B_FRAMES_IN_AVI),
        ("a.mkv", ("-c:v", "vc2")),  # Dirac
        ("a.mov", ("-c:v", "qtrle", "-pix_fmt", "pal8")),
    ],
)
def test_a_window_far_from_the_start_has_its_frames(
    write_film, monkeypatch, name, options
):
    monkeypatch.setattr("alpro.shards.seeking.FAR_SECONDS", 1.0)
    monkeypatch.setattr("alpro.shards.seeking.BACK_SECONDS", 0.5)
    path = write_film(name, *options)
    path.write_bytes(path.read_bytes().replace(b"ctts", b"free"))

    assert numbers(path, 4, 4.11, 5.11) == every(41, 51, 4)


def cut_film(film, start, path):
    """Write the film from a second on, without encoding it again."""
    command = [ffmpeg_binary(), "-v", "error", "-ss", str(start), "-i", str(film)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)


CUTS = [("a.mp4", X264), ("a.mov", X264), ("a.ogv", ("-c:v", "libtheora", "-q:v", "9"))]


@pytest.mark.parametrize(("name", "options"), CUTS)
@pytest.mark.parametrize("start", [0.5, 1.3, 2.1])
def test_a_film_that_was_cut_without_encoding_begins_at_the_cut(
    write_film, tmp_path, name, options, start
):
    """By an edit list in MP4; an Ogg file keeps what lies before, with senseless times."""
    whole = write_film(name, *options)
    path = tmp_path / f"cut-{name}"
    cut_film(whole, start, path)

    clip_numbers = numbers(path, 5)

    first = round(start * RATE)
    if name == "a.ogv":  # at the key frame before the cut
        first = clip_numbers[0]
    assert clip_numbers == every(first, 60, 5)
    assert decode_video(path, 4, 32).duration == pytest.approx(
        (60 - first) / RATE, abs=0.11
    )
    assert numbers(path, 2, 2.0, 3.0) == every(first + 20, first + 30, 2)


WAYS = ("seek", "order", "ffmpeg")
TWO = ["-map", "0", "-map", "1"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", B_FRAMES_IN_AVI),
        ("a.ts", X264),
    ],
)
@pytest.mark.parametrize("way", ["auto", "order", "ffmpeg"])
def test_of_two_video_streams_the_first_is_decoded(write_film, name, options, way):
    path = write_film(name, *TWO, *options, inputs=source() + source(40, "64x48", 2))

    assert numbers(path, 6, decoder=way) == every(0, 60, 6)
    assert numbers(path, 4, 4.01, 6.0, decoder=way) == every(40, 60, 4)
    clip = decode_video(path, 2, 32, decoder=way)
    assert clip.width == 128
    assert clip.height == 96


def test_frames_are_counted_on_when_the_size_changes(write_film, tmp_path):
    first = write_film("a.mpg", *PROGRAM_STREAM, inputs=source(seconds=3))
    larger = source(30, "192x128", seconds=3)
    second = write_film(
        "b.mpg", *PROGRAM_STREAM, "-output_ts_offset", "3", inputs=larger
    )
    path = tmp_path / "joined.mpg"
    path.write_bytes(first.read_bytes() + second.read_bytes())

    # At 25 frames a second, of 10: within one.
    assert numbers(path, 6) == pytest.approx(every(0, 60, 6), abs=1)
    assert numbers(path, 4, 4.0, 6.0) == pytest.approx(every(40, 60, 4), abs=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ts", X264),
        ("a.mpg", PROGRAM_STREAM),
        ("a.mkv", X264),
        ("a.h264", X264),
    ],
)
def test_a_clock_that_restarts_goes_on_after_the_joint(
    write_film, tmp_path, name, options
):
    path = tmp_path / f"joined-{name}"
    path.write_bytes(2 * write_film(name, *options).read_bytes())

    assert numbers(path, 6) == pytest.approx([0, 20, 40, 0, 20, 40], abs=1)
    assert decode_video(path, 6, 32).duration == pytest.approx(2 * SECONDS, abs=0.2)
    assert decode_video(path, 6, 32, 0.0, 3.0).duration == pytest.approx(3.0)


def test_a_joint_that_looks_corrupt_is_rejected(write_film, tmp_path):
    path = tmp_path / "joined.ts"
    recording = write_film("a.ts", *X264).read_bytes()
    path.write_bytes(recording[: -5 * 188] + recording)
    with pytest.raises(DecodeError, match="corrupt"):
        decode_video(path, 4, 32)

    path = tmp_path / "chain.ogv"
    one = write_film("a.ogv", "-c:v", "libtheora", "-q:v", "9").read_bytes()
    path.write_bytes(2 * one)
    with pytest.raises(DecodeError, match="unreadable"):
        decode_video(path, 4, 32)


def test_what_pyav_cannot_decode_is_decoded_from_a_copy_by_ffmpeg(write_film):
    """AVS2, of Chinese television."""
    command = [ffmpeg_binary(), "-v", "error", "-encoders"]
    encoders = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout
    if "libxavs2" not in encoders:
        pytest.skip("this ffmpeg has no encoder of AVS2")
    path = write_film("a.mkv", "-c:v", "libxavs2")

    with pytest.raises(DecodeError, match="no decoder"):
        decode_video(path, 4, 32, decoder="order")
    assert numbers(path, 6) == every(0, 60, 6)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_all_ways_scale_as_the_ffmpeg_binary(write_film, pixels, interlaced):
    """They place chroma alike, and the fields of an interlaced frame are not scaled apart."""
    options = ["-c:v", "libx264", "-qp", "0", "-pix_fmt", pixels]
    if interlaced:
        options += ["-vf", "interlace", "-flags", "+ilme+ildct", "-x264opts", "tff=1"]
    inputs = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=10:d=2"]
    path = write_film("a.mkv", *options, inputs=inputs)

    frames = [decode_video(path, 1, 48, decoder=way).frames[0] for way in WAYS]

    scale = "scale=48:48:flags=bicubic+accurate_rnd:in_h_chr_pos=0"
    command = [
        ffmpeg_binary(),
        "-v",
        "error",
        "-i",
        str(path),
        "-vf",
        scale,
        "-frames:v",
        "1",
    ]
    raw = ["-pix_fmt", "gbrp", "-f", "rawvideo", "-"]
    written = subprocess.run([*command, *raw], check=True, capture_output=True).stdout
    green, blue, red = np.frombuffer(written, np.uint8).reshape(3, 48, 48).astype(int)
    expected = np.stack([red, green, blue], axis=2)
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    assert np.abs(frames[0] - expected).max() <= 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_metadata_that_are_not_utf8_are_no_error(write_film, name):
    path = write_film(name, "-c:v", "mpeg4", "-q:v", "2", "-metadata", b"title=caf\xe9")
    assert b"caf\xe9" in path.read_bytes()
    assert video_seconds(path) == pytest.approx(SECONDS, abs=0.11)
    assert numbers(path, 6) == every(0, 60, 6)


LATE_SOUND = bytes.fromhex("08 000004 001700 00 000000 af001210 0000000f")  # AAC


@pytest.mark.parametrize(
    ("name", "tail"), [("a.ts", bytes(1 << 20)), ("a.flv", LATE_SOUND)]
)
def test_what_follows_the_frames_is_no_error(write_film, name, tail):
    """Zeros of a file that a recorder allocated, and a stream that begins late."""
    path = write_film(name, *X264)
    path.write_bytes(path.read_bytes() + tail)

    assert video_seconds(path) == pytest.approx(SECONDS, abs=0.11)
    assert numbers(path, 6) == every(0, 60, 6)


def test_frames_before_the_first_key_frame_are_not_counted(write_film, tmp_path):
    """Of a broadcast that begins within an open group: in the whole film and in a window."""
    open_groups = "open-gop=1:bframes=3:scenecut=0:keyint=8"
    film = write_film("a.ts", "-c:v", "libx264", "-x264-params", open_groups)
    path = tmp_path / "cut.ts"
    cut_film(film, 1.3, path)

    first = numbers(path, 1)[0]

    assert first > 0
    assert numbers(path, 4, 1.01, 2.01) == every(first + 10, first + 20, 4)

    first_lost = ("-sc_threshold", "1000000000", "-bsf:v", "noise=drop=not(n)")
    film = write_film("a.avi", *B_FRAMES_IN_AVI, "-g", "12", *first_lost)
    assert numbers(film, 4) == every(12, 60, 4)
    assert video_seconds(film) == pytest.approx(4.8, abs=0.21)
