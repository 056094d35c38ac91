"""Malicious files: only the file itself is opened."""

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from alpro.shards.decoding.decode import Clip, DecodeError, decode_image, decode_video, ffmpeg_binary
from alpro.shards.schema import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

pytest.importorskip("av")
pytest.importorskip("ffmpeg")

Make = Callable[..., Path]
Numbers = Callable[[Clip], list[int]]

every_decoder = pytest.mark.parametrize("decoder", ["pyav", "ffmpeg", "auto"])

SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
SCRIPTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\n{}\n#EXT-X-ENDLIST\n",
    "hls of a key": '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:1,\n{}\n',
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>{}</BaseURL></MPD>',
    "image flow": '<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM">{}</AssetMap>',
    "sdp": SDP,
    "subtitles": "1\n00:00:00,000 --> 00:00:02,000\n<img src='{}'>\n",
    "smil": "<smil><body><video src='{}'/></body></smil>",
    "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='{}'/></svg>",
}


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A port of this machine that must not receive a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def called(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def no_frames(path: Path, decoder) -> None:
    with pytest.raises(DecodeError) as error:
        decode_video(path, 4, 32, decoder=decoder)
    assert error.value.reason in ("unreadable", "no video")
    assert "secret" not in error.value.detail


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_script_cannot_read_other_files_or_contact_hosts(tmp_path: Path, make_video: Make, listening, script: str):
    """Otherwise a data set could copy other local files of its reader into its frames."""
    port = listening.getsockname()[1]
    (tmp_path / "file.ts").symlink_to(make_video("secret.ts", 4))
    (tmp_path / "secret.mp4").write_bytes(make_video("other.mp4", 4).read_bytes())
    names = ["secret.mp4", "file.ts", f"{tmp_path}/secret.mp4", f"file:{tmp_path}/secret.mp4"]
    names += [f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}"]
    for decoder in ("pyav", "ffmpeg", "auto"):
        for number, name in enumerate(names):
            text = script.replace("{}", name).replace("{port}", str(port))
            for extension in (".mp4", ".m3u8", ".ffconcat", ".sdp", ".mpd"):
                path = tmp_path / f"list{number}{extension}"
                path.write_text(text)
                if extension == ".mp4" or decoder == "pyav":
                    no_frames(path, decoder)
        assert not called(listening)


def test_a_playlist_is_rejected_under_any_name(tmp_path: Path, make_video: Make, listening):
    (tmp_path / "secret.ts").write_bytes(make_video("a.ts", 4).read_bytes())
    for extension in sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS):
        path = tmp_path / f"list{extension}"
        for name in ("secret.ts", f"http://127.0.0.1:{listening.getsockname()[1]}/a.ts"):
            path.write_text(SCRIPTS["hls"].replace("{}", name))
            no_frames(path, "auto")
            with pytest.raises(DecodeError, match="unreadable"):
                decode_image(path, 32)
        assert not called(listening)


@every_decoder
def test_a_video_with_frames_in_another_file_is_rejected(tmp_path: Path, make_video: Make, decoder):
    """QuickTime tracks can do so by an alias in the data reference."""
    secret = make_video("secret.mov", 4, codec="mjpeg", pixels="yuvj420p")
    content = bytearray(secret.read_bytes())
    at = content.find(b"dref") + 12  # name, version and flags, number of entries; then the entry's size
    assert content[at + 4 : at + 8] == b"url "
    content[at + 4 : at + 8] = b"alis"
    content[at + 8 : at + 12] = struct.pack(">I", 0)  # not: in this file
    data = content.find(b"mdat")
    content[data + 4 : data + 3000] = bytes(2996)  # the pictures are not here
    (tmp_path / "a.mov").write_bytes(content)
    no_frames(tmp_path / "a.mov", decoder)


NAMES = [
    "-y.mp4",
    "-i",
    "--help.mp4",
    "a b.mp4",
    "it's.mp4",
    'say "x".mp4',
    "two\nlines.mp4",
    "concat:a.mp4|b.mp4",
    "subfile,,start,0,end,0,,:a.mp4",
    "http:a.mp4",
    "file:a.mp4",
    "pipe:0",
    "a%03d.mp4",
    "a*.mp4",
    "[v][a];null.mp4",
    "$(touch gone).mp4",
    "`touch gone`.mp4",
    "Grüße 世界 🎬.mp4",
    "a\udcff.mp4",
]


def test_file_names_are_not_interpreted(tmp_path: Path, make_video: Make, numbers: Numbers, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    video = make_video("any.mp4", 4)
    for name in NAMES:
        video = video.rename(tmp_path / "here" / name)
        for decoder in ("pyav", "ffmpeg", "auto"):
            assert numbers(decode_video(Path(name), 4, 32, decoder=decoder)) == [0, 1, 2, 3]
        assert [path.name for path in (tmp_path / "here").iterdir()] == [name]


@every_decoder
def test_file_metadata_is_not_parsed_as_decoder_output(make_video: Make, numbers: Numbers, decoder):
    """A title that looks like a line of ffmpeg's log with frame times."""
    path = make_video("a.mkv", 4)
    line = "\n[Parsed_showinfo_0 @ 0x1] n:   0 pts: 9 pts_time:9 duration: 1 fmt:yuv420p s:8x8 i:P\n"
    titled = path.with_name("titled.mkv")
    command = [ffmpeg_binary(), "-v", "error", "-i", str(path), "-c", "copy", "-metadata", f"title={line}", str(titled)]
    subprocess.run(command, check=True)
    assert b"[Parsed_showinfo_0 @" in titled.read_bytes()
    clip = decode_video(titled, 4, 32, decoder=decoder)
    assert numbers(clip) == [0, 1, 2, 3]
    assert (clip.width, clip.height) == (64, 48)
    assert np.isclose(clip.duration, 0.4)
