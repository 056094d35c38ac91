"""A bad file never stops a worker, whatever its time, memory and pixels, and a malicious one opens
no other file."""

import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.shards import clip, seeking
from alpro.shards.clip import DecodeError, Limits, Reason
from alpro.shards.decoding import decode_video
from alpro.shards.file_type import VIDEO_EXTENSIONS
from alpro.shards.reader import ShardReader
from alpro.stages import decode_videos
from tests.conftest import ROOT, decode_data, write_lines
from tests.shards.conftest import Clock, refusal
from tests.shards.test_decoding import every_way
from tests.shards.test_decoding_formats import moving

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells how much memory a process holds"
)


@pytest.mark.parametrize("way", ["seek", "order"])
def test_a_slow_decoder_is_stopped_at_any_point(make_video, numbers, monkeypatch, way):
    """Before it opens the file, while it reads packets and while it decodes; in any thread. The
    next starts anew."""
    path = make_video("a.mp4", 24)
    whole = Clock()
    reasons = []
    monkeypatch.setattr(clip, "time", whole)
    decode_video(path, 4, 32, decoder=way)
    # Once for each packet as it is read, and as it is decoded.
    assert whole.readings > 2 * 24

    def decode_slowly():
        for readings in range(1, whole.readings):
            monkeypatch.setattr(clip, "time", Clock(readings))
            reasons.append(refusal(path, way, Limits(timeout=10)))

    thread = threading.Thread(target=decode_slowly)
    thread.start()
    thread.join()

    assert reasons == ["too slow: longer than 10 s"] * (whole.readings - 1)
    monkeypatch.setattr(clip, "time", Clock())
    assert numbers(decode_video(path, 2, 32, decoder=way)) == [0, 12]


def test_all_ways_share_the_time_limit(make_video, monkeypatch):
    """The request has one, whatever has been tried before."""
    path = make_video("a.mp4", 24)
    path.write_bytes(b"no video " * 100)
    whole = Clock()
    monkeypatch.setattr(clip, "time", whole)
    refusal(path, "auto", Limits(timeout=10))

    for readings in range(1, whole.readings):
        monkeypatch.setattr(clip, "time", Clock(readings))
        assert refusal(path, "auto", Limits(timeout=10)) == "too slow: longer than 10 s"


@pytest.fixture
def write_ffmpeg(tmp_path, monkeypatch):
    """write_ffmpeg(script): the shell script is the ffmpeg of this machine."""

    def write(script):
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return write


def test_a_hanging_ffmpeg_is_killed(make_video, write_ffmpeg):
    write_ffmpeg("exec sleep 600")
    path = make_video("a.mp4", 4)

    assert refusal(path, "ffmpeg", Limits(timeout=0.2)) == "too slow: longer than 0.2 s"


@every_way
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.ts", "libx264"),
        ("a.avi", "mjpeg"),
    ],
)
def test_a_video_with_too_many_pixels_is_rejected(make_video, way, name, codec):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = make_video(name, 2, codec=codec, pixels=pixels, size=(640, 480))

    reason = refusal(path, way, Limits(max_pixels=640 * 480 - 1))

    # Motion JPEG's size is looked up in its frames, and FFmpeg then does not say why it did not.
    is_vague = codec == "mjpeg" or way == "ffmpeg"
    assert reason.startswith(("too large", "unreadable") if is_vague else "too large")
    decode_video(path, 2, 32, decoder="auto", limits=Limits(max_pixels=640 * 480))


@every_way
def test_a_size_that_lies_or_grows_is_rejected(make_video, way):
    """Matroska stores the size in any number of bytes; of two joined transport streams the header
    has the first's."""
    content = make_video("a.mkv", 2, codec="ffv1", pixels="bgr0").read_bytes()
    path = make_video("b.mkv", 1)
    at = content.index(b"\xb0\x81\x40\xba\x81\x30")  # PixelWidth 64, PixelHeight 48
    path.write_bytes(content[:at] + b"\xb0\x83\x0f\x42\x40" + content[at + 3 :])
    first = make_video("a.ts", 12).read_bytes()
    larger = make_video("b.ts", 12, size=(640, 480)).read_bytes()
    both = path.with_name("both.ts")
    both.write_bytes(first + larger)

    assert refusal(path, way).startswith(("too large: 1000000 x 48", "unreadable"))
    reason = refusal(both, way, Limits(max_pixels=100_000))
    assert reason.startswith(("too large", "unreadable"))


