"""A decoder that kills its process. The processes of a pool import this module, with a
configuration that replaces the decoders of `decode_videos`."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from alpro.pool import EXIT_TIMEOUT, Died
from alpro.shards import decoding
from alpro.stages import decode_videos


def note_or_die(path: Path) -> None:
    """Leave a line for each try. A file ends its process, as its name says."""
    log = path.with_suffix(".log")
    with open(log, "a") as file:
        print("tried", file=file)
    tries = len(log.read_text().splitlines())

    if path.stem.startswith("crashes") or (
        path.stem.startswith("unlucky") and tries == 1
    ):
        end_process(Died("its process ended with status -9"))
    if path.stem.startswith("hangs"):
        end_process(Died("its process took too long", timed_out=True))


class Death(BaseException):
    """The end of a process that a test only imagines."""


def end_process(death: Died) -> None:
    """End the process of a pool. Raises Death if the test runs in its own process."""
    if parent_process() is None:
        raise Death(death)
    if death.timed_out:
        os._exit(EXIT_TIMEOUT)
    os.kill(os.getpid(), signal.SIGKILL)


def each_in_this_process(
    tasks: Iterable[Any], work: Callable[[Any], Any], *_: object
) -> Iterator[tuple[Any, Any]]:
    """Stand for `each`: a task whose process would end is `Died`."""
    for task in tasks:
        try:
            result = work(task)
        except Death as death:
            (result,) = death.args
        yield task, result


def decode_image(path: Path, *args: Any, **options: Any) -> Any:
    note_or_die(path)
    return decoding.decode_image(path, *args, **options)


def decode_video(path: Path, *args: Any, decoder: Any = "auto", **options: Any) -> Any:
    """Only PyAV crashes."""
    if decoder == "auto":
        note_or_die(path)
    return decoding.decode_video(path, *args, decoder=decoder, **options)


class DyingDecoder(decode_videos.Config):
    """A configuration that replaces the decoders in the process that unpickles it."""

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        decode_videos.decode_image = decode_image
        decode_videos.decode_video = decode_video


def count_tries(folder: Path) -> int:
    """Return how often files of a folder were decoded."""
    return sum(len(log.read_text().splitlines()) for log in folder.glob("*.log"))
