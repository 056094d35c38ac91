"""A decoder that kills its process. The processes of a pool import this module: it imports little,
so that a new process takes one second and not four."""

import os
import signal
from pathlib import Path

from alpro.shards.decoding import decode_image
from alpro.stages import decode_videos
from alpro.stages.execution.workers import EXIT_TIMEOUT


def decode_or_die(path: Path, *args, **options):
    """decode_image, except that an image named `kills` kills its process, and one named `hangs`
    exits as after a timeout."""

    if path.stem == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.stem == "hangs":
        os._exit(EXIT_TIMEOUT)
    return decode_image(path, *args, **options)


class DyingDecoder(decode_videos.Config):
    """A configuration that replaces `decode_image` in the process that unpickles it."""

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        decode_videos.decode_image = decode_or_die