@on_linux
def test_the_memory_limit_fails_allocations_and_the_process_survives():
    """In a new process: this one may reuse memory that it has freed."""
    program = """
import resource
import av
import numpy as np
from alpro.shards.memory import memory_limit
before = resource.getrlimit(resource.RLIMIT_DATA)
for mib in (100, 10):
    try:
        with memory_limit(64 << 20):
            np.ones(mib << 20, np.uint8)
            print("done")
    except MemoryError:
        print("failed")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.split() == ["failed", "done"], done.stderr


def test_decoding_is_imported_where_a_process_has_no_limits():
    """On Windows, with the processor of an exported model."""
    program = "import sys; sys.modules['resource'] = None; import alpro.shards.decoding"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def noise(number):
    return np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)


FORMS = [("a.mp4", "libx264"), ("a.mpg", "mpeg2video"), ("a.h264", "libx264")]


@pytest.mark.parametrize(("name", "codec"), FORMS)
def test_corrupt_frames_are_not_kept(make_video, name, codec):
    """Forty changed bytes of a film: if PyAV accepts the file, ffmpeg reports no error either."""
    path = make_video(
        name, 24, {"g": "24", "bf": "0"}, picture=noise, codec=codec, rate=25
    )
    content = path.read_bytes()
    refused = []
    for seed in range(15):
        at = int(np.random.default_rng(seed).integers(2000, len(content) - 2500))
        path.write_bytes(content[:at] + bytes(40) + content[at + 40 :])
        try:
            frames = decode_video(path, 24, 32).frames
        except DecodeError as error:
            refused.append(error.reason)
        else:
            reference = decode_video(path, 24, 32, decoder="ffmpeg").frames
            assert np.abs(frames.astype(int) - reference).mean() < 8
    assert len(refused) > 5
    assert set(refused) == {"unreadable"}


def film_with_sound(path, seconds, sound_seconds):
    """A film of 10 frames a second, 0.1 s of sound after each, whose index precedes them."""
    front = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=front) as out:
        pictures = out.add_stream(
            "mpeg4" if path.suffix == ".avi" else "libx264", rate=10
        )
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream(
            "pcm_s16le" if path.suffix == ".avi" else "aac", rate=8000
        )
        for number in range(10 * max(seconds, sound_seconds)):
            if number < 10 * seconds:
                picture = av.VideoFrame.from_ndarray(noise(number), format="rgb24")
                out.mux(pictures.encode(picture))
            if number < 10 * sound_seconds:
                noises = np.random.default_rng(number).integers(
                    -9999, 9999, (1, 800), np.int16
                )
                heard = av.AudioFrame.from_ndarray(noises, format="s16", layout="mono")
                heard.sample_rate = 8000
                out.mux(sound.encode(heard))
        out.mux([*pictures.encode(), *sound.encode()])
    return path.read_bytes()


@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi", "flv"])
def test_a_file_that_was_cut_off_is_rejected(tmp_path, extension):
    """Wherever the cut is, also between two packets: a caption is about the whole video."""
    path = tmp_path / f"a.{extension}"
    content = film_with_sound(path, 4, 4)
    assert decode_video(path, 4, 32).duration == pytest.approx(4.0, abs=0.05)

    for size in range(len(content) // 10, len(content) * 7 // 10, len(content) // 40):
        path.write_bytes(content[:size])
        assert refusal(path, "auto").startswith("unreadable")


@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi", "flv"])
def test_a_film_may_be_shorter_than_its_sound(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    film_with_sound(path, 2, 6)

    assert decode_video(path, 4, 32).duration == pytest.approx(2.0, abs=0.05)


def test_a_missing_segment_is_rejected(make_video, monkeypatch):
    """The index at the beginning names frames that were cut off."""
    monkeypatch.setattr(seeking, "FAR_SECONDS", 0.5)
    monkeypatch.setattr(seeking, "BACK_SECONDS", 0.5)
    front = {"movflags": "faststart"}
    path = make_video("a.mp4", 60, {"g": "5"}, picture=noise, container=front)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 8 // 10])

    assert len(decode_video(path, 4, 32, 2.0, 3.0).frames) == 4
    assert refusal(path, "auto", start=4.0, end=6.0).startswith("unreadable")


SCRIPTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\n{}\n#EXT-X-ENDLIST\n",
    "hls of a key": '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:1,\n{}\n',
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>{}</BaseURL></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/9\n",
    "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='{}'/></svg>",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_cannot_read_other_files_or_contact_hosts(tmp_path, make_video, kind):
    """Under any name. Otherwise a data set could copy other local files of its reader into its
    frames."""
    secret = make_video("secret.mp4", 4)
    (tmp_path / "file.ts").symlink_to(secret)
    # Must not receive a connection.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = str(server.getsockname()[1])
        hosts = [f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}"]
        for name in ("secret.mp4", "file.ts", str(secret), f"file:{secret}", *hosts):
            script = SCRIPTS[kind].replace("{}", name).replace("{port}", port)
            for extension in (
                ".mp4",
                ".m3u8",
                ".ffconcat",
                ".sdp",
                ".mpd",
                ".ts",
                ".jpg",
            ):
                path = tmp_path / f"list{extension}"
                path.write_text(script)
                # "auto" asks ffmpeg at last.
                way = "auto" if extension == ".mp4" else "seek"
                assert refusal(path, way).startswith(("unreadable", "no video"))
                assert refusal(path, way, kind="image").startswith("unreadable")
        with pytest.raises(BlockingIOError):
            server.accept()


NAMES = [
    "-i",
    "--help.mp4",
    "it's.mp4",
    'say "x".mp4',
    "two\nlines.mp4",
    "concat:a.mp4|b.mp4",
]
NAMES += [
    "subfile,,start,0,end,0,,:a.mp4",
    "http:a.mp4",
    "file:a.mp4",
    "pipe:0",
    "a%03d.mp4",
]
NAMES += ["[v][a];null.mp4", "$(touch gone).mp4", "Grüße 世界 🎬.mp4", "a\udcff.mp4"]


def test_file_names_are_not_interpreted(tmp_path, make_video, numbers, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    video = make_video("any.mp4", 4)
    for name in NAMES:
        video = video.rename(tmp_path / "here" / name)
        for way in ("auto", "order", "ffmpeg"):
            assert numbers(decode_video(Path(name), 4, 32, decoder=way)) == [0, 1, 2, 3]
        assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


# Name, codec and options of a small video of each kind.
VIDEOS = [
    ("long.mp4", "libx264", {"g": "250", "bf": "3"}),
    ("front.mp4", "libx264", {"g": "5", "bf": "0"}),
    ("a.mkv", "libx264", {"g": "8"}),
    ("a.mov", "mjpeg", {}),
    ("a.avi", "mpeg4", {"g": "6"}),
    ("a.webm", "libvpx", {"g": "10"}),
    ("a.ts", "libx264", {"g": "6"}),
    ("a.mpg", "mpeg2video", {"g": "6"}),
    ("a.gif", "gif", {}),
    ("a.flv", "flv", {"g": "6"}),
]
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


@pytest.fixture
def whole(make_video, tmp_path):
    """The contents of a file of each kind: 20 frames of 64 x 48 with much going on, or one."""
    picture = moving(0)
    files = [tmp_path / name for name in ("a.jpg", "a.png", "a.webp", "a.bmp")]
    for path in files:
        Image.fromarray(picture(0)).save(path)
    for name, codec, options in VIDEOS:
        more = {
            "codec": codec,
            "pixels": PIXELS.get(codec, "yuv420p"),
            "rate": 10 if codec == "gif" else 25,
        }
        front = {"movflags": "faststart"} if name == "front.mp4" else {}
        files.append(make_video(name, 20, options, picture, container=front, **more))
    return {path: path.read_bytes() for path in files}


def damage(data, other, chance):
    """Flips bits, or replaces a part: by nothing, by a part of another file or of this one, or by
    senseless numbers where sizes, times and tables are."""
    if not data:
        return
    at = chance.randrange(min(len(data), chance.choice([64, 400, len(data)])))
    size = chance.choice([1, 4, 8, 200, 600, len(data)])
    if chance.random() < 0.35:
        for place in (
            chance.randrange(len(data)) for _ in range(chance.choice([1, 3, 30]))
        ):
            data[place] ^= 1 << chance.randrange(8)
        return
    start = chance.randrange(len(other))
    inserted = [
        b"",
        other[start:],
        data[at : at + 2 * size],
        *(byte * size for byte in (b"\xff", b"\x00", b"\x7f")),
    ]
    data[at : at + size] = chance.choice(inserted)


def mutate(whole, folder, chance, number):
    """Write a damaged file, and return its row: some have another kind's ending, or a window."""
    path, other = chance.choices(list(whole), k=2)
    data = bytearray(whole[path])
    for _ in range(chance.choice([1, 1, 2])):
        damage(data, whole[other], chance)
    extension = (other if chance.random() < 0.1 else path).suffix
    name = f"{number:05d}{extension}"
    (folder / name).write_bytes(data)
    is_window = extension in VIDEO_EXTENSIONS and chance.random() < 0.3
    window = {"start": 0.2, "end": 0.6} if is_window else {}
    return {
        "id": name,
        "path": name,
        "caption": f"number {number}",
        "split": "train",
    } | window


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_every_mutated_file_is_a_sample_or_a_reject(count, whole, tmp_path, resources):
    chance = random.Random(7)
    rows = [mutate(whole, tmp_path, chance, number) for number in range(count)]
    manifest = write_lines(tmp_path / "manifest.jsonl", rows)
    config = decode_videos.Config(frames=4, size=32, timeout=10, max_reject_share=1)

    decode_data(config, manifest, tmp_path / "out", resources)

    rejects = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    reader = ShardReader(tmp_path / "out")
    ids = [*reader.column("id").to_pylist(), *(row["id"] for row in rejects)]
    assert sorted(ids) == [row["id"] for row in rows]
    assert {row["reason"] for row in rejects} <= set(get_args(Reason))
    for sample in map(reader.__getitem__, range(len(reader))):
        height, width, channels = sample.frames().shape[1:]
        # Images keep their aspect ratio, and are never enlarged.
        is_image = sample.metadata["kind"] == "image"
        assert channels == 3
        assert (height, width) == (32, 32) or (
            is_image and 1 <= min(height, width) <= 32
        )
    assert min(len(reader), len(rejects)) > count / 10
