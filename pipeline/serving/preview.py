"""Videos as browsers play them, and single frames in their original shape."""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from alpro.shards.decoding import CONTAINERS, DecodeError, decode_image, decode_video, ffmpeg_binary

MAX_SECONDS = 60.0  # of a video; the rest is left out
MAX_WIDTH = 640  # pixels
TIMEOUT = 120.0  # seconds for a conversion


def write_webm(path: Path, out: Path, start: float | None = None, end: float | None = None) -> None:
    """Converts a video, or its part between `start` and `end` seconds, to WebM (VP8, no sound), which every browser
    plays. Raises DecodeError if ffmpeg cannot, and InputError if there is no ffmpeg."""
    seconds = MAX_SECONDS if end is None else min(MAX_SECONDS, end - (start or 0.0))
    command = [ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    command += ["-ss", str(start or 0.0), "-t", str(seconds), "-i", str(path.absolute()), "-map", "0:V:0"]
    command += ["-vf", f"scale='2*ceil(min(iw,{MAX_WIDTH})/2)':-2", "-pix_fmt", "yuv420p", "-c:v", "libvpx"]
    command += ["-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-f", "webm", str(out)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise DecodeError("too slow", f"longer than {TIMEOUT:g} s") from error
    if done.returncode or not out.stat().st_size:
        raise DecodeError("unreadable", (done.stderr.strip().splitlines() or ["no frame"])[-1].split("] ")[-1])


def write_frame(
    path: Path, out: Path, image: bool = False, start: float | None = None, end: float | None = None
) -> None:
    """Writes the middle frame of a video, or an image, as JPEG in its original shape, at most MAX_WIDTH wide.

    Raises DecodeError.
    """
    clip = decode_image(path, MAX_WIDTH) if image else decode_video(path, 3, MAX_WIDTH, start, end)
    save_frame(clip.frames[len(clip.frames) // 2], out, clip.width / clip.height)


def save_frame(frame: np.ndarray, out: Path, ratio: float | None = None) -> None:
    """Saves a frame (H, W, 3) uint8 as JPEG, with another ratio of width to height if one is passed."""
    picture = Image.fromarray(frame)
    if ratio is not None:
        width, height = (MAX_WIDTH, MAX_WIDTH / ratio) if ratio >= 1 else (MAX_WIDTH * ratio, MAX_WIDTH)
        picture = picture.resize((max(1, round(width)), max(1, round(height))))
    picture.save(out, "JPEG", quality=90)


def save_animation(frames: np.ndarray, out: Path, milliseconds: int = 400) -> None:
    """Saves frames (T, H, W, 3) uint8 as an animated WebP, which repeats."""
    first, *others = map(Image.fromarray, frames)
    first.save(out, "WEBP", save_all=True, append_images=others, duration=milliseconds, loop=0, quality=80)
